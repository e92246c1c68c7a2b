"""Rows → conversations, in the three forms that data sets use."""

import itertools

from stillroom.data.readers.fields import Fields, list_field, text_field, text_list_field
from stillroom.data.readers.records import Conversation
from stillroom.errors import UserError

# Role in `messages` → how the prompt names the speaker.
SPEAKER_NAMES = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "assistant": "Assistant",
}


def parse_conversation(row: Fields, where: str) -> Conversation:
    """A conversation in one of three forms; in a CSV, lists are JSON.

    - `prompt` and `completion`: two texts, taken as they are.
    - `text`: a list of turns, user and assistant alternating, as in GritLM's data.
    - `messages`: a list of `role` and `content`, as in OpenAI's API.

    The assistant's last turn is the completion. The turns before it become the prompt: each
    under its speaker's name and followed by an empty line, then the assistant's name.

        User:
        How do I sort a list?

        Assistant:

    Raises:
        UserError: when the row has none of the forms.
    """
    present = [field for field in ("completion", "messages", "text") if row.get(field)]
    if present[:1] == ["messages"]:
        return _from_turns(_messages(row, where), "messages", where)
    if present[:1] == ["text"]:
        roles = itertools.cycle(("user", "assistant"))
        turns = list(zip(roles, text_list_field(row, "text", where), strict=False))
        return _from_turns(turns, "text", where)
    prompt, completion = (text_field(row, field, where) for field in ("prompt", "completion"))
    return Conversation(prompt, completion, question=prompt)


def _messages(row: Fields, where: str) -> list[tuple[str, str]]:
    """(role, text) of each message."""
    turns = []
    example = '[{"role": "user", "content": "text"}, …]'
    for message in list_field(row, "messages", where, example):
        role = message.get("role") if isinstance(message, dict) else message
        if not isinstance(role, str) or role not in SPEAKER_NAMES:
            raise UserError(
                where,
                f"'messages' has the role {role!r}",
                f"Use {', '.join(SPEAKER_NAMES)}, or remove the row",
            )
        turns.append((role, text_field(message, "content", where)))
    return turns


def _from_turns(turns: list[tuple[str, str]], field: str, where: str) -> Conversation:
    while turns and turns[-1][0] != "assistant":  # unanswered
        turns = turns[:-1]
    if len(turns) < 2:
        raise UserError(
            where,
            f"{field!r} has no assistant's turn that follows another",
            "Give a user's turn and the assistant's answer, or remove the row",
        )
    *before, (_, completion) = turns
    shown = [f"{SPEAKER_NAMES[role]}:\n{text}\n\n" for role, text in before]
    questions = [text for role, text in before if role == "user"]
    prompt = "".join(shown) + f"{SPEAKER_NAMES['assistant']}:\n"
    return Conversation(prompt, completion, question=questions[-1] if questions else prompt)
