"""Many concurrent requests to a language model, under one budget; no request is paid for twice."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayError

from stillroom.config.scale import LanguageModelEndpoint
from stillroom.config.synthetic import Budget
from stillroom.openai_client.api_key import read_api_key
from stillroom.openai_client.client import OpenAIClient
from stillroom.openai_client.completion import Completion
from stillroom.openai_client.requests import (
    Request,
    Usage,
    affordable_calls,
    estimate_text_tokens,
)
from stillroom.openai_client.response_cache import ResponseCache

log = logging.getLogger(__name__)
MAX_ROUND_REQUESTS = 1000  # bounds memory


class BudgetedClient:
    """Completions from the cache, or else from the endpoint through Ray actors.

    Budget and cache are in the driver's process. A response is on disk before the next request is
    sent.

    Attributes:
        spent: usage of all completions, those from the cache included.
        calls: completions `made` by the endpoint and `kept_from_before` in the cache.
        budget_reached: where the budget ended the requests, as text.
    """

    def __init__(self, budget: Budget, endpoint: LanguageModelEndpoint, cache: ResponseCache):
        self.budget, self.endpoint, self.cache = budget, endpoint, cache
        self.max_concurrency = endpoint.actors * endpoint.max_concurrency
        self.spent = Usage()
        self.calls = {"made": 0, "kept_from_before": 0}
        self.budget_reached: list[str] = []
        self.counted_keys: set[str] = set()

    @cached_property
    def actors(self) -> list[Any]:
        """Started by the first request that is not in the cache."""
        endpoint = self.endpoint
        assert endpoint.base_url is not None, "the recipe is not valid without one"
        actor = ray.remote(
            num_cpus=0,
            max_concurrency=endpoint.max_concurrency,
            max_restarts=2,
            max_task_retries=2,
        )(OpenAIClient)
        api_key = read_api_key(endpoint.api_key_env, "scale.synthetic.api_key_env")
        return [
            actor.remote(
                endpoint.base_url,
                Completion.parse,
                api_key,
                attempts=endpoint.attempts,
                timeout_s=endpoint.timeout_s,
            )
            for _ in range(endpoint.actors)
        ]

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests, without regard to the budget.

        Raises:
            UserError: when the endpoint fails; its earlier answers are cached.
        """
        completions: dict[str, Completion] = {}
        pending: dict[Any, Request] = {}
        error: RayError | None = None
        for number, request in enumerate(requests):
            if request.key in completions or request in pending.values():
                continue
            cached = self.cache.get(request.key)
            if cached is not None:
                completions[request.key] = self._count(cached, request, "kept_from_before")
                continue
            actor = self.actors[number % len(self.actors)]
            pending[actor.send.remote(request)] = request
            while len(pending) >= self.max_concurrency and error is None:
                error = self._wait_for_one(pending, completions)
            if error is not None:
                break
        while pending:
            error = self._wait_for_one(pending, completions) or error
        if error is not None:
            raise getattr(error, "cause", None) or error
        return [completions[request.key] for request in requests]

    def _wait_for_one(
        self, pending: dict[Any, Request], completions: dict[str, Completion]
    ) -> RayError | None:
        """Moves one request from `pending` to `completions` and the cache, or returns its error."""
        [ready], _ = ray.wait(list(pending), num_returns=1)
        request = pending.pop(ready)
        try:
            content = ray.get(ready)
        except RayError as error:
            return error
        completions[request.key] = completion = self._count(content, request, "made")
        if completion.refused is None:
            self.cache.put(request.key, content)
        if sum(self.calls.values()) % 100 == 0:
            log.info("%d answers, %s", sum(self.calls.values()), self.spent)
        return None

    def _count(self, content: str, request: Request, origin: str) -> Completion:
        completion = Completion.parse(content, request)
        if request.key not in self.counted_keys:
            self.counted_keys.add(request.key)
            self.calls[origin] += 1
            self.spent += completion.usage
        return completion

    def affordable_ranges(self, count: int, max_usage: Usage, what: str) -> Iterator[range]:
        """Ranges of the numbers below `count`, each as long as the budget certainly covers.

        The actual usage of a range is counted before the next one.

        Args:
            max_usage: the most that one number can cost.
            what: name of the requested items, for messages.
        """
        done = 0
        while done < count:
            affordable = affordable_calls(self.spent, max_usage, **self.budget.model_dump())
            size = min(MAX_ROUND_REQUESTS, affordable)
            if size < 1:
                self.budget_reached.append(f"{what}: {done:,} of {count:,}")
                log.warning("the budget is reached: %s", self.budget_reached[-1])
                return
            numbers = range(done, min(count, done + int(size)))
            yield numbers
            done = numbers.stop

    def within_budget(
        self, count: int, request: Callable[[int], Request], max_answer_tokens: int, what: str
    ) -> Iterator[Completion]:
        """Completions of the requests with the numbers below `count`, until the budget ends.

        Args:
            request: makes the request of a number.
            what: name of the requested items, for messages.
        """
        prompt_tokens = max(estimate_text_tokens(request(number).body) for number in range(count))
        max_usage = Usage(prompt_tokens, max_answer_tokens)
        for numbers in self.affordable_ranges(count, max_usage, what):
            yield from self.complete([request(number) for number in numbers])
