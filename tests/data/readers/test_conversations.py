"""Conversations in every layout and file format."""

import pytest

from stillroom.data.readers.files import read_conversations
from stillroom.data.readers.records import Conversation, SkippedRows
from stillroom.errors import UserError
from support.row_files import FILE_NAMES, write_rows

TURNS = ["Hi", "Hello", 'How do I\nsort, "fast"?', "With sorted()."]


ROLES = ["user", "assistant"] * 2


CHAT = [{"role": role, "content": text} for role, text in zip(ROLES, TURNS, strict=True)]


SHOWN = "User:\nHi\n\nAssistant:\nHello\n\nUser:\n" + TURNS[2] + "\n\nAssistant:\n"


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("row", [{"text": TURNS}, {"messages": CHAT}], ids=["text", "messages"])
def test_the_last_answer_of_a_conversation_is_the_completion(tmp_path, name, row):
    conversations = list(read_conversations(write_rows(tmp_path / name, [row])))
    assert conversations == [Conversation(SHOWN, TURNS[3], question=TURNS[2])]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_prompt_and_its_completion_are_taken_as_they_are(tmp_path, name):
    row = {"prompt": "<|user|>\nWho?\n", "completion": " me "}
    [conversation] = read_conversations(write_rows(tmp_path / name, [row]))
    assert conversation == Conversation(row["prompt"], row["completion"], question=row["prompt"])


def test_unanswered_questions_at_the_end_are_dropped(tmp_path):
    unanswered = write_rows(tmp_path / "a.jsonl", [{"text": [*TURNS, "And now?"]}])
    answered = write_rows(tmp_path / "b.jsonl", [{"text": TURNS}])
    assert list(read_conversations(unanswered)) == list(read_conversations(answered))


def test_the_system_message_comes_first_and_is_not_the_question(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    [conversation] = read_conversations(
        write_rows(tmp_path / "a.jsonl", [{"messages": [system, *CHAT]}])
    )
    assert conversation.prompt == "System:\nBe brief.\n\n" + SHOWN
    assert conversation.question == TURNS[2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "positive": "p"}, "has no 'prompt'; it has query, positive"),
        ({"prompt": "q"}, "has no 'completion'; it has prompt"),
        ({"prompt": "q", "completion": " "}, "'completion' is empty"),
        ({"prompt": ["q"], "completion": "c"}, "'prompt' is of type list"),
        ({"text": "Hi"}, "'text' is not a JSON list"),
        ({"text": ["Hi"]}, "'text' has no assistant's turn"),
        ({"text": ["Hi", ""]}, "'text' is empty"),
        ({"text": ["Hi", 3]}, "'text' is of type int"),
        ({"messages": {"role": "user"}}, "'messages' is not a list"),
        ({"messages": CHAT[:1]}, "'messages' has no assistant's turn"),
        ({"messages": CHAT[1:2]}, "'messages' has no assistant's turn that follows another"),
        ({"messages": ["Hi"]}, "'messages' has the role 'Hi'"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "has the role ['user']"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "has the role 'tool'"),
        ({"messages": [{"role": "user"}]}, "has no 'content'; it has role"),
    ],
)
def test_a_row_without_a_conversation_is_an_error_with_its_line(tmp_path, row, problem):
    file = write_rows(tmp_path / "a.jsonl", [{"text": TURNS}, row])
    with pytest.raises(UserError) as caught:
        list(read_conversations(file))
    assert caught.value.where == f"{file}:2"
    assert problem in caught.value.problem


def test_a_file_without_conversations_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match=r"a\.jsonl: is empty"):
        list(read_conversations(tmp_path / "a.jsonl"))


def test_conversations_labelled_as_bad_are_asked_for_or_left_out(tmp_path):
    # As in KTO's data, where a label says whether a completion is wanted.
    rows = [{"prompt": "p", "completion": c, "label": c == "good"} for c in ("good", "bad")]
    file = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="has a score in 'label'.* Set min_score"):
        list(read_conversations(file))
    skipped = SkippedRows()
    [conversation] = read_conversations(file, min_score=1, skipped=skipped)
    assert conversation.completion == "good" and skipped.counts == {"below_min_score": 1}
