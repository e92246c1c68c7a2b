"""Forwards without padding: a batch's texts in one row, each attending to itself alone.

Shapes: b texts padded to l tokens, t tokens in all without padding, h heads, e dims of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stillroom.encoders.layers.backbone import positions_before
from stillroom.errors import UserError

PACKED = "packed"

NEEDED_ON_GPU = "2.12"  # varlen_attn with a scale, windows and grouped queries

# Positions that can be told, and nothing between layers that would mix one text's tokens with
# another's.
PACKS = (
    "llama", "mistral", "qwen2", "qwen3", "bert", "roberta", "xlm-roberta", "electra", "distilbert",
)  # fmt: skip


def pack_attention(backbone: Any) -> None:
    """From now on an `Encoder` runs this backbone packed; see `states`.

    Raises:
        UserError: at an architecture for which that was not tried, and on a GPU where torch is too
            old.
    """
    if _on_gpu(backbone) and torch.__version__ < NEEDED_ON_GPU:
        raise UserError(
            "packed attention",
            f"needs torch {NEEDED_ON_GPU} on a GPU, and this is {torch.__version__}",
            "Leave it off, or install that",
        )
    if not can_be_packed(backbone):
        raise UserError(
            "packed attention",
            f"is not known to work for {type(backbone).__name__}",
            f"Leave it off, or use a base of {', '.join(PACKS)}",
        )
    backbone.set_attn_implementation(PACKED)


def can_be_packed(backbone: Any) -> bool:
    return bool(backbone.config.model_type in PACKS)


def packing_pays(backbone: Any) -> bool:
    """On a CPU, for whatever can be packed; a GPU's kernel takes neither float32 nor dropout."""
    return not _on_gpu(backbone) and can_be_packed(backbone)


def _on_gpu(backbone: Any) -> bool:
    return bool(next(backbone.parameters()).device.type == "cuda")


def is_packed(backbone: Any) -> bool:
    return bool(backbone.config._attn_implementation == PACKED)


def states(backbone: Any, ids_bl: Tensor, mask_bl: Tensor, **inputs: Any) -> Tensor:
    """The last states, (b, l, d), 0 at padding, of a backbone that never sees any padding."""
    there_bl = mask_bl.bool()
    lengths = mask_bl.sum(1)
    ids_t = ids_bl[there_bl]
    positions_t = (mask_bl.cumsum(1) - 1 + positions_before(backbone))[there_bl]
    tokens = len(ids_t)
    if not ids_t.is_cuda and (spare := _spare(tokens)):  # one text more, of any tokens
        lengths = torch.cat([lengths, lengths.new_tensor([spare])])
        ids_t, positions_t = (
            torch.nn.functional.pad(row, (0, spare)) for row in (ids_t, positions_t)
        )
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    states_td = backbone(
        input_ids=ids_t[None],
        position_ids=positions_t[None],
        lengths=lengths.tolist(),
        starts=starts,
        **inputs,
    ).last_hidden_state[0, :tokens]
    states_bld = states_td.new_zeros(*ids_bl.shape, states_td.shape[-1])
    states_bld[there_bl] = states_td
    return states_bld


def _spare(tokens: int) -> int:
    """How many more make a length of which there are 32 between any and its double.

    For each shape oneDNN makes kernels, and keeps them: of any lengths, more than a GiB of them.
    """
    return -tokens % (1 << max(0, tokens.bit_length() - 6))


def attend(
    module: torch.nn.Module,
    query_1hte: Tensor,
    key_1hte: Tensor,
    value_1hte: Tensor,
    attention_mask: None,
    *,
    lengths: list[int],
    starts: Tensor,
    is_causal: bool | None = None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a layer calls in place of its own attention.

    Args:
        lengths: of the texts in the row; all that may attend to each other.
        starts: where each begins, and the last one ends: int32, (b + 1,).
        is_causal: None where the architecture leaves that to the module.
    """
    is_causal = bool(module.is_causal) if is_causal is None else is_causal
    # How many tokens a token sees before and after itself; -1 is all. The library counts a
    # window's own token when it looks back only, and does not when it looks both ways.
    before = -1 if sliding_window is None else sliding_window - is_causal
    reach = (before, 0 if is_causal else before)
    rows = (query_1hte, key_1hte, value_1hte)
    if query_1hte.is_cuda and value_1hte.dtype != torch.float32 and not dropout:
        return _in_one_kernel(*rows, lengths, starts, reach, scaling), None
    if not query_1hte.is_cuda:
        # Backward of a CPU's kernel takes four times as long in bfloat16 as in float32.
        rows = (query_1hte.float(), key_1hte.float(), value_1hte.float())
    with torch.autocast("cpu", enabled=False):  # which would make it bfloat16 again
        found = [
            sdpa_attention_forward(
                module, *text, _window(text[0], reach), dropout, scaling, is_causal=is_causal
            )[0]
            for text in zip(*(row.split(lengths, dim=2) for row in rows), strict=True)
        ]
    return torch.cat(found, dim=1).to(value_1hte.dtype), None


def _in_one_kernel(
    query_1hte: Tensor,
    key_1hte: Tensor,
    value_1hte: Tensor,
    lengths: list[int],
    starts: Tensor,
    reach: tuple[int, int],
    scaling: float,
) -> Tensor:
    """By flash attention, which takes no float32 and no dropout: (1, t, h, e)."""
    from torch.nn.attention.varlen import varlen_attn  # here, for older torch has none

    # Norms of queries and keys come out of autocast in float32.
    query, key, value = (
        row.squeeze(0).transpose(0, 1).to(value_1hte.dtype)
        for row in (query_1hte, key_1hte, value_1hte)
    )
    longest = max(lengths)
    found_the = varlen_attn(
        query, key, value, starts, starts, longest, longest,
        scale=scaling, window_size=reach, enable_gqa=True,
    )  # fmt: skip
    assert isinstance(found_the, Tensor)
    return found_the.unsqueeze(0)


def _window(query_1hte: Tensor, reach: tuple[int, int]) -> Tensor | None:
    """A text's mask, (1, 1, l, l), where it is longer than its tokens see."""
    length, (before, after) = query_1hte.shape[2], reach
    if before == -1 or length <= before + 1:
        return None
    everything = torch.ones(length, length, dtype=torch.bool, device=query_1hte.device)
    return everything.triu(-before).tril(after)[None, None]


AttentionInterface.register(PACKED, attend)
