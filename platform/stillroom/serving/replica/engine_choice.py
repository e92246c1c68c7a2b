"""Which engine encodes: torch, or one of the release's exports. Imports none of them."""

from importlib.util import find_spec
from typing import Literal, cast

from stillroom.errors import UserError
from stillroom.release.reader import Release, Target

Engine = Literal[
    "auto", "torch", "onnx", "onnx-int8", "onnx-int8-static", "openvino", "openvino-int8"
]

# Export → the package that runs it; fastest first, as tests/benchmarks/serving.py measures. int8 is
# even faster but not listed: its vectors differ from the evaluated ones, so it must be requested by
# name.
AUTO_ON_CPU: dict[Engine, str] = {"openvino": "openvino", "onnx": "onnxruntime"}


def check_engine(where: str, engine: Engine, release: Release, target: Target, gpu: bool) -> None:
    """Raise UserError if a replica of `target` cannot run on `engine`."""
    if (own := release.own_format(target)) is not None:
        if gpu:
            raise UserError(where, f"{own} runs on the CPU", "Set num_gpus: 0")
        if engine not in ("auto", own):
            problem = f"{release.ref} is an export as {own}, without the weights for {engine}"
            raise UserError(where, problem, f"Use engine: {own}, or name another model")
        return
    if engine in ("auto", "torch"):
        return
    if gpu:
        raise UserError(where, f"{engine} runs on the CPU", "Set num_gpus: 0, or engine: torch")
    if engine not in release.exports[target]:
        exports = ", ".join(release.exports[target]) or "none"
        if target == "model":
            raise UserError(
                where,
                f"{release.ref} is not an export",
                f"Serve the folder that `stillroom export --format {engine}` makes of it",
            )
        raise UserError(
            where,
            f"{release.ref} contains no {engine} export of its {target} (it contains: {exports})",
            f"Add {engine} to the recipe's release.exports and release again, or use engine: torch",
        )


def choose_engine(release: Release, target: Target, engine: Engine, gpu: bool) -> Engine:
    """Resolves `engine`, which may be `auto`.

    `auto` is torch on a GPU. On a CPU it is the fastest export that the release contains and this
    machine can run, else torch. An encoder that is an export itself has only its own engine.
    """
    if (own := release.own_format(target)) is not None:
        return cast(Engine, own)
    if engine != "auto":
        return engine
    if gpu:
        return "torch"
    exports = release.exports[target]
    runnable = [
        name for name, package in AUTO_ON_CPU.items() if name in exports and find_spec(package)
    ]
    return runnable[0] if runnable else "torch"
