"""The recipe and its scale: strict and frozen.

The recipe decides the numbers. `scale` decides only how long they take and where, and is never
part of a key.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# --- corpus ---------------------------------------------------------------------------------


class Prompts(Section):
    query: str = ""
    passage: str = ""


class Task(Section):
    """What a source's pairs are, whatever its format.

    Attributes:
        prompts: put before this source's queries and passages, in place of the model's own;
            what instruction-tuned embedders call the task.
        symmetric: queries and passages are of one kind (paraphrases, say), and other queries
            may serve as negatives too.
    """

    prompts: Prompts | None = None
    symmetric: bool = False
    license: str | None = None  # of its texts, for the data card


Kind = Literal["pairs", "passages", "conversations"]


class Docstrings(Task):
    """The documentation in this Python environment: summary line → the rest of a docstring."""

    format: Literal["docstrings"]
    packages: tuple[str, ...] | None = None  # distribution names; null: all that are installed
    min_passage_characters: PositiveInt = 200

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"

    def places(self) -> tuple[str, ...]:
        return ()


class Read(Task):
    """What is read from places: paths, folders, globs, s3:// and gs:// URIs, or
    hub:NAME[@REVISION][:CONFIG[:SPLIT]]."""

    on_error: Literal["fail", "skip"] = "fail"  # skip: wrong rows are counted, listed, left out


class Files(Read):
    """Your own pairs, more passages to mine negatives from, and conversations to generate."""

    # The layout of the pairs; files: as the first row of each file tells.
    format: Literal[
        "files", "sentence-transformers", "flag-embedding", "tevatron", "gritlm", "llm2vec"
    ]
    pairs: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    conversations: tuple[str, ...] = ()  # prompt and completion, for `joint` phases
    min_score: float | None = None  # of pairs that come with a score
    instruction: str | None = None  # of rows that name their task: only those of this one

    @model_validator(mode="after")
    def _something(self) -> "Files":
        if not (self.pairs or self.passages or self.conversations):
            raise ValueError("names no file: set pairs, passages or conversations")
        return self

    def has(self, kind: Kind) -> bool:
        return bool(getattr(self, kind) or (kind == "passages" and self.pairs))

    def places(self) -> tuple[str, ...]:
        return (*self.pairs, *self.passages, *self.conversations)


class Beir(Read):
    """The judged queries of a folder in BEIR layout, and its whole corpus as passages."""

    format: Literal["beir"]
    folder: str
    split: str = "train"  # qrels/SPLIT.tsv

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"

    def places(self) -> tuple[str, ...]:
        return (self.collection, self.queries, self.qrels)

    @property
    def collection(self) -> str:
        return f"{self.folder.rstrip('/')}/corpus.jsonl"

    @property
    def queries(self) -> str:
        return f"{self.folder.rstrip('/')}/queries.jsonl"

    @property
    def qrels(self) -> str:
        return f"{self.folder.rstrip('/')}/qrels/{self.split}.tsv"


class MsMarco(Read):
    """Queries, a collection, and which answers which: qrels, or triples of ids.

    Triples of texts are `files`.
    """

    format: Literal["msmarco"]
    collection: str
    queries: str
    qrels: str | None = None
    triples: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_judgement(self) -> "MsMarco":
        if (self.qrels is None) == (self.triples is None):
            raise ValueError("names qrels and triples, or neither: set one of them")
        return self

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"

    def places(self) -> tuple[str, ...]:
        judged = self.qrels or self.triples
        assert judged is not None
        return (self.collection, self.queries, judged)


class Documents(Read):
    """Passages of plain text and Markdown, cut where paragraphs end."""

    format: Literal["documents"]
    passages: tuple[str, ...] = Field(min_length=1)
    tokenizer: str  # the model whose tokens are counted
    passage_tokens: Annotated[int, Field(ge=16)] = 256
    overlap_tokens: NonNegativeInt = 0  # with the passage before, as whole paragraphs

    @model_validator(mode="after")
    def _there_is_more_than_overlap(self) -> "Documents":
        if self.overlap_tokens > self.passage_tokens // 2:
            raise ValueError("overlap_tokens may be half of passage_tokens at most")
        return self

    def has(self, kind: Kind) -> bool:
        return kind == "passages"

    def places(self) -> tuple[str, ...]:
        return self.passages


Source = Docstrings | Files | Beir | MsMarco | Documents


class Budget(Section):
    """What an artifact's requests may cost in all, those answered from the cache counted too.

    Of tokens and cost, the one that is reached first ends it. Prices are for a million tokens.
    """

    tokens: PositiveInt | None = None  # in and out together
    cost: PositiveFloat | None = None
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _a_cost_needs_prices(self) -> "Budget":
        if self.cost is not None and not (self.price_in or self.price_out):
            raise ValueError("cost needs price_in and price_out, for a million tokens")
        return self


TaskKind = Literal[
    "short-long", "long-short", "short-short", "long-long", "similarity", "translation"
]


class FromTasks(Section):
    """Examples of tasks that the language model thinks up (E5-mistral, arXiv 2401.00368)."""

    examples: dict[TaskKind, PositiveInt]  # kind → how many are asked for
    examples_a_task: PositiveInt = 3
    languages: tuple[str, ...] = Field(default=("English",), min_length=1)

    @model_validator(mode="after")
    def _two_languages_to_translate(self) -> "FromTasks":
        if "translation" in self.examples and len(set(self.languages)) < 2:
            raise ValueError("examples of translation need two languages")
        return self


class FromPassages(Section):
    """Queries for passages, whose positives are chosen anew (FRet of Gecko, arXiv 2403.20327).

    Attributes:
        sources: whose passages without a query are taken; null: all that have some.
        pool: the most passages that neighbours are looked for among, drawn from the sources.
        retriever: `bm25`, a model, or `teacher/NAME-KEY` for one trained before; without its
            key the newest counts, and with each new one the data is made anew.
        likelihood: whether neighbours are ranked by the query's likelihood too. It takes an
            endpoint whose /completions echoes a prompt with its log-probabilities; `auto` does
            without where it is not offered, and the artifact says so.
    """

    count: PositiveInt  # passages that a query is asked for
    sources: tuple[Name, ...] | None = None
    pool: PositiveInt = 50_000
    passage_characters: PositiveInt = 4000  # of a passage, shown to the language model
    retriever: str = "bm25"
    neighbours: Annotated[int, Field(ge=2)] = 10
    likelihood: Literal["auto", "required", "off"] = "auto"
    least_grade: Annotated[int, Field(ge=0, le=3)] = 2  # of a positive, from 0 to 3
    negative: Literal["lowest", "sampled"] = "lowest"


class Synthetic(Task):
    """Pairs that a language model writes, one more source of the name `synthetic`.

    Attributes:
        query: how a pair's query is put together, of its {task} and the {query} itself; for
            teachers that are told every text's task.
        extra_body: more fields for requests; null takes one out.
    """

    model: str
    temperature: NonNegativeFloat = 1.0
    answer_tokens: PositiveInt = 1024  # the most of one answer
    grade_tokens: PositiveInt = 16
    extra_body: dict[str, Any] = {}
    query: str = "{query}"
    budget: Budget = Budget()
    tasks: FromTasks | None = None
    passages: FromPassages | None = None

    @model_validator(mode="after")
    def _something(self) -> "Synthetic":
        if self.tasks is None and self.passages is None:
            raise ValueError("makes nothing: set tasks or passages")
        if "{query}" not in self.query:
            raise ValueError("query must hold {query}")
        return self

    def has(self, kind: Kind) -> bool:
        return kind != "conversations"


class HeldOut(Section):
    """A test set split off a source's pairs: `queries` of them judged among `passages`."""

    queries: PositiveInt
    passages: PositiveInt
    source: Name | None = None  # null: the first

    @model_validator(mode="after")
    def _every_query_has_its_passage(self) -> "HeldOut":
        if self.passages < self.queries:
            raise ValueError("must hold at least as many passages as queries")
        return self


class Decontaminate(Section):
    """Pairs that give away what an evaluation set asks or answers; see `text.decontaminate`."""

    action: Literal["drop", "report"] = "drop"
    ngram: Annotated[int, Field(ge=8)] = 13  # words in a row; shorter texts match as a whole
    share: Annotated[float, Field(gt=0, le=1)] = 0.6  # of the shorter text's words
    listed: NonNegativeInt = 1000  # pairs of each set in contamination.json; all are counted


# Of each source, or source → number. Told apart beforehand, a wrong one is one fault and not two.
Most = Annotated[
    Annotated[PositiveInt, Tag("number")] | Annotated[dict[Name, PositiveInt], Tag("by_source")],
    Discriminator(lambda given: "by_source" if isinstance(given, dict) else "number"),
]


class NearDuplicates(Section):
    """Drops pairs and passages that are near-copies of what comes before them.

    Attributes:
        similarity: the share of three-word sequences that two texts have in common (Jaccard);
            at 0.8 some four words in a hundred may differ.
    """

    similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.8


class Corpus(Section):
    sources: dict[Name, Annotated[Source, Field(discriminator="format")]] = Field(min_length=1)
    # null, since it depends on the data: what was crawled repeats itself, and its copies are each
    # other's false negatives; in a catalogue texts that are nearly alike are different answers.
    near_duplicates: NearDuplicates | None = None
    max_pairs: Most | None = None
    held_out: HeldOut | None = None
    evaluation: dict[Name, str] = {}  # set → folder in BEIR layout
    decontaminate: Decontaminate = Decontaminate()
    synthetic: Synthetic | None = None

    @model_validator(mode="after")
    def _synthetic_fits(self) -> "Corpus":
        if self.synthetic is None:
            return self
        if "synthetic" in self.sources:
            raise ValueError("no source may be named 'synthetic', which the section makes")
        wanted = self.synthetic.passages
        for name in (wanted and wanted.sources) or ():
            if name not in self.sources:
                raise ValueError(f"synthetic.passages.sources names {name!r}, which is no source")
        return self

    @property
    def trained_on(self) -> "dict[str, Source | Synthetic]":
        """Every source, the synthetic one among them."""
        own = {} if self.synthetic is None else {"synthetic": self.synthetic}
        return {**self.sources, **own}

    @model_validator(mode="after")
    def _something_to_measure(self) -> "Corpus":
        if isinstance(self.max_pairs, dict) and (unknown := set(self.max_pairs) - {*self.sources}):
            raise ValueError(f"max_pairs names {min(unknown)!r}, which is no source")
        if self.held_out is None and not self.evaluation:
            raise ValueError("set held_out or evaluation: without either nothing can be measured")
        if self.held_out is not None:
            if "held-out" in self.evaluation:
                raise ValueError("evaluation may not be named 'held-out', which held_out makes")
            asked = self.held_out.source or next(iter(self.sources))
            if asked not in self.sources:
                raise ValueError(f"held_out.source names {asked!r}, which is no source")
            if not self.sources[asked].has("pairs"):
                raise ValueError(f"held_out.source: {asked!r} has no pairs to split a test set off")
        return self


# --- models ---------------------------------------------------------------------------------


class Lora(Section):
    """Low-rank adapters (Hu et al., 2021) on every linear layer, or on those named."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Dropout = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rank_stabilised: bool = False  # rsLoRA (Kalajdzievski, 2023): alpha / sqrt(rank)
    decomposed: bool = False  # DoRA (Liu et al., 2024): magnitude and direction apart


class Latents(Section):
    """Latent attention (NV-Embed, arXiv 2405.17428), for pooling: latent."""

    count: PositiveInt = 512
    heads: PositiveInt = 8
    head_dims: PositiveInt | None = None  # null: the states' own width, as in the paper


class Optimisation(Section):
    steps: PositiveInt
    global_batch: PositiveInt  # pairs or texts an update, over all workers
    learning_rate: PositiveFloat  # the peak; linear warm-up, then the schedule's way down to 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.1  # of the steps
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 1.0  # of the gradient's global norm
    mix: dict[Name, PositiveFloat] | None = None  # source → share of the batches; null: by size
    mix_temperature: PositiveFloat = 1.0  # without mix, shares are sizes ** (1 / it)
    one_source_a_batch: bool = True  # other sources' texts are negatives too easy to learn from
    by_length: bool = False  # batches of texts of like length

    @model_validator(mode="after")
    def _one_way_to_mix(self) -> "Optimisation":
        if self.mix is not None and self.mix_temperature != 1:
            raise ValueError("mix says every share: leave out mix_temperature, or mix")
        return self


class PairTraining(Optimisation):
    """What trains on pairs."""

    query_tokens: PositiveInt = 64
    passage_tokens: PositiveInt = 128
    hard_negatives: NonNegativeInt = 0  # a pair, of those mined or given


class Contrastive(PairTraining):
    """InfoNCE with in-batch negatives over all workers, and with hard negatives if asked."""

    objective: Literal["contrastive"]
    temperature: PositiveFloat = 0.03
    negatives: Literal["mined", "given"] = "mined"  # where hard negatives come from
    in_batch: bool = True  # other pairs' passages are negatives
    query_query: bool = False  # other queries, too
    passage_passage: bool = False  # and other passages for the positive
    false_negative_margin: float | None = None  # ignores what scores above positive + margin
    dims: dict[PositiveInt, PositiveFloat] | None = None  # Matryoshka: size → weight
    merge_before: bool = False  # merge the adapter trained so far, and begin a new one
    evaluate_every: PositiveInt | None = None  # steps; the best weights are kept


class Mntp(Optimisation):
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961) on the corpus's passages."""

    objective: Literal["mntp"]
    tokens: PositiveInt = 128  # of a text
    mask: Literal["blank", "mask", "eos"] = "blank"  # "_", the tokenizer's mask token, or EOS
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    merge_before: bool = False


class Simcse(Optimisation):
    """Unsupervised contrastive learning: one text under two dropouts (arXiv 2104.08821)."""

    objective: Literal["simcse"]
    tokens: PositiveInt = 128
    temperature: PositiveFloat = 0.05
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    merge_before: bool = False


class Joint(Contrastive):
    """Contrastive and next-token generation in one step (GritLM, arXiv 2402.09906)."""

    objective: Literal["joint"]  # type: ignore[assignment]
    generation_batch: PositiveInt  # completions an update, over all workers
    generation_tokens: PositiveInt = 256
    generation_weight: PositiveFloat = 1.0
    generation_loss: Literal["token", "sample"] = "token"  # a mean over tokens, or over samples
    generate: Literal["conversations", "pairs"] = "conversations"  # pairs: query → passage


Phase = Contrastive | Mntp | Simcse | Joint


class Teacher(Section):
    base: str
    attention: Literal["causal", "bidirectional"] | None = None  # null: as the base's own
    pooling: Literal["mean", "weighted_mean", "last", "cls", "latent"] | None = None
    latents: Latents = Latents()
    echo: bool = False  # the text twice, pooled over the second (arXiv 2402.15449)
    append_eos: bool = False
    prompts: Prompts | None = None
    pool_prompt: bool = True
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: Lora | None = Lora()  # null: every weight is trained
    phases: tuple[Annotated[Phase, Field(discriminator="objective")], ...] = ()  # none: the base

    @model_validator(mode="after")
    def _phases_fit(self) -> "Teacher":
        for i, phase in enumerate(self.phases):
            if isinstance(phase, Mntp) and self.echo:
                raise ValueError(
                    f"phases[{i}] is mntp, and echo shows every masked token in the other copy: "
                    "use one of them"
                )
            if phase.merge_before and (i == 0 or self.lora is None):
                raise ValueError(
                    f"phases[{i}].merge_before has nothing to merge: it needs lora, and a phase "
                    "before it"
                )
        return self


class Distil(Section):
    """Weights of the distillation losses; see `learning.objectives.Distillation`."""

    vector: NonNegativeFloat = 0.0
    scores: NonNegativeFloat = 1.0
    contrastive: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 0.05
    teacher_temperature: PositiveFloat = 0.05

    @model_validator(mode="after")
    def _at_least_one(self) -> "Distil":
        if not (self.vector or self.scores or self.contrastive):
            raise ValueError("every loss has weight 0")
        return self


class Student(PairTraining):
    base: str
    layers: tuple[NonNegativeInt, ...] | None = None  # the base's layers to keep; null: all
    space: Literal["own", "teacher"] = "own"  # teacher: projected into the teacher's dims
    pooling: Literal["mean", "weighted_mean", "last", "cls"] | None = None
    prompts: Prompts | None = None
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    losses: Distil = Distil()
    hard_negatives: NonNegativeInt = 1

    @model_validator(mode="after")
    def _vectors_need_one_space(self) -> "Student":
        if self.losses.vector and self.space == "own":
            raise ValueError("losses.vector compares vectors, and so needs space: teacher")
        return self


# --- the other stages -----------------------------------------------------------------------


class Vectors(Section):
    shard: PositiveInt = 1024  # texts a file, and the most that a crash can cost


class Ivf(Section):
    """Approximate search, by FAISS, of large corpora; its recall is measured before it is used."""

    above: PositiveInt = 1_000_000  # passages; fewer are searched exactly
    part: PositiveInt = 1_000_000  # passages of an index
    lists: PositiveInt | None = None  # of an index; null: 4 times the root of its passages
    probes: PositiveInt = 32  # lists read a query, of each index
    min_recall: Share = 0.95  # of what exact search finds; less is refused
    sample: PositiveInt = 256  # queries that this is measured on


Miner = Annotated[str, Field(min_length=1)]


class Negatives(Section):
    """Positive-aware mining: TopK-PercPos of NV-Retriever (arXiv 2407.15831), and its other rules.

    Attributes:
        miner: `teacher` (of a mined phase: the phase before), `base` (the teacher's, untrained),
            `bm25`, or a model as named elsewhere. Several are united: each finds candidates, and
            the first of them that is a model scores them all.
        max_share_of_positive, margin, max_score: what a candidate may score at most: a share of
            its positive's score, so much less than that, or this; null does not hold.
        rescore: a cross-encoder, whose scores between 0 and 1 then decide in place of the miner's.
        searched: also passages of evaluation sets that answer no judged query. They are in the
            corpus only where they answer a query that is trained on.
        ivf: null searches exactly.
    """

    miner: Miner | Annotated[tuple[Miner, ...], Field(min_length=1)] = "teacher"
    max_share_of_positive: PositiveFloat | None = 0.95
    margin: NonNegativeFloat | None = None
    max_score: float | None = None
    skip_first: NonNegativeInt = 0
    sample_from: PositiveInt = 16  # the best that remain
    per_query: PositiveInt = 4
    strategy: Literal["random", "top"] = "random"
    rescore: str | None = None
    searched: bool = False
    ivf: Ivf | None = None

    @property
    def miners(self) -> tuple[str, ...]:
        return (self.miner,) if isinstance(self.miner, str) else self.miner

    @model_validator(mode="after")
    def _enough_to_draw(self) -> "Negatives":
        if self.sample_from < self.per_query:
            raise ValueError("sample_from must be at least per_query")
        if len(set(self.miners)) < len(self.miners):
            raise ValueError("miner names one twice")
        return self


class Report(Section):
    bm25: bool = True
    bases: bool = True  # also measure both models before training


class Release(Section):
    """The gate: what must hold before anything is released."""

    mean_retention: NonNegativeFloat | None = None  # student / teacher, nDCG@10
    set_retention: NonNegativeFloat | None = None  # the same for every set
    ndcg: dict[Name, Share] = {}  # floors for the student
    student_over_base: bool = False
    student_over_bm25: bool = False


# --- scale ----------------------------------------------------------------------------------


class Workers(Section):
    workers: PositiveInt = 1
    cpus: PositiveFloat = 1.0  # each
    gpus: NonNegativeFloat = 0.0  # each
    gpu: str | None = None  # its kind, such as H100-80G: `check` says whether the run fits
    engine: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "parameters"] = "none"  # to the worker's main memory
    micro_tokens: PositiveInt = 16384  # the most tokens, padding counted, of one forward
    gradcache: bool = False  # bounds memory by micro_tokens, for a second forward
    gradient_checkpointing: bool = False
    packed: bool = False  # no padding at all; of Llama, Mistral and Qwen
    checkpoint_every: PositiveInt = 50  # steps; the most that a crash can cost
    max_failures: NonNegativeInt = 2

    @model_validator(mode="after")
    def _zero_is_deepspeed(self) -> "Workers":
        if self.zero_stage and self.engine == "torch":
            raise ValueError("zero_stage needs engine: deepspeed")
        if self.offload == "optimizer" and self.zero_stage < 1:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage < 3:
            raise ValueError("offload: parameters needs zero_stage 3")
        return self


class Actors(Section):
    actors: PositiveInt = 1
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0


class Endpoint(Section):
    """Where the language model of corpus.synthetic is served, as OpenAI's API is."""

    base_url: str | None = None  # such as https://api.openai.com/v1
    key_variable: str | None = None  # the environment's, that holds the key; null: none is sent
    actors: PositiveInt = 1
    at_once: PositiveInt = 8  # requests of each actor
    attempts: PositiveInt = 8  # of each request, before the run gives up
    timeout_s: PositiveFloat = 120.0  # of an attempt


class Searchers(Actors):
    memory_gib: PositiveFloat = 1.0  # what each works in, beside the index where there is one


class Tracking(Section):
    """Where training's figures go beside metrics.jsonl."""

    tensorboard: bool = True
    mlflow: str | None = None  # tracking URI
    wandb: str | None = None  # project


class Scale(Section):
    """Time, place and what is shown, never results; not part of a key."""

    synthetic: Endpoint = Endpoint()
    teacher: Workers = Workers(engine="deepspeed")
    student: Workers = Workers()
    vectors: Actors = Actors()
    negatives: Searchers = Searchers()
    report: Actors = Actors()  # one model after another, each by one actor
    tracking: Tracking = Tracking()


class Recipe(Section):
    name: Name
    root: str = "runs"  # where artifacts live: a folder, or what pyarrow.fs opens
    seed: NonNegativeInt = 17
    corpus: Corpus
    teacher: Teacher
    vectors: Vectors = Vectors()
    negatives: Negatives = Negatives()
    student: Student
    report: Report = Report()
    release: Release = Release()
    scale: Scale = Scale()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        for field, section, scale in self._trained():
            batches = {"global_batch": section.global_batch}
            if isinstance(section, Joint):
                batches["generation_batch"] = section.generation_batch
            for name, size in batches.items():
                if size % scale.workers:
                    raise ValueError(
                        f"{field}.{name} ({size}) must be a multiple of the number of workers "
                        f"({scale.workers})"
                    )
            if isinstance(section, PairTraining):
                given = isinstance(section, Contrastive) and section.negatives == "given"
                if section.hard_negatives > self.negatives.per_query and not given:
                    raise ValueError(
                        f"{field}.hard_negatives ({section.hard_negatives}) exceeds "
                        f"negatives.per_query ({self.negatives.per_query})"
                    )
            if isinstance(section, Contrastive) and not (
                section.in_batch or section.hard_negatives
            ):
                raise ValueError(f"{field} has no negatives: set in_batch or hard_negatives")
        if (
            self.teacher.phases
            and mines(self.teacher.phases[0])
            and "teacher" in self.negatives.miners
        ):
            raise ValueError(
                "teacher.phases[0] cannot mine its negatives: the untrained base would; set "
                "hard_negatives: 0 or negatives: given, add a phase before it, or name another "
                "negatives.miner"
            )
        return self

    @model_validator(mode="after")
    def _somebody_writes(self) -> "Recipe":
        if self.corpus.synthetic is not None and self.scale.synthetic.base_url is None:
            raise ValueError(
                "corpus.synthetic needs a language model: set scale.synthetic.base_url, such as "
                "http://localhost:8000/v1"
            )
        return self

    @model_validator(mode="after")
    def _sources_have_what_is_trained_on(self) -> "Recipe":
        sources = self.corpus.trained_on
        for field, section, _ in self._trained():
            kind: Kind = "pairs" if isinstance(section, PairTraining) else "passages"
            if not any(source.has(kind) for source in sources.values()):
                raise ValueError(
                    f"{field} needs {kind}, and no source under corpus.sources has any"
                )
            for name in section.mix or ():
                if name not in sources:
                    raise ValueError(f"{field}.mix names {name!r}, which is no source")
                if not sources[name].has(kind):
                    raise ValueError(f"{field}.mix names {name!r}, a source without {kind}")
            if not isinstance(section, Joint) or section.generate != "conversations":
                continue
            if not any(source.has("conversations") for source in sources.values()):
                raise ValueError(
                    f"{field}.generate is 'conversations', and no source has any: name files under "
                    "corpus.sources.NAME.conversations, or set generate: pairs"
                )
        return self

    def _trained(self) -> list[tuple[str, Optimisation, Workers]]:
        """Every section that trains, with its field and its part of the scale."""
        phases = [
            (f"teacher.phases[{i}]", phase, self.scale.teacher)
            for i, phase in enumerate(self.teacher.phases)
        ]
        return [*phases, ("student", self.student, self.scale.student)]


def mines(phase: Phase) -> bool:
    """Whether a phase needs negatives that the phase before it mines."""
    return (
        isinstance(phase, Contrastive) and phase.hard_negatives > 0 and phase.negatives == "mined"
    )
