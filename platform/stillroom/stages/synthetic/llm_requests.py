"""Requests to the language model of `corpus.synthetic`."""

import numpy as np

from stillroom.config.synthetic import Synthetic
from stillroom.openai_client.requests import Request


def chat_request(
    settings: Synthetic,
    prompt: str,
    max_tokens: int,
    sample_seed: tuple[int, int] | None = None,
    temperature: float | None = None,
) -> Request:
    """A single question.

    Args:
        max_tokens: of the answer.
        sample_seed: the recipe's seed and a number; different numbers give different answers to the
            same question.
        temperature: None takes that of the settings.
    """
    seed = 0 if sample_seed is None else int(np.random.default_rng(sample_seed).integers(2**31))
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": settings.temperature if temperature is None else temperature,
        "seed": seed,
        **settings.extra_body,
    }
    fields = {name: value for name, value in body.items() if value is not None}
    return Request.create("chat/completions", fields, seed)


def echo_request(settings: Synthetic, prompt: str) -> Request:
    """Asks for the log-probabilities of a prompt."""
    # One token is generated and ignored: to some servers 0 means as many as they like.
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    return Request.create("completions", {"model": settings.model, **body})
