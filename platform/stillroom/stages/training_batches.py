"""A phase's batches, from artifacts. Each worker reads its share from storage."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.config.base import GENERAL
from stillroom.config.phases import JointPhase, MntpPhase, PairPhase, SimcsePhase, TrainingPhase
from stillroom.config.student import PairDistillation, StudentPhase
from stillroom.encoders.contract import Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.safe_read import map_array
from stillroom.errors import UserError
from stillroom.learning.batches import (
    DistillationTextBatches,
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    RehearsalBatches,
    RowLists,
    TextBatches,
)
from stillroom.learning.order import BatchOrder, RowNumbers, WorkerShard
from stillroom.learning.source_runs import SourceRuns
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.vectors.teacher_vectors import TeacherVectors
from stillroom.storage.artifacts import Artifact
from stillroom.storage.columns import Column, Lookup, RemainingRows, Zipped


def pair_batches(
    artifact: Artifact,
    negatives: Artifact | None,
    phase: PairPhase,
    seed: int,
    encoder: Encoder,
    shard: WorkerShard,
) -> PairBatches:
    """Pairs, with hard negatives if the phase uses them."""
    corpus = CorpusData.open(artifact)
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
    skipped = np.array(sorted(passages.skipped), dtype=np.int64)
    skipped_queries = np.array(queries.skipped, dtype=np.int64)
    data = dataclasses.replace(data, sampleable_rows=RemainingRows(len(passage_source), skipped))
    if isinstance(phase, PairDistillation):
        mined = _negatives(corpus, negatives, phase.hard_negatives)
        if mined is not None and len(skipped):
            mined = _Without(mined, skipped)
        without = skipped_queries[skipped_queries < len(corpus.queries)]
        if len(skipped):
            of_skipped = np.flatnonzero(np.isin(corpus.positive_rows, skipped))
            without = np.concatenate([without, of_skipped])
        data = dataclasses.replace(data, negatives=mined, source=data.source.without(without))
        batches = _pair_batches(corpus, data, phase, seed, encoder, shard)
        return dataclasses.replace(batches, sampled_passages=phase.ranking_kl_passages)
    data = dataclasses.replace(
        data,
        queries=corpus.all_texts("query"),
        passages=corpus.all_texts("passage"),
    )
    query_source = _with_general(corpus.pair_sources, corpus, "query")
    source = passage_source.without(skipped).joined(query_source.without(skipped_queries))
    return DistillationTextBatches(
        data,
        _order(source, phase, seed, corpus, corpus.all_lengths("passage", "query")),
        encoder.prompter,
        query_tokens=phase.query_tokens,
        passage_tokens=phase.passage_tokens,
        sampled_passages=phase.ranking_kl_passages,
        shard=shard,
    )


def rehearsal_batches(
    make_pairs: Callable[[Encoder, WorkerShard], PairBatches],
    make_texts: Callable[[Encoder, WorkerShard], DistillationTextBatches],
    encoder: Encoder,
    shard: WorkerShard,
) -> RehearsalBatches:
    """A student's pairs, and texts of an earlier phase beside them."""
    return RehearsalBatches(make_pairs(encoder, shard), make_texts(encoder, shard))


def _with_general(sources: np.ndarray, corpus: CorpusData, role: Role) -> SourceRuns:
    """The source of each text of a role, and of the general texts, which are one more source."""
    general = len(corpus.general_texts(role))
    return SourceRuns.of(sources).followed_by(len(corpus.source_names), general)


def _pairs(corpus: CorpusData) -> PairData:
    return PairData(
        queries=corpus.queries,
        passages=corpus.passages,
        positive=corpus.positive_rows,
        source=SourceRuns.of(corpus.pair_sources),
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
        _order(data.source, phase, seed, corpus, corpus.query_lengths),
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
    corpus = CorpusData.open(artifact)
    sources = SourceRuns.of(corpus.passage_sources)
    order = _order(sources, phase, seed, corpus, corpus.passage_lengths)
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
        examples: Sequence[tuple[str, str]] = Zipped(
            data.queries, Lookup(data.passages, data.positive)
        )
    else:
        examples = CorpusData.open(artifact).conversations
    one_source = SourceRuns.single(len(examples))
    return JointBatches(
        pairs,
        GenerationBatches(
            examples,
            # A different seed than the pairs', because equal seeds give equal permutations.
            BatchOrder(
                one_source,
                seed=seed + 1,
                global_batch=phase.generation_batch,
                shuffle_block_size=phase.shuffle_block_size,
            ),
            encoder.prompter,
            phase.generation_tokens,
            shard=shard,
        ),
    )


def _order(
    source: SourceRuns, phase: TrainingPhase, seed: int, corpus: CorpusData, lengths: RowNumbers
) -> BatchOrder:
    names = [*corpus.source_names, *([GENERAL] if corpus.has_general else [])]
    return BatchOrder(
        source,
        seed=seed,
        global_batch=phase.global_batch,
        weights=None if phase.mix is None else [phase.mix.get(name, 0.0) for name in names],
        temperature=phase.mix_temperature,
        one_source=phase.one_source_per_batch,
        lengths=lengths if phase.group_by_length else None,
        shuffle_block_size=phase.shuffle_block_size,
    )


def _negatives(corpus: CorpusData, mined: Artifact | None, count: int) -> RowLists | None:
    """Passage rows of each pair's hard negatives, -1 for none."""
    if mined is not None:
        return map_array(mined.path / "negatives.npy")
    return corpus.negative_rows if count else None


@dataclass(frozen=True)
class _Without(Column[np.ndarray]):
    """Lists of rows, without some rows."""

    lists: RowLists
    without: np.ndarray

    def __len__(self) -> int:
        return len(self.lists)

    def value(self, row: int) -> np.ndarray:
        rows = np.asarray(self.lists[row])
        return rows[~np.isin(rows, self.without)]


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
