"""What the model in a folder reads of a text, found without its weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from stillroom.encoders.contract import (
    CONTRACT_FILE,
    BaseContract,
    Contract,
    LibraryContract,
    Prompts,
)
from stillroom.encoders.files.folder import folder_tokenizer
from stillroom.encoders.files.library import library_reason, transformer_path
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.pretrained import CONFIG_FILE, TOKENIZER_FILE
from stillroom.encoders.files.sentence_transformers import (
    MODEL_CONFIG,
    MODULES_FILE,
    TRANSFORMER_CONFIG,
    named_prompts,
    read_json,
    role_prompts,
    transformer_folder,
)
from stillroom.encoders.model_names import adapter_base, locate_model
from stillroom.encoders.prompt_names import ModelPrompts, replace_prompts
from stillroom.encoders.tokens.describe_input import describe_input, prompt_and_text
from stillroom.encoders.tokens.special_tokens import append_eos, lower_case_first


def folder_prompts(folder: Path) -> ModelPrompts:
    """The prompts of the model in a folder of any kind."""
    if (folder / CONTRACT_FILE).exists():
        contract = BaseContract.read(folder)
        return ModelPrompts(
            getattr(contract, "prompts", Prompts()), getattr(contract, "named_prompts", {})
        )
    if (folder / MODULES_FILE).exists():
        options = read_json(folder / MODEL_CONFIG)
        return ModelPrompts(role_prompts(options), named_prompts(options))
    base = adapter_base(folder)
    return ModelPrompts() if base is None else folder_prompts(locate_model(base))


def model_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer with which a model's encoder reads texts, as transformers has it.

    It is not always what tokenizer.json says: transformers makes parts of some tokenizers anew, and
    sentence-transformers may lower-case texts before.

    Raises:
        UserError: when there is no such model, or its tokenizer cannot be loaded.
    """
    folder = locate_model(model, include_code=trust_remote_code)
    contract = BaseContract.read(folder) if (folder / CONTRACT_FILE).exists() else None
    if isinstance(contract, LibraryContract):
        return model_tokenizer(contract.base, trust_remote_code=trust_remote_code)
    weights = transformer_folder(folder)
    if weights == folder and (folder / MODULES_FILE).exists():
        file = transformer_path(folder) / TOKENIZER_FILE
        if file.is_file() and not (folder / CONFIG_FILE).is_file():  # static embeddings
            return PreTrainedTokenizerFast(tokenizer_file=str(file))
    tokenizer: Any = folder_tokenizer(weights, trust_remote_code)
    if contract is None and read_json(weights / TRANSFORMER_CONFIG).get("do_lower_case"):
        tokenizer = lower_case_first(tokenizer)
    return tokenizer


def input_describer(
    folder: Path, options: ContractOptions, *, trust_remote_code: bool = False
) -> Callable[[str], str]:
    """A function that shows a prompt and its tokens in their place; see `describe_input`.

    Of a model that has several tokenizers, or that only sentence-transformers can run, it shows no
    tokens.

    Raises:
        UserError: when the tokenizer cannot be loaded.
    """
    contract = BaseContract.read(folder) if (folder / CONTRACT_FILE).exists() else None
    if not isinstance(contract, Contract | None) or library_reason(folder) is not None:
        return prompt_and_text
    tokenizer = model_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    if options.append_eos:
        tokenizer = append_eos(tokenizer)
    own_echo = contract is not None and contract.echo
    echo = own_echo if options.echo is None else options.echo
    return lambda prompt: describe_input(tokenizer, prompt, echo=echo)


def role_inputs(
    folder: Path, options: ContractOptions | None = None, *, trust_remote_code: bool = False
) -> dict[str, str]:
    """Role → its prompt and the tokens around a text.

    Raises:
        UserError: as `input_describer`, and for a prompt's name that the model does not have.
    """
    options = options or ContractOptions()
    replaced = replace_prompts(folder_prompts(folder), options.prompts, options.prompt)
    describe = input_describer(folder, options, trust_remote_code=trust_remote_code)
    return {role: describe(text) for role, text in replaced["prompts"].model_dump().items()}
