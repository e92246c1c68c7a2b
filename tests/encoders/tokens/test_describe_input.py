"""What a model reads of a text, as `check` and `data describe` show it."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from stillroom.encoders.files.pretrained import load_tokenizer
from stillroom.encoders.model_names import locate_model
from stillroom.encoders.tokens.describe_input import describe_input
from stillroom.encoders.tokens.special_tokens import append_eos

INSTRUCTION = "Instruct: Given a question, find what answers it\nQuery: "


def random_tokenizer(family):
    return load_tokenizer(locate_model(f"random:{family}"))


def word_tokenizer():
    """As SentencePiece's: a space before the first word, and one token a word."""
    words = ["<s>", "</s>", "▁query:", "▁", "▁two\nlines"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize(
    "make, prompt, line",
    [
        (lambda: random_tokenizer("bert"), "", "text: [CLS] … [SEP]"),
        (lambda: random_tokenizer("llama"), "", "text: <s> …"),
        (
            lambda: random_tokenizer("bert"),
            "query: ",
            "'query: ' + text: [CLS] q ##uer ##y : … [SEP]",
        ),
        (
            lambda: append_eos(random_tokenizer("llama")),
            INSTRUCTION,
            r"'Instruct: Given a question, find what answers it\nQuery: ' + text: <s> In st r u … "
            "er y : Ġ … </s>",
        ),
        (word_tokenizer, "query: ", "'query: ' + text: <s> ▁query: ▁ … </s>"),
        (word_tokenizer, "two\nlines", r"'two\nlines' + text: <s> ▁two⏎lines … </s>"),
    ],
)
def test_a_line_shows_the_prompt_and_the_tokens_at_both_ends(make, prompt, line):
    assert describe_input(make(), prompt) == line


def test_an_echo_shows_the_text_twice():
    assert describe_input(random_tokenizer("llama"), "", echo=True) == "text: <s> … …"
