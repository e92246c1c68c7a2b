"""Loads tokenizer, transformer and language model's head of a Hugging Face folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer
from transformers.utils import logging

from stillroom.encoders.contract import Attention
from stillroom.encoders.files.weight_files import WeightFiles, inspect_weights
from stillroom.encoders.layers.attention import set_attention
from stillroom.encoders.layers.backbone import (
    backbone_class,
    broken_weight,
    is_decoder,
    without_pooler,
)
from stillroom.encoders.remote_code import needs_remote_code, remote_code_error
from stillroom.encoders.safe_read import read_json_object
from stillroom.encoders.tokens.special_tokens import add_configured_tokens
from stillroom.encoders.tokens.tokenizer_json import without_tokens
from stillroom.encoders.usable_vectors import broken_weight_error
from stillroom.errors import UserError, one_line

LM_HEAD_WEIGHT = "lm_head.weight"
CONFIG_FILE = "config.json"
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, in the name of its weight
OTHER_MODALITIES = ("image_token", "audio_token", "video_token")
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_JSON_FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The folder's tokenizer; one without a padding token pads with EOS.

    Raises:
        UserError: when there is none, or it needs code that is not trusted.
    """
    if not trust_remote_code and needs_remote_code(folder):
        raise remote_code_error(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain ones
        for name in TOKENIZER_JSON_FILES:
            if (folder / name).is_file():
                read_json_object(folder / name)
        raise UserError(
            str(folder),
            f"has no tokenizer that loads: {type(error).__name__}: {one_line(error, 300)}",
            "Save the model's tokenizer into its folder",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            str(folder),
            "has a tokenizer without a token for padding, for the end or for unknown words",
            "Name one of its tokens as pad_token in tokenizer_config.json",
        )
    tokenizer.truncation_side = "right"  # texts keep their prompts
    return add_configured_tokens(tokenizer, folder)


def load_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a transformer that our own forward can run.

    Raises:
        UserError: when it is missing or broken, of an architecture that transformers does not know
            or of quantised weights, or needs code that is not trusted.
    """
    if not trust_remote_code and needs_remote_code(folder):
        raise remote_code_error(folder)
    path = folder / CONFIG_FILE
    content = read_json_object(path)
    kind = content.get("model_type")
    if kind is None:
        raise UserError(
            str(path),
            "does not say its model_type, which is the architecture",
            "Restore the file that the model was published with",
        )
    if kind not in CONFIG_MAPPING and not content.get("auto_map"):
        raise UserError(
            f"{path}: model_type",
            f"is {kind!r}, which transformers {transformers.__version__} does not know",
            "Install a newer version of transformers, or correct it",
        )
    if quantisation := content.get("quantization_config"):
        raise UserError(
            f"{path}: quantization_config",
            f"says that the weights are quantised ({quantisation.get('quant_method', 'unknown')}), "
            "which our own forward does not run",
            "Name the model that was not quantised; as a teacher, a folder with modules.json is "
            "run by sentence-transformers",
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of a field of another type, for example
        raise UserError(
            str(path), f"cannot be read: {one_line(error, 300)}", "Restore the model's files"
        ) from error


def load_backbone(
    folder: Path,
    attention: Attention | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """The transformer without its head, from Safetensors only.

    Args:
        attention: None keeps the base's own.
        trust_remote_code: runs Python code in the folder, if the model needs it.

    Raises:
        UserError: when it cannot be loaded, needs code that is not trusted, or cannot use this
            attention.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    files = inspect_weights(folder)
    try:
        # Progress bars garble a job's log; the causes of the warnings are checked below.
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        backbone, info = backbone_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            str(folder),
            f"cannot be loaded: {one_line(error, 300)}",
            "Give a Hugging Face folder with Safetensors whose architecture transformers knows",
        ) from error
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise shape_error(files.where(name, folder), stored, expected)
    require_counted_layers(files, backbone, folder)
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise missing_error(missing, folder)
    backbone = without_pooler(backbone)
    if (weight := broken_weight(backbone)) is not None:
        raise broken_weight_error(files.where(weight, folder))
    set_attention(backbone, attention)
    return backbone


def require_counted_layers(files: WeightFiles, backbone: Any, folder: Path) -> None:
    """Raises UserError for weights of a layer like the model's others that it lacks: transformers
    would leave out the layer without a word."""
    names = {name for name, _ in backbone.named_parameters()}
    kinds = {NUMBER.sub("#", name) for name in names}
    left_out_on_purpose = backbone._keys_to_ignore_on_load_unexpected or ()
    beyond = []
    for stored_name in sorted(name for shapes in files.shapes.values() for name in shapes):
        name = stored_name.removeprefix(f"{backbone.base_model_prefix}.")
        if name in names or not NUMBER.search(name) or NUMBER.sub("#", name) not in kinds:
            continue
        if not any(re.search(pattern, stored_name) for pattern in left_out_on_purpose):
            beyond.append(stored_name)
    if beyond:
        raise UserError(
            files.where(beyond[0], folder),
            f"is one of {len(beyond)} weights of layers that {CONFIG_FILE} does not count",
            f"Restore {CONFIG_FILE}; to use fewer layers, save the model with those alone",
        )


def fit_tokenizer(tokenizer: Any, backbone: Any, folder: Path) -> Any:
    """The tokenizer, whose tokens all have an embedding.

    Two kinds of tokens without one are taken out, so that a text which names them is read like any
    other: the token for pictures in the tokenizer of a model's version for texts alone, and those
    that the tokenizer's class adds to what is in its file.

    Raises:
        UserError: naming another token without an embedding.
    """
    rows = backbone.get_input_embeddings().num_embeddings
    tokens = tokenizer.get_vocab().items()
    beyond = {token: number for token, number in tokens if number >= rows}
    if not beyond:
        return tokenizer
    other = {tokenizer.special_tokens_map.get(kind) for kind in OTHER_MODALITIES}
    for source in (folder, Path(tokenizer.name_or_path)):  # an adapter may have its base's
        if (source / TOKENIZER_FILE).is_file():
            listed = Tokenizer.from_file(str(source / TOKENIZER_FILE)).get_vocab()
            other |= beyond.keys() - listed.keys()
            break
    if wrong := sorted(beyond.keys() - other | beyond.keys() & {tokenizer.pad_token}):
        first = min(wrong, key=lambda token: beyond[token])
        raise UserError(
            str(folder),
            f"has a tokenizer with {len(wrong)} tokens too many: {first!r} has the id "
            f"{beyond[first]}, and the model has {rows} embeddings",
            "Use the tokenizer that the model was trained with, or resize its embeddings and train "
            "them",
        )
    return without_tokens(tokenizer, beyond, str(folder))


def missing_error(names: Sequence[str], folder: Path) -> UserError:
    """The error for weights of the architecture that no file holds."""
    return UserError(
        str(folder),
        f"lacks {len(names)} weights of its architecture, {names[0]} first",
        "Save the model again: those weights would be random",
    )


def shape_error(where: str, stored: Sequence[int], expected: Sequence[int]) -> UserError:
    """The error for a weight of another shape than its config says."""
    return UserError(
        where,
        f"is of the shape {tuple(stored)}, and {CONFIG_FILE} says {tuple(expected)}",
        "Restore the model's files: these belong to different models",
    )


def load_head(folders: Sequence[Path], backbone: Any) -> torch.nn.Linear:
    """The head of a decoder's language model: hidden → vocabulary, without a bias.

    Args:
        folders: where to look for it, in this order.

    Raises:
        UserError: when there is none.
    """
    weight = None
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        with safe_open(file, "pt") as tensors:
            if LM_HEAD_WEIGHT in set(tensors.keys()):
                weight = tensors.get_tensor(LM_HEAD_WEIGHT)
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
