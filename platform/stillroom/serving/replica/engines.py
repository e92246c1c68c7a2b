"""Loads a release's encoder: with torch, or with the runtime of one of the release's exports."""

from typing import Any

import torch

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder
from stillroom.encoders.export.runtimes import ExportedEncoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.interface import TokenEncoder
from stillroom.encoders.layers.packing import pack_attention, packing_is_faster
from stillroom.errors import UserError
from stillroom.release.reader import Release, Target
from stillroom.release.single_model import SingleModel
from stillroom.serving.replica.engine_choice import Engine, choose_engine


def load_engine(
    release: Release,
    target: Target,
    engine: Engine,
    *,
    threads: int,
    gpu: bool = False,
    trust_remote_code: bool = False,
) -> TokenEncoder:
    """Load an encoder for an engine.

    Args:
        threads: of one forward of an export. Torch's threads are set for the process.
        trust_remote_code: runs Python code that comes with the model.

    Raises:
        UserError: when the engine's package is missing here, the release is incomplete, or the
            model differs from the one that was deployed.
    """
    chosen = choose_engine(release, target, engine, gpu)
    if chosen != "torch":
        return ExportedEncoder(release.export_folder(target, chosen), threads=threads)
    if gpu:  # float32 products in TF32, which rounds less than bfloat16 does
        torch.set_float32_matmul_precision("high")
    encoder = _load(release, target, "cuda" if gpu else "cpu", trust_remote_code)
    assert isinstance(encoder, TokenEncoder), "APIs are not served"
    for member in encoder.members if isinstance(encoder, EnsembleEncoder) else [encoder]:
        if isinstance(member, Encoder) and packing_is_faster(member.backbone):
            pack_attention(member.backbone)
    return encoder


def _load(release: Release, target: Target, device: str, trust_remote_code: bool) -> Any:
    if not isinstance(release, SingleModel):
        folder = release.encoder_folder(target)
        return load_encoder(folder, device=device, trust_remote_code=trust_remote_code)
    encoder: Any = load_encoder(
        release.source(),
        device=device,
        pooling=release.pooling,
        trust_remote_code=trust_remote_code,
    )
    deployed = release.contracts[target]
    if encoder.contract.model_copy(update={"space": deployed.space}) != deployed:
        raise UserError(
            release.ref,
            "is read in another way here than where the application was deployed",
            "Install the same versions of stillroom and its libraries on every machine",
        )
    encoder.contract = deployed
    return encoder
