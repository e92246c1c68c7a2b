"""What a run goes on from: any engine, and any number of workers, reads what any other wrote.

Every trained tensor and AdamW's two moments of it lie there whole, in float32, by name. (What
DeepSpeed writes itself are the workers' slices, which only as many workers can read, in pickles,
which can run code.) Never is a model whole in one memory: tensors are gathered one at a time, each
is kept and written by one worker, and readers map the files.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stillroom.learning.gather import world

FILES = "trained-*.safetensors"

FILE_BYTES = 2**30  # about as much lies in a worker's memory until it is written

WEIGHT = "weight"

KINDS = (WEIGHT, "exp_avg", "exp_avg_sq")  # the moments as torch's AdamW names them


def write(folder: Path, step: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Writes this worker's share; called on every worker, whose folders together are whole.

    Args:
        tensors: `KIND.NAME` and a whole tensor, the same on each worker and in the same order.
    """
    rank, workers = world()
    given = [0] * workers  # bytes of each
    mine: dict[str, torch.Tensor] = {}
    files = 0

    def flush() -> None:
        nonlocal files
        if mine:
            file = folder / FILES.replace("*", f"{rank:05d}-{files:05d}")
            save_file(mine, file, {"step": str(step)})
            mine.clear()
            files += 1

    for name, tensor in tensors:
        writer = given.index(min(given))
        given[writer] += tensor.nbytes
        if writer == rank:
            mine[name] = tensor.cpu().contiguous()
            if sum(one.nbytes for one in mine.values()) >= FILE_BYTES:
                flush()
    flush()


def read(folder: Path) -> tuple[int, Callable[[str], torch.Tensor]]:
    """The steps that were done, and `KIND.NAME` → whole tensor, read when asked for.

    Raises:
        RuntimeError: when the folder is no whole checkpoint; for a tensor, when it has none.
    """
    files = [safe_open(file, "pt") for file in sorted(folder.glob(FILES))]
    steps = {int(file.metadata()["step"]) for file in files}
    if len(steps) != 1:
        raise RuntimeError(f"{folder} is no checkpoint of one step: it has those of {steps}")
    where = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def tensor(name: str) -> torch.Tensor:
        if name not in where:
            raise RuntimeError(f"the checkpoint {folder} lacks {name}: it is of another model")
        found: torch.Tensor = where[name].get_tensor(name)
        return found

    return steps.pop(), tensor
