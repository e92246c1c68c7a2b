"""A replica's tokenizer: texts to token ids, for the model and for clients."""

from collections.abc import Sequence

from stillroom.encoders.contract import Role
from stillroom.encoders.ensemble import EnsemblePrompter
from stillroom.encoders.library_encoder import LibraryPrompter
from stillroom.encoders.prompt_names import prompt_by_name
from stillroom.encoders.tokens.batch import Tokens
from stillroom.encoders.tokens.cut_text import LONG_CHARACTERS
from stillroom.encoders.tokens.fit import unknown_token_id
from stillroom.encoders.tokens.prompter import Prompter, instruct_prompt
from stillroom.errors import UserError
from stillroom.serving.errors import TooManyTokens
from stillroom.serving.messages import EmbedRequest, Token

AnyPrompter = Prompter | EnsemblePrompter | LibraryPrompter

# Characters of a request's long texts, of which many tokenizers read 1 to 4 MB in a second. Where
# texts are cut before that, it takes a few milliseconds, in either thread.
MANY_CHARACTERS = 100_000


def takes_long(request: EmbedRequest) -> bool:
    """Whether a request may take seconds to tokenise, so that others should not wait for it."""
    lengths = (len(text) for text in request.texts)
    return sum(length for length in lengths if length > LONG_CHARACTERS) > MANY_CHARACTERS


def tokenise(
    prompter: AnyPrompter, request: EmbedRequest, max_tokens: int | None = None
) -> list[Tokens]:
    """The prompted token ids of each text of a request.

    Args:
        max_tokens: of all texts together.

    Raises:
        UserError: for token ids that the tokenizer does not have, a prompt that leaves no room for
            text, and a text that is refused; TooManyTokens for more than `max_tokens`.
    """
    prompt = None if request.instruction is None else instruct_prompt(request.instruction)
    if request.prompt_name is not None:
        prompt = _named_prompt(prompter, request.prompt_name)
    role, overlong = request.role, request.overlong
    if request.token_ids is None:
        tokens = prompter(request.texts, role, prompt=prompt, overlong=overlong)
    else:
        tokens = prompter.from_ids(request.token_ids, role, prompt=prompt, overlong=overlong)
    _check_total(sum(len(text.ids) for text in tokens), max_tokens)
    return tokens


def _check_total(tokens: int, max_tokens: int | None) -> None:
    if max_tokens is not None and tokens > max_tokens:
        raise TooManyTokens(
            "input", f"has {tokens} tokens and may have {max_tokens}", "Send several requests"
        )


def unknown_id(prompter: AnyPrompter) -> int | None:
    """The id of the unknown token; None where there is none of its own, or several tokenizers."""
    if not isinstance(prompter, Prompter):
        return None
    token_id = unknown_token_id(prompter.tokenizer)
    return None if token_id in (*prompter.start, *prompter.end) else token_id


def describe_tokens(
    prompter: AnyPrompter,
    texts: Sequence[str],
    *,
    role: Role | None,
    special: bool,
    prompt_name: str | None = None,
    max_tokens: int | None = None,
) -> list[list[Token]]:
    """Every token of each text with its place in the text; nothing is cut off.

    Args:
        role: whose prompt stands before the text, and counts as a part of it; None: no prompt.
        special: include the special tokens that the model gets around a text.
        prompt_name: of a prompt of the model, which replaces the role's.
        max_tokens: of all texts together, special ones not counted.

    Raises:
        UserError: for a model with several tokenizers, or with one in Python; TooManyTokens for
            more than `max_tokens`.
    """
    prompter = _single(prompter)
    if not prompter.tokenizer.is_fast:
        problem = "has a tokenizer in Python, which does not say where its tokens are"
        raise UserError("model", problem, "Ask for another model")
    prompt = "" if role is None else str(getattr(prompter.contract.prompts, role))
    if prompt_name is not None:
        prompt = _named_prompt(prompter, prompt_name)
    tokenizer = prompter.tokenizer
    special_ids = set(tokenizer.all_special_ids)
    start, end = (
        [Token(token_id, tokenizer.decode([token_id]), True, None, None) for token_id in ids]
        if special
        else []
        for ids in (prompter.start, prompter.end)
    )
    described: list[list[Token]] = []
    total = 0
    for text in (prompt + text for text in texts):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        total += len(encoded["input_ids"])
        _check_total(total, max_tokens)
        offsets = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        inner = [
            Token(token_id, text[first:last], token_id in special_ids, first, last)
            for token_id, (first, last) in offsets
        ]
        described.append([*start, *inner, *end])
    return described


def decode(prompter: AnyPrompter, ids: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
    """The text of each list of token ids.

    Raises:
        UserError: for an id that does not exist, and for a model with several tokenizers.
    """
    tokenizer = _single(prompter).tokenizer
    size = len(tokenizer)
    for text in ids:
        for token_id in text:
            if not 0 <= token_id < size:
                raise UserError(
                    "ids", f"there is no token {token_id}", f"Use the ids 0 to {size - 1}"
                )
    return [tokenizer.decode(text, skip_special_tokens=skip_special) for text in ids]


def _named_prompt(prompter: AnyPrompter, name: str) -> str:
    return prompt_by_name(getattr(prompter, "contract", None), name, "prompt_name")


def _single(prompter: AnyPrompter) -> Prompter:
    if isinstance(prompter, EnsemblePrompter):
        raise UserError("model", "has several tokenizers", "Ask for another model")
    if isinstance(prompter, LibraryPrompter):
        problem = "is run by sentence-transformers, with whatever tokenizer it has"
        raise UserError("model", problem, "Ask for another model")
    return prompter
