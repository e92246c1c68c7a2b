"""Many requests to a language model at once, under one budget, none of them paid for twice."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from stillroom.config.scale import Endpoint
from stillroom.config.synthetic import Budget
from stillroom.config.synthetic import Synthetic as Section
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.prompts import Example, Rejected
from stillroom.openai_client.answer import Answer
from stillroom.openai_client.client import (
    Answers,
    Client,
    Request,
    Usage,
    affordable,
    key_in,
    token_estimate,
)

log = logging.getLogger(__name__)

ROUND = 1000  # at once, which bounds memory


class Asker:
    """Answers to requests: those kept before, and from the endpoint's actors the others.

    Budget and answers are in one place, with the driver. An answer is on disk before the request
    after it goes out.
    """

    def __init__(self, budget: Budget, endpoint: Endpoint, answers: Answers):
        self.budget, self.endpoint, self.answers = budget, endpoint, answers
        self.at_once = endpoint.actors * endpoint.at_once
        self.spent = Usage()
        self.calls = {"made": 0, "kept_from_before": 0}
        self.stopped: list[str] = []
        self.counted: set[str] = set()

    @cached_property
    def actors(self) -> list[Any]:
        """Started by the first request that is not answered yet."""
        to = self.endpoint
        assert to.base_url is not None, "the recipe is not valid without one"
        actor = ray.remote(
            num_cpus=0, max_concurrency=to.at_once, max_restarts=2, max_task_retries=2
        )(Client)
        key = key_in(to.key_variable, "scale.synthetic.key_variable")
        args = (to.base_url, Answer.read, key)
        return [
            actor.remote(*args, attempts=to.attempts, timeout_s=to.timeout_s)
            for _ in range(to.actors)
        ]

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers in the requests' order.

        Raises:
            UserError: when the endpoint fails; what it answered by then is kept.
        """
        found: dict[str, Answer] = {}
        pending: dict[Any, Request] = {}
        fault: RayError | None = None
        for number, request in enumerate(requests):
            if request.key in found or request in pending.values():
                continue
            kept = self.answers.get(request.key)
            if kept is not None:
                found[request.key] = self._counted(kept, request, "kept_from_before")
                continue
            actor = self.actors[number % len(self.actors)]
            pending[actor.ask.remote(request)] = request
            while len(pending) >= self.at_once and fault is None:
                fault = self._one(pending, found)
            if fault is not None:
                break
        while pending:
            fault = self._one(pending, found) or fault
        if fault is not None:
            raise getattr(fault, "cause", None) or fault
        return [found[request.key] for request in requests]

    def _one(self, pending: dict[Any, Request], found: dict[str, Answer]) -> RayError | None:
        """Waits for one of them, and keeps what it is."""
        [ready], _ = ray.wait(list(pending), num_returns=1)
        request = pending.pop(ready)
        try:
            content = ray.get(ready)
        except RayError as fault:
            return fault
        found[request.key] = answer = self._counted(content, request, "made")
        if answer.refused is None:
            self.answers.keep(request.key, content)
        if sum(self.calls.values()) % 100 == 0:
            log.info("%d answers, %s", sum(self.calls.values()), self.spent)
        return None

    def _counted(self, content: str, request: Request, whence: str) -> Answer:
        answer = Answer.read(content, request)
        if request.key not in self.counted:
            self.counted.add(request.key)
            self.calls[whence] += 1
            self.spent += answer.usage
        return answer

    def rounds(self, count: int, each: Usage, what: str) -> Iterator[range]:
        """The numbers up to `count`, as many at a time as the budget surely pays for.

        Args:
            each: what one of them takes at most.
        """
        done = 0
        while done < count:
            most = min(ROUND, affordable(self.spent, each, **self.budget.model_dump()))
            if most < 1:
                self.stopped.append(f"{what}: {done:,} of {count:,}")
                log.warning("the budget is reached: %s", self.stopped[-1])
                return
            part = range(done, min(count, done + int(most)))
            yield part
            done = part.stop

    def in_rounds(
        self, count: int, request: Callable[[int], Request], tokens_out: int, what: str
    ) -> Iterator[Answer]:
        """Answers to the requests of numbers up to `count`, as many as the budget pays for.

        Args:
            tokens_out: the most that one of them writes.
        """
        longest = max(token_estimate(request(number).body) for number in range(count))
        for part in self.rounds(count, Usage(longest, tokens_out), what):
            yield from self([request(number) for number in part])


@dataclass
class Tally:
    """What became of what was written."""

    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    passages: dict[str, Any] = field(default_factory=dict)
    queries: set[str] = field(default_factory=set)

    def reject(self, what: str, reason: str) -> None:
        self.rejected.setdefault(what, Counter())[reason] += 1

    def parsed(self, what: str, answer: Answer, parse: Callable[[str], Any]) -> Any:
        """What the answer holds, or None where it is of no use, which is counted."""
        try:
            if answer.refused is not None:
                raise Rejected(f"the endpoint answered {answer.refused}")
            if answer.cut:
                raise Rejected("cut at the limit of tokens")
            return parse(answer.text)
        except Rejected as fault:
            self.reject(what, str(fault))
            return None

    def is_new(self, one: Example) -> bool:
        key = text_key(one.query)
        if key in self.queries:
            self.reject(one.kind, "a query that was there before")
            return False
        self.queries.add(key)
        return True


def chat(
    own: Section,
    prompt: str,
    limit: int,
    sampled: tuple[int, int] | None = None,
    temperature: float | None = None,
) -> Request:
    """A question. `sampled` is the recipe's seed and a number: another, another answer."""
    seed = 0 if sampled is None else int(np.random.default_rng(sampled).integers(2**31))
    body = {
        "model": own.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": limit,
        "temperature": own.temperature if temperature is None else temperature,
        "seed": seed,
        **own.extra_body,
    }
    told = {name: value for name, value in body.items() if value is not None}
    return Request.of("chat/completions", told, seed)


def echo(own: Section, prompt: str) -> Request:
    # One token is written, and passed over: to some servers none means as many as they like.
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    return Request.of("completions", {"model": own.model, **body})
