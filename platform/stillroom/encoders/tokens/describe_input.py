"""What a model reads of a text, as a line to look at before anything expensive runs."""

from typing import Any

from stillroom.encoders.tokens.special_tokens import special_tokens_around

SHOWN_TOKENS = 4  # of a prompt, from its beginning and from its end
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})


def describe_input(tokenizer: Any, prompt: str, *, echo: bool = False) -> str:
    """A prompt, and its tokens in their place: `'query: ' + text: <s> query : ␣ … </s>`.

    Tokens are as the tokenizer spells them, a long prompt's first and last ones; … stands for the
    text, and for what is left out of the prompt.

    Args:
        echo: the text is given twice.
    """
    start, end = special_tokens_around(tokenizer)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    before, shown, behind = (
        [token.translate(VISIBLE) for token in tokenizer.convert_ids_to_tokens(ids)]
        for ids in (start, prompt_ids, end)
    )
    if len(shown) > 2 * SHOWN_TOKENS:
        shown = [*shown[:SHOWN_TOKENS], "…", *shown[-SHOWN_TOKENS:]]
    text = ["…", "…"] if echo else ["…"]
    tokens = " ".join([*before, *shown, *text, *behind])
    return f"{prompt_and_text(prompt)}: {tokens}"


def prompt_and_text(prompt: str) -> str:
    """What a text becomes, without its tokens: `'query: ' + text`."""
    return f"{prompt!r} + text" if prompt else "text"
