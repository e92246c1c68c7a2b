"""A model's prompts are chosen by the names that its authors gave them."""

import json

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from stillroom.encoders.contract import ApiContract, Prompts
from stillroom.encoders.files.create import combine_encoders
from stillroom.encoders.files.inputs import folder_prompts, role_inputs
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.files.sentence_transformers import MODEL_CONFIG, role_prompts
from stillroom.encoders.prompt_names import ModelPrompts, prompt_by_name, replace_prompts
from stillroom.errors import UserError
from support.in_process_cli import run_command
from support.make_encoder import make_encoder

NAMED = {
    "query": "query: ",
    "document": "passage: ",
    "web_search_query": "Instruct: search the web\nQuery: ",
    "sts_query": "Instruct: find similar texts\nQuery: ",
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of sentence-transformers with prompts, and no contract."""
    folder = tmp_path_factory.mktemp("published")
    save_encoder(make_encoder("random:bert", precision="float32"), folder)
    (folder / "contract.json").unlink()
    options = json.loads((folder / MODEL_CONFIG).read_text())
    (folder / MODEL_CONFIG).write_text(json.dumps({**options, "prompts": NAMED}))
    return folder


# --- of the roles ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompts, default, query, passage",
    [
        ({}, None, "", ""),
        ({"query": "q: "}, None, "q: ", ""),
        ({"query": "q: ", "passage": "p: "}, None, "q: ", "p: "),
        ({"passage": "p: ", "document": "d: "}, None, "", "d: "),
        ({"s2p_query": "s: "}, None, "", ""),
        ({"s2p_query": "s: "}, "s2p_query", "s: ", "s: "),
        # sentence-transformers writes empty prompts for the roles into every folder.
        ({"s2p_query": "s: ", "query": "", "document": ""}, "s2p_query", "s: ", "s: "),
        ({"s2p_query": "s: ", "document": "d: "}, "s2p_query", "s: ", "d: "),
        # A role's own prompt is never the other role's.
        ({"query": "q: "}, "query", "q: ", ""),
        ({"document": "d: "}, "document", "", "d: "),
    ],
)
def test_a_role_has_its_own_prompt_or_the_default(prompts, default, query, passage):
    options = {"prompts": prompts, "default_prompt_name": default}
    assert role_prompts(options) == Prompts(query=query, passage=passage)


def test_a_default_prompt_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="default_prompt_name: is 'sts', which is not among"):
        role_prompts({"prompts": {"query": "q: "}, "default_prompt_name": "sts"})


# --- by name --------------------------------------------------------------------------------


def test_roles_get_the_prompts_that_are_named_and_keep_the_others(published):
    assert folder_prompts(published).prompts == Prompts(query="query: ", passage="passage: ")
    encoder = make_encoder(published, pooling=None, prompt={"query": "web_search_query"})
    assert encoder.contract.prompts == Prompts(query=NAMED["web_search_query"], passage="passage: ")
    encoder = make_encoder(published, pooling=None, prompt={"query": None, "passage": "query"})
    assert encoder.contract.prompts == Prompts(query="query: ", passage="query: ")


def test_an_unknown_name_is_refused_with_the_names_that_there_are(published):
    with pytest.raises(
        UserError,
        match="prompt.query: the model has no prompt 'web'. "
        "Use one of query, document, passage, web_search_query, sts_query",
    ):
        make_encoder(published, pooling=None, prompt={"query": "web"})


def test_names_stay_when_a_model_is_saved_and_a_role_s_name_is_its_new_prompt(published, tmp_path):
    encoder = make_encoder(
        published, pooling=None, prompt={"query": "web_search_query"}, precision="float32"
    )
    save_encoder(encoder, tmp_path)
    contract = load_encoder(tmp_path).contract
    new_prompt = NAMED["web_search_query"]
    for name, text in {**NAMED, "query": new_prompt, "passage": "passage: "}.items():
        assert prompt_by_name(contract, name, "here") == text
    library = SentenceTransformer(str(tmp_path))
    assert library.prompts["query"] == new_prompt
    for name in ("sts_query", "query"):
        np.testing.assert_allclose(
            library.encode(["a text"], prompt_name=name),
            encoder.encode(["a text"], "query", prompt=prompt_by_name(contract, name, "here")),
            atol=1e-5,
        )


def test_replaced_texts_are_what_the_names_of_their_roles_stand_for():
    model = ModelPrompts(Prompts(query="query: "), {"query": "query: ", "other": "o: "})
    fields = replace_prompts(model, {"query": "new: "}, None)
    assert fields == {"prompts": Prompts(query="new: "), "named_prompts": {"other": "o: "}}
    assert prompt_by_name(ModelPrompts(**fields), "query", "here") == "new: "


def test_an_ensemble_has_no_prompts_and_an_api_those_of_its_roles(published):
    member = make_encoder(published, pooling=None)
    ensemble = combine_encoders([member, member], "average", space="both")
    with pytest.raises(UserError, match="--prompt-name: is 'query', and several models at once"):
        prompt_by_name(ensemble.contract, "query", "--prompt-name")
    api = ApiContract(
        base_url="http://localhost", model="m", dims=(8,), max_tokens=8, space="s",
        prompts=Prompts(query="q: "),
    )  # fmt: skip
    assert prompt_by_name(api, "query", "here") == "q: "


# --- what a model reads ---------------------------------------------------------------------


def test_what_a_model_reads_is_shown_for_every_kind_of_folder_without_its_weights(
    published, tmp_path
):
    assert role_inputs(published) == {
        "query": "'query: ' + text: [CLS] q ##uer ##y : … [SEP]",
        "passage": "'passage: ' + text: [CLS] p ##ass ##age : … [SEP]",
    }
    options = ContractOptions(prompt={"query": "sts_query"})
    line = role_inputs(published, options)["query"]
    assert line.startswith(repr(NAMED["sts_query"]))
    assert line.endswith("q ##uer ##y : … [SEP]")
    save_encoder(make_encoder("random:llama", echo=True, append_eos=True), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert role_inputs(tmp_path)["query"] == "text: <s> … … </s>"


def test_data_describe_shows_what_the_model_reads(published, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n')
    done = run_command(
        "data", "describe", "pairs.jsonl", "--model", published, "--json", cwd=tmp_path
    )
    assert json.loads(done.stdout)["inputs"] == role_inputs(published), done.stderr


def test_encode_takes_a_prompt_by_name_and_refuses_unknown_ones(published, tmp_path):
    words = ("encode", published, "--query", "--prompt-name")
    done = run_command(*words, "sts_query", cwd=tmp_path, stdin="a text\n")
    vector = json.loads(done.stdout)["vector"]
    expected = load_encoder(published).encode(["a text"], "query", prompt=NAMED["sts_query"])
    np.testing.assert_allclose(vector, expected[0], atol=1e-5)
    refused = run_command(*words, "other", cwd=tmp_path, stdin="a text\n")
    assert refused.returncode == 2
    assert "--prompt-name: the model has no prompt 'other'" in refused.stderr
