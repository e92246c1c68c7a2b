"""A replica's tokenizer: a request's texts to ids, and what clients may know of them."""

from collections.abc import Sequence

from stillroom.encoders.contract import Role
from stillroom.encoders.ensemble import JointPrompter
from stillroom.encoders.tokens.prompter import Prompter, Tokens, instructed
from stillroom.errors import UserError
from stillroom.serving.messages import Token, TooLarge, Work


def tokenise(prompter: Prompter | JointPrompter, work: Work) -> list[Tokens]:
    """The ids of each text of a request.

    Raises UserError for token ids that the tokenizer does not have, a prompt without room beside
    it and a text that is refused; TooLarge for more tokens than the request may have.
    """
    prompt = None if work.instruction is None else instructed(work.instruction)
    if work.token_ids is None:
        tokens = prompter(work.texts, work.role, prompt=prompt, overlong=work.overlong)
    else:
        tokens = prompter.of_ids(work.token_ids, work.role, prompt=prompt, overlong=work.overlong)
    total = sum(len(text.ids) for text in tokens)
    if work.max_tokens is not None and total > work.max_tokens:
        raise TooLarge(
            "input",
            f"has {total} tokens and may have {work.max_tokens}",
            "Send several requests",
        )
    return tokens


def pieces(
    prompter: Prompter | JointPrompter,
    texts: Sequence[str],
    *,
    role: Role | None,
    special: bool,
) -> list[list[Token]]:
    """Every token of each text, none cut off.

    Args:
        role: whose prompt stands before the text, and counts as a part of it; None: no prompt.
        special: with what the model gets around a text.

    Raises:
        UserError: of a model of several tokenizers.
    """
    prompter = _alone(prompter)
    prompt = "" if role is None else str(getattr(prompter.contract.prompts, role))
    tokenizer = prompter.tokenizer
    known = set(tokenizer.all_special_ids)
    found = []
    for text in (prompt + text for text in texts):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inner = [
            Token(token, text[start:stop], token in known, start, stop)
            for token, (start, stop) in zip(
                encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]
        around = [
            [Token(token, tokenizer.decode([token]), True, None, None) for token in ids]
            for ids in (prompter.start, prompter.end)
        ]
        found.append([*around[0], *inner, *around[1]] if special else inner)
    return found


def decode(
    prompter: Prompter | JointPrompter, ids: Sequence[Sequence[int]], *, skip_special: bool
) -> list[str]:
    """The texts that token ids stand for. Raises UserError at an id that does not exist."""
    prompter = _alone(prompter)
    size = len(prompter.tokenizer)
    for unknown in (one for text in ids for one in text if not 0 <= one < size):
        raise UserError("ids", f"there is no token {unknown}", f"Use the ids 0 to {size - 1}")
    return [prompter.tokenizer.decode(text, skip_special_tokens=skip_special) for text in ids]


def _alone(prompter: Prompter | JointPrompter) -> Prompter:
    if isinstance(prompter, JointPrompter):
        raise UserError("model", "has several tokenizers", "Ask for the release's other encoder")
    return prompter
