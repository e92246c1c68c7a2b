"""Load a base, make its attention what the contract says, cut layers, add LoRA."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from stillroom.encoders.contract import Attention
from stillroom.encoders.remote_code import needs_code, refusal
from stillroom.errors import UserError

HEAD = "lm_head.weight"


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer, with something to pad with."""
    if not trust_remote_code and needs_code(folder):
        raise refusal(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(
            str(folder),
            f"has no tokenizer that loads: {' '.join(str(fault).split())}",
            "Save the model's tokenizer into its folder",
        ) from fault
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_backbone(
    folder: Path,
    attention: Attention | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """The model without its head, from Safetensors alone.

    Args:
        attention: None leaves it as the base has it.
        trust_remote_code: runs the Python in the folder, where it asks for that.

    Raises:
        UserError: when it cannot be loaded, wants code of its own, or does not attend as asked.
    """
    if not trust_remote_code and needs_code(folder):
        raise refusal(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if attention is not None and is_decoder(config):
            # On the config: set on the modules alone, newer transformers ignore it in silence.
            config.is_causal = attention == "causal"
            # A window on every layer hides the far tokens. One on some layers is the architecture's
            # own design, as ModernBERT's is, and the other layers see everything.
            windowed = getattr(config, "sliding_window", None) and not hasattr(
                config, "layer_types"
            )
            if windowed and attention == "bidirectional":
                config.sliding_window = None
        # Its bars garble a job's log, and what its report warns of is checked below.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        backbone, info = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as fault:
        raise UserError(
            str(folder),
            f"cannot be loaded: {' '.join(str(fault).split())[:300]}",
            "Give a Hugging Face folder with Safetensors whose architecture transformers knows",
        ) from fault
    absent = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if absent:
        raise UserError(
            str(folder),
            f"lacks {len(absent)} weights of its architecture, {absent[0]} first",
            "Save the model again: those weights would be random",
        )
    return fitted(backbone, attention)


def fitted(backbone: Any, attention: Attention | None) -> Any:
    """The same backbone without what makes no states.

    Raises:
        UserError: when it does not attend as asked.
    """
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # BERT's head for another task: not to be counted or decayed
    if attention is not None and attention_of(backbone) != attention:
        raise UserError(
            f"attention: {attention}",
            f"has no effect on {type(backbone).__name__}",
            "Use the attention that this architecture has, or another base",
        )
    return backbone


def load_head(folders: Sequence[Path], backbone: Any) -> torch.nn.Linear:
    """The language model's head of a decoder: hidden → vocabulary, without a bias.

    Args:
        folders: where to look, in order.

    Raises:
        UserError: when there is none.
    """
    weight = None
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        with safe_open(file, "pt") as tensors:
            if HEAD in tensors.keys():  # noqa: SIM118, it is no dict
                weight = tensors.get_tensor(HEAD)
                break
    if weight is None and is_decoder(backbone.config) and backbone.config.tie_word_embeddings:
        weight = backbone.get_input_embeddings().weight.detach().clone()
    if weight is None:
        raise UserError(
            str(folders[0]),
            "has no language model's head, which predicts tokens",
            "Name a causal language model as the base, or leave out mntp and joint phases",
        )
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=backbone.dtype)
    head.weight.data.copy_(weight)
    return head


def checkpoint_activations(backbone: Any) -> None:
    """Computes each layer's activations again in the backward pass instead of keeping them
    (arXiv 1604.06174): a third more time, for memory that hardly grows with the layers.

    Raises:
        UserError: at an architecture that cannot.
    """
    try:
        with warnings.catch_warnings():
            # Its new name is not yet in every version of the library that we take.
            warnings.simplefilter("ignore", FutureWarning)
            # Reentrant, it would lose the adapters' gradients: the first layer's input has none.
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as fault:
        raise UserError(
            "gradient_checkpointing",
            f"{type(backbone).__name__} cannot compute its activations again",
            "Leave it off, and lower micro_tokens",
        ) from fault


def set_dropout(backbone: Any, share: float) -> None:
    """Sets every dropout of the model, those inside attention too."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = share


def attention_of(backbone: Any) -> Attention:
    """Found out, not believed: does the last token change the first one's state?

    Raises:
        UserError: where padding in the batch decides.
    """
    training = backbone.training
    backbone.eval()
    alone, beside_padding = (_sees_ahead(backbone, padding) for padding in (0, 2))
    backbone.train(training)
    if alone != beside_padding:
        raise UserError(
            type(backbone).__name__,
            "attends in one way with padding in the batch and in another without",
            "Use a base of another architecture",
        )
    return "bidirectional" if alone else "causal"


def _sees_ahead(backbone: Any, padding: int) -> bool:
    """Whether a text's first state knows its last token, beside one with so much padding."""
    size = int(backbone.config.vocab_size)
    ids_bl = (torch.arange(4, 12) % size).repeat(2, 1).to(backbone.device)
    other_bl = ids_bl.clone()
    other_bl[0, -1] = (other_bl[0, -1] + 7) % size
    mask_bl = torch.ones_like(ids_bl)
    mask_bl[1, ids_bl.shape[1] - padding :] = 0
    with torch.inference_mode():
        first, second = (
            backbone(input_ids=ids, attention_mask=mask_bl).last_hidden_state[0, 0]
            for ids in (ids_bl, other_bl)
        )
    return not torch.equal(first, second)


@contextmanager
def attending(backbone: Any, attention: Attention) -> Iterator[None]:
    """Within it a decoder attends so. Its configuration is set back, for it is saved with it."""
    config = backbone.config
    before = getattr(config, "is_causal", True)
    config.is_causal = attention == "causal"
    try:
        yield
    finally:
        config.is_causal = before


def is_decoder(config: Any) -> bool:
    """Whether the architecture was made to generate, whatever its attention is now."""
    own = getattr(config, "auto_map", None) or {}  # of a model that brings its code
    return (
        config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and "AutoModelForMaskedLM" not in own
    )


def positions_before(backbone: Any) -> int:
    """How many rows of a table of positions no text reaches: RoBERTa's kin begin behind the id
    of padding."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1
