"""Opens models with sentence-transformers itself, and decides which ones need that."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from stillroom.encoders.contract import LibraryContract, Precision
from stillroom.encoders.files.create import fastest_precision
from stillroom.encoders.files.load_report import missing_weights
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.sentence_transformers import (
    MODEL_CONFIG,
    MODULES_FILE,
    UnsupportedModulesError,
    folder_similarity,
    named_prompts,
    read_json,
    read_modules,
    role_prompts,
)
from stillroom.encoders.layers.backbone import LONGEST_INPUT, position_rows
from stillroom.encoders.library_encoder import TASKS, LibraryEncoder, has_own_tasks
from stillroom.encoders.model_names import locate_model
from stillroom.encoders.prompt_names import replace_prompts
from stillroom.encoders.remote_code import needs_remote_code, remote_code_error
from stillroom.encoders.safe_read import SAVE_AS_SAFETENSORS, path_inside, read_json_object
from stillroom.encoders.tokens.special_tokens import add_configured_tokens
from stillroom.errors import UserError, one_line

logger = logging.getLogger(__name__)

MODEL_TYPE = "SentenceTransformer"

# Pickled weights that the library would read where there are no others.
PICKLED_WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")

# Fields of `ContractOptions`, and of a recipe's teacher, that change our own forward alone.
OWN_FORWARD_OPTIONS = ("attention", "pooling", "echo", "append_eos", "layer_norm")


def own_forward_options(options: Any) -> list[str]:
    """The fields of options, or of a recipe's section, that the library cannot honour."""
    names = [name for name in OWN_FORWARD_OPTIONS if getattr(options, name, None)]
    return names + ["pool_prompt"] * (getattr(options, "pool_prompt", None) is False)


def library_reason(folder: Path) -> str | None:
    """Why only sentence-transformers can run the model in a folder, such as "comes with its own
    code"; None when our own forward can.

    A folder without modules.json is never the library's: nothing in it says how to pool.

    Raises:
        UserError: for broken files.
    """
    if not (folder / MODULES_FILE).exists():
        return None
    config = _read_object(transformer_path(folder) / "config.json")
    if config.get("quantization_config"):
        return "has quantised weights"
    own_encoder = config.get("model_type") in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES  # as T5 has
    if config.get("is_encoder_decoder") and not own_encoder:
        return "is an encoder and a decoder"
    if needs_remote_code(folder) or needs_remote_code(transformer_path(folder)):
        return "comes with its own code"
    try:
        read_modules(folder)
    except UnsupportedModulesError as error:
        return error.problem
    return None


def why_by_library(folder: Path, choice: str, options: ContractOptions) -> str | None:
    """Why a recipe's teacher is run by sentence-transformers, and not by our own forward.

    Args:
        choice: `encoder` of the recipe's section. Under `auto`, options that change our own forward
            ask for that.
    """
    if choice == "sentence_transformers":
        return "has encoder: sentence_transformers in the recipe"
    if choice == "stillroom" or own_forward_options(options):
        return None
    return library_reason(folder)


def transformer_path(folder: Path) -> Path:
    """The folder of the first module, which is most often the transformer."""
    modules = read_json(folder / MODULES_FILE)
    first = modules[0] if isinstance(modules, list) and modules else {}
    path = first.get("path") if isinstance(first, dict) else None
    return path_inside(folder, str(path or ""), folder / MODULES_FILE)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; an empty one for a missing file."""
    return read_json_object(path) if path.is_file() else {}


def create_library_encoder(
    base: str,
    *,
    space: str,
    options: ContractOptions | None = None,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> LibraryEncoder:
    """A base as the library runs it, with the options that it can honour.

    Raises:
        UserError: for other options, and when the library cannot open the base.
    """
    options = options or ContractOptions()
    if ignored := own_forward_options(options):
        raise UserError(
            base,
            f"is run by sentence-transformers, which has no {', '.join(ignored)} to set",
            "Leave that out, or name a base that stillroom reads itself",
        )
    folder = locate_model(base, include_code=trust_remote_code)
    auto = options.precision == "auto"
    encoder = open_library_encoder(
        folder,
        base,
        precision=_stored_precision(folder) if auto else cast(Precision, options.precision),
        trust_remote_code=trust_remote_code,
        device=device,
    )
    contract = encoder.contract
    max_tokens = options.max_tokens or contract.max_tokens
    if max_tokens > contract.max_tokens:
        raise UserError(
            "max_tokens",
            f"{max_tokens} is more than {base} reads",
            f"At most {contract.max_tokens}",
        )
    comparison = contract.comparison.changed_to(options.similarity)
    changes: dict[str, Any] = {
        **comparison._asdict(),
        **replace_prompts(contract, options.prompts, options.prompt),
        "max_tokens": max_tokens,
        "dims": contract.dims if options.dims is None else tuple(options.dims),
        "space": space,
    }
    if changes["dims"][0] > contract.dims[0]:
        raise UserError(
            "dims", f"the vectors of {base} have {contract.dims[0]}", "Name sizes below that"
        )
    changed = LibraryContract.model_validate({**contract.model_dump(), **changes})
    _set_max_tokens(encoder.model, changed, folder)
    return LibraryEncoder(changed, encoder.model)


def open_library_encoder(
    folder: Path,
    name: str,
    *,
    contract: LibraryContract | None = None,
    precision: Precision = "float32",
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> LibraryEncoder:
    """The model in a folder of sentence-transformers, run by the library.

    Args:
        name: its base and space, where there is no contract.
        contract: that a teacher's artifact has; None: what the folder says.
        precision: of its weights, where there is no contract.

    Raises:
        UserError: when the library cannot open it, or it needs code that is not trusted.
    """
    if contract is not None:
        precision = contract.precision
    model = open_model(
        folder, dtype=getattr(torch, precision), trust_remote_code=trust_remote_code, device=device
    )
    if contract is None:
        contract = _folder_contract(folder, name, model, precision)
    _set_max_tokens(model, contract, folder)
    return LibraryEncoder(contract, model)


def open_model(
    folder: Path, *, dtype: torch.dtype, trust_remote_code: bool = False, device: str = "cpu"
) -> Any:
    """The SentenceTransformer in a folder. Its tokenizer adds what tokenizer_config.json asks for.

    Raises:
        UserError: as `open_library_encoder`.
    """
    own_code = _check_folder(folder, trust_remote_code)
    from sentence_transformers import SentenceTransformer  # takes seconds

    arguments: dict[str, Any] = {"use_safetensors": True}
    if not _read_object(transformer_path(folder) / "config.json").get("quantization_config"):
        arguments["dtype"] = dtype
    try:
        with missing_weights() as missing:
            model = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=trust_remote_code,
                local_files_only=not own_code,  # which may be in another repository
                model_kwargs=arguments,
            )
    except Exception as error:  # of the model's own code, for example
        raise UserError(
            str(folder),
            f"cannot be opened by sentence-transformers: {type(error).__name__}: "
            f"{one_line(error, 300)}",
            "Install what it asks for, restore its files, or use another model",
        ) from error
    if missing:
        raise UserError(
            str(folder),
            f"lacks {len(missing)} weights of its architecture, {missing[0]} first",
            "Save the model again: those weights would be random",
        )
    if "text" not in model.modalities:
        raise UserError(str(folder), "does not read texts", "Use a model for texts")
    tokenizer: Any = getattr(model, "tokenizer", None)
    if getattr(tokenizer, "is_fast", False):
        complete = add_configured_tokens(tokenizer, transformer_path(folder))
        # The library keeps its tokenizer, so that only the template is replaced.
        tokenizer.backend_tokenizer.post_processor = complete.backend_tokenizer.post_processor
    return model.eval()


def _check_folder(folder: Path, trust_remote_code: bool) -> bool:
    """Refuses what the library would run, unpickle or misread without asking.

    Returns:
        Whether code of the model's own will run.
    """
    places = dict.fromkeys((folder, transformer_path(folder)))
    with_code = [place for place in places if needs_remote_code(place)]
    if with_code and not trust_remote_code:
        raise remote_code_error(with_code[0])
    kind = _read_object(folder / MODEL_CONFIG).get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise UserError(
            f"{folder / MODEL_CONFIG}: model_type",
            f"is {kind}, which gives a text no single dense vector",
            f"Use a model of the type {MODEL_TYPE}",
        )
    for pattern in PICKLED_WEIGHTS:
        for file in sorted(folder.rglob(pattern)):
            if not any(file.parent.glob("*.safetensors")):
                raise UserError(str(file), "is pickled", SAVE_AS_SAFETENSORS)
    return bool(with_code)


def _stored_precision(folder: Path) -> Precision:
    """bfloat16 for weights that are stored in sixteen bits, where the machine computes in it.

    The library rounds the weights themselves, of which those of thirty-two bits would lose more
    than a small model's speed is worth.
    """
    config = _read_object(transformer_path(folder) / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    return fastest_precision() if stored.endswith(("bfloat16", "float16")) else "float32"


def _folder_contract(folder: Path, name: str, model: Any, precision: Precision) -> LibraryContract:
    options = _read_object(folder / MODEL_CONFIG)
    similarity = folder_similarity(folder, options)
    prompts = role_prompts(options)
    limit = min(model.max_seq_length or LONGEST_INPUT, LONGEST_INPUT)
    if (rows := position_rows(getattr(model[0], "auto_model", None))) is not None:
        limit = min(limit, rows)  # the library itself would fail at a longer text
    names = named_prompts(options)
    task = next(iter(names), None) if has_own_tasks(model) else TASKS["query"]
    try:
        vector = model.encode("a", prompt=prompts.query, task=task, show_progress_bar=False)
    except Exception as error:
        raise UserError(
            str(folder),
            f"gives no vector by sentence-transformers: {type(error).__name__}: "
            f"{one_line(error, 300)}",
            "Install what it asks for, restore its files, or use another model",
        ) from error
    return LibraryContract(
        library="sentence-transformers",
        base=name,
        prompts=prompts,
        named_prompts=names,
        max_tokens=int(limit),
        dims=(len(vector),),
        normalise=similarity == "cosine",
        similarity=similarity,
        space=name,
        precision=precision,
    )


def _set_max_tokens(model: Any, contract: LibraryContract, folder: Path) -> None:
    """Has the library cut texts at the contract's length.

    Raises:
        UserError: when the model's first module cuts no texts.
    """
    if contract.max_tokens >= min(model.max_seq_length or LONGEST_INPUT, LONGEST_INPUT):
        return
    try:
        model.max_seq_length = contract.max_tokens
    except AttributeError as error:
        raise UserError(
            "max_tokens", f"has no effect: {folder} does not cut texts", "Leave it out"
        ) from error
