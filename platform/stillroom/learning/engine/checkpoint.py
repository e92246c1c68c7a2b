"""Checkpoints that every engine can read, with any number of workers.

Every trained tensor and its two AdamW moments are stored unpartitioned, in float32, by name.
DeepSpeed's own checkpoints hold the workers' slices, which only the same number of workers can
read, in pickles, which can run code. No memory ever holds a whole model: tensors are gathered one
at a time, each is kept and written by one worker, and readers map the files.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stillroom.learning.gather import current_shard

FILE_PATTERN = "trained-*.safetensors"
FILE_BYTES = 2**30  # of a file: about as much waits in a worker's memory
WEIGHT = "weight"
TENSOR_KINDS = (WEIGHT, "exp_avg", "exp_avg_sq")  # the moments as torch's AdamW names them


def write_checkpoint(folder: Path, step: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Writes this worker's share of a checkpoint; all workers' shares together are the complete
    checkpoint.

    Called on every worker.

    Args:
        tensors: (`KIND.NAME`, whole tensor), the same on each worker and in the same order.
    """
    shard = current_shard()
    assigned = [0] * shard.world  # bytes of each worker
    pending: dict[str, torch.Tensor] = {}
    files = 0

    def flush() -> None:
        nonlocal files
        if pending:
            file = folder / FILE_PATTERN.replace("*", f"{shard.rank:05d}-{files:05d}")
            save_file(pending, file, {"step": str(step)})
            pending.clear()
            files += 1

    for name, tensor in tensors:
        writer = assigned.index(min(assigned))
        assigned[writer] += tensor.nbytes
        if writer == shard.rank:
            pending[name] = tensor.cpu().contiguous()
            if sum(part.nbytes for part in pending.values()) >= FILE_BYTES:
                flush()
    flush()


def read_checkpoint(folder: Path) -> tuple[int, Callable[[str], torch.Tensor]]:
    """Opens a checkpoint.

    Returns:
        The steps that were done, and a function `KIND.NAME` → whole tensor, which reads it when
        called.

    Raises:
        RuntimeError: when the folder is not a complete checkpoint; from the function, when the
            checkpoint has no such tensor.
    """
    files = [safe_open(file, "pt") for file in sorted(folder.glob(FILE_PATTERN))]
    steps = {int(file.metadata()["step"]) for file in files}
    if len(steps) != 1:
        raise RuntimeError(f"{folder} is not one step's checkpoint: it has files of steps {steps}")
    file_of = {name: file for file in files for name in sorted(file.keys())}

    def tensor(name: str) -> torch.Tensor:
        if name not in file_of:
            raise RuntimeError(f"the checkpoint {folder} lacks {name}: it belongs to another model")
        whole: torch.Tensor = file_of[name].get_tensor(name)
        return whole

    return steps.pop(), tensor
