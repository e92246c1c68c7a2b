"""Packed attention: forwards without padding, a batch's texts in one row, each attending only to
itself.

Shapes: b texts padded to l tokens, t tokens in all without padding, h heads, e dims of a head.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stillroom.encoders.layers.backbone import position_offset
from stillroom.encoders.layers.onednn_linear import spare_rows
from stillroom.errors import UserError

PACKED = "packed"
MIN_TORCH_ON_GPU = "2.12"  # varlen_attn with a scale, windows and grouped queries

# Architectures that take positions as an input, and do not mix the tokens of different texts
# outside attention.
PACKABLE_MODEL_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text",
    "bert", "roberta", "xlm-roberta", "electra", "distilbert", "modernbert", "nomic_bert",
)  # fmt: skip


def pack_attention(backbone: Any) -> None:
    """Makes an `Encoder` run this backbone packed; see `packed_states`.

    Raises:
        UserError: for an architecture that was not tested, and on a GPU when torch is too old.
    """
    if _on_gpu(backbone) and torch.__version__ < MIN_TORCH_ON_GPU:
        raise UserError(
            "packed attention",
            f"needs torch {MIN_TORCH_ON_GPU} on a GPU, and this is {torch.__version__}",
            "Leave it off, or install that version",
        )
    if not supports_packing(backbone):
        raise UserError(
            "packed attention",
            f"is not known to work for {type(backbone).__name__}",
            f"Leave it off, or use a base of {', '.join(PACKABLE_MODEL_TYPES)}",
        )
    backbone.set_attn_implementation(PACKED)


def supports_packing(backbone: Any) -> bool:
    """Whether packing was tested for the architecture."""
    return bool(backbone.config.model_type in PACKABLE_MODEL_TYPES)


def packing_is_faster(backbone: Any) -> bool:
    """True on a CPU, where packing is supported; a GPU's kernel has no float32 and no dropout."""
    return not _on_gpu(backbone) and supports_packing(backbone)


def _on_gpu(backbone: Any) -> bool:
    return bool(next(backbone.parameters()).device.type == "cuda")


def is_packed(backbone: Any) -> bool:
    """Whether `pack_attention` was called."""
    return bool(backbone.config._attn_implementation == PACKED)


def packed_states(backbone: Any, ids_bl: Tensor, mask_bl: Tensor, **inputs: Any) -> Tensor:
    """Last hidden states, (b, l, d), 0 at padding; the backbone itself sees no padding."""
    is_token_bl = mask_bl.bool()
    lengths = mask_bl.sum(1)
    ids_t = ids_bl[is_token_bl]
    positions_t = (mask_bl.cumsum(1) - 1 + position_offset(backbone))[is_token_bl]
    tokens = len(ids_t)
    if not ids_t.is_cuda and (spare := spare_rows(tokens)):  # becomes one more text
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
    states_bld[is_token_bl] = states_td
    return states_bld


def packed_attention(
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
    """Attention of texts in one row, which transformers calls instead of a layer's attention.

    Args:
        lengths: of the texts; only tokens of the same text attend to each other.
        starts: the start of each text, and the end of the last one: int32 (b + 1,).
        is_causal: as the config says it; None leaves it to the module.
    """
    # How many tokens a token sees before and after itself; -1 is all. In transformers a layer's
    # window includes the token itself, but not where `config.is_causal` makes it bidirectional.
    before = -1 if sliding_window is None else sliding_window - (is_causal is not False)
    is_causal = bool(module.is_causal) if is_causal is None else is_causal
    reach = (before, 0 if is_causal else before)
    rows = (query_1hte, key_1hte, value_1hte)
    if query_1hte.is_cuda and value_1hte.dtype != torch.float32 and not dropout:
        return _flash_attention(*rows, lengths, starts, reach, scaling), None
    if not query_1hte.is_cuda:
        # On a CPU the kernel's backward takes four times as long in bfloat16 as in float32.
        rows = (query_1hte.float(), key_1hte.float(), value_1hte.float())
    with torch.autocast("cpu", enabled=False):  # it would round to bfloat16 again
        attended = [
            sdpa_attention_forward(
                module, *text, _window(text[0], reach), dropout, scaling, is_causal=is_causal
            )[0]
            for text in zip(*(row.split(lengths, dim=2) for row in rows), strict=True)
        ]
    return torch.cat(attended, dim=1).to(value_1hte.dtype), None


def _flash_attention(
    query_1hte: Tensor,
    key_1hte: Tensor,
    value_1hte: Tensor,
    lengths: list[int],
    starts: Tensor,
    reach: tuple[int, int],
    scaling: float,
) -> Tensor:
    """One kernel for all texts, without float32 and dropout: (1, t, h, e)."""
    from torch.nn.attention.varlen import varlen_attn  # imported here: older torch lacks it

    # Under autocast, normalised queries and keys are float32.
    query, key, value = (
        row.squeeze(0).transpose(0, 1).to(value_1hte.dtype)
        for row in (query_1hte, key_1hte, value_1hte)
    )
    longest = max(lengths)
    attended_the = varlen_attn(
        query, key, value, starts, starts, longest, longest,
        scale=scaling, window_size=reach, enable_gqa=True,
    )  # fmt: skip
    assert isinstance(attended_the, Tensor)
    return attended_the.unsqueeze(0)


def _window(query_1hte: Tensor, reach: tuple[int, int]) -> Tensor | None:
    """A text's mask, (1, 1, l, l); None when its tokens see all of it."""
    length, (before, after) = query_1hte.shape[2], reach
    if before == -1 or length <= before + 1:
        return None
    everything = torch.ones(length, length, dtype=torch.bool, device=query_1hte.device)
    return everything.triu(-before).tril(after)[None, None]


AttentionInterface.register(PACKED, packed_attention)
