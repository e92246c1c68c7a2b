"""Queries for passages, whose positives are chosen among the results of a retriever
(FRet of Gecko, arXiv 2403.20327)."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from stillroom.config.corpus import Corpus
from stillroom.config.synthetic import FromPassages, Synthetic
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.answers import parse_grade, parse_query, require_language
from stillroom.data.synthetic.prompts import (
    Example,
    RejectedAnswer,
    draw_language,
    grade_prompt,
    likelihood_prompt,
    query_prompt,
)
from stillroom.data.synthetic.selection import choose_positive_and_negative, query_likelihood
from stillroom.errors import UserError, beginning
from stillroom.openai_client.completion import Completion
from stillroom.openai_client.requests import Usage, estimate_text_tokens
from stillroom.stages.corpus import sources
from stillroom.stages.synthetic.budgeted_client import BudgetedClient
from stillroom.stages.synthetic.llm_requests import chat_request, echo_request
from stillroom.stages.synthetic.rejections import RejectionCounts
from stillroom.stages.synthetic.retriever import Retriever

log = logging.getLogger(__name__)
CHAT_TEMPLATE_TOKENS = 32  # that a chat template adds to a prompt
TASK_AND_QUERY_TOKENS = 128  # of a task and a query together, for estimates
Queries = dict[int, tuple[str, str]]  # index of a passage in the pool → task and query
Candidates = dict[int, list[int]]  # the same index → indices of the passages that were found


def draw_pool(section: Corpus, seed: int) -> list[str]:
    """Distinct passages in random order: neighbours are searched among all of them, and queries
    are written for the first ones.

    Raises:
        UserError: when the sources have no passages without a query.
    """
    assert section.synthetic is not None and section.synthetic.passages is not None
    options = section.synthetic.passages
    names = options.sources or tuple(section.sources)
    rng = np.random.default_rng(seed)
    reservoir: list[str] = []
    passages = (text for name in names for text in sources.iter_passages(section.sources[name]))
    for number, passage in enumerate(passages):
        if number < options.pool_size:
            reservoir.append(passage)
        elif (index := int(rng.integers(number + 1))) < options.pool_size:
            reservoir[index] = passage
    pool = list({text_key(passage): passage for passage in reservoir}.values())
    if len(pool) < 2:
        raise UserError(
            "corpus.synthetic.passages",
            f"the sources {', '.join(names)} have no passages without a query",
            "Name files under corpus.sources.NAME.passages",
        )
    return [pool[index] for index in rng.permutation(len(pool))]


def visible_part(passage: str, options: FromPassages) -> str:
    """The part of a passage that the language model reads."""
    return beginning(passage, options.max_passage_characters)


def usage_per_passage(
    settings: Synthetic, passage_tokens: int, *, with_likelihood: bool
) -> list[tuple[int, Usage]]:
    """(calls, usage of all of them) for one passage, at most.

    Items are for writing its query, grading candidates and, if requested, likelihoods.

    Args:
        passage_tokens: of a passage's visible part.
    """
    assert settings.passages is not None
    candidates = settings.passages.neighbours + 1
    query_tokens = estimate_text_tokens(query_prompt(""))
    grade_tokens = TASK_AND_QUERY_TOKENS + estimate_text_tokens(grade_prompt("", "", ""))
    likelihood_tokens = TASK_AND_QUERY_TOKENS + estimate_text_tokens(likelihood_prompt("", ""))
    steps = [
        (1, query_tokens, settings.max_answer_tokens),
        (candidates, grade_tokens, settings.max_grade_tokens),
    ]
    if with_likelihood:
        steps.append((candidates, likelihood_tokens, 1))
    return [
        (calls, Usage(CHAT_TEMPLATE_TOKENS + prompt_tokens + passage_tokens, answer_tokens) * calls)
        for calls, prompt_tokens, answer_tokens in steps
    ]


@dataclass(frozen=True)
class PassageExampleGenerator:
    """Writes queries for passages and chooses their positives and negatives.

    Attributes:
        pool: see `draw_pool`.
        retrieve: searches the pool.
    """

    settings: Synthetic
    seed: int
    pool: list[str]
    retrieve: Retriever
    client: BudgetedClient
    rejections: RejectionCounts

    def generate(self) -> tuple[list[Example], dict[str, Any]]:
        """Examples of the first passages of the pool, and counts for counts.json.

        Raises:
            UserError: when likelihoods are required and the endpoint does not offer them.
        """
        options = self._options
        with_likelihood = options.likelihood != "off" and self._endpoint_offers_likelihood()
        counts = Counter(asked=0, ranked=0, positive_is_another=0)
        passage_tokens = max(
            estimate_text_tokens(visible_part(passage, options)) for passage in self.pool
        )
        steps = usage_per_passage(self.settings, passage_tokens, with_likelihood=with_likelihood)
        max_usage = sum((usage for _, usage in steps), Usage())
        count = min(options.count, len(self.pool))
        examples: list[Example] = []
        for rows in self.client.affordable_ranges(count, max_usage, "passages"):
            counts["asked"] += len(rows)
            queries = self._write_queries(rows)
            if queries:
                examples += self._choose(queries, counts, with_likelihood=with_likelihood)
        return examples, {
            "pool": len(self.pool),
            "likelihood_offered": with_likelihood,
            **counts,
        }

    @property
    def _options(self) -> FromPassages:
        assert self.settings.passages is not None
        return self.settings.passages

    def _write_queries(self, rows: Iterable[int]) -> Queries:
        requests = [
            chat_request(
                self.settings,
                query_prompt(visible_part(self.pool[row], self._options), self._language(row)),
                self.settings.max_answer_tokens,
                (self.seed, row),
            )
            for row in rows
        ]
        parsed = [
            self.rejections.parse("passages", completion, partial(_parse_in, language=language))
            for language, completion in zip(
                map(self._language, rows), self.client.complete(requests), strict=True
            )
        ]
        return {row: pair for row, pair in zip(rows, parsed, strict=True) if pair is not None}

    def _language(self, row: int) -> str | None:
        """The language in which a passage's query is asked for; None: none is named."""
        if self.settings.languages is None:
            return None
        return draw_language(self.settings.languages, np.random.default_rng([self.seed, row, 1]))

    def _choose(
        self, queries: Queries, counts: Counter[str], *, with_likelihood: bool
    ) -> list[Example]:
        """Examples of the queries for which a good positive is found."""
        options = self._options
        neighbours = self.retrieve([query for _, query in queries.values()], options.neighbours)
        candidates = {
            row: _with_own_passage(row, indices)
            for row, indices in zip(queries, neighbours, strict=True)
        }
        grades = self._grade(queries, candidates)
        likelihoods: list[list[float] | None] = [None] * len(queries)
        if with_likelihood:
            likelihoods = self._measure_likelihoods(queries, candidates)
        examples = []
        for (row, (task, query)), row_grades, row_likelihoods in zip(
            queries.items(), grades, likelihoods, strict=True
        ):
            passages = [self.pool[index] for index in candidates[row]]
            is_sampled = options.negative == "sampled"
            try:
                best, worst = choose_positive_and_negative(
                    passages,
                    row_grades,
                    row_likelihoods,
                    min_grade=options.min_grade,
                    rng=np.random.default_rng([self.seed, row]) if is_sampled else None,
                )
            except RejectedAnswer as error:
                self.rejections.add("passages", str(error))
                continue
            counts["ranked"] += 1
            counts["positive_is_another"] += candidates[row][best] != row
            counts["ranked_by_likelihood_too"] += row_likelihoods is not None
            negatives = () if worst is None else (passages[worst],)
            examples.append(
                Example(*("passages", task, query, passages[best], negatives), self._language(row))
            )
        return examples

    def _grade(self, queries: Queries, candidates: Candidates) -> list[list[int | None]]:
        """The grade of each candidate of each query; None where the answer was rejected."""
        requests = [
            chat_request(
                self.settings,
                grade_prompt(*queries[row], visible_part(self.pool[index], self._options)),
                self.settings.max_grade_tokens,
                temperature=0.0,
            )
            for row, indices in candidates.items()
            for index in indices
        ]
        grades = [
            self.rejections.parse("grades", completion, parse_grade)
            for completion in self.client.complete(requests)
        ]
        return _split(grades, map(len, candidates.values()))

    def _measure_likelihoods(
        self, queries: Queries, candidates: Candidates
    ) -> list[list[float] | None]:
        """The likelihood of each query after each candidate; None if any of a query is missing."""
        prompts = [
            (likelihood_prompt(task, visible_part(self.pool[index], self._options)), f" {query}")
            for (task, query), indices in zip(queries.values(), candidates.values(), strict=True)
            for index in indices
        ]
        requests = [echo_request(self.settings, prompt + query) for prompt, query in prompts]
        likelihoods: list[float | None] = []
        for (prompt, query), completion in zip(
            prompts, self.client.complete(requests), strict=True
        ):
            try:
                likelihoods.append(_likelihood(completion, prompt, query))
            except RejectedAnswer as error:
                self.rejections.add("likelihoods", str(error))
                likelihoods.append(None)
        parts = _split(likelihoods, map(len, candidates.values()))
        return [None if None in part else [value or 0.0 for value in part] for part in parts]

    def _endpoint_offers_likelihood(self) -> bool:
        """Whether the endpoint echoes a prompt with its log-probabilities.

        Many do not, and some ignore the option silently.

        Raises:
            UserError: when it does not and the recipe requires it.
        """
        prompt, query = "A query about the weather:", " will it rain tomorrow"
        try:
            [completion] = self.client.complete([echo_request(self.settings, prompt + query)])
            _likelihood(completion, prompt, query)
            return True
        except (RejectedAnswer, UserError) as error:
            if self._options.likelihood == "required":
                raise UserError(
                    "corpus.synthetic.passages.likelihood",
                    f"the endpoint's /completions does not give it ({error})",
                    "Serve the model with vLLM, say, or set it to auto: neighbours are then "
                    "ranked by the model's grades alone",
                ) from error
            log.warning(
                "no query likelihood from this endpoint (%s): ranking by grades alone", error
            )
            return False


def _parse_in(answer: str, language: str | None) -> tuple[str, str]:
    """As `parse_query`; rejects also a query that is not in its language."""
    task, query = parse_query(answer)
    if language is not None:
        require_language([query], language)
    return task, query


def _with_own_passage(row: int, neighbours: Sequence[int]) -> list[int]:
    """A query's candidates in the retriever's order; last its own passage, if it was not found."""
    return list(dict.fromkeys([*(int(index) for index in neighbours if index >= 0), row]))


def _likelihood(completion: Completion, prompt: str, query: str) -> float:
    if completion.refused is not None:
        raise RejectedAnswer(f"the endpoint answered {completion.refused}")
    if completion.tokens is None or completion.logprobs is None:
        raise RejectedAnswer("no log-probabilities")
    return query_likelihood(completion.text, completion.tokens, completion.logprobs, prompt, query)


def _split(values: Sequence[Any], sizes: Iterable[int]) -> list[Any]:
    """Consecutive lists of these sizes."""
    ends = np.cumsum([0, *sizes])
    return [list(values[start:end]) for start, end in pairwise(ends)]
