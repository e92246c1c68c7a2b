import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.files import read_conversations, read_pairs, read_passages
from stillroom.data.readers.records import Conversation, EvaluationSet, Pair
from stillroom.errors import UserError

ROWS = [
    {"query": "one", "positive": "first, with a comma", "negatives": ["no", "nor this"]},
    {"query": "zwei", "positive": 'zweites „Stück“\nand a "second" line', "negatives": []},
]
PAIRS = [Pair(row["query"], row["positive"], tuple(row["negatives"])) for row in ROWS]


def write(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                for row in rows
            )
    else:
        path.write_text(lines)
    return path


FILES = ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_pairs(tmp_path, name):
    assert list(read_pairs(write(tmp_path / name, ROWS))) == PAIRS


def test_other_names_of_the_fields_a_byte_order_mark_and_blank_lines_are_understood(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"query": "q", "passage": "p", "negative": "n"}\n\n', encoding="utf-8")
    assert list(read_pairs(file)) == [Pair("q", "p", ("n",))]


def test_passages_come_with_their_titles_and_from_plain_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "T", "text": "body"}\n{"passage": "other"}\n')
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert list(read_passages(tmp_path / "a.jsonl")) == ["T body", "other"]
    assert list(read_passages(tmp_path / "b.txt")) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "where", "problem"),
    [
        (b'{"query": "q", "positive": "p"}\n{"query": "q"\n', "a.jsonl:2", "is no JSON"),
        (b'{"query": "q"}\n', "a.jsonl:1", "is no pair in a layout that we know; it has query"),
        (b'{"query": 3, "positive": "p"}\n', "a.jsonl:1", "'query' is of type int"),
        (b'{"query": " ", "positive": "p"}\n', "a.jsonl:1", "'query' is empty"),
        (b'\n["q", "p"]\n', "a.jsonl:2", "is no JSON object"),
        (b'{"query": "q", "positive": "p", "negatives": 3}\n', "a.jsonl:1", "is no list"),
        (b'{"query": "q", "positive": "p", "negatives": [""]}\n', "a.jsonl:1", "is empty"),
        (b"\n\xff\xfe\n", "a.jsonl:2", "is not UTF-8"),
        (b"", "a.jsonl", "is empty"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, content, where, problem):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_pairs(tmp_path / "a.jsonl"))
    assert caught.value.where == str(tmp_path / where)
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"query,positive\none,two,three\n", "has not the 2 fields of the header"),
        ("a.parquet", b"PAR1 not really", "cannot be read"),
        ("a.jsonl.gz", b"not zipped", "cannot be read"),
        ("a.xml", b"<a/>", "is of no format that we read"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        list(read_pairs(tmp_path / name))


@pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "no.csv"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        list(read_pairs(tmp_path / name))


# --- conversations --------------------------------------------------------------------------

TURNS = ["Hi", "Hello", 'How do I\nsort, "fast"?', "With sorted()."]
ROLES = ["user", "assistant"] * 2
CHAT = [{"role": role, "content": text} for role, text in zip(ROLES, TURNS, strict=True)]
SHOWN = "User:\nHi\n\nAssistant:\nHello\n\nUser:\n" + TURNS[2] + "\n\nAssistant:\n"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("row", [{"text": TURNS}, {"messages": CHAT}], ids=["text", "messages"])
def test_of_turns_the_last_answer_is_the_completion_in_every_format(tmp_path, name, row):
    found = list(read_conversations(write(tmp_path / name, [row])))
    assert found == [Conversation(SHOWN, TURNS[3], question=TURNS[2])]


@pytest.mark.parametrize("name", FILES)
def test_a_prompt_and_its_completion_are_taken_as_they_are(tmp_path, name):
    row = {"prompt": "<|user|>\nWho?\n", "completion": " me "}
    [found] = read_conversations(write(tmp_path / name, [row]))
    assert found == Conversation(row["prompt"], row["completion"], question=row["prompt"])


def test_a_question_that_nobody_answers_is_left_out(tmp_path):
    unanswered = write(tmp_path / "a.jsonl", [{"text": [*TURNS, "And now?"]}])
    whole = write(tmp_path / "b.jsonl", [{"text": TURNS}])
    assert list(read_conversations(unanswered)) == list(read_conversations(whole))


def test_what_the_system_says_comes_first_and_is_no_question(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    [found] = read_conversations(write(tmp_path / "a.jsonl", [{"messages": [system, *CHAT]}]))
    assert found.prompt == "System:\nBe brief.\n\n" + SHOWN
    assert found.question == TURNS[2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": "q", "positive": "p"}, "has no 'prompt'; it has query, positive"),
        ({"prompt": "q"}, "has no 'completion'; it has prompt"),
        ({"prompt": "q", "completion": " "}, "'completion' is empty"),
        ({"prompt": ["q"], "completion": "c"}, "'prompt' is of type list"),
        ({"text": "Hi"}, "'text' is no JSON list"),
        ({"text": ["Hi"]}, "'text' has no assistant's turn"),
        ({"text": ["Hi", ""]}, "'text' is empty"),
        ({"text": ["Hi", 3]}, "'text' is of type int"),
        ({"messages": {"role": "user"}}, "'messages' is no list"),
        ({"messages": CHAT[:1]}, "'messages' has no assistant's turn"),
        ({"messages": CHAT[1:2]}, "'messages' has no assistant's turn that follows another"),
        ({"messages": ["Hi"]}, "'messages' has the role 'Hi'"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "has the role ['user']"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "has the role 'tool'"),
        ({"messages": [{"role": "user"}]}, "has no 'content'; it has role"),
    ],
)
def test_a_row_that_is_no_conversation_is_named_with_its_line(tmp_path, row, problem):
    file = write(tmp_path / "a.jsonl", [{"text": TURNS}, row])
    with pytest.raises(UserError) as caught:
        list(read_conversations(file))
    assert caught.value.where == f"{file}:2"
    assert problem in caught.value.problem


def test_a_file_without_conversations_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match=r"a\.jsonl: is empty"):
        list(read_conversations(tmp_path / "a.jsonl"))


# --- evaluation sets ------------------------------------------------------------------------


def beir(folder, *, corpus=None, queries=None, qrels=None):
    rows = {
        "corpus.jsonl": corpus
        or '{"_id": "p1", "title": "T", "text": "one"}\n{"_id": "p2", "title": "", "text": ""}\n',
        "queries.jsonl": queries or '{"_id": "q1", "text": "who?"}\n{"_id": "q2", "text": "x"}\n',
        "qrels/test.tsv": qrels or "query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\tp2\t0\n",
    }
    (folder / "qrels").mkdir()
    for name, text in rows.items():
        (folder / name).write_text(text)
    return folder


def test_a_set_is_read_with_titles_and_only_its_judged_queries_count(tmp_path):
    kept = read_beir(beir(tmp_path))
    assert kept.passages == {"p1": "T one", "p2": ""}
    assert kept.qrels == {"q1": {"p1": 2, "p2": 0}}


def test_what_is_written_is_read_again(tmp_path):
    kept = EvaluationSet({"p": 'a "b"\n\tc'}, {"q": "ä"}, {"q": {"p": 1}}, {"query": "ö: "})
    write_beir(kept, tmp_path)
    assert read_beir(tmp_path) == kept


@pytest.mark.parametrize("content", ["{", "[]", '{"document": "x"}', '{"query": 1}'])
def test_prompts_that_are_none_are_named(tmp_path, content):
    folder = beir(tmp_path)
    (folder / "prompts.json").write_text(content)
    with pytest.raises(UserError, match="prompts.json"):
        read_beir(folder)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"qrels": "query-id\tcorpus-id\tscore\nq9\tp1\t1\n"}, "test.tsv:2: judges the query 'q9'"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\tp9\t1\n"}, "judges the passage 'p9'"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\tp1\thigh\n"}, "has the score 'high'"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\tp1\t0\n"}, "no query with a relevant passage"),
        ({"corpus": '{"_id": "p1", "text": "a"}\n' * 2}, "corpus.jsonl:2: repeats the id 'p1'"),
        ({"queries": '{"text": "a"}\n'}, "queries.jsonl:1: has no '_id'"),
    ],
)
def test_a_faulty_set_is_named(tmp_path, files, problem):
    with pytest.raises(UserError, match=problem):
        read_beir(beir(tmp_path, **files))


def test_a_folder_that_is_no_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.jsonl: does not exist"):
        read_beir(tmp_path)
