"""Which encoder answers when another has lost its replicas."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from ray.serve.exceptions import DeploymentUnavailableError

from stillroom.encoders.contract import BaseContract
from stillroom.encoders.usable_vectors import UnusableVectorError, broken_weight_error
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.messages import EmbedRequest, EncodeJob, EncodeResult
from stillroom.serving.replica.in_process import LocalHandle
from stillroom.serving.routing.dispatcher import (
    MAX_ATTEMPTS,
    Dispatcher,
    NoReplicaAnswered,
    estimated_cost,
)
from stillroom.serving.routing.policies import Policy, Send
from stillroom.serving.routing.rules import CHARACTERS_PER_TOKEN, SingleEncoder

CONTRACT = BaseContract(max_tokens=8, dims=(4,), space="s1")
JOB = EncodeJob(EmbedRequest("tiny", ["a text"], None, "query"), 4)
TEACHER, STUDENT = "tiny/teacher", "tiny/student"
TO_STUDENT = Send(STUDENT, 4, "student")


class WorkingReplica:
    async def encode(self, job):
        return EncodeResult(np.ones((1, 4), dtype=np.float32), 3)


class DeletedReplica:
    """Answers as Serve does for a deployment that an update no longer names."""

    calls = 0

    async def encode(self, job):
        self.calls += 1
        raise DeploymentUnavailableError("student")


class BrokenReplica:
    """Raises what it is made with."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    async def encode(self, job):
        self.calls += 1
        raise self.error


class HangingReplica:
    async def encode(self, job):
        await asyncio.Event().wait()


def encode(student, *, fallbacks, timeout_s=60.0):
    """What the dispatcher answers to a request for the student, while the teacher works."""

    async def main():
        handles = {TEACHER: LocalHandle(WorkingReplica(), 9), STUDENT: LocalHandle(student, 9)}
        release = SimpleNamespace(contract=lambda name: CONTRACT)
        dispatcher = Dispatcher(
            handles, dict.fromkeys(handles, release), dict.fromkeys(handles, 99), timeout_s
        )
        policy = Policy(SingleEncoder(model=STUDENT), fallbacks=fallbacks)
        return await dispatcher.encode_with_fallback(policy, TO_STUDENT, JOB)

    return asyncio.run(main())


def test_the_fallback_answers_before_serve_reports_that_the_encoder_is_gone():
    decision, result = encode(DeletedReplica(), fallbacks={STUDENT: TEACHER})
    assert (decision.model, decision.reason) == (TEACHER, f"{STUDENT} is not running")
    assert result.tokens == 3


def test_without_a_fallback_the_client_is_asked_to_come_back():
    student = DeletedReplica()
    with pytest.raises(NoReplicaAnswered) as refused:
        encode(student, fallbacks={})
    assert (refused.value.kind, student.calls) == (ErrorKind.UNAVAILABLE, MAX_ATTEMPTS)
    assert refused.value.retry_after_s


def test_a_request_that_timed_out_is_not_sent_to_the_fallback():
    with pytest.raises(ServingError) as refused:
        encode(HangingReplica(), fallbacks={STUDENT: TEACHER}, timeout_s=0.01)
    assert refused.value.kind == ErrorKind.UNAVAILABLE
    assert not isinstance(refused.value, NoReplicaAnswered)


def test_broken_weights_are_answered_by_the_fallback_or_by_an_internal_error_that_names_them():
    weights = BrokenReplica(broken_weight_error("release/tiny: layer.0.weight"))
    decision, _ = encode(weights, fallbacks={STUDENT: TEACHER})
    assert (decision.model, weights.calls) == (TEACHER, MAX_ATTEMPTS)
    with pytest.raises(NoReplicaAnswered, match="release/tiny: layer.0.weight: holds") as refused:
        encode(weights, fallbacks={})
    assert refused.value.kind == ErrorKind.INTERNAL


def test_a_text_without_a_usable_vector_is_an_internal_error_and_tried_once():
    text = BrokenReplica(UnusableVectorError.of_text(0, "its vector is not finite", "a text"))
    with pytest.raises(ServingError, match="text 1 'a text': its vector is not finite") as refused:
        encode(text, fallbacks={STUDENT: TEACHER})
    assert (refused.value.kind, text.calls) == (ErrorKind.INTERNAL, 1)


@pytest.mark.parametrize(
    ("texts", "token_ids", "cost"),
    [
        (["ab", ""], None, 4),
        (["x" * 4_000_000], None, 1 + 32 * CHARACTERS_PER_TOKEN),
        ([], [[7] * 5, [7] * 10**5], 2 + 37 * CHARACTERS_PER_TOKEN),
    ],
)
def test_of_a_long_text_only_what_the_model_takes_counts_as_work(texts, token_ids, cost):
    assert estimated_cost(EmbedRequest("m", texts, token_ids, "passage"), 32) == cost
