"""Who answers when an encoder's replicas are gone."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from ray.serve.exceptions import DeploymentUnavailableError

from stillroom.encoders.contract import Terms
from stillroom.serving.errors import ApiError
from stillroom.serving.messages import Encoded, Work
from stillroom.serving.routing.dispatch import ATTEMPTS, Dispatcher, NoReplica
from stillroom.serving.routing.handles import LocalHandle
from stillroom.serving.routing.policies import Policy, Send, To

TERMS = Terms(max_tokens=8, dims=(4,), space="one")
WORK = Work(["a text"], None, "query", 4)
TEACHER, STUDENT = "tiny/teacher", "tiny/student"
ASKED = Send(STUDENT, 4, "student")


class There:
    async def encode(self, work):
        return Encoded(np.ones((1, 4), dtype=np.float32), 3)


class Deleted:
    """As Serve answers for a deployment that an update no longer names."""

    asked = 0

    async def encode(self, work):
        self.asked += 1
        raise DeploymentUnavailableError("student")


class Hanging:
    async def encode(self, work):
        await asyncio.Event().wait()


def answer(student, *, stand_ins, timeout_s=60.0):
    async def main():
        handles = {TEACHER: LocalHandle(There(), 9), STUDENT: LocalHandle(student, 9)}
        release = SimpleNamespace(contract=lambda name: TERMS)
        dispatcher = Dispatcher(
            handles, dict.fromkeys(handles, release), dict.fromkeys(handles, 99), timeout_s
        )
        return await dispatcher.answer(Policy(To(model=STUDENT), stand_ins=stand_ins), ASKED, WORK)

    return asyncio.run(main())


def test_who_stands_in_answers_before_serve_has_told_that_the_other_is_gone():
    sent, encoded = answer(Deleted(), stand_ins={STUDENT: TEACHER})
    assert (sent.model, sent.why) == (TEACHER, f"{STUDENT} is not running")
    assert encoded.tokens == 3


def test_where_nobody_may_stand_in_the_client_is_told_to_come_back():
    student = Deleted()
    with pytest.raises(NoReplica) as told:
        answer(student, stand_ins={})
    assert (told.value.status, student.asked) == (503, ATTEMPTS)
    assert told.value.retry_after_s


def test_who_has_waited_as_long_as_anybody_may_is_not_sent_on_to_another():
    with pytest.raises(ApiError) as told:
        answer(Hanging(), stand_ins={STUDENT: TEACHER}, timeout_s=0.01)
    assert told.value.status == 503
