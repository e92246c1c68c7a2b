"""A narrower vocabulary: the tokens that a corpus uses, and what spells everything else.

A text made of kept tokens is cut into the very same ones as before, and so keeps its vector.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stillroom.encoders.layers.backbone import positions_before
from stillroom.encoders.tokens.subwords import KINDS, Spelling
from stillroom.errors import UserError

MOST_TEXTS = 200_000

CHUNK = 4096  # texts tokenised at once

FIELD = "student.vocabulary"


@dataclass(frozen=True)
class Narrowed:
    """A tokenizer of fewer tokens, and the ids that these had, ascending."""

    tokenizer: PreTrainedTokenizerFast
    ids: np.ndarray


def narrow(
    tokenizer: Any, size: int, counts: np.ndarray, *, needed: Iterable[int] = ()
) -> Narrowed:
    """A tokenizer of at most `size` tokens.

    Kept are special and added tokens, those needed, what spells any text, and then the most
    frequent, the lower id first where two are equally so. A token that is merged from others
    brings these along.

    Args:
        counts: how often each token occurs, by id; see `count`.

    Raises:
        UserError: when the tokenizer cannot be rewritten, or `size` is too small or too great.
    """
    content = json.loads(_fast(tokenizer).to_str())
    kind = KINDS.get(content["model"]["type"])
    if kind is None:
        raise UserError(
            FIELD,
            f"a tokenizer of the kind {content['model']['type']} cannot be narrowed",
            f"Leave vocabulary out, or use a base whose tokenizer is {', '.join(KINDS)}",
        )
    spelling = kind(content["model"])
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    names = {**{i: token for token, i in spelling.ids.items()}, **added}
    kept = _choose(spelling, names, size, counts, {*added, *needed})
    new = {names[i]: place for place, i in enumerate(kept)}
    rewritten = _tokenizer(content, spelling, new)
    for token, i in new.items():
        if rewritten.token_to_id(token) != i:
            raise UserError(
                FIELD,
                f"the token {token!r} of the base would get another id than its embedding's",
                "Leave vocabulary out, or use another base",
            )
    return Narrowed(_as_before(tokenizer, rewritten), np.array(kept))


def cut_embeddings(backbone: Any, narrowed: Narrowed) -> None:
    """Keeps the embeddings of the tokens that were kept, in place."""
    table = backbone.get_input_embeddings()
    table.weight = torch.nn.Parameter(table.weight.detach()[torch.from_numpy(narrowed.ids)])
    table.num_embeddings = backbone.config.vocab_size = len(narrowed.ids)
    place = {int(old): new for new, old in enumerate(narrowed.ids)}
    if table.padding_idx is not None:
        table.padding_idx = place[table.padding_idx]
    for field, value in backbone.config.to_dict().items():
        if field.endswith("_token_id") and isinstance(value, int):
            setattr(backbone.config, field, place.get(value))


def ids_below_positions(backbone: Any) -> range:
    """Ids that must stay what they are, since positions are counted from padding's."""
    return range(positions_before(backbone))


def count(tokenizer: Any, texts: Iterable[str]) -> np.ndarray:
    """How often each token occurs, int64 by id, in `evenly` many as MOST_TEXTS texts."""
    backend = Tokenizer.from_str(_fast(tokenizer).to_str())  # a copy, to change
    backend.no_truncation()
    backend.no_padding()
    counts = np.zeros(backend.get_vocab_size(), dtype=np.int64)
    chosen = iter(evenly(texts, MOST_TEXTS))
    while chunk := list(islice(chosen, CHUNK)):
        found = backend.encode_batch_fast(chunk, add_special_tokens=False)
        ids = np.concatenate([np.array(one.ids, dtype=np.int64) for one in found])
        here = np.bincount(ids, minlength=len(counts))
        counts = here + np.pad(counts, (0, len(here) - len(counts)))
    return counts


def evenly(texts: Iterable[str], most: int) -> list[str]:
    """Every 2^k-th text, with the least k that leaves no more than `most`."""
    kept: list[str] = []
    stride = 1
    for place, text in enumerate(texts):
        if place % stride == 0:
            kept.append(text)
        if len(kept) > most:
            kept, stride = kept[::2], 2 * stride
    return kept


def _fast(tokenizer: Any) -> Tokenizer:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            FIELD,
            f"{type(tokenizer).__name__} has no tokenizer.json, which could be rewritten",
            "Leave vocabulary out, or save the base with a fast tokenizer",
        )
    found: Tokenizer = tokenizer.backend_tokenizer
    return found


def _choose(
    spelling: Spelling, names: Mapping[int, str], size: int, counts: np.ndarray, needed: set[int]
) -> list[int]:
    """Ids to keep, ascending."""
    if size >= len(names):
        raise UserError(
            f"{FIELD}: {size}", f"the base has {len(names)} tokens", "Set fewer, or leave it out"
        )
    kept = needed | spelling.alphabet
    for i in needed:
        kept |= spelling.parts(names[i])
    if size < len(kept):
        raise UserError(
            f"{FIELD}: {size}",
            f"{len(kept)} tokens are needed to spell any text",
            f"Set {len(kept)} or more",
        )
    for i in sorted(names, key=lambda i: (-counts[i], i)):
        more = {i, *spelling.parts(names[i])} - kept
        if len(kept) + len(more) <= size:
            kept |= more
        if len(kept) == size:
            break
    return sorted(kept)


def _tokenizer(content: dict[str, Any], spelling: Spelling, new: Mapping[str, int]) -> Tokenizer:
    """The tokenizer.json with the new ids."""
    added = [{**token, "id": new[token["content"]]} for token in content["added_tokens"]]
    rewritten = {**content, "added_tokens": added, "model": spelling.rewritten(new)}
    rewritten["post_processor"] = _renumbered(content["post_processor"], new)
    if content["padding"] is not None:
        pad_token = content["padding"]["pad_token"]
        rewritten["padding"] = {**content["padding"], "pad_id": new[pad_token]}
    return Tokenizer.from_str(json.dumps(rewritten))


def _renumbered(part: Any, new: Mapping[str, int]) -> Any:
    """What adds special tokens, with their new ids."""
    if part is None:
        return None
    kind = part["type"]
    if kind == "Sequence":
        return {**part, "processors": [_renumbered(one, new) for one in part["processors"]]}
    if kind == "TemplateProcessing":
        special = {
            name: {**token, "ids": [new[each] for each in token["tokens"]]}
            for name, token in part["special_tokens"].items()
        }
        return {**part, "special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        ends = {end: [part[end][0], new[part[end][0]]] for end in ("sep", "cls")}
        return {**part, **ends}
    return part  # ByteLevel, which trims offsets


def _as_before(tokenizer: Any, rewritten: Tokenizer) -> PreTrainedTokenizerFast:
    """The library's object around it, which says the same of everything but the tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=rewritten,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )
