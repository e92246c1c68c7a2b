"""The service without HTTP and without Ray: its errors and records."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from stillroom.encoders.contract import BaseContract
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest, EncodeResult
from stillroom.serving.replica.in_process import LocalHandle
from stillroom.serving.routing.dispatcher import Dispatcher
from stillroom.serving.routing.policies import Policy
from stillroom.serving.routing.rules import parse_policy
from stillroom.serving.routing.served_model import ServedModel
from stillroom.serving.service import EmbeddingService
from stillroom.serving.telemetry.request_record import RequestRecord

CONTRACTS = {
    "tiny/teacher": BaseContract(max_tokens=64, dims=(8, 4), space="s1"),
    "tiny/student": BaseContract(max_tokens=32, dims=(4,), space="s1"),
}


class FakeReplica:
    """Answers every job with ones, and keeps the jobs."""

    def __init__(self):
        self.jobs = []

    async def encode(self, job):
        self.jobs.append(job)
        vectors = np.ones((len(job.request), job.dims), dtype=np.float32)
        return EncodeResult(vectors, 3, space="s1", release="release/tiny-0123")


def make_service():
    """A service of one release, and its student's replica."""
    student = FakeReplica()
    release = SimpleNamespace(
        contract=CONTRACTS.get,
        api_urls={"reranker": "http://10.0.0.7"},
        encoder_name=lambda target: f"tiny/{target}",
    )
    handles = {
        "tiny/teacher": LocalHandle(FakeReplica(), 9),
        "tiny/student": LocalHandle(student, 9),
    }
    models = [
        ServedModel(name, release, Policy(parse_policy("policy", rule, "tiny")))
        for name, rule in (("tiny", "asymmetric"), ("tiny/teacher", "teacher"))
    ]
    dispatcher = Dispatcher(
        handles, dict.fromkeys(handles, release), dict.fromkeys(handles, 64), timeout_s=60.0
    )
    return EmbeddingService(models, dispatcher, max_tokens=100), student


def embed(model="tiny", *, drain=False, **fields):
    """The result of a query, the record of it, and the student's jobs."""

    async def main():
        service, student = make_service()
        if drain:
            await service.drain()
        record = RequestRecord()
        request = EmbedRequest(model, ["a", "b"], None, "query", **fields)
        return await service.embed(request, record), record, student.jobs

    return asyncio.run(main())


def test_a_request_becomes_a_job_for_the_encoder_that_the_policy_chooses():
    result, record, [job] = embed()
    assert (result.model, result.vectors.shape) == ("tiny/student", (2, 4))
    assert (job.request.texts, job.dims, job.max_tokens) == (["a", "b"], 4, 100)
    assert (record.model, record.policy, record.texts) == ("tiny/student", "asymmetric", 2)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"model": "huge"}, ErrorKind.NOT_FOUND),
        ({"dimensions": 8}, ErrorKind.INVALID),  # the teacher's alone
        ({"drain": True}, ErrorKind.UNAVAILABLE),
    ],
)
def test_a_refusal_has_a_kind_and_no_status(arguments, kind):
    with pytest.raises(ServingError) as refused:
        embed(**arguments)
    assert refused.value.kind is kind


def test_an_encoder_that_runs_elsewhere_is_not_found_with_its_address():
    async def main():
        service, _ = make_service()
        return service.find("tiny/reranker")

    with pytest.raises(ServingError, match=r"is a model at http://10\.0\.0\.7: ask there"):
        asyncio.run(main())


def test_a_model_of_two_encoders_is_described_by_their_common_properties():
    async def main():
        service, _ = make_service()
        return service.info("tiny"), service.info("tiny/teacher")

    both, teacher = asyncio.run(main())
    assert (both.policy, both.space, both.dims, both.max_tokens) == ("asymmetric", "s1", (4,), 32)
    assert (teacher.policy, teacher.dims, teacher.max_tokens) == ("teacher", (8, 4), 64)
    assert both.similarity == "cosine"
