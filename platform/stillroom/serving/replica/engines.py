"""What runs an encoder's forward: torch, or a runtime on an export that the release carries."""

from importlib.util import find_spec
from typing import Literal

import torch

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import CombinedEncoder
from stillroom.encoders.export.runtimes import Exported
from stillroom.encoders.files.load import load
from stillroom.encoders.layers.packing import pack_attention, packing_pays
from stillroom.errors import UserError
from stillroom.release.reader import Release, Target

Engine = Literal[
    "auto", "torch", "onnx", "onnx-int8", "onnx-int8-static", "openvino", "openvino-int8"
]

# By tests/benchmarks/serving.py, fastest first. Those of int8 are faster yet and stay out: whoever
# wants other vectors than those that were evaluated says so.
AUTO_ON_CPU = {"openvino": "openvino", "onnx": "onnxruntime"}  # export → the package that runs it


def check_engine(where: str, engine: Engine, release: Release, target: Target, gpu: bool) -> None:
    """Raises UserError where a replica of `target` could not run on `engine`."""
    if engine in ("auto", "torch"):
        return
    if gpu:
        raise UserError(where, f"{engine} runs on the CPU", "Set num_gpus: 0, or engine: torch")
    if engine not in release.exports[target]:
        carried = ", ".join(release.exports[target]) or "none"
        raise UserError(
            where,
            f"{release.ref} carries no {engine} export of its {target} (it carries: {carried})",
            f"Add {engine} to the recipe's release.exports and release again, or use engine: torch",
        )


def choose_engine(release: Release, target: Target, engine: Engine, gpu: bool) -> Engine:
    """What `auto` stands for: torch on a GPU, on a CPU the fastest that is there."""
    if engine != "auto" or gpu:
        return "torch" if engine == "auto" else engine
    there: list[Engine] = [
        export
        for export in ("openvino", "onnx")
        if export in release.exports[target] and find_spec(AUTO_ON_CPU[export])
    ]
    return there[0] if there else "torch"


def load_engine(
    release: Release,
    target: Target,
    engine: Engine,
    *,
    threads: int,
    gpu: bool = False,
    trust_remote_code: bool = False,
) -> Encoder | CombinedEncoder | Exported:
    """The encoder as `engine` runs it.

    Args:
        threads: of one forward of an export. Torch's are set for the process.
        trust_remote_code: runs the Python that the model brings with it.

    Raises:
        UserError: when the engine's package is missing here, or what was released is not whole.
    """
    chosen = choose_engine(release, target, engine, gpu)
    folder = release.encoder_folder(target)
    if chosen == "torch":
        device = "cuda" if gpu else "cpu"
        if gpu:  # float32's products in TF32, which rounds less than bfloat16 does
            torch.set_float32_matmul_precision("high")
        found = load(folder, device=device, trust_remote_code=trust_remote_code)
        assert isinstance(found, Encoder | CombinedEncoder), "no API is served"
        for encoder in found.members if isinstance(found, CombinedEncoder) else [found]:
            if packing_pays(encoder.backbone):
                pack_attention(encoder.backbone)
        return found
    return Exported(release.export_folder(target, chosen), threads=threads)
