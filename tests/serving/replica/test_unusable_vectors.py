"""A text without a usable vector fails its own request; broken weights make a replica unhealthy."""

import asyncio

import numpy as np
import pytest
import ray
import torch

from stillroom.encoders.usable_vectors import BrokenModelError, UnusableVectorError
from stillroom.release.reader import Release
from stillroom.serving.messages import EmbedRequest, EncodeJob
from stillroom.serving.replica.replica import Replica
from support.tiny_releases import make_release

WORD = "quagga"


class WithoutRay:
    """The context of a replica with one CPU."""

    def get_assigned_resources(self):
        return {"CPU": 1}


@pytest.fixture
def replica(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "get_runtime_context", WithoutRay)
    release = Release.open(str(make_release(tmp_path / "release", shared_space=True)), "runs")
    return Replica.func_or_class(release, "student", "torch", 256, 0.0, False)


def set_weight(replica, value):
    """Sets the embedding of a token that plain texts do not have."""
    tokenizer = replica.encoder.tokenizer
    plain = set(tokenizer("a short text, plain and well warm.")["input_ids"])
    number = next(i for i in tokenizer(WORD)["input_ids"] if i not in plain)
    with torch.no_grad():
        replica.encoder.backbone.get_input_embeddings().weight[number] = value


def encode_at_once(replica, *requests):
    """The result or the error of each request, which all wait in the same batch; and what the
    replica's health check raises afterwards, or None."""

    async def main():
        jobs = [EncodeJob(EmbedRequest("tiny", texts, None, "passage"), 64) for texts in requests]
        results = await asyncio.gather(*map(replica.encode, jobs), return_exceptions=True)
        try:
            replica.check_health()
        except Exception as error:
            return results, error
        return results, None

    return asyncio.run(main())


def test_a_text_without_a_finite_vector_fails_only_its_own_request(replica):
    set_weight(replica, 3e38)
    (plain, refused), unhealthy = encode_at_once(replica, ["a short text"], ["plain", WORD])
    assert isinstance(refused, UnusableVectorError)
    assert str(refused).startswith(f"text 2 {WORD!r}: its vector is not finite")
    assert np.isfinite(plain.vectors).all()
    assert unhealthy is None


def test_a_broken_weight_is_named_and_makes_the_replica_unhealthy(replica):
    set_weight(replica, float("nan"))
    [refused], unhealthy = encode_at_once(replica, [WORD])
    assert isinstance(refused, BrokenModelError)
    where = f"{replica.release}: backbone.embeddings.word_embeddings.weight"
    assert str(refused).startswith(f"{where}: holds numbers that are not finite")
    assert unhealthy is refused


def test_a_runtime_without_readable_weights_is_at_fault_if_a_plain_text_fails_too(
    replica, monkeypatch
):
    monkeypatch.setattr(replica.encoder, "broken_weight", lambda: None)
    with torch.no_grad():
        next(replica.encoder.backbone.encoder.parameters())[0, 0] = float("inf")
    [refused], unhealthy = encode_at_once(replica, [WORD])
    assert isinstance(refused, BrokenModelError)
    assert "gives vectors that are not finite, even of" in str(refused)
    assert unhealthy is refused
