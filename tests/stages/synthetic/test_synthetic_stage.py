"""The synthetic stage with a language model on a real socket whose answers are scripted."""

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from zlib import crc32

import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.config.load import read_recipe
from stillroom.config.scale import Scale
from stillroom.data.readers.files import read_pairs
from stillroom.data.synthetic.prompts import MAX_GRADE, TASKS_PER_BRAINSTORM
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.observability.run_journal import RunJournal
from stillroom.pipeline.plan import pipeline, synthetic_steps
from stillroom.pipeline.run import produce
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.corpus.stage import corpus
from stillroom.stages.synthetic.estimate import estimate_usage
from stillroom.stages.synthetic.retriever import VectorRetriever
from stillroom.storage.artifacts import Store
from support.openai_endpoint import Endpoint, Reply, chat, echoed


def unused_journal(root):
    """A journal that is never started."""
    return RunJournal(Store(root), "test", {})


def prompt_kind(body):
    """(kind, prompt). The kind is tasks, example, query or grade."""
    prompt = body["messages"][0]["content"]
    kinds = {
        "tasks": f"Name {TASKS_PER_BRAINSTORM} tasks",
        "example": "Make up one example",
        "query": "a text from a collection",
        "grade": "How well does the text serve",
    }
    [kind] = [kind for kind, words in kinds.items() if words in prompt]
    return kind, prompt


def answer_correctly(route, body):
    """A language model that follows every prompt."""
    if route == "completions":
        return echoed(body["prompt"], likelihood)
    kind, prompt = prompt_kind(body)
    if kind == "grade":
        return chat(str(grade(prompt)))
    if kind == "query":
        topic, number = re.search(r"(\w+), text (\d+)", prompt).groups()
        answer = {"task": f"Find what explains {topic}", "query": f"{topic} {number}?"}
    elif kind == "tasks":
        answer = [f"Find {body['seed']} of {i}" for i in range(TASKS_PER_BRAINSTORM)]
    else:
        suffix = f"{body['seed']} {crc32(prompt.encode())}"
        answer = {"query": f"q {suffix}", "positive": f"p {suffix}", "hard_negative": f"n {suffix}"}
    return chat(json.dumps(answer), tokens=(100, 20))


TOPICS = ("otters", "granite", "sonatas")
NOTE, ACCOUNT, ASIDE = "a short note", "a full account", "an aside"
PASSAGES = [
    f"{topic}, text {10 + 3 * i + j}: {form} of {topic}"
    for i, topic in enumerate(TOPICS)
    for j, form in enumerate((NOTE, ACCOUNT, ASIDE))
]


def grade(prompt):
    return 0 if ASIDE in prompt else MAX_GRADE


def likelihood(word, prompt):
    """Log-likelihood of a word of the query; words of the text before it must not count."""
    text, _, query = prompt.rpartition("A query that this text answers:")
    if word not in query.split():
        return -50.0
    return -1.0 if ACCOUNT in text else -2.0


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file with an endpoint's address and fields of corpus.synthetic."""
    (tmp_path / "passages.txt").write_text("\n".join(PASSAGES) + "\n")
    pair = {"query": "a question", "positive": "its answer"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    # The corpus requires an evaluation set.
    (tmp_path / "set" / "qrels").mkdir(parents=True)
    (tmp_path / "set" / "corpus.jsonl").write_text('{"_id": "p", "text": "the tested answer"}\n')
    (tmp_path / "set" / "queries.jsonl").write_text('{"_id": "q", "text": "the tested query"}\n')
    qrels = "query-id\tcorpus-id\tscore\nq\tp\t1\n"
    (tmp_path / "set" / "qrels" / "test.tsv").write_text(qrels)

    def recipe(url, max_concurrency=4, **fields):
        files = {"pairs": ["pairs.jsonl"], "passages": ["passages.txt"]}
        named = {kind: [str(tmp_path / path) for path in paths] for kind, paths in files.items()}
        content = {
            "name": "tiny",
            "root": str(tmp_path / "runs"),
            "corpus": {
                "sources": {"own": {"format": "files", **named}},
                "evaluation": {"set": str(tmp_path / "set")},
                "synthetic": {"model": "writer", **fields},
            },
            "teacher": {"base": "none"},
            "student": {
                "base": "none",
                "phases": [{"data": "pairs", "steps": 1, "global_batch": 1, "learning_rate": 1e-3}],
            },
            "scale": {
                "synthetic": {"base_url": url, "max_concurrency": max_concurrency, "attempts": 2}
            },
        }
        (tmp_path / "tiny.yaml").write_text(json.dumps(content))
        return tmp_path / "tiny.yaml"

    return recipe


def generate(file):
    """Runs the stage; returns (artifact, pairs, summary)."""
    settings = read_recipe(file)
    [step] = synthetic_steps(settings)
    artifact = produce(
        step, {}, Store(settings.root), settings.scale, unused_journal(settings.root)
    ).artifact
    summary = artifact.manifest["made_by"]["summary"]
    assert json.loads((artifact.path / "counts.json").read_text()) == summary
    return artifact, list(read_pairs(artifact.path / "pairs.jsonl")), summary


def estimated_calls(file):
    [step] = synthetic_steps(read_recipe(file))
    return {part["part"]: part["calls"] for part in estimate_usage(**step.args)}


TASKS = {"examples": {"short-long": 70, "similarity": 5}}


def test_examples_of_invented_tasks_are_written_and_rejected_answers_counted(ray_cluster, recipe):
    def write(route, body):
        kind, _ = prompt_kind(body)
        if kind == "example" and body["seed"] % 5 == 0:
            return chat("I am sorry")
        if kind == "example" and body["seed"] % 5 == 1:
            return chat("{", finish="length")
        return answer_correctly(route, body)

    with Endpoint(write) as server:
        file = recipe(server.url, tasks=TASKS, query_template="To do: {task}\n{query}")
        artifact, pairs, summary = generate(file)
        bodies = [json.loads(body) for _, body in server.calls]
        seeds = [body["seed"] for body in bodies if prompt_kind(body)[0] == "example"]
        assert estimated_calls(file) == {
            "brainstorms of short-long": 2,
            "short-long": 70,
            "similarity": 5,
        }
        assert len(bodies) == 77 and {*server.request_counts().values()} == {1}
        accepted_seeds = [seed for seed in seeds if seed % 5 > 1]
        rejected = {"no JSON": 0, "cut at the limit of tokens": 0}
        for reasons in summary["rejected"].values():
            rejected = {reason: n + reasons.get(reason, 0) for reason, n in rejected.items()}
        assert list(rejected.values()) == [sum(seed % 5 == i for seed in seeds) for i in (0, 1)]
        assert (
            len(pairs) == len(accepted_seeds) == summary["pairs"] == sum(summary["made"].values())
        )
        assert sorted(int(pair.passage.split()[1]) for pair in pairs) == sorted(accepted_seeds)
        assert all(pair.negatives == (f"n {pair.passage[2:]}",) for pair in pairs)
        tasks = [re.fullmatch(r"To do: (.+)\nq .+", pair.query)[1] for pair in pairs]
        assert "Find texts that say the same" in tasks and max(map(tasks.count, tasks)) <= 5
        assert summary["tokens"]["tokens_in"] == sum(100 if s % 5 > 1 else 10 for s in seeds) + 200
        # Another artifact of the same requests costs nothing.
        again, same_pairs, summary = generate(
            recipe(server.url, tasks=TASKS, query_template="{query}")
        )
        assert again.ref != artifact.ref and [p.passage for p in same_pairs] == [
            p.passage for p in pairs
        ]
        assert summary["calls"] == {"made": 0, "kept_from_before": 77} and len(server.calls) == 77


GERMAN = "Das Wasser im Fluss ist das ganze Jahr über klar und kalt, auch im Sommer"
ENGLISH = "The water in the river is clear and cold all through the year, even in summer"


def test_texts_that_came_back_in_another_language_are_rejected_and_counted(ray_cluster, recipe):
    def write(route, body):
        kind, prompt = prompt_kind(body)
        if kind not in ("example", "query"):
            return answer_correctly(route, body)
        # It follows a wish for German in two of three cases, and otherwise writes English.
        asked = re.search(r"(?:words, in|would type, in) (German|English)", prompt)[1]
        follows = asked == "English" or body["seed"] % 3
        sentence, suffix = GERMAN if asked == "German" and follows else ENGLISH, body["seed"]
        texts = {"query": f"{sentence} {suffix}?"}
        if kind == "query":
            return chat(json.dumps({"task": "Find it", **texts}))
        texts |= {"positive": f"{sentence} ja {suffix}", "hard_negative": f"{sentence} no {suffix}"}
        return chat(json.dumps(texts))

    with Endpoint(write) as server:
        file = recipe(
            server.url, tasks={"examples": {"similarity": 60}}, languages={"de": 2, "en": 1},
            passages={"count": 9, "neighbours": 2, "likelihood": "off"},
        )  # fmt: skip
        artifact, _, summary = generate(file)
        asked = Counter()
        for _, body in server.calls:
            kind, prompt = prompt_kind(json.loads(body))
            if kind in ("example", "query"):
                language = re.search(r"(?:words, in|would type, in) (German|English)", prompt)[1]
                failed = language == "German" and json.loads(body)["seed"] % 3 == 0
                asked[kind, language, failed] += 1
    reason = "not in German"
    rejected = {what: reasons.get(reason, 0) for what, reasons in summary["rejected"].items()}
    assert rejected["similarity"] == asked["example", "German", True] > 5
    assert rejected.get("passages", 0) == asked["query", "German", True]
    assert asked["example", "German", False] > asked["example", "English", False] > 5
    rows = [json.loads(line) for line in (artifact.path / "pairs.jsonl").open()]
    assert {row["language"] for row in rows} == {"de", "en"} == set(summary["languages"])
    assert all((GERMAN in row["query"]) == (row["language"] == "de") for row in rows)
    assert sum(summary["languages"].values()) == summary["pairs"]


def test_the_positive_is_the_best_neighbour_and_not_always_the_passage_itself(ray_cluster, recipe):
    passages_section = {"count": 9, "neighbours": 4}
    with Endpoint(answer_correctly) as server:
        file = recipe(server.url, passages=passages_section)
        _, pairs, summary = generate(file)
        expected = estimated_calls(file)
    assert len(pairs) == 9
    for pair in pairs:
        topic = pair.query.split()[0]
        # Note and account have equal grades; the likelihood of the query decides.
        assert ACCOUNT in pair.passage and pair.passage.startswith(topic)
        assert ASIDE in pair.negatives[0]
    counts = summary["passages"]
    assert counts["likelihood_offered"] and counts["ranked_by_likelihood_too"] == 9
    assert (counts["asked"], counts["positive_is_another"]) == (9, 6)
    calls = {kind: 0 for kind in ("query", "grade", "completions")}
    for route, body in server.calls:
        calls[route if route in calls else prompt_kind(json.loads(body))[0]] += 1
    assert calls["query"] == expected["queries"] == 9
    # Below the estimate: only three texts share a word with the query, the seed among them.
    assert calls["grade"] == 27 <= expected["grades"] and calls["completions"] == 28


def test_without_likelihoods_grades_alone_decide_and_the_artifact_says_so(ray_cluster, recipe):
    def write(route, body):
        if route == "completions":
            raise Reply(404)
        kind, prompt = prompt_kind(body)
        if kind == "grade" and "text 13" in prompt.split("</text>")[0]:
            return chat("It depends.")
        return answer_correctly(route, body)

    passages_section = {"count": 9, "neighbours": 4, "negative": "sampled"}
    with Endpoint(write) as server:
        _, pairs, summary = generate(recipe(server.url, passages=passages_section))
        with pytest.raises(UserError, match="likelihood: the endpoint's /completions") as error:
            generate(recipe(server.url, passages={**passages_section, "likelihood": "required"}))
    assert "404" in str(error.value)
    assert not summary["passages"]["likelihood_offered"]
    assert summary["passages"]["ranked_by_likelihood_too"] == 0
    # BM25's order decides between equal grades: the query holds the number of the seed passage.
    assert (
        summary["passages"]["positive_is_another"] == 4
    )  # three asides and the passage without a grade
    assert summary["rejected"]["grades"] == {"no grade": 3}
    assert not any("text 13" in text for pair in pairs for text in (pair.passage, *pair.negatives))


def test_the_vector_retriever_equals_brute_force(encoder, tmp_path):
    model = create_encoder(
        str(encoder),
        space="own",
        options=ContractOptions(pooling="mean", prompts={"query": "find: "}),
    )
    save_encoder(model, tmp_path / "model")
    queries = ["otters", "a full account of granite"]
    similarities = model.encode(queries, "query") @ model.encode(PASSAGES, "passage").T
    neighbours = VectorRetriever(PASSAGES, tmp_path / "model").find(queries, 4)
    assert neighbours.tolist() == (-similarities).argsort(1)[:, :4].tolist()


def test_a_budget_stops_generation_and_a_larger_one_continues_it(ray_cluster, recipe):
    tasks = {"examples": {"similarity": 40}}
    with Endpoint(answer_correctly) as server:
        small, larger = (
            generate(recipe(server.url, tasks=tasks, max_answer_tokens=100, budget=budget))
            for budget in ({"tokens": 2000}, {"cost": 0.2, "price_in": 50.0, "price_out": 100.0})
        )
        # Two artifacts were made, and nothing was paid for twice.
        assert {*server.request_counts().values()} == {1}
        sizes = [len(pairs) for _, pairs, _ in (small, larger)]
        assert 0 < sizes[0] < sizes[1] == len(server.calls) < 40
    assert small[1] == larger[1][: sizes[0]]
    assert small[2]["budget_reached"] == [f"similarity: {sizes[0]} of 40"]
    # Each answer takes 120 tokens; the rest of the budget might not pay for one more.
    assert 1000 < sum(small[2]["tokens"].values()) == 120 * sizes[0] <= 2000
    assert 0.15 < larger[2]["cost"] <= 0.2
    with Endpoint(answer_correctly) as server:
        with pytest.raises(UserError, match="nothing was made.*similarity: 0 of 40"):
            generate(recipe(server.url, tasks=tasks, budget={"tokens": 10}))
        assert server.calls == []


def test_answers_of_an_endpoint_that_fails_later_are_kept(ray_cluster, recipe):
    tasks = {"examples": {"similarity": 12}}
    lock, answered = threading.Lock(), []

    def write(route, body):
        with lock:
            if len(answered) == 5:
                raise Reply(401, text="the key has expired")
            answered.append(body["seed"])
        return answer_correctly(route, body)

    with Endpoint(write) as server, pytest.raises(UserError, match="401: the key has expired"):
        generate(recipe(server.url, tasks=tasks))
    with Endpoint(answer_correctly) as server:
        # Another endpoint; the stored answers count.
        _, pairs, summary = generate(recipe(server.url, tasks=tasks))
        seeds = {json.loads(body)["seed"] for _, body in server.calls}
    assert len(pairs) == 12 and summary["calls"] == {"made": 7, "kept_from_before": 5}
    assert not seeds & set(answered)


SEPARATE_PROCESS = """
import sys
import ray
from typer.testing import CliRunner
from stillroom.config.load import read_recipe
from stillroom.pipeline.plan import synthetic_steps
from stillroom.stages.synthetic.stage import synthetic
from stillroom.storage.artifacts import Store

ray.init(sys.argv[1], configure_logging=False)
read = read_recipe(sys.argv[2])
[step] = synthetic_steps(read)
with Store(read.root).draft(step.stage, step.name, step.key) as draft:
    synthetic(**step.args, scale=read.scale, out=draft)
"""


def test_a_killed_run_never_pays_twice(ray_cluster, recipe):
    tasks, free = {"examples": {"similarity": 9}}, threading.Event()
    sixth_request = threading.Event()
    lock, answered = threading.Lock(), []

    def write(route, body):
        with lock:
            hold = len(answered) == 5 and not free.is_set()
            if not hold:
                answered.append(body["seed"])
        if hold:
            sixth_request.set()
            free.wait()  # the killed run never gets this answer
        return answer_correctly(route, body)

    with Endpoint(write) as server:
        file = recipe(server.url, tasks=tasks, max_concurrency=1)
        process = subprocess.Popen([sys.executable, "-c", SEPARATE_PROCESS, ray_cluster, str(file)])
        try:
            assert sixth_request.wait(timeout=120)
        finally:
            process.kill()
            process.wait()
            free.set()
        assert not Store(read_recipe(file).root).list_artifacts("synthetic")
        _, pairs, summary = generate(file)
        times = [count for _, count in server.request_counts().items()]
    assert len(pairs) == 9 and summary["calls"] == {"made": 4, "kept_from_before": 5}
    # Only the request that was never answered was sent twice.
    assert sorted(times) == [1] * 8 + [2]


def test_generated_pairs_become_one_more_source_of_the_corpus(ray_cluster, recipe, tmp_path):
    prompts = {"query": "Instruct: find\nQuery: ", "passage": ""}
    with Endpoint(answer_correctly) as server:
        file = recipe(server.url, tasks={"examples": {"similarity": 4}}, prompts=prompts)
        done = CliRunner().invoke(app, ["data", "synthesize", str(file), "--json"])
    printed = json.loads(done.stdout)
    artifact = Store(read_recipe(file).root).find(printed["ref"])
    pairs = list(read_pairs(Path(printed["path"])))
    assert printed["pairs"] == len(pairs) == 4
    section = read_recipe(file).corpus
    with Store(str(tmp_path / "corpora")).draft("corpus", "tiny", "0") as draft:
        corpus(section=section, seed=1, synthetic=artifact, scale=Scale(), out=draft)
        files = CorpusData.open(draft.publish({}))
    assert files.source_names == ["own", "synthetic"]
    assert [prompt and prompt.query for prompt in files.source_prompts] == [None, prompts["query"]]
    assert [*files.queries] == ["a question", *(pair.query for pair in pairs)]
    assert [files.passages[rows[0]] for rows in files.negative_rows[1:]] == [
        pair.negatives[0] for pair in pairs
    ]


# --- without a cluster ----------------------------------------------------------------------


def test_a_dry_run_estimates_usage_without_requests(recipe):
    with Endpoint(answer_correctly) as server:
        budget = {"price_in": 1.0, "price_out": 4.0}
        passages_section = {"count": 5, "neighbours": 3}
        file = recipe(server.url, tasks=TASKS, passages=passages_section, budget=budget)
        done = CliRunner().invoke(app, ["data", "synthesize", str(file), "--dry-run", "--json"])
        assert server.calls == []
    printed = json.loads(done.stdout)
    calls = {part["part"]: part["calls"] for part in printed["parts"]}
    assert calls == {
        "brainstorms of short-long": 2, "short-long": 70, "similarity": 5,
        "queries": 5, "grades": 20, "likelihoods": 20,
    }  # fmt: skip
    total = printed["total"]
    assert total["calls"] == sum(calls.values())
    assert total["tokens_out"] == (2 + 70 + 5 + 5) * 1024 + 20 * 16 + 20
    assert total["cost"] == pytest.approx((total["tokens_in"] + 4 * total["tokens_out"]) / 1e6)
    assert not Path(read_recipe(file).root).exists()


def test_the_key_depends_on_the_requests_and_not_on_the_endpoint(recipe):
    def key(url="http://a/v1", **fields):
        [step] = synthetic_steps(read_recipe(recipe(url, **{"tasks": TASKS, **fields})))
        return step.key

    assert key() == key("http://elsewhere/v1", max_concurrency=64)
    assert key() == key(tasks=TASKS)
    changed = [{"model": "other"}, {"budget": {"tokens": 9}}, {"temperature": 0.0}]
    assert len({key(), *(key(**fields) for fields in changed)}) == 4


def test_generated_pairs_are_planned_before_the_corpus(recipe, decoder, encoder):
    read = read_recipe(
        recipe("http://a/v1", tasks=TASKS), [f"teacher.base={decoder}", f"student.base={encoder}"]
    )
    first, second, *_ = pipeline(read)
    assert (first.stage, second.stage) == ("synthetic", "corpus")
    assert second.inputs == {"synthetic": first}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "makes nothing: set tasks or passages"),
        ({"tasks": {"examples": {"translation": 3}}}, "need two languages"),
        ({"tasks": TASKS, "languages": {"auto": 1.0}}, "'auto' is no language to write in"),
        ({"tasks": TASKS, "languages": {"German": 1.0}}, "no known language: use de"),
        ({"tasks": TASKS, "budget": {"cost": 1.0}}, "cost needs price_in"),
        ({"tasks": TASKS, "query_template": "{task}"}, "must hold {query}"),
        ({"passages": {"count": 1, "sources": ["other"]}}, "names 'other', which is not a source"),
    ],
)
def test_an_impossible_section_is_refused(recipe, fields, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        read_recipe(recipe("http://a/v1", **fields))


def test_a_missing_endpoint_or_key_is_an_error_with_its_name(recipe, ray_cluster, monkeypatch):
    with pytest.raises(UserError, match="set scale.synthetic.base_url"):
        read_recipe(recipe(None, tasks=TASKS))
    monkeypatch.delenv("WRITER_KEY", raising=False)
    read = read_recipe(
        recipe("http://a/v1", tasks=TASKS), ["scale.synthetic.api_key_env=WRITER_KEY"]
    )
    [step] = synthetic_steps(read)
    with pytest.raises(UserError, match="the environment has no WRITER_KEY"):
        produce(step, {}, Store(read.root), read.scale, unused_journal(read.root))
