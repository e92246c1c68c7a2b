"""Models that sentence-transformers runs by itself: its tokenizer, modules and prompts.

For what our own forward cannot express: several poolings, routes, static embeddings, quantised
weights, and models that come with their own code. They give vectors, and are not trained.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from stillroom.encoders.contract import LibraryContract, Overlong, Role
from stillroom.encoders.interface import TokenEncoder, truncate_vectors
from stillroom.encoders.layers.backbone import broken_weight
from stillroom.encoders.micro_batches import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, micro_batches
from stillroom.encoders.tokens.batch import Tokens
from stillroom.encoders.usable_vectors import require_usable
from stillroom.errors import UserError

# The library's names of the roles, by which a Router picks its modules.
TASKS: dict[Role, str] = {"query": "query", "passage": "document"}

CHARACTERS_PER_TOKEN = 4  # of a model whose tokenizer nothing is known about


@dataclass(frozen=True)
class LibraryTokens(Tokens):
    """One text as the library takes it; its `ids` are only counted, to size batches."""

    text: str = ""
    prompt: str = ""
    role: Role = "passage"


class LibraryPrompter:
    """`Prompter` for a model that tokenises texts by itself."""

    def __init__(self, tokenizer: Any, contract: LibraryContract):
        self.tokenizer, self.contract = tokenizer, contract

    def copy(self) -> "LibraryPrompter":
        """As `Prompter.copy`."""
        return LibraryPrompter(copy.deepcopy(self.tokenizer), self.contract)

    def __call__(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        max_tokens: int | None = None,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """As `Prompter.__call__`; the library cuts a text that is too long.

        Raises:
            UserError: when `overlong` refuses a text, or wants its beginning cut off.
        """
        if overlong == "cut_left":
            raise UserError(
                "input",
                "is to lose its beginning, and sentence-transformers cuts off the end",
                "Have texts cut at their end, or shorten them",
            )
        prompt = str(getattr(self.contract.prompts, role)) if prompt is None else prompt
        limit = min(max_tokens or self.contract.max_tokens, self.contract.max_tokens)
        prompted = [prompt + text for text in texts]
        counted = count_ids(self.tokenizer, prompted, None if overlong == "refuse" else limit)
        for ids in counted:
            if overlong == "refuse" and len(ids) > limit:
                raise UserError(
                    "input",
                    f"a text takes {len(ids)} tokens, and {limit} is the most",
                    "Shorten it, or have it truncated",
                )
        return [
            LibraryTokens(ids[:limit], text=text, prompt=prompt, role=role)
            for ids, text in zip(counted, texts, strict=True)
        ]

    def from_ids(
        self,
        texts: Sequence[Sequence[int]],
        role: Role,
        *,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Raises UserError: the library takes texts alone."""
        raise UserError(
            "input",
            "are token ids, and sentence-transformers tokenises this model's texts itself",
            "Send the texts",
        )


def count_ids(tokenizer: Any, texts: Sequence[str], limit: int | None) -> list[list[int]]:
    """Each text's ids, as far as the kind of tokenizer is known; else ids that only have the
    likely number.

    Args:
        limit: the most ids that matter, where the tokenizer can stop there.
    """
    if not texts:
        return []
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        cut = {} if limit is None else {"truncation": True, "max_length": limit}
        return list(tokenizer(list(texts), verbose=False, **cut)["input_ids"])
    if isinstance(tokenizer, Tokenizer):
        encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [text.ids for text in encoded]
    return [[0] * max(1, len(text) // CHARACTERS_PER_TOKEN) for text in texts]


def has_own_tasks(model: Any) -> bool:
    """Whether a module wants to be told the task, as jina-embeddings-v3's; its prompts have the
    tasks' names. A Router knows the roles themselves.
    """
    return any("task" in arguments for arguments in (model.module_kwargs or {}).values())


class LibraryEncoder(TokenEncoder):
    """A model of sentence-transformers, under a contract.

    Args:
        model: a SentenceTransformer.
    """

    def __init__(self, contract: LibraryContract, model: Any):
        self.contract, self.model = contract, model
        self.prompter = LibraryPrompter(getattr(model, "tokenizer", None), contract)

    @property
    def parameters_total(self) -> int:
        """Number of weights; of quantised ones, as they are stored."""
        return sum(weight.numel() for weight in self.model.parameters())

    def broken_weight(self) -> str | None:
        """As `TokenEncoder.broken_weight`."""
        return broken_weight(self.model)

    def to(self, device: str) -> "LibraryEncoder":
        """Moves the model to a device."""
        self.model.to(device)
        return self

    def encode_batch(self, tokens: Sequence[Any]) -> np.ndarray:
        """As `Encoder.encode_batch`, for tokens from this encoder's prompter."""
        vectors = np.empty((len(tokens), self.contract.dims[0]), dtype=np.float32)
        for prompt, role in dict.fromkeys((text.prompt, text.role) for text in tokens):
            rows = [
                row for row, text in enumerate(tokens) if (text.prompt, text.role) == (prompt, role)
            ]
            vectors[rows] = self.model.encode(
                [tokens[row].text for row in rows],
                prompt=prompt,
                task=self._task(prompt, role),
                batch_size=len(rows),
                show_progress_bar=False,
                truncate_dim=self.contract.dims[0],
                normalize_embeddings=self.contract.normalise,
            )
        return vectors

    def _task(self, prompt: str, role: Role) -> str:
        """The task of texts; of a model with tasks of its own, the name of their prompt.

        Raises:
            UserError: when such a model's prompt has no name.
        """
        if not has_own_tasks(self.model):
            return TASKS[role]
        names = self.contract.named_prompts
        task = next((name for name, text in names.items() if text == prompt), None)
        if task is None:
            raise UserError(
                self.contract.base,
                f"computes each text for a task of its own, and {role} has none",
                f"Choose the prompts of query and passage by name, among {', '.join(names)}",
            )
        return task

    def encode_tokens(
        self, tokens: Sequence[Any], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `Encoder.encode_tokens`, for tokens from this encoder's prompter."""
        size = self.contract.resolve_dims(dims)
        normalise = self.contract.normalise
        vectors = np.empty((len(tokens), size), dtype=np.float32)
        on_gpu = self.model.device.type != "cpu"
        budget = batch_tokens or (GPU_BATCH_TOKENS if on_gpu else CPU_BATCH_TOKENS)
        for rows in micro_batches([len(text.ids) for text in tokens], budget):
            encoded = self.encode_batch([tokens[row] for row in rows])
            if size != self.contract.dims[0]:
                encoded = truncate_vectors(encoded, size, normalise)
            require_usable(encoded, normalised=normalise, rows=rows)
            vectors[rows] = encoded
        return vectors
