"""Proves that a folder of sentence-transformers gives the library's own vectors here.

Probe texts go through the library and through our own forward, both in float32, where they may only
differ by rounding. Where they part, the error names the first step at which they do.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.encoders.contract import Contract, Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.files.library import open_model
from stillroom.encoders.layers.backbone import position_rows
from stillroom.encoders.layers.packing import pack_attention, packing_is_faster
from stillroom.encoders.library_encoder import TASKS
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.errors import UserError, one_line, quote

# Rounding in float32 leaves cosines above .999999; another token, mask or layer is far below this.
COSINE_FLOOR = 0.9999
LENGTH_TOLERANCE = 1e-3  # of vectors that dot compares, relative
LONGEST_IN_BATCH = 512  # tokens; a batch's masks grow with the square
OVERLONG_TOKENS = 64  # at which long probes are cut, where there is no table of positions to pass

TEXTS = (
    "",
    "house",
    "What is the capital of Peru?",
    "An HTTP Request By NASA, Sent In CAPITALS",
    "  spaces around,\ttabs\nand\n\nlines  ",
    "naïve façades cost 12,50 € – or £9 (№ 7) …",
    "東京の図書館は何時に開きますか。",
    "Где находится библиотека? أين المكتبة؟ पुस्तकालय कहाँ है?",
    "def sort(items): return sorted(items, key=lambda x: -x[0])  # 🙂",
    "A passage of some forty words describes at length how one thing after another was done, so "
    "that it is longer than the questions, reaches over any window of attention, and stands in a "
    "batch with texts that are much shorter than itself.",
)
OVERLONG = "many words of a text that goes on "


@dataclass(frozen=True)
class Probe:
    """A text to encode."""

    text: str
    role: Role


@dataclass(frozen=True)
class Trace:
    """What a text becomes, step by step; float32.

    Attributes:
        states_ld: the transformer's.
        pooled_d: of the states.
        projected_d: behind the layers after pooling.
        vector_d: as the encoder gives it.
    """

    ids: list[int]
    states_ld: np.ndarray
    pooled_d: np.ndarray
    projected_d: np.ndarray
    vector_d: np.ndarray


@dataclass(frozen=True)
class ProbedEncoder:
    """Everything of an encoder that the comparison needs, so that its weights may be freed.

    Attributes:
        limit: ids at which texts were cut.
    """

    contract: Contract
    probes: tuple[Probe, ...]
    limit: int
    traces: tuple[Trace, ...]


@dataclass(frozen=True)
class Proof:
    """How close our vectors came to the library's.

    Attributes:
        texts: that were compared.
        min_cosine: the lowest of them.
        versions: package → version.
    """

    texts: int
    min_cosine: float
    versions: dict[str, str]


def probe(encoder: Encoder, where: str, *, full_length: bool = False) -> ProbedEncoder:
    """Encodes the probe texts in float32, alone and in batches.

    Args:
        where: the model, for errors.
        full_length: the longest probe passes the model's table of positions, if it has one.

    Raises:
        UserError: when a text cannot be encoded, or has no usable vector.
    """
    contract = encoder.contract
    limit = _limit(encoder, full_length)
    texts = [*TEXTS, OVERLONG * (limit // 4)]
    probes = tuple(Probe(text, role) for role in ("query", "passage") for text in texts)
    encoder.contract = contract.model_copy(update={"precision": "float32"})
    try:
        tokens, traces = zip(*(_encoded(encoder, one, limit, where) for one in probes), strict=True)
        rows = [row for row, text in enumerate(tokens) if len(text.ids) <= LONGEST_IN_BATCH]
        together = [tokens[row] for row in rows]
        batches = {"a batch of texts of all lengths": encoder.encode_batch(together)}
        if packing_is_faster(encoder.backbone):
            implementation = encoder.backbone.config._attn_implementation
            pack_attention(encoder.backbone)
            batches["a batch without padding"] = encoder.encode_batch(together)
            encoder.backbone.set_attn_implementation(implementation)
    finally:
        encoder.contract = contract
    alone = [(probes[row], traces[row]) for row in rows]
    for name, vectors_nd in batches.items():
        _require_same(where, alone, name, vectors_nd)
    return ProbedEncoder(contract, probes, limit, traces)


def prove(probed: ProbedEncoder, folder: Path, *, trust_remote_code: bool = False) -> Proof:
    """Compares an encoder with the library, on the folder that the encoder was read from.

    The empty text is left out where the library finds nothing in it to pool. The library gets the
    prompts of the encoder's contract, special tokens that only tokenizer_config.json asks for, and
    unit length where cosine compares.

    Raises:
        UserError: when they part, naming the text and the first step at which they do.
    """
    model = open_model(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    if probed.limit < (model.max_seq_length or probed.limit + 1):
        model.max_seq_length = probed.limit
    cosines = []
    for one, ours in zip(probed.probes, probed.traces, strict=True):
        theirs = _library_trace(model, probed.contract, one)
        if not one.text and (theirs is None or not theirs.vector_d.any()):
            continue  # nothing was left to pool
        assert theirs is not None, "a text has tokens"
        cosine = _cosine(ours.vector_d, theirs.vector_d)
        lengths = [float(np.linalg.norm(trace.vector_d)) for trace in (ours, theirs)]
        same_length = abs(lengths[0] - lengths[1]) <= LENGTH_TOLERANCE * lengths[1]
        # Written so that NaN, too, is a difference.
        if not (ours.ids == theirs.ids and cosine >= COSINE_FLOOR and same_length):
            raise _difference(folder, model, one, ours, theirs)
        cosines.append(cosine)
    packages = ("sentence-transformers", "transformers", "tokenizers", "torch")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return Proof(len(cosines), round(min(cosines), 6), versions)


def _limit(encoder: Encoder, full_length: bool) -> int:
    most = encoder.contract.max_tokens
    if full_length and position_rows(encoder.backbone) is not None:
        return most
    prompts = encoder.contract.prompts
    ids = [encoder.tokenizer(prompt)["input_ids"] for prompt in (prompts.query, prompts.passage)]
    return min(most, OVERLONG_TOKENS + max(map(len, ids)))


def _encoded(encoder: Encoder, one: Probe, limit: int, where: str) -> tuple[Tokens, Trace]:
    try:
        [tokens] = encoder.prompter([one.text], one.role, max_tokens=limit)
        return tokens, _trace(encoder, tokens)
    except UserError:
        raise
    except Exception as error:  # an index that is out of range, for example
        raise UserError(
            where,
            f"cannot encode {quote(one.text)}: {type(error).__name__}: {one_line(error, 200)}",
            "Restore its files: tokenizer, config and weights belong together",
        ) from error


@torch.inference_mode()
def _trace(encoder: Encoder, tokens: Tokens) -> Trace:
    encoder.eval()
    batch = pad([tokens], encoder.pad_id).to(encoder.device)
    states = encoder.token_states(batch)
    pooled = encoder.pooled(batch)
    projected = pooled if encoder.projection is None else encoder.projection(pooled)
    vectors = encoder.vectors(states, batch)
    return Trace(tokens.ids, *(_to_numpy(step[0]) for step in (states, pooled, projected, vectors)))


@torch.inference_mode()
def _library_trace(model: Any, contract: Contract, one: Probe) -> Trace | None:
    """None where the library has no token for the text."""
    prompt = str(getattr(contract.prompts, one.role))
    task = TASKS[one.role]
    features = model.preprocess([one.text], prompt=prompt, task=task)
    if not features["input_ids"].numel():
        return None
    present = features["attention_mask"][0].bool()
    ids = features["input_ids"][0][present].tolist()
    states = pooled = None
    for module in model:
        features = module(features)
        if states is None:
            states = features["token_embeddings"][0][present]
        elif pooled is None:
            pooled = features["sentence_embedding"][0].clone()
        if type(module).__name__ != "Normalize" and pooled is not None:
            projected = features["sentence_embedding"][0].clone()
    vector = model.encode(
        one.text,
        prompt=prompt,
        task=task,
        show_progress_bar=False,
        normalize_embeddings=model.similarity_fn_name == "cosine",
    )
    assert states is not None and pooled is not None, "read_modules wants both"
    steps = (_to_numpy(step) for step in (states, pooled, projected, vector))
    return Trace(ids, *steps)


def _difference(folder: Path, model: Any, one: Probe, ours: Trace, theirs: Trace) -> UserError:
    """The error that names the first step at which two traces part."""
    step, here, there = _first_difference(model, ours, theirs)
    text = f"{quote(one.text)} as {one.role}"
    return UserError(
        str(folder),
        f"gives other vectors here than in sentence-transformers: of {text}, {step} differs first: "
        f"{here} here, {there} there",
        "Use it as a teacher with encoder: sentence_transformers, and report this",
    )


def _first_difference(model: Any, ours: Trace, theirs: Trace) -> tuple[str, str, str]:
    """(step, what we have, what the library has)"""
    if ours.ids != theirs.ids:
        decode: Callable[[Sequence[int]], list[str]] = model.tokenizer.convert_ids_to_tokens
        at = next(
            (i for i, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=False)) if a != b),
            min(len(ours.ids), len(theirs.ids)),
        )
        shown = [
            f"{len(ids)} ids, {' '.join(decode(ids[at : at + 4])) or 'nothing'} from number {at}"
            for ids in (ours.ids, theirs.ids)
        ]
        return "the token ids", shown[0], shown[1]
    worst = min(range(len(ours.ids)), key=lambda i: _cosine(ours.states_ld[i], theirs.states_ld[i]))
    steps = [
        (f"the transformer's state of token {worst}", "states_ld"),
        ("the pooled state", "pooled_d"),
        ("the vector behind the projection", "projected_d"),
    ]
    for name, field in steps:
        pair = [getattr(trace, field) for trace in (ours, theirs)]
        if field == "states_ld":
            pair = [states[worst] for states in pair]
        if pair[0].shape != pair[1].shape or not _cosine(*pair) >= COSINE_FLOOR:
            return name, _shown(pair[0]), _shown(pair[1])
    return "the vector (cut and normalised)", _shown(ours.vector_d), _shown(theirs.vector_d)


def _require_same(
    where: str, alone: Sequence[tuple[Probe, Trace]], batch: str, vectors_nd: np.ndarray
) -> None:
    """Raises UserError for a text whose vector depends on its neighbours in a batch."""
    for (one, trace), vector_d in zip(alone, vectors_nd, strict=True):
        cosine = _cosine(trace.vector_d, vector_d)
        if not cosine >= COSINE_FLOOR:
            raise UserError(
                where,
                f"gives {quote(one.text)} another vector in {batch} than alone (cosine "
                f"{cosine:.5f})",
                "Use it as a teacher with encoder: sentence_transformers, and report this",
            )


def _to_numpy(tensor: Any) -> np.ndarray:
    return np.asarray(torch.as_tensor(tensor).float().cpu())


def _cosine(first_d: np.ndarray, second_d: np.ndarray) -> float:
    """NaN for vectors of other sizes, and for vectors without a length."""
    if first_d.shape != second_d.shape:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        first_d, second_d = first_d.astype(np.float64), second_d.astype(np.float64)
        lengths = np.linalg.norm(first_d) * np.linalg.norm(second_d)
        return float(first_d @ second_d / lengths)


def _shown(vector_d: np.ndarray) -> str:
    numbers = " ".join(f"{number:.4f}" for number in vector_d[:3])
    return f"({numbers} …), {len(vector_d)} dims of length {np.linalg.norm(vector_d):.4f}"
