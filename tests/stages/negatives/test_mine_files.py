"""Mining negatives for a user's own files."""

import json
from pathlib import Path

import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.config.recipe import Negatives
from stillroom.config.scale import Scale
from stillroom.data.readers.beir import write_beir
from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.mining.cross_encoder import CrossEncoder
from stillroom.mining.formats import FORMATS
from stillroom.mining.mined import MinedNegatives
from stillroom.stages.negatives.files import MiningInput, MiningOutput, mine_files, read_texts
from support import shared_ray
from support.peak_memory import peak_bytes
from support.tiny_models import tiny_cross_encoder

ROWS = [{"query": f"what is number {i}", "positive": f"number {i} is a number"} for i in range(8)]
ROWS[1]["negatives"] = ["given with the pair"]
ROWS.append({"query": "What is number 0", "positive": "another answer to the first"})
MORE = ["NUMBER 3 is a  number", "what is tested", "something else", "and more", "number of things"]


@pytest.fixture
def files(tmp_path):
    for name, rows in (("pairs", ROWS), ("passages", [{"text": text} for text in MORE])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_beir(
        EvaluationSet({"p": "What is tested"}, {"q": "q"}, {"q": {"p": 1}}), tmp_path / "set"
    )
    return tmp_path


def run_mining(folder, **changes):
    """Changes are of the source, the target, the section of a recipe, or of other options."""
    source = {
        "pairs": [folder / "pairs.jsonl"],
        "passages": [folder / "passages.jsonl"],
        "evaluation": [folder / "set"],
    }
    target = {"path": folder / "mined.jsonl", "format": "flagembedding", "with_scores": True}
    section = {"miner": "bm25", "cross_encoder": None}
    for fields in (source, target, section):
        fields.update((name, changes.pop(name)) for name in [*changes] if name in fields)
    return mine_files(
        MiningInput(**source), MiningOutput(**target), Negatives(**section),
        seed=1, root=str(folder / "runs"), scale=Scale(), **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "other"}, "--format: 'other' is unknown"),
        ({"path": Path("nowhere/mined.jsonl")}, "its folder does not exist"),
        ({"miner": "nowhere"}, "nowhere: there is no such folder"),
        ({"miner": "teacher/none"}, "teacher/none: is not under"),
        (
            {"miner": "random:bert", "prompt_name": "web"},
            "--prompt-name with random:bert: the model has no prompt 'web'",
        ),
        ({"cross_encoder": "nowhere"}, "nowhere: there is no such folder"),
        ({"pairs": [Path("none.jsonl")]}, "none.jsonl: does not exist"),
        ({"evaluation": [Path("none")]}, "does not exist"),
    ],
)
def test_bad_input_is_reported_before_anything_starts(files, changes, expected):
    shared_ray.stop()
    with pytest.raises(UserError, match=expected):
        run_mining(files, **changes)
    assert not ray.is_initialized()
    assert not (files / "mined.jsonl").exists()


def test_an_existing_file_is_not_overwritten(files):
    (files / "mined.jsonl").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        run_mining(files)
    assert (files / "mined.jsonl").read_text() == "mine"


def test_an_impossible_selection_rule_is_refused(files):
    words = ["mine", "bm25", "--pairs", str(files / "pairs.jsonl"), "--out", str(files / "m")]
    with pytest.raises(UserError, match="sample_from must be at least per_query"):
        CliRunner().invoke(app, [*words, "--sample-from", "2"], catch_exceptions=False)


def test_reading_files_holds_a_part_of_their_texts(files, tmp_path):
    read_texts(MiningInput([files / "pairs.jsonl"]), tmp_path / "warm")  # what is imported counts
    rows = 20_000
    with (tmp_path / "passages.jsonl").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"text": f"{number} " + "x" * 2000}) + "\n")
    source = MiningInput([], [tmp_path / "passages.jsonl"])
    texts = []
    peak = peak_bytes(lambda: texts.append(read_texts(source, tmp_path / "texts")))
    assert len(texts[0].passages) == rows
    assert peak < 0.4 * rows * 2000


@pytest.mark.full
def test_the_command_mines_with_a_model_and_a_cross_encoder_decides(ray_cluster, files, encoder):
    save_encoder(
        create_encoder(
            str(encoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
        ),
        files / "model",
    )
    reader = tiny_cross_encoder(files / "reader")
    settings = {
        "pairs": files / "pairs.jsonl", "passages": files / "passages.jsonl",
        "evaluation": files / "set", "out": files / "mined.jsonl", "format": "flagembedding",
        "cross-encoder": reader, "max-share-of-positive": 1.0, "per-query": 3, "sample-from": 3,
        "strategy": "top",
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    result = CliRunner().invoke(
        app, ["mine", str(files / "model"), *options, "--scores", "--json"], catch_exceptions=False
    )
    summary = json.loads(result.stdout)
    lines = [json.loads(line) for line in (files / "mined.jsonl").read_text().splitlines()]
    assert [(line["query"], line["pos"]) for line in lines] == [
        (row["query"], [row["positive"]]) for row in ROWS
    ]
    score = CrossEncoder(reader)
    known = {0: {ROWS[0]["positive"], ROWS[8]["positive"]}}
    known[8] = known[0]
    passages = {*(row["positive"] for row in ROWS), *MORE, "given with the pair"} - {
        MORE[0],
        MORE[1],
    }
    for index, line in enumerate(lines):
        given_negatives = ["given with the pair"] if index == 1 else []
        allowed = passages - known.get(index, {ROWS[index]["positive"]}) - set(given_negatives)
        scores = {text: score([(line["query"], text)])[0] for text in passages}
        positive_score = scores[ROWS[index]["positive"]]
        ranked = sorted(
            (t for t in allowed if scores[t] <= positive_score), key=lambda t: -scores[t]
        )
        assert line["neg"] == [*given_negatives, *ranked][:3]
        np.testing.assert_allclose(line["neg_scores"], [scores[t] for t in line["neg"]], atol=1e-5)
        np.testing.assert_allclose(line["pos_scores"], [positive_score], atol=1e-5)
    assert summary["kept"] == sum(len(line["neg"]) for line in lines) > 0
    assert summary["pairs"] == len(ROWS)
    # No intermediate file is left beside the output.
    assert [path.name for path in files.iterdir() if path.name.startswith(".")] == []


def test_mined_files_have_the_formats_of_their_trainers(files):
    texts = read_texts(MiningInput([files / "pairs.jsonl"]), files / "texts")
    mined = MinedNegatives(
        negatives=np.array([[1, 2], [3, -1], *([[-1, -1]] * 7)]),
        scores=np.array([[0.5, 0.25], [0.125, np.nan], *([[np.nan] * 2] * 7)], dtype=np.float32),
        positive_scores=np.ones(9, dtype=np.float32),
        rejected={},
        recall={},
    )
    positive, negatives = texts.passages[0], texts.passages[1:4]
    triplets = list(FORMATS["sentence-transformers"](texts, mined, True))
    assert triplets[0] == {
        "anchor": texts.queries[0], "positive": positive, "negative": negatives[0],
        "scores": [1.0, 0.5],
    }  # fmt: skip
    assert [triplet["negative"] for triplet in triplets] == negatives
    (flag, *_), (tevatron, *_) = (
        list(FORMATS[name](texts, mined, name == "tevatron"))
        for name in ("flagembedding", "tevatron")
    )
    assert flag == {"query": texts.queries[0], "pos": [positive], "neg": negatives[:2]}
    assert tevatron == {
        "query_id": "0",
        "query": texts.queries[0],
        "positive_passages": [{"docid": "0", "title": "", "text": positive, "score": 1.0}],
        "negative_passages": [
            {"docid": "1", "title": "", "text": negatives[0], "score": 0.5},
            {"docid": "2", "title": "", "text": negatives[1], "score": 0.25},
        ],
    }


@pytest.mark.parametrize("with_scores", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_mined_files_are_read_back(files, name, with_scores):
    texts = read_texts(MiningInput([files / "pairs.jsonl"]), files / "texts")
    mined = MinedNegatives(  # the first negative came with the pair, and scores above the positive
        negatives=np.array([[1, 2], [3, -1], *([[-1, -1]] * 7)]),
        scores=np.array([[1.5, 0.25], [0.125, np.nan], *([[np.nan] * 2] * 7)], dtype=np.float32),
        positive_scores=np.ones(9, dtype=np.float32),
        rejected={},
        recall={},
    )
    rows = FORMATS[name](texts, mined, with_scores)
    (files / "mined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read: dict[tuple[str, str], list[str]] = {}
    for pair in read_pairs(files / "mined.jsonl"):
        read.setdefault((pair.query, pair.passage), []).extend(pair.negatives)
    chosen = [[1, 2], [3], *[[]] * 7]
    assert read == {
        (query, texts.passages[positive]): [texts.passages[row] for row in negatives]
        for query, positive, negatives in zip(texts.queries, texts.positive, chosen, strict=True)
        if negatives or name != "sentence-transformers"  # which has a row a negative
    }
