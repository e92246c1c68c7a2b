"""Recipe → steps: names, versions, inputs and keys as data. No torch, no Ray."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stillroom.config.base import Section
from stillroom.config.corpus import Docstrings, Documents
from stillroom.config.phases import mines
from stillroom.config.recipe import Recipe
from stillroom.config.student import OnPairs, Student
from stillroom.config.teacher import Teacher
from stillroom.data.readers.docstrings import environment_fingerprint
from stillroom.data.readers.locations import DATA, DOCUMENTS, content_hash, fingerprint
from stillroom.encoders.model_names import fingerprint as model_fingerprint
from stillroom.encoders.model_names import of_artifact
from stillroom.errors import UserError
from stillroom.storage.artifacts import Store, key_of

# A stage's version is raised when its code gives other results for the same inputs.
VERSIONS = {
    "synthetic": 1,
    "corpus": 5,
    "teacher": 2,
    "vectors": 3,
    "negatives": 3,
    "student": 3,
    "report": 5,
    "release": 4,
}


@dataclass(frozen=True)
class Step:
    """One artifact to be made.

    Attributes:
        stage: the function in `stillroom.stages` that makes it.
        name: of the artifact; a recipe's name, and a phase's number where there are several.
        args: what the recipe says about it, as the function's keyword arguments.
        inputs: role → the step whose artifact is read, keyword arguments as well.
        sources: what is read from outside, name → fingerprint.
    """

    stage: str
    name: str
    args: dict[str, Any]
    inputs: dict[str, "Step"] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def made_by(self) -> dict[str, Any]:
        """Everything that the key hashes."""
        return {
            "stage": self.stage,
            "version": VERSIONS[self.stage],
            "section": _as_json(self.args),
            "inputs": {role: step.key for role, step in self.inputs.items()},
            "sources": self.sources,
        }

    @cached_property
    def key(self) -> str:
        return key_of(self.made_by)

    @property
    def ref(self) -> str:
        return f"{self.stage}/{self.name}-{self.key}"


def pipeline(r: Recipe, *, gate: bool = True) -> list[Step]:
    """The recipe's steps, each after those that it reads.

    A phase that asks for mined negatives has them mined by the phase before it. Without the
    gate a release is made whatever was measured, under a key of its own.

    Raises:
        UserError: when a file or model that the recipe names is missing.
    """
    seeded = {"seed": r.seed}
    written = _of(*synthetic(r))
    corpus = Step("corpus", r.name, {"section": r.corpus, **seeded}, written, _corpus_sources(r))
    *earlier, teacher = _teachers(r, corpus)
    students = list(_students(r, corpus, teacher))
    student = students[-1]
    mined = [step for step in students if step.stage == "negatives"]
    report = Step(
        "report",
        r.name,
        {"section": r.report, **_trusted(teacher=r.teacher, student=r.student)},
        _of(corpus, teacher, *mined[-1:], student),
    )
    release = Step(
        "release",
        r.name,
        {"section": r.release, "gate": gate, **_trusted(teacher=r.teacher, student=r.student)},
        _of(corpus, teacher, student, report),
    )
    steps = [*written.values(), corpus, *earlier, teacher, *students, report, release]
    return list({step.ref: step for step in steps}.values())  # phases may share a miner


def synthetic(r: Recipe) -> list[Step]:
    """The step that has a language model write, where the recipe asks for it.

    Raises:
        UserError: when a file or model that it reads is missing.
    """
    own = r.corpus.synthetic
    if own is None:
        return []
    read: dict[str, str] = {}
    # What the section says of other parts of the corpus does not reach what is written.
    drawn_from: tuple[str, ...] = ()
    if own.passages is not None:
        drawn_from = own.passages.sources or tuple(r.corpus.sources)
        read = _corpus_sources(r)
        name = own.passages.retriever
        if name.startswith(("teacher/", "student/")):
            read["retriever"] = Store(r.root).find(name).key
        elif name != "bm25":
            read["retriever"] = model_fingerprint(name)
    sources = {name: r.corpus.sources[name] for name in drawn_from}
    others: dict[str, Any] = {"max_pairs": None, "held_out": None, "evaluation": {}}
    section = r.corpus.model_copy(update={"sources": sources, **others})
    return [Step("synthetic", r.name, {"section": section, "seed": r.seed}, {}, read)]


def _teachers(r: Recipe, corpus: Step) -> Iterator[Step]:
    """A step a phase, with the mining between them; or the base as it is."""
    args = {"section": r.teacher.model_copy(update={"phases": ()}), "seed": r.seed}
    source = _teacher_sources(r)
    if not r.teacher.phases:
        yield Step("teacher", r.name, {**args, "phase": None}, {}, source)
        return
    inputs = _of(corpus)
    for number, phase in enumerate(r.teacher.phases, start=1):
        if mines(phase):
            mining = _mining(r, f"{r.name}-phase{number - 1}", corpus, inputs.get("teacher"))
            yield from mining
            inputs = {**inputs, "negatives": mining[-1]}
        last = number == len(r.teacher.phases)
        name = r.name if last else f"{r.name}-phase{number}"
        teacher = Step("teacher", name, {**args, "phase": phase}, inputs, source)
        yield teacher
        inputs = _of(corpus, teacher)


def _students(r: Recipe, corpus: Step, teacher: Step) -> Iterator[Step]:
    """A step a phase, after the vectors and the mining that it needs."""
    args = {"section": r.student.model_copy(update={"phases": ()}), "seed": r.seed}
    before: dict[str, Step] = {}
    for number, phase in enumerate(r.student.phases, start=1):
        inputs = {**_of(corpus, teacher), **before}
        told = {**args, "phase": phase}
        if phase.online:
            told |= _trusted(teacher=r.teacher)
        else:
            vectors = Step("vectors", r.name, _vectors_args(r), _of(corpus, teacher))
            yield vectors
            inputs |= _of(vectors)
        if isinstance(phase, OnPairs) and phase.hard_negatives:
            *mining, negatives = _mining(r, r.name, corpus, teacher)
            yield from [*mining, negatives]
            inputs |= _of(negatives)
        name = r.name if number == len(r.student.phases) else f"{r.name}-phase{number}"
        source = {"base": model_fingerprint(r.student.base)}
        student = Step("student", name, told, inputs, source)
        yield student
        before = _of(student)


def _mining(r: Recipe, name: str, corpus: Step, teacher: Step | None) -> list[Step]:
    """The negatives, last, after the vectors of each of their miners.

    The teacher's vectors are its input `vectors`; those of the miner in place i are `vectors_i`.
    """
    section = r.negatives
    found: list[Step] = []
    inputs = _of(corpus)
    for place, miner in enumerate(section.miners):
        if miner == "bm25":
            continue
        role = f"vectors_{place}"
        if miner == "teacher":
            assert teacher is not None, "the config lets no first phase be mined by its teacher"
            role = "vectors"
            vectors = Step("vectors", name, _vectors_args(r), _of(corpus, teacher))
        elif miner == "base":
            args = {"section": r.teacher.model_copy(update={"phases": ()}), "seed": r.seed}
            base = Step(
                "teacher", f"{r.name}-base", {**args, "phase": None}, {}, _teacher_sources(r)
            )
            vectors = Step("vectors", f"{r.name}-base", _vectors_args(r), _of(corpus, base))
            found.append(base)
        else:
            vectors = Step(
                "vectors",
                f"{r.name}-miner{place}",
                {"section": r.vectors, "model": miner},
                _of(corpus),
                {"model": model_fingerprint(of_artifact(miner, Store(r.root)))},
            )
        found.append(vectors)
        inputs[role] = vectors
    rescored = {} if section.rescore is None else {"rescore": model_fingerprint(section.rescore)}
    args = {"section": section, "seed": r.seed}
    return [*found, Step("negatives", name, args, inputs, rescored)]


def _of(*steps: Step) -> dict[str, Step]:
    return {step.stage: step for step in steps}


def _as_json(args: dict[str, Any]) -> dict[str, Any]:
    """The recipe's section itself, and what else the stage is told beside its fields."""
    plain = {k: v.model_dump(mode="json") if isinstance(v, Section) else v for k, v in args.items()}
    return {**plain.pop("section"), **plain}


def _teacher_sources(r: Recipe) -> dict[str, str]:
    """What the teacher is made of. Of an API nothing is read, and its section says what counts."""
    if r.teacher.base is not None:
        return {"base": model_fingerprint(r.teacher.base)}
    store = Store(r.root)
    return {
        f"members.{number}": model_fingerprint(of_artifact(member.base, store))
        for number, member in enumerate(r.teacher.members or ())
    }


def _vectors_args(r: Recipe) -> dict[str, Any]:
    return {"section": r.vectors, **_trusted(teacher=r.teacher)}


def _trusted(**sections: Teacher | Student) -> dict[str, Any]:
    """Which models may run code of their own: the recipe says so, and no artifact."""
    names = [role for role, section in sections.items() if section.trust_remote_code]
    return {"trusted": names} if names else {}


def _corpus_sources(r: Recipe) -> dict[str, str]:
    # Their order counts, since the first keeps what several have, and a key's JSON has none.
    found = {"the list of sources": ", ".join(r.corpus.sources)}
    for name, source in r.corpus.sources.items():
        if isinstance(source, Docstrings):
            try:
                found[f"sources.{name}"] = environment_fingerprint(source.packages)
            except UserError as fault:
                where = f"corpus.sources.{name}.{fault.where}"
                raise UserError(where, fault.problem, fault.fix) from None
        kinds = DOCUMENTS if isinstance(source, Documents) else DATA
        for place in source.places():
            found[place] = fingerprint(place, kinds)
        if isinstance(source, Documents):
            found[f"sources.{name}.tokenizer"] = model_fingerprint(source.tokenizer)
    for name, folder in r.corpus.evaluation.items():
        found[f"evaluation.{name}"] = content_hash(Path(folder))
    return found


def why(step: Step, store: Store) -> str:
    """Why a step has no artifact yet, against the newest of its name."""
    try:
        newest = store.find(f"{step.stage}/{step.name}")
    except UserError:
        return "not made yet"
    changes = list(_changes(newest.manifest.get("made_by", {}), step.made_by, step.stage))
    return "; ".join(changes) or "the newest was removed or is incomplete"


def _changes(old: dict[str, Any], new: dict[str, Any], stage: str) -> Iterator[str]:
    if old.get("version") != new["version"]:
        yield f"stage {stage} is now version {new['version']}"
    for role in sorted({*old.get("inputs", {}), *new["inputs"]}):
        if old.get("inputs", {}).get(role) != new["inputs"].get(role):
            yield f"{role} changed"
    for name in sorted({*old.get("sources", {}), *new["sources"]}):
        if old.get("sources", {}).get(name) != new["sources"].get(name):
            yield f"the content of {name} changed"
    was = _flat(old.get("section", {}), stage)
    now = _flat(new["section"], stage)
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            yield f"{name}: {was.get(name, 'unset')} → {now.get(name, 'unset')}"


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for part in value for k, v in _flat(value[part], f"{name}.{part}").items()}
    return {name: json.dumps(value, ensure_ascii=False)}
