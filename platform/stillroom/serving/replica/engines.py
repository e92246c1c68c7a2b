"""Loads a release's encoder: with torch, or with the runtime of one of the release's exports."""

import torch

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder
from stillroom.encoders.export.runtimes import ExportedEncoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.layers.packing import pack_attention, packing_is_faster
from stillroom.release.reader import Release, Target
from stillroom.serving.replica.engine_choice import Engine, choose_engine


def load_engine(
    release: Release,
    target: Target,
    engine: Engine,
    *,
    threads: int,
    gpu: bool = False,
    trust_remote_code: bool = False,
) -> Encoder | EnsembleEncoder | ExportedEncoder:
    """Load an encoder for an engine.

    Args:
        threads: of one forward of an export. Torch's threads are set for the process.
        trust_remote_code: runs Python code that comes with the model.

    Raises:
        UserError: when the engine's package is missing here, or the release is incomplete.
    """
    chosen = choose_engine(release, target, engine, gpu)
    if chosen != "torch":
        return ExportedEncoder(release.export_folder(target, chosen), threads=threads)
    if gpu:  # float32 products in TF32, which rounds less than bfloat16 does
        torch.set_float32_matmul_precision("high")
    encoder = load_encoder(
        release.encoder_folder(target),
        device="cuda" if gpu else "cpu",
        trust_remote_code=trust_remote_code,
    )
    assert isinstance(encoder, Encoder | EnsembleEncoder), "APIs are not served"
    for member in encoder.members if isinstance(encoder, EnsembleEncoder) else [encoder]:
        if packing_is_faster(member.backbone):
            pack_attention(member.backbone)
    return encoder
