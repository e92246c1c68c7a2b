"""Queries for passages, and their positives chosen among what is found for them (FRet of Gecko,
arXiv 2403.20327), as requests and a retriever."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stillroom.cluster.capacity import asks
from stillroom.config.corpus import Corpus
from stillroom.config.scale import Actors
from stillroom.config.synthetic import FromPassages
from stillroom.config.synthetic import Synthetic as Section
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic import prompts as text
from stillroom.data.synthetic.answers import parse_grade, parse_query
from stillroom.data.synthetic.prompts import Example, Rejected
from stillroom.data.synthetic.selection import choose, query_likelihood
from stillroom.encoders.model_names import model_of
from stillroom.errors import UserError
from stillroom.mining.bm25 import Bm25
from stillroom.mining.exact import search
from stillroom.openai_client.answer import Answer
from stillroom.openai_client.client import Request, Usage, token_estimate
from stillroom.stages.corpus import sources
from stillroom.stages.synthetic.asker import Asker, Tally, chat, echo
from stillroom.storage.artifacts import Store

log = logging.getLogger(__name__)

AROUND = 32  # tokens that a chat template puts around a prompt

QUERY = 128  # tokens of a task and a query together, as the estimate has them

# Queries and k → places of passages, int64 (q, k), best first, -1 for none.
Find = Callable[[list[str], int], np.ndarray]


def draw_pool(section: Corpus, seed: int) -> list[str]:
    """The passages that neighbours are looked for among, each once, in an order by chance: what
    comes first is what queries are written for.

    Raises:
        UserError: when the sources have no passages without a query.
    """
    assert section.synthetic is not None and section.synthetic.passages is not None
    wanted = section.synthetic.passages
    names = wanted.sources or tuple(section.sources)
    rng = np.random.default_rng(seed)
    drawn: list[str] = []
    everything = (one for name in names for one in sources.passages(section.sources[name]))
    for number, passage in enumerate(everything):
        if number < wanted.pool:
            drawn.append(passage)
        elif (place := int(rng.integers(number + 1))) < wanted.pool:  # a reservoir
            drawn[place] = passage
    pool = list({text_key(passage): passage for passage in drawn}.values())
    if len(pool) < 2:
        raise UserError(
            "corpus.synthetic.passages",
            f"the sources {', '.join(names)} have no passages without a query",
            "Name files under corpus.sources.NAME.passages",
        )
    return [pool[place] for place in rng.permutation(len(pool))]


def from_passages(
    own: Section, seed: int, pool: list[str], find: Find, asker: Asker, tally: Tally
) -> Iterator[Example]:
    """An example for each of the pool's first passages for which a good one was found.

    Args:
        find: the pool's passages nearest to queries.
    """
    wanted = own.passages
    assert wanted is not None
    asked = min(wanted.count, len(pool))
    with_likelihood = wanted.likelihood != "off" and _offers_likelihood(own, asker)
    counts = Counter(asked=0, ranked=0, positive_is_another=0)
    longest = max(token_estimate(shown(passage, wanted)) for passage in pool)
    each = of_passage(own, longest, likelihood=with_likelihood)
    for part in asker.rounds(asked, sum((usage for _, usage in each), Usage()), "passages"):
        counts["asked"] += len(part)
        written = asker([_query(own, pool[row], seed, row) for row in part])
        parsed = [tally.parsed("passages", answer, parse_query) for answer in written]
        queries = {row: pair for row, pair in zip(part, parsed, strict=True) if pair is not None}
        if not queries:
            continue
        found = find([query for _, query in queries.values()], wanted.neighbours)
        candidates = {
            row: _with_itself(row, places) for row, places in zip(queries, found, strict=True)
        }
        grades = _graded(own, pool, queries, candidates, asker, tally)
        likelihoods: list[list[float] | None] = [None] * len(queries)
        if with_likelihood:
            likelihoods = _likelihoods(own, pool, queries, candidates, asker, tally)
        for (row, (task, query)), of_row, likely in zip(
            queries.items(), grades, likelihoods, strict=True
        ):
            passages = [pool[place] for place in candidates[row]]
            lot = np.random.default_rng([seed, row]) if wanted.negative == "sampled" else None
            try:
                best, worst = choose(
                    passages, of_row, likely, least_grade=wanted.least_grade, sampled=lot
                )
            except Rejected as fault:
                tally.reject("passages", str(fault))
                continue
            counts["ranked"] += 1
            counts["positive_is_another"] += candidates[row][best] != row
            counts["ranked_by_likelihood_too"] += likely is not None
            negatives = () if worst is None else (passages[worst],)
            yield Example("passages", task, query, passages[best], negatives)
    tally.passages = {"pool": len(pool), "likelihood_offered": with_likelihood, **counts}


def shown(passage: str, wanted: FromPassages) -> str:
    """As much of a passage as the language model sees."""
    return passage[: wanted.passage_characters]


def _with_itself(row: int, places: Sequence[int]) -> list[int]:
    """A query's candidates in the retriever's order, the passage that it was written for last
    where it was not found."""
    return list(dict.fromkeys([*(int(place) for place in places if place >= 0), row]))


def _query(own: Section, passage: str, seed: int, number: int) -> Request:
    assert own.passages is not None
    prompt = text.query_prompt(shown(passage, own.passages))
    return chat(own, prompt, own.answer_tokens, (seed, number))


Queries = dict[int, tuple[str, str]]  # place in the pool → task and query

Candidates = dict[int, list[int]]  # the same → places of what was found


def _graded(
    own: Section,
    pool: list[str],
    queries: Queries,
    candidates: Candidates,
    asker: Asker,
    tally: Tally,
) -> list[list[int | None]]:
    assert own.passages is not None
    requests = [
        chat(
            own,
            text.grade_prompt(*queries[row], shown(pool[place], own.passages)),
            own.grade_tokens,
            temperature=0.0,
        )
        for row, places in candidates.items()
        for place in places
    ]
    answers = asker(requests)
    grades = [tally.parsed("grades", answer, parse_grade) for answer in answers]
    return _cut_up(grades, [len(places) for places in candidates.values()])


def _likelihoods(
    own: Section,
    pool: list[str],
    queries: Queries,
    candidates: Candidates,
    asker: Asker,
    tally: Tally,
) -> list[list[float] | None]:
    """None for a query that has not all of them: half a ranking is none."""
    assert own.passages is not None
    prompts = [
        (text.likelihood_prompt(queries[row][0], shown(pool[place], own.passages)), queries[row][1])
        for row, places in candidates.items()
        for place in places
    ]
    answers = asker([echo(own, f"{prompt} {query}") for prompt, query in prompts])
    told: list[float | None] = []
    for (prompt, query), answer in zip(prompts, answers, strict=True):
        try:
            told.append(_likelihood(answer, prompt, f" {query}"))
        except Rejected as fault:
            tally.reject("likelihoods", str(fault))
            told.append(None)
    parts = _cut_up(told, [len(places) for places in candidates.values()])
    return [None if None in part else [value or 0.0 for value in part] for part in parts]


def _likelihood(answer: Answer, prompt: str, query: str) -> float:
    if answer.refused is not None:
        raise Rejected(f"the endpoint answered {answer.refused}")
    if answer.tokens is None or answer.logprobs is None:
        raise Rejected("no log-probabilities")
    return query_likelihood(answer.text, answer.tokens, answer.logprobs, prompt, query)


def _offers_likelihood(own: Section, asker: Asker) -> bool:
    """Whether the endpoint echoes a prompt with its log-probabilities: many do not, and some
    pass over the wish in silence.

    Raises:
        UserError: when it does not and the recipe requires it.
    """
    assert own.passages is not None
    prompt, query = "A query about the weather:", " will it rain tomorrow"
    try:
        [answer] = asker([echo(own, prompt + query)])
        _likelihood(answer, prompt, query)
        return True
    except (Rejected, UserError) as fault:
        if own.passages.likelihood == "required":
            raise UserError(
                "corpus.synthetic.passages.likelihood",
                f"the endpoint's /completions does not give it ({fault})",
                "Serve the model with vLLM, say, or set it to auto: neighbours are then ranked "
                "by the model's grades alone",
            ) from fault
        log.warning("no query likelihood from this endpoint (%s): ranking by grades alone", fault)
        return False


def _cut_up(flat: Sequence[Any], sizes: Iterable[int]) -> list[Any]:
    ends = np.cumsum([0, *sizes])
    return [list(flat[begin:end]) for begin, end in pairwise(ends)]


class Nearest:
    """The passages whose vectors are nearest to a query's, exactly."""

    def __init__(self, passages: list[str], model: os.PathLike[str]):
        # Late: torch takes seconds to import, and neither BM25 nor an estimate needs it.
        from stillroom.encoders.files.load import load

        self.encoder = load(Path(model), device="cuda" if ray.get_gpu_ids() else "cpu")
        self.vectors = self.encoder.encode(passages, "passage")

    def find(self, queries: list[str], k: int) -> np.ndarray:
        blocks = [(np.arange(len(self.vectors)), self.vectors)]
        return search(self.encoder.encode(queries, "query"), blocks, k)[1]


def retriever_of(wanted: FromPassages, pool: list[str], store: Store, scale: Actors) -> Find:
    """BM25 here, or a model in an actor."""
    if wanted.retriever == "bm25":
        index = Bm25(pool)
        return lambda queries, k: index.search(queries, k)[0]
    model = model_of(wanted.retriever, store)
    actor = ray.remote(**asks(scale))(Nearest).remote(pool, model)
    return lambda queries, k: ray.get(actor.find.remote(queries, k))


def of_passage(own: Section, passage: int, *, likelihood: bool) -> list[tuple[int, Usage]]:
    """(calls, tokens) of what a passage takes: writing, grading, and likelihoods.

    Args:
        passage: tokens of one, as it is shown.
    """
    assert own.passages is not None
    among = own.passages.neighbours + 1
    rounds = [
        (1, token_estimate(text.query_prompt("")), own.answer_tokens),
        (among, QUERY + token_estimate(text.grade_prompt("", "", "")), own.grade_tokens),
    ]
    if likelihood:
        rounds.append((among, QUERY + token_estimate(text.likelihood_prompt("", "")), 1))
    return [
        (calls, Usage(calls * (AROUND + told + passage), calls * limit))
        for calls, told, limit in rounds
    ]
