"""Tokens that stand for what a tokenizer does not know are counted."""

import asyncio

import pytest
import ray

from stillroom.encoders.contract import Contract
from stillroom.encoders.ensemble import EnsemblePrompter
from stillroom.encoders.files.pretrained import load_tokenizer
from stillroom.encoders.tokens.prompter import Prompter
from stillroom.errors import UserError
from stillroom.release.reader import Release
from stillroom.serving.messages import EmbedRequest, EncodeJob
from stillroom.serving.replica.replica import Replica
from stillroom.serving.replica.tokenizer import describe_tokens, unknown_id
from stillroom.serving.telemetry.metrics import RouterMetrics
from stillroom.serving.telemetry.request_record import RequestRecord
from support.scripts import save_tokenizer_in_python
from support.tiny_models import byte_pair_tokenizer, word_piece_tokenizer
from support.tiny_releases import make_release

CONTRACT = Contract(
    base="x", architecture="encoder", attention="bidirectional", pooling="mean", max_tokens=32,
    dims=(4,), space="s",
)  # fmt: skip


class WithoutRay:
    """The context of a replica with one CPU."""

    def get_assigned_resources(self):
        return {"CPU": 1}


def test_only_a_tokenizer_with_an_unknown_token_of_its_own_is_counted():
    word_piece = Prompter(word_piece_tokenizer(), CONTRACT)
    assert unknown_id(word_piece) == word_piece.tokenizer.unk_token_id
    assert unknown_id(Prompter(byte_pair_tokenizer(), CONTRACT)) is None
    assert unknown_id(EnsemblePrompter([word_piece])) is None


def test_a_tokenizer_written_in_python_is_counted_and_refused_where_places_in_the_text_are_asked(
    tmp_path,
):
    folder = save_tokenizer_in_python(tmp_path / "japanese", "水が沸く")
    prompter = Prompter(load_tokenizer(folder), CONTRACT)
    [tokens] = prompter(["水と油"], "passage")
    assert tokens.ids.count(unknown_id(prompter)) == 2
    with pytest.raises(UserError, match="model: has a tokenizer in Python"):
        describe_tokens(prompter, ["水"], role=None, special=False)


@pytest.mark.parametrize(("target", "counted"), [("student", 2), ("teacher", None)])
def test_a_replica_counts_them_and_the_router_adds_them_up(tmp_path, monkeypatch, target, counted):
    monkeypatch.setattr(ray, "get_runtime_context", WithoutRay)
    release = Release.open(str(make_release(tmp_path / "release", shared_space=True)), "runs")
    replica = Replica.func_or_class(release, target, "torch", 256, 0.0, False)
    request = EmbedRequest("tiny", ["a ก b", "ข"], None, "passage")
    result = asyncio.run(replica.encode(EncodeJob(request, 64)))
    assert result.unknown_tokens == counted
    metrics, record = RouterMetrics(), RequestRecord(model="m", client="ann")
    record.add_result(result, 1.0)
    metrics.count_request("/embed", record, 200, 0.5)
    text = metrics.render({}).decode()
    assert ('stillroom_unknown_tokens_total{client="ann",model="m",' in text) == (counted == 2)
