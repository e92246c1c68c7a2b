"""Where a student's training starts: the layers and tokens that it keeps, and its projection.

Computed once, before the workers start, from the base and the teacher's vectors; kept beside the
encoder, so that a resumed run and the report have the same start.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stillroom.config.student import Student, StudentPhase
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.encoders.contract import Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.inputs import model_tokenizer
from stillroom.encoders.interface import truncate_vectors
from stillroom.encoders.layers.local_maps import LocalMaps
from stillroom.encoders.layers.projection import Projection
from stillroom.encoders.tokens.batch import Tokens
from stillroom.encoders.tokens.prune import count_tokens
from stillroom.learning.layer_choice import choose_layers
from stillroom.learning.linear_maps import Moments, principal_components
from stillroom.learning.local_maps import solve_local_maps
from stillroom.learning.projection import (
    CHUNK,
    ProjectionFit,
    pooled_states,
    solve_map,
    sum_moments,
)
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.vectors.teacher_vectors import TeacherVectors
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.columns import Joined, RemainingRows

START_FILE = "start.json"  # in a student's folder: the layers, and figures of the choice
WEIGHTS_FILE = "start.safetensors"  # beside it: the projection and the token counts, if any
STORED_TEXTS, ONLINE_TEXTS = 65_536, 2_048  # that a projection is solved from by default
WHITENING = 0.2  # of states before the orthogonal map, where cosine compares
LAYER_TEXTS = 1_024  # that subsets of layers are compared on
BATCH_TOKENS = 8_192
MAPS_PREFIX = "base_maps."  # of the names of their tensors


@dataclass(frozen=True)
class StudentStart:
    """The start of a student.

    Attributes:
        layers: of the base that it keeps; None: all.
        weight: of its projection, float32 (d, h); None: as it is created.
        base_maps: of the base with all its layers into the teacher's space, where the student
            leaves layers out or a phase distils the base.
        token_counts: how often the corpus has each token of the base, int64, where the
            vocabulary is narrowed.
        figures: `layer_scores`: of each subset that was tried; `base_maps`: their number, and the
            texts; `projection`: the chosen map, its error, and every map's scores on held-back
            topics.
    """

    layers: tuple[int, ...] | None = None
    weight: torch.Tensor | None = None
    base_maps: LocalMaps | None = None
    token_counts: torch.Tensor | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def apply(self, encoder: Encoder) -> None:
        """Gives the encoder this start's projection; the base, of `of_base`, its maps."""
        if self.weight is not None:
            linear_of(encoder).weight.data.copy_(self.weight)
        elif self.base_maps is not None:
            encoder.projection = self.base_maps

    def write(self, folder: Path) -> None:
        """Writes what `read` reads."""
        maps = {} if self.base_maps is None else self.base_maps.state_dict()
        tensors = {
            "weight": self.weight,
            "token_counts": self.token_counts,
            **{f"{MAPS_PREFIX}{name}": tensor for name, tensor in maps.items()},
        }
        if any(tensor is not None for tensor in tensors.values()):
            partial = folder / f"{WEIGHTS_FILE}.partial"
            given = {name: t.contiguous() for name, t in tensors.items() if t is not None}
            save_file(given, partial)
            partial.rename(folder / WEIGHTS_FILE)
        # Last: this file says that the start is whole.
        atomic_write_json(folder / START_FILE, {"layers": self.layers, "figures": self.figures})

    def of_base(self) -> "StudentStart":
        """The start of the base with all its layers."""
        return replace(self, layers=None, weight=None)

    def summary(self) -> dict[str, Any]:
        """The start in the student's manifest."""
        return {"layers": self.layers, **self.figures}

    @classmethod
    def read(cls, folder: Path) -> "StudentStart | None":
        """A student's start, from its folder; None where it has none."""
        if not (folder / START_FILE).exists():
            return None
        content = json.loads((folder / START_FILE).read_text(encoding="utf-8"))
        layers, file = content["layers"], folder / WEIGHTS_FILE
        tensors = load_file(file) if file.exists() else {}
        maps = {
            name.removeprefix(MAPS_PREFIX): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(MAPS_PREFIX)
        }
        return cls(
            None if layers is None else tuple(layers),
            base_maps=LocalMaps(**maps) if maps else None,
            **tensors,
            figures=content["figures"],
        )


def linear_of(encoder: Encoder) -> torch.nn.Linear:
    """A student's map into its teacher's space, or to fewer dims."""
    assert isinstance(encoder.projection, Projection), "only called where there is one"
    return encoder.projection.linear


def needs_start(section: Student) -> bool:
    """Whether a student has a start that must be computed."""
    counted = isinstance(section.layers, int) or section.vocabulary_size is not None
    return counted or section.space == "teacher" or section.output_dims is not None


def all_texts(corpus: CorpusData) -> Sequence[str]:
    """The texts whose tokens decide a narrowed vocabulary."""
    return Joined(corpus.passages, corpus.queries)


def given_layers(section: Student) -> tuple[int, ...] | None:
    """The layers that a recipe names; None where it keeps all, or only counts them."""
    return section.layers if isinstance(section.layers, tuple) else None


def fit_start(
    section: Student,
    phase: StudentPhase,
    seed: int,
    teacher_vectors: TeacherVectors,
    make_encoder: Callable[[StudentStart], Encoder],
    *,
    base_teaches: bool = False,
) -> StudentStart:
    """Chooses the layers where the recipe only counts them, and solves the projection.

    Uses a GPU where the process has one.

    Args:
        phase: the first.
        make_encoder: the student of a start.
        base_teaches: a phase distils the base, which then has maps into the teacher's space.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = StudentStart(given_layers(section))
    if section.vocabulary_size is not None:
        tokenizer = model_tokenizer(section.base, trust_remote_code=section.trust_remote_code)
        counts = count_tokens(tokenizer, all_texts(teacher_vectors.corpus_data))
        start = replace(start, token_counts=torch.from_numpy(counts))
    if isinstance(section.layers, int):
        whole = make_encoder(start).to(device)
        sample = FitSample(teacher_vectors, phase, whole, LAYER_TEXTS)
        start = _choose_layers(start, whole, sample, section.layers, seed)
    encoder = make_encoder(start).to(device)
    if encoder.projection is None or not (section.space == "teacher" or section.output_dims):
        return start
    texts = section.start.texts or (ONLINE_TEXTS if phase.online_teacher else STORED_TEXTS)
    sample = FitSample(teacher_vectors, phase, encoder, texts)
    if section.space == "own":
        return replace(start, weight=_own_components(encoder, sample.tokens))
    base = None
    if start.layers is not None:
        base = make_encoder(start.of_base()).to(device)
    elif base_teaches:
        base = encoder
    return _fit_to_teacher(section, start, encoder, base, sample, seed)


def _choose_layers(
    start: StudentStart, whole: Encoder, sample: "FitSample", count: int, seed: int
) -> StudentStart:
    choice = choose_layers(
        whole, sample.tokens, sample.vectors, count, batch_tokens=BATCH_TOKENS, seed=seed
    )
    scores = {" ".join(map(str, tried)): round(score, 4) for tried, score in choice.tried.items()}
    return replace(start, layers=choice.layers, figures={"layer_scores": scores})


def _fit_to_teacher(
    section: Student,
    start: StudentStart,
    encoder: Encoder,
    base: Encoder | None,
    sample: "FitSample",
    seed: int,
) -> StudentStart:
    """Solves the student's map into the teacher's space, and those of its base.

    Where layers are left out, the student's map is to the base's vectors: the layers that are left
    say much of those, and those of the teacher's, which comes nearer than one step.

    Args:
        base: with all its layers, the student itself where it keeps them; None: it has no maps.
    """
    whitening = section.start.whitening
    if whitening is None:
        whitening = WHITENING if sample.normalise else 0.0
    states_nh = _states(encoder, sample.tokens)
    solve = functools.partial(
        solve_map, states_nh.__getitem__, n=len(states_nh), normalise=sample.normalise, seed=seed
    )
    figures = dict(start.figures)
    base_maps = None
    if base is not None:
        base_nh = states_nh if base is encoder else _states(base, sample.tokens)
        base_maps = solve_local_maps(
            base_nh, sample.vectors, normalise=sample.normalise, whitening=whitening, seed=seed
        )
        figures["base_maps"] = {"maps": len(base_maps.weights_kdh), "texts": len(base_nh)}
    if base_maps is None or base is encoder:
        fit = solve(sample.vectors, choice=section.start.map, whitening=whitening)
    else:
        fit = solve(functools.partial(_mapped, base_maps, base_nh, sample.normalise))
    figures["projection"] = _fit_figures(fit)
    return replace(start, weight=fit.weight_dh, base_maps=base_maps, figures=figures)


def _states(encoder: Encoder, tokens: Sequence[Tokens]) -> torch.Tensor:
    """Pooled states of the texts, float32 (n, h), on the CPU."""
    return pooled_states(encoder, tokens, BATCH_TOKENS)


def _mapped(
    maps: LocalMaps, states_nh: torch.Tensor, normalise: bool, rows: np.ndarray
) -> torch.Tensor:
    """Vectors of the texts with these numbers, float32 (rows, d)."""
    vectors_nd = maps(states_nh[rows])
    return torch.nn.functional.normalize(vectors_nd, dim=-1) if normalise else vectors_nd


class FitSample:
    """Texts of both roles, truncated as in training, and their teacher's vectors.

    Args:
        max_texts: of both roles together; each has at least half of them, where there are as many.

    Attributes:
        tokens: of all texts, queries first.
    """

    def __init__(
        self,
        teacher_vectors: TeacherVectors,
        phase: StudentPhase,
        encoder: Encoder,
        max_texts: int,
    ):
        corpus = teacher_vectors.corpus_data
        all_queries, all_passages = corpus.all_texts("query"), corpus.all_texts("passage")
        self.sources = teacher_vectors.rows(encoder.device)
        self.dims, self.normalise = encoder.contract.dims[0], encoder.contract.normalise
        queries, passages = (
            RemainingRows(len(texts), np.array(sorted(source.skipped), dtype=np.int64))
            for texts, source in zip((all_queries, all_passages), self.sources, strict=True)
        )
        of_queries = min(len(queries), max(max_texts // 2, max_texts - len(passages)))
        self.rows = (
            queries[evenly_spaced(len(queries), of_queries)],
            passages[evenly_spaced(len(passages), max_texts - of_queries)],
        )
        roles: list[tuple[Role, Sequence[str], int]] = [
            ("query", all_queries, phase.query_tokens),
            ("passage", all_passages, phase.passage_tokens),
        ]
        self.tokens: list[Tokens] = []
        for (role, texts, max_tokens), rows in zip(roles, self.rows, strict=True):
            if len(rows):
                chosen = [texts[row] for row in rows]
                self.tokens += encoder.prompter(chosen, role, max_tokens=max_tokens)

    def vectors(self, numbers: np.ndarray) -> torch.Tensor:
        """The teacher's vectors of the texts with these numbers, float32, as the student's are
        cut and compared."""
        (queries, passages), (query_rows, passage_rows) = self.sources, self.rows
        of_queries = numbers < len(query_rows)
        parts = [
            source[rows].astype(np.float32)
            for source, rows in (
                (queries, query_rows[numbers[of_queries]]),
                (passages, passage_rows[numbers[~of_queries] - len(query_rows)]),
            )
            if len(rows)
        ]
        vectors = np.empty((len(numbers), parts[0].shape[1]), dtype=np.float32)
        vectors[np.concatenate([np.flatnonzero(of_queries), np.flatnonzero(~of_queries)])] = (
            np.concatenate(parts)
        )
        return torch.from_numpy(truncate_vectors(vectors, self.dims, self.normalise))


def _own_components(encoder: Encoder, tokens: Sequence[Tokens]) -> torch.Tensor | None:
    """The projection of a student in a space of its own: its states' principal components, where it
    has fewer dims; None where not, since every orthogonal map then keeps all cosines."""
    linear = linear_of(encoder)
    if linear.out_features >= linear.in_features:
        return None
    moments = []
    for start in range(0, len(tokens), CHUNK):
        states_nh = pooled_states(encoder, tokens[start : start + CHUNK], BATCH_TOKENS)
        if encoder.contract.normalise:
            states_nh = torch.nn.functional.normalize(states_nh, dim=-1)
        moments.append(Moments.of(states_nh, states_nh))
    return principal_components(sum_moments(moments), linear.out_features).float()


def describe_start(start: StudentStart) -> Iterator[str]:
    """What was chosen and why, as lines of the log."""
    tried = start.figures.get("layer_scores", {})
    if tried:
        chosen = " ".join(map(str, start.layers or ()))
        worst = min(tried, key=tried.__getitem__)
        yield (
            f"keeps layers {chosen} of the base: of {len(tried)} subsets their states fit the "
            f"teacher's vectors best, {tried[chosen]:.3f} (worst: {worst}, {tried[worst]:.3f})"
        )
    if maps := start.figures.get("base_maps"):
        yield (
            f"the whole base has {maps['maps']} maps into the teacher's space, each solved near "
            f"another centre of {maps['texts']:,} texts"
        )
    if projection := start.figures.get("projection"):
        target = "teacher" if start.layers is None else "base"
        yield (
            f"the projection starts as {projection['map']}, solved from {projection['texts']:,} "
            f"texts; relative error {projection['relative_error']:.3f}"
        )
        for name, scores in projection["held_back"].items():
            yield (
                f"on topics held back, {name} finds {scores['symmetric']:.3f} of the {target}'s "
                f"nearest neighbours among its own vectors, and {scores['asymmetric']:.3f} among "
                f"the {target}'s"
            )


def _fit_figures(fit: ProjectionFit) -> dict[str, Any]:
    return {
        "map": fit.name,
        "texts": fit.texts,
        "relative_error": round(fit.relative_error, 4),
        "held_back": {
            name: {"symmetric": round(s.symmetric, 4), "asymmetric": round(s.asymmetric, 4)}
            for name, s in fit.scores.items()
        },
    }
