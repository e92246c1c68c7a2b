"""What a stage writes, and the memory of its processes, by the number of texts: arithmetic.

Bytes of a text or a vector follow from the formats of `storage/columns.py` and
`encoders/vectors/stored.py`. The memory of processes was measured by tests/benchmarks/scale.py.
Working files of cleaning are an upper bound: those of all passes together, and texts hardly
compressed. Copies of texts are not counted, and no evaluation sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MIB, GIB = 2**20, 2**30

# Memory of a process with what it imports, before it holds texts or a model; on CPUs.
DRIVER, TRAINING_WORKER, ENCODING_ACTOR, SEARCH_ACTOR, CLEANING_TASK, REPORT_TASK = (
    mib * MIB for mib in (670, 435, 385, 230, 250, 500)
)
RAY = 430 * MIB  # of a node: its raylet, agents and idle workers
RAY_TRAIN, AFTER_TRAINING = 770 * MIB, 350 * MIB  # its helpers; those that stay until the run ends

# Of the driver, where candidates of an approximate index are scored again: 2²⁴ numbers at a time,
# as float16 and twice in float32.
RESCORED = 10 * (1 << 24)

PARQUET_SHARE = 0.75  # of a text's bytes, in the files that cleaning works on
WORK_BYTES_PER_ROW = 70  # there, of a pair or a passage: hashes, sorted runs, verdicts
WORK_BYTES_PER_NEGATIVE = 90
OPTIMIZER = 12  # bytes of a trained weight in a checkpoint: itself and AdamW's two moments
TOKENIZER = 60  # bytes of a token in a tokenizer's file


@dataclass(frozen=True)
class CorpusTexts:
    """Texts of a corpus.

    Attributes:
        pairs: each with a query and a passage.
        negatives: that came with the pairs, of all of them.
        passages: those of pairs, negatives, and passages without a query.
        query_bytes, passage_bytes: mean of a text, in UTF-8.
    """

    pairs: int
    negatives: int
    passages: int
    query_bytes: float
    passage_bytes: float

    @property
    def texts(self) -> int:
        """Texts that are encoded: queries and passages."""
        return self.pairs + self.passages

    @property
    def text_bytes(self) -> float:
        """Bytes of all texts."""
        return self.pairs * self.query_bytes + self.passages * self.passage_bytes


@dataclass(frozen=True)
class StageSize:
    """Bytes of a stage.

    Attributes:
        what: the stage, and the phase where there are several.
        stored: of its artifacts, under the root.
        shared, local: of what it deletes at its end, under the root and on the driver's machine.
        memory: kind of process → bytes of each; without mapped files, whose pages the system drops
            when it needs the memory.
        processes: kind → how many there are at once; 1 where it is not named.
    """

    what: str
    stored: float
    shared: float
    local: float
    memory: Mapping[str, float]
    processes: Mapping[str, int]

    @property
    def total_memory(self) -> float:
        """Of all processes, with Ray's own on one node."""
        return RAY + sum(size * self.processes.get(kind, 1) for kind, size in self.memory.items())


def corpus_size(texts: CorpusTexts, tasks: int) -> StageSize:
    """The stage `corpus`: a column file of texts has 4 bytes a row beside them; a pair has its
    passage's row, the start of its negatives, its source and its length, 22 bytes; a negative its
    row; a passage source and length.

    Args:
        tasks: that clean at once; 0 of few texts, which the driver cleans.
    """
    stored = texts.text_bytes + 26 * texts.pairs + 8 * texts.negatives + 10 * texts.passages
    shared = (
        PARQUET_SHARE * texts.text_bytes
        + WORK_BYTES_PER_ROW * texts.texts
        + WORK_BYTES_PER_NEGATIVE * texts.negatives
    )
    return StageSize(
        "corpus", stored, shared, 0.0, {"driver": DRIVER, "task": CLEANING_TASK}, {"task": tasks}
    )


def training_size(
    what: str,
    *,
    saved: float,
    trained: float,
    worker: float,
    workers: int,
    checkpoints: int,
) -> StageSize:
    """A phase of training.

    Args:
        saved: bytes of the weights and the tokenizer that are kept.
        trained: number of weights.
        worker: bytes of a worker's model and its training, in main memory.
        checkpoints: that are kept while it runs.
    """
    return StageSize(
        what,
        saved,
        checkpoints * OPTIMIZER * trained,
        0.0,
        {"driver": DRIVER, "worker": TRAINING_WORKER + worker, "Ray Train": RAY_TRAIN},
        {"worker": workers},
    )


def vectors_size(
    texts: CorpusTexts, dims: int, *, artifacts: int, model: float, actors: int
) -> StageSize:
    """The stage `vectors`: float16; and of each text its place and its row, 16 bytes, a digest that
    training checks, 8, and by which later runs find its vector, 24.

    Args:
        artifacts: how many encoders embed the corpus, each at another time.
        model: bytes of an encoder in main memory.
    """
    return StageSize(
        "vectors",
        artifacts * texts.texts * (2 * dims + 48),
        0.0,
        texts.texts * 40,  # digests, and their sorted runs
        {"driver": DRIVER, "actor": ENCODING_ACTOR + model, "Ray Train": AFTER_TRAINING},
        {"actor": actors},
    )


def negatives_size(
    texts: CorpusTexts,
    per_query: int,
    *,
    artifacts: int,
    working_memory: float,
    index_memory: float | None,
    actors: int,
) -> StageSize:
    """The stage `negatives`: of each pair its negatives' rows and scores, 12 bytes each, and its
    positive's score, 4. Blocks of queries hold the same until all are there.

    Args:
        working_memory: bytes of an actor's search, `scale.negatives.memory_gib`.
        index_memory: bytes that an actor needs to fill the lists of approximate search, which are
            mapped afterwards, or to learn their centres; None searches exactly.
    """
    stored = texts.pairs * (12 * per_query + 4)
    rescored = 0.0 if index_memory is None else RESCORED
    return StageSize(
        "negatives",
        artifacts * stored,
        0.0,
        stored,
        {
            "driver": DRIVER + rescored,
            "actor": SEARCH_ACTOR + working_memory + (index_memory or 0.0),
            "Ray Train": AFTER_TRAINING,
        },
        {"actor": actors},
    )


def report_size(evaluation_texts: int, dims: int, model: float) -> StageSize:
    """The stage `report`: the evaluation sets' vectors in float32, of teacher and student.

    Args:
        dims: of both together.
        model: bytes of the models that are timed in turns.
    """
    vectors = 4.0 * evaluation_texts * dims
    return StageSize(
        "report",
        vectors,
        0.0,
        0.0,
        {"driver": DRIVER + vectors, "task": REPORT_TASK + model, "Ray Train": AFTER_TRAINING},
        {},
    )
