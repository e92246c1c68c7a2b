"""The encoder runs each of the batcher's batches as one forward, with unchanged vectors."""

import asyncio

import numpy as np
import pytest

from stillroom.encoders.ensemble import EnsembleEncoder, ensemble_contract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.packing import pack_attention
from stillroom.serving.replica.batching import Batcher
from support.tiny_models import tiny_encoder

BATCH_TOKENS = 256


def make_encoder(folder, *, packed):
    options = ContractOptions(pooling="mean", precision="float32", max_tokens=64)
    encoder = create_encoder(str(tiny_encoder(folder)), space="s", options=options).eval()
    if packed:
        pack_attention(encoder.backbone)
    return encoder


@pytest.fixture(params=["padded", "packed", "ensemble"])
def encoder(request, tmp_path):
    if request.param != "ensemble":
        return make_encoder(tmp_path / "model", packed=request.param == "packed")
    members = [make_encoder(tmp_path / str(n), packed=False) for n in range(2)]
    return EnsembleEncoder(ensemble_contract(members, "concatenate", space="s"), members)


def make_tokens(encoder, count):
    texts = ["word " * (1 + 7 * number % 40) + str(number) for number in range(count)]
    return encoder.prompter(texts, "passage")


def test_a_ready_batch_gives_the_vectors_that_sorting_and_splitting_gives(encoder):
    tokens = make_tokens(encoder, 20)
    split = encoder.encode_tokens(tokens, batch_tokens=BATCH_TOKENS)
    np.testing.assert_allclose(encoder.encode_batch(tokens), split, atol=1e-5)


def test_many_callers_get_the_vectors_of_a_lone_caller_and_every_batch_is_one_forward(encoder):
    tokens = make_tokens(encoder, 200)
    expected = encoder.encode_tokens(tokens)
    batches, forwards = [], []
    first_model = encoder.members[0] if isinstance(encoder, EnsembleEncoder) else encoder
    first_model.register_forward_hook(lambda *_: forwards.append(1))

    def forward(batch, threads):
        batches.append(batch)
        return encoder.encode_batch(batch)

    async def encode_all():
        batcher = Batcher(
            forward, batch_tokens=BATCH_TOKENS, max_wait_s=0, packed=encoder.packed, threads=3,
            concurrent=encoder.thread_safe,
        )  # fmt: skip
        requests = [tokens[start : start + 5] for start in range(0, len(tokens), 5)]
        # With the batcher, because its loop would otherwise be collected before it is cancelled.
        return batcher, await asyncio.gather(*map(batcher.encode, requests))

    _, results = asyncio.run(encode_all())
    vectors = np.concatenate([result.vectors for result in results])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert len(forwards) == len(batches) > 1
    for batch in batches:
        lengths = [len(text.ids) for text in batch]
        padded = sum(lengths) if encoder.packed else len(lengths) * max(lengths)
        assert padded <= BATCH_TOKENS
