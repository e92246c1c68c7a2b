"""A replica's tokenizer: texts to token ids, for the model and for clients."""

from collections.abc import Sequence

from stillroom.encoders.contract import Role
from stillroom.encoders.ensemble import EnsemblePrompter
from stillroom.encoders.tokens.batch import Tokens
from stillroom.encoders.tokens.prompter import Prompter, instruct_prompt
from stillroom.errors import UserError
from stillroom.serving.errors import TooManyTokens
from stillroom.serving.messages import EmbedRequest, Token


def tokenise(
    prompter: Prompter | EnsemblePrompter, request: EmbedRequest, max_tokens: int | None = None
) -> list[Tokens]:
    """The prompted token ids of each text of a request.

    Args:
        max_tokens: of all texts together.

    Raises:
        UserError: for token ids that the tokenizer does not have, a prompt that leaves no room for
            text, and a text that is refused; TooManyTokens for more than `max_tokens`.
    """
    prompt = None if request.instruction is None else instruct_prompt(request.instruction)
    role, overlong = request.role, request.overlong
    if request.token_ids is None:
        tokens = prompter(request.texts, role, prompt=prompt, overlong=overlong)
    else:
        tokens = prompter.from_ids(request.token_ids, role, prompt=prompt, overlong=overlong)
    total = sum(len(text.ids) for text in tokens)
    if max_tokens is not None and total > max_tokens:
        raise TooManyTokens(
            "input",
            f"has {total} tokens and may have {max_tokens}",
            "Send several requests",
        )
    return tokens


def describe_tokens(
    prompter: Prompter | EnsemblePrompter,
    texts: Sequence[str],
    *,
    role: Role | None,
    special: bool,
) -> list[list[Token]]:
    """Every token of each text with its place in the text; nothing is cut off.

    Args:
        role: whose prompt stands before the text, and counts as a part of it; None: no prompt.
        special: include the special tokens that the model gets around a text.

    Raises:
        UserError: for a model with several tokenizers.
    """
    prompter = _single(prompter)
    prompt = "" if role is None else str(getattr(prompter.contract.prompts, role))
    tokenizer = prompter.tokenizer
    special_ids = set(tokenizer.all_special_ids)
    start, end = (
        [Token(token_id, tokenizer.decode([token_id]), True, None, None) for token_id in ids]
        if special
        else []
        for ids in (prompter.start, prompter.end)
    )
    described = []
    for text in (prompt + text for text in texts):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        inner = [
            Token(token_id, text[first:last], token_id in special_ids, first, last)
            for token_id, (first, last) in offsets
        ]
        described.append([*start, *inner, *end])
    return described


def decode(
    prompter: Prompter | EnsemblePrompter, ids: Sequence[Sequence[int]], *, skip_special: bool
) -> list[str]:
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


def _single(prompter: Prompter | EnsemblePrompter) -> Prompter:
    if isinstance(prompter, EnsemblePrompter):
        raise UserError("model", "has several tokenizers", "Ask for the release's other encoder")
    return prompter
