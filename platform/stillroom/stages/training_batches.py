"""A phase's batches, from artifacts. Each worker reads its share from storage."""

import dataclasses
from typing import Any

import numpy as np

from stillroom.config.base import GENERAL
from stillroom.config.phases import JointPhase, MntpPhase, PairPhase, SimcsePhase, TrainingPhase
from stillroom.config.student import PairDistillation, StudentPhase
from stillroom.encoders.contract import Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.safe_read import read_array
from stillroom.errors import UserError
from stillroom.learning.batches import (
    DistillationTextBatches,
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    TextBatches,
)
from stillroom.learning.order import BatchOrder, WorkerShard
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.vectors.teacher_vectors import TeacherVectors
from stillroom.storage.artifacts import Artifact

NO_SOURCE = -1  # its rows are in no batch


def pair_batches(
    artifact: Artifact,
    negatives: Artifact | None,
    phase: PairPhase,
    seed: int,
    encoder: Encoder,
    shard: WorkerShard,
) -> PairBatches:
    """Pairs, with hard negatives if the phase uses them."""
    corpus = CorpusData.read(artifact)
    data = dataclasses.replace(
        _pairs(corpus), negatives=_negatives(corpus, negatives, phase.hard_negatives)
    )
    return _pair_batches(corpus, data, phase, seed, encoder, shard)


def distillation_batches(
    teacher_vectors: TeacherVectors,
    negatives: Artifact | None,
    phase: StudentPhase,
    seed: int,
    encoder: Encoder,
    shard: WorkerShard,
) -> PairBatches | DistillationTextBatches:
    """A student's pairs or texts, with the teacher's vectors of them.

    The sources' prompts are the teacher's; a student uses its own prompts.
    """
    corpus = teacher_vectors.corpus_data
    queries, passages = teacher_vectors.rows(encoder.device)
    data = dataclasses.replace(
        _pairs(corpus),
        prompts=[None] * len(corpus.source_names),
        teacher_queries=queries,
        teacher_passages=passages,
    )
    passage_source = _with_general(corpus.passage_sources, corpus, "passage")
    query_source = _with_general(corpus.pair_sources, corpus, "query")
    passage_source[[*passages.skipped]] = query_source[[*queries.skipped]] = NO_SOURCE
    data = dataclasses.replace(data, sampleable_rows=np.flatnonzero(passage_source != NO_SOURCE))
    if isinstance(phase, PairDistillation):
        passage_source = passage_source[: len(corpus.passages)]
        query_source = query_source[: len(corpus.queries)]
        mined = _negatives(corpus, negatives, phase.hard_negatives)
        if mined is not None:
            mined = np.where(np.isin(mined, passages.skipped), -1, mined)
        pair_source = np.where(
            passage_source[corpus.positive_rows] == NO_SOURCE, NO_SOURCE, query_source
        )
        data = dataclasses.replace(data, negatives=mined, source=pair_source)
        batches = _pair_batches(corpus, data, phase, seed, encoder, shard)
        return dataclasses.replace(batches, sampled_passages=phase.ranking_kl_passages)
    data = dataclasses.replace(
        data,
        queries=corpus.all_texts("query"),
        passages=corpus.all_texts("passage"),
    )
    source = np.concatenate([passage_source, query_source])
    return DistillationTextBatches(
        data,
        _order(source, phase, seed, corpus, [*data.passages, *data.queries]),
        encoder.prompter,
        query_tokens=phase.query_tokens,
        passage_tokens=phase.passage_tokens,
        sampled_passages=phase.ranking_kl_passages,
        shard=shard,
    )


def _with_general(sources: np.ndarray, corpus: CorpusData, role: Role) -> np.ndarray:
    """The source of each text of a role, and of the general texts, which are one more source."""
    general = np.full(len(corpus.general_texts(role)), len(corpus.source_names))
    return np.concatenate([sources, general.astype(sources.dtype)])


def _pairs(corpus: CorpusData) -> PairData:
    return PairData(
        queries=corpus.queries,
        passages=corpus.passages,
        positive=corpus.positive_rows,
        source=corpus.pair_sources,
        prompts=corpus.source_prompts,
        symmetric=corpus.source_symmetric,
    )


def _pair_batches(
    corpus: CorpusData,
    data: PairData,
    phase: PairPhase,
    seed: int,
    encoder: Encoder,
    shard: WorkerShard,
) -> PairBatches:
    return PairBatches(
        data,
        _order(data.source, phase, seed, corpus, corpus.queries),
        encoder.prompter,
        hard_negatives=phase.hard_negatives,
        query_tokens=phase.query_tokens,
        passage_tokens=phase.passage_tokens,
        shard=shard,
    )


def text_batches(
    artifact: Artifact,
    phase: SimcsePhase | MntpPhase,
    seed: int,
    encoder: Encoder,
    shard: WorkerShard,
) -> TextBatches:
    """The corpus's passages, without labels."""
    corpus = CorpusData.read(artifact)
    order = _order(corpus.passage_sources, phase, seed, corpus, corpus.passages)
    return TextBatches(corpus.passages, order, encoder.prompter, phase.max_tokens, shard=shard)


def masked_batches(
    artifact: Artifact, phase: MntpPhase, seed: int, encoder: Encoder, shard: WorkerShard
) -> MaskedBatches:
    """The corpus's passages with masked tokens, for MNTP."""
    texts = text_batches(artifact, phase, seed, encoder, shard)
    return MaskedBatches(texts, _mask_id(phase, encoder.tokenizer), phase.mask_probability)


def joint_batches(
    artifact: Artifact,
    negatives: Artifact | None,
    phase: JointPhase,
    seed: int,
    encoder: Encoder,
    shard: WorkerShard,
) -> JointBatches:
    """Pairs for the contrastive loss, and texts to generate."""
    pairs = pair_batches(artifact, negatives, phase, seed, encoder, shard)
    if phase.generation_data == "pairs":
        data = pairs.data
        examples = [(q, data.passages[i]) for q, i in zip(data.queries, data.positive, strict=True)]
    else:
        examples = CorpusData.read(artifact).conversations
    one_source = np.zeros(len(examples), dtype=int)
    return JointBatches(
        pairs,
        GenerationBatches(
            examples,
            # A different seed than the pairs', because equal seeds give equal permutations.
            BatchOrder(one_source, seed=seed + 1, global_batch=phase.generation_batch),
            encoder.prompter,
            phase.generation_tokens,
            shard=shard,
        ),
    )


def _order(
    source: np.ndarray, phase: TrainingPhase, seed: int, corpus: CorpusData, texts: list[str]
) -> BatchOrder:
    names = [*corpus.source_names, *([GENERAL] if corpus.has_general else [])]
    return BatchOrder(
        source,
        seed=seed,
        global_batch=phase.global_batch,
        weights=None if phase.mix is None else [phase.mix.get(name, 0.0) for name in names],
        temperature=phase.mix_temperature,
        one_source=phase.one_source_per_batch,
        lengths=np.array([len(text) for text in texts]) if phase.group_by_length else None,
    )


def _negatives(corpus: CorpusData, mined: Artifact | None, count: int) -> np.ndarray | None:
    """Passage rows of each pair's hard negatives: (pairs, most per pair), -1 for none."""
    if mined is not None:
        return read_array(mined.path / "negatives.npy")
    if not count:
        return None
    width = max(count, *(len(pair_rows) for pair_rows in corpus.negative_rows))
    rows = np.full((len(corpus.queries), width), -1, dtype=np.int64)
    for row, pair_rows in zip(rows, corpus.negative_rows, strict=True):
        row[: len(pair_rows)] = pair_rows
    return rows


def _mask_id(phase: MntpPhase, tokenizer: Any) -> int:
    if phase.mask_token == "blank":
        return int(tokenizer("_", add_special_tokens=False)["input_ids"][-1])
    token_id = tokenizer.mask_token_id if phase.mask_token == "mask" else tokenizer.eos_token_id
    if token_id is None:
        raise UserError(
            f"mask_token: {phase.mask_token}",
            "the tokenizer has no such token",
            "Use mask_token: blank",
        )
    return int(token_id)
