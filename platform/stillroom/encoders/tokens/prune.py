"""Prunes a vocabulary to the tokens that a corpus uses, and those needed to spell everything else.

A text made of kept tokens is tokenised exactly as before, and so keeps its vector.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from stillroom.encoders.layers.backbone import position_offset
from stillroom.encoders.tokens.subwords import SUBWORD_MODELS, SubwordModel
from stillroom.encoders.tokens.tokenizer_json import backend_of, with_backend
from stillroom.errors import UserError

MAX_COUNTED_TEXTS = 200_000
CHUNK = 4096  # texts tokenised at once
FIELD = "student.vocabulary_size"


@dataclass(frozen=True)
class PrunedTokenizer:
    """A tokenizer of fewer tokens; `ids` are the old ids of these, ascending."""

    tokenizer: PreTrainedTokenizerFast
    ids: np.ndarray


def prune_vocabulary(
    tokenizer: Any, max_tokens: int, counts: np.ndarray, *, needed: Iterable[int] = ()
) -> PrunedTokenizer:
    """A tokenizer of at most `max_tokens` tokens.

    It keeps special and added tokens, the needed ones, those that can spell any text, and then the
    most frequent; of equally frequent tokens, the lower id first. If a token is merged from others,
    these are kept too.

    Args:
        counts: how often each token occurs, by id; see `count_tokens`.
        needed: ids to always keep.

    Raises:
        UserError: when the tokenizer cannot be pruned, or `max_tokens` is too small or too large.
    """
    content = json.loads(backend_of(tokenizer, FIELD).to_str())
    kind = content["model"]["type"]
    if kind not in SUBWORD_MODELS:
        raise UserError(
            FIELD,
            f"a tokenizer of the kind {kind} cannot be narrowed",
            f"Leave it out, or use a base whose tokenizer is {', '.join(SUBWORD_MODELS)}",
        )
    model = SUBWORD_MODELS[kind](content["model"])
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    names = {**{i: token for token, i in model.ids.items()}, **added}
    kept_ids = _choose_ids(model, names, max_tokens, counts, {*added, *needed})
    new_ids = {names[old]: new for new, old in enumerate(kept_ids)}
    pruned = _renumbered_tokenizer(content, model, new_ids)
    for token, i in new_ids.items():
        if pruned.token_to_id(token) != i:
            raise UserError(
                FIELD,
                f"the token {token!r} of the base would get another id than its embedding's",
                "Leave it out, or use another base",
            )
    return PrunedTokenizer(with_backend(tokenizer, pruned), np.array(kept_ids))


def prune_embeddings(backbone: Any, pruned: PrunedTokenizer) -> None:
    """Keeps only the embeddings of the tokens that were kept, in place."""
    table = backbone.get_input_embeddings()
    table.weight = torch.nn.Parameter(table.weight.detach()[torch.from_numpy(pruned.ids)])
    table.num_embeddings = backbone.config.vocab_size = len(pruned.ids)
    backbone.set_input_embeddings(table)  # T5 has a second one, of the same weights
    new_ids = {int(old): new for new, old in enumerate(pruned.ids)}
    if table.padding_idx is not None:
        table.padding_idx = new_ids[table.padding_idx]
    for field, value in backbone.config.to_dict().items():
        if field.endswith("_token_id") and isinstance(value, int):
            setattr(backbone.config, field, new_ids.get(value))


def ids_fixed_by_positions(backbone: Any) -> range:
    """Ids that must not change, where positions are counted from the padding's id."""
    return range(position_offset(backbone))


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """How often each token occurs, int64 by id, in at most MAX_COUNTED_TEXTS of the texts."""
    backend = Tokenizer.from_str(backend_of(tokenizer, FIELD).to_str())  # a copy, to change
    backend.no_truncation()
    backend.no_padding()
    counts = np.zeros(backend.get_vocab_size(), dtype=np.int64)
    rows = evenly_spaced(len(texts), MAX_COUNTED_TEXTS)
    for start in range(0, len(rows), CHUNK):
        chunk = [texts[row] for row in rows[start : start + CHUNK]]
        encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
        ids = np.concatenate([np.array(encoding.ids, dtype=np.int64) for encoding in encodings])
        chunk_counts = np.bincount(ids, minlength=len(counts))
        counts = chunk_counts + np.pad(counts, (0, len(chunk_counts) - len(counts)))
    return counts


def evenly_spaced(count: int, max_rows: int) -> range:
    """Every 2^k-th row, with the smallest k that gives at most `max_rows`."""
    stride = 1
    while -(-count // stride) > max_rows:
        stride *= 2
    return range(0, count, stride)


def _choose_ids(
    model: SubwordModel,
    names: Mapping[int, str],
    max_tokens: int,
    counts: np.ndarray,
    needed: set[int],
) -> list[int]:
    """Ids to keep, ascending."""
    if max_tokens >= len(names):
        raise UserError(
            f"{FIELD}: {max_tokens}",
            f"the base has {len(names)} tokens",
            "Set fewer, or leave it out",
        )
    chosen = needed | model.alphabet
    for i in needed:
        chosen |= model.merged_from(names[i])
    if max_tokens < len(chosen):
        raise UserError(
            f"{FIELD}: {max_tokens}",
            f"{len(chosen)} tokens are needed to spell any text",
            f"Set {len(chosen)} or more",
        )
    for i in sorted(names, key=lambda i: (-counts[i], i)):
        added = {i, *model.merged_from(names[i])} - chosen
        if len(chosen) + len(added) <= max_tokens:
            chosen |= added
        if len(chosen) == max_tokens:
            break
    return sorted(chosen)


def _renumbered_tokenizer(
    content: dict[str, Any], model: SubwordModel, new_ids: Mapping[str, int]
) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with only the tokens that have new ids."""
    added = [{**token, "id": new_ids[token["content"]]} for token in content["added_tokens"]]
    changed = {**content, "added_tokens": added, "model": model.renumbered(new_ids)}
    changed["post_processor"] = _renumbered_processor(content["post_processor"], new_ids)
    if content["padding"] is not None:
        pad_token = content["padding"]["pad_token"]
        changed["padding"] = {**content["padding"], "pad_id": new_ids[pad_token]}
    return Tokenizer.from_str(json.dumps(changed))


def _renumbered_processor(processor: Any, new_ids: Mapping[str, int]) -> Any:
    """The post-processor, which adds special tokens, with their new ids."""
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        inner = [_renumbered_processor(part, new_ids) for part in processor["processors"]]
        return {**processor, "processors": inner}
    if kind == "TemplateProcessing":
        special = {
            name: {**token, "ids": [new_ids[part] for part in token["tokens"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        ends = {end: [processor[end][0], new_ids[processor[end][0]]] for end in ("sep", "cls")}
        return {**processor, **ends}
    return processor  # ByteLevel, which trims offsets
