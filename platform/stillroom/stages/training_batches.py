"""Artifacts → a phase's batches. Each worker reads its own from storage."""

import dataclasses
from typing import Any

import numpy as np

from stillroom.config.phases import Joint, Mntp, Optimisation, PairTraining, Simcse
from stillroom.config.student import OnPairs, StudentPhase
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.safe_read import array
from stillroom.errors import UserError
from stillroom.learning.batches import (
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    TaughtTextBatches,
    TextBatches,
)
from stillroom.learning.order import Order
from stillroom.stages.corpus.artifact import CorpusFiles
from stillroom.stages.vectors.teacher_vectors import Taught
from stillroom.storage.artifacts import Artifact

Place = dict[str, int]  # rank and world

NO_SOURCE = -1


def pair_batches(
    corpus: Artifact,
    negatives: Artifact | None,
    settings: PairTraining,
    seed: int,
    encoder: Encoder,
    place: Place,
) -> PairBatches:
    """Pairs, with hard negatives where they are asked for."""
    files = CorpusFiles.read(corpus)
    data = dataclasses.replace(
        _pairs(files), negatives=_negatives(files, negatives, settings.hard_negatives)
    )
    return _pair_batches(files, data, settings, seed, encoder, place)


def taught_batches(
    taught: Taught,
    negatives: Artifact | None,
    settings: StudentPhase,
    seed: int,
    encoder: Encoder,
    place: Place,
) -> PairBatches | TaughtTextBatches:
    """A student's pairs or texts, which is not told its task, as its teacher is."""
    files = taught.files
    queries, passages = taught.rows(encoder.device)
    data = dataclasses.replace(
        _pairs(files),
        prompts=[None] * len(files.sources),
        teacher_queries=queries,
        teacher_passages=passages,
    )
    # Rows of no source are in no batch.
    of_passage, of_query = files.passage_source.copy(), files.source.copy()
    of_passage[[*passages.skipped]] = of_query[[*queries.skipped]] = NO_SOURCE
    data = dataclasses.replace(data, drawable=np.flatnonzero(of_passage != NO_SOURCE))
    if isinstance(settings, OnPairs):
        mined = _negatives(files, negatives, settings.hard_negatives)
        if mined is not None:
            mined = np.where(np.isin(mined, passages.skipped), -1, mined)
        of_pair = np.where(of_passage[files.positive] == NO_SOURCE, NO_SOURCE, of_query)
        data = dataclasses.replace(data, negatives=mined, source=of_pair)
        batches = _pair_batches(files, data, settings, seed, encoder, place)
        return dataclasses.replace(batches, drawn=settings.across_passages)
    source = np.concatenate([of_passage, of_query])
    return TaughtTextBatches(
        data,
        _order(source, settings, seed, files, [*files.passages, *files.queries]),
        encoder.prompter,
        query_tokens=settings.query_tokens,
        passage_tokens=settings.passage_tokens,
        drawn=settings.across_passages,
        **place,
    )


def _pairs(files: CorpusFiles) -> PairData:
    return PairData(
        queries=files.queries,
        passages=files.passages,
        positive=files.positive,
        source=files.source,
        prompts=files.prompts,
        symmetric=files.symmetric,
    )


def _pair_batches(
    files: CorpusFiles,
    data: PairData,
    settings: PairTraining,
    seed: int,
    encoder: Encoder,
    place: Place,
) -> PairBatches:
    return PairBatches(
        data,
        _order(data.source, settings, seed, files, files.queries),
        encoder.prompter,
        hard_negatives=settings.hard_negatives,
        query_tokens=settings.query_tokens,
        passage_tokens=settings.passage_tokens,
        **place,
    )


def text_batches(
    corpus: Artifact, settings: Simcse | Mntp, seed: int, encoder: Encoder, place: Place
) -> TextBatches:
    """The corpus's passages, without labels."""
    files = CorpusFiles.read(corpus)
    order = _order(files.passage_source, settings, seed, files, files.passages)
    return TextBatches(files.passages, order, encoder.prompter, settings.tokens, **place)


def masked_batches(
    corpus: Artifact, settings: Mntp, seed: int, encoder: Encoder, place: Place
) -> MaskedBatches:
    texts = text_batches(corpus, settings, seed, encoder, place)
    return MaskedBatches(texts, _mask_id(settings, encoder.tokenizer), settings.mask_share)


def joint_batches(
    corpus: Artifact,
    negatives: Artifact | None,
    settings: Joint,
    seed: int,
    encoder: Encoder,
    place: Place,
) -> JointBatches:
    pairs = pair_batches(corpus, negatives, settings, seed, encoder, place)
    if settings.generate == "pairs":
        data = pairs.data
        told = [(q, data.passages[i]) for q, i in zip(data.queries, data.positive, strict=True)]
    else:
        told = CorpusFiles.read(corpus).conversations
    everything = np.zeros(len(told), dtype=int)
    return JointBatches(
        pairs,
        GenerationBatches(
            told,
            # Another stream than the pairs': both are permuted by their seed.
            Order(everything, seed=seed + 1, global_batch=settings.generation_batch),
            encoder.prompter,
            settings.generation_tokens,
            **place,
        ),
    )


def _order(
    source: np.ndarray, settings: Optimisation, seed: int, files: CorpusFiles, texts: list[str]
) -> Order:
    return Order(
        source,
        seed=seed,
        global_batch=settings.global_batch,
        weights=None if settings.mix is None else [settings.mix.get(n, 0.0) for n in files.sources],
        temperature=settings.mix_temperature,
        one_source=settings.one_source_a_batch,
        lengths=np.array([len(text) for text in texts]) if settings.by_length else None,
    )


def _negatives(files: CorpusFiles, mined: Artifact | None, count: int) -> np.ndarray | None:
    """Passage rows of each pair's hard negatives, (pairs, most of a pair), -1 for none."""
    if mined is not None:
        return array(mined.path / "negatives.npy")
    if not count:
        return None
    most = max(count, *(len(given) for given in files.negatives))
    rows = np.full((len(files.queries), most), -1, dtype=np.int64)
    for row, given in zip(rows, files.negatives, strict=True):
        row[: len(given)] = given
    return rows


def _mask_id(settings: Mntp, tokenizer: Any) -> int:
    if settings.mask == "blank":
        return int(tokenizer("_", add_special_tokens=False)["input_ids"][-1])
    found = tokenizer.mask_token_id if settings.mask == "mask" else tokenizer.eos_token_id
    if found is None:
        raise UserError(
            f"mask: {settings.mask}", "the tokenizer has no such token", "Use mask: blank"
        )
    return int(found)
