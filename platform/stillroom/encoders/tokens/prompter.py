"""Text → prompted, cut and properly ended ids. The only place where a prompt meets a text."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from stillroom.encoders.contract import Attention, Contract, Overlong, Role
from stillroom.errors import UserError


@dataclass(frozen=True)
class Tokens:
    """One text's ids; those before `pool_from` are not pooled."""

    ids: list[int]
    pool_from: int = 0


@dataclass(frozen=True)
class Cloze:
    """One text to predict tokens of: the state at place i predicts `targets[i]`, where it is one.

    Attributes:
        targets: as many as ids; NO_TARGET where nothing is predicted.
        attention: what the prediction may see: causal to generate, bidirectional for MNTP.
    """

    ids: list[int]
    targets: list[int]
    attention: Attention


NO_TARGET = -100


@dataclass(frozen=True)
class ClozeBatch:
    """b texts padded to length l, of one attention."""

    ids_bl: torch.Tensor
    mask_bl: torch.Tensor
    targets_bl: torch.Tensor
    attention: Attention

    def to(self, device: torch.device | str) -> "ClozeBatch":
        return replace(
            self,
            ids_bl=self.ids_bl.to(device),
            mask_bl=self.mask_bl.to(device),
            targets_bl=self.targets_bl.to(device),
        )


@dataclass(frozen=True)
class Batch:
    """b texts padded to length l.

    Attributes:
        ids_bl: int64.
        mask_bl: int64, 1 where there is a token.
        pool_mask_bl: int64, 1 where a token is pooled.
    """

    ids_bl: torch.Tensor
    mask_bl: torch.Tensor
    pool_mask_bl: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.ids_bl.to(device), self.mask_bl.to(device), self.pool_mask_bl.to(device))


class Prompter:
    """Builds ids by hand, since tokenizers differ in what they add and when they cut it off.

    ids = start + prompt + text, cut to leave room, + end. Start and end are what the tokenizer
    itself puts around a text (CLS and SEP, say); end is EOS where the contract says so. To echo
    (arXiv 2402.15449), the text comes twice and its second copy is pooled: under causal attention
    that one has seen the whole text.
    """

    def __init__(self, tokenizer: Any, contract: Contract):
        self.tokenizer, self.contract = tokenizer, contract
        marker = tokenizer("a", add_special_tokens=False)["input_ids"]
        around = tokenizer("a", add_special_tokens=True)["input_ids"]
        at = next(i for i in range(len(around)) if around[i : i + len(marker)] == marker)
        self.start, self.end = around[:at], around[at + len(marker) :]
        if contract.append_eos and self.end != [tokenizer.eos_token_id]:
            if tokenizer.eos_token_id is None:
                raise UserError(
                    "contract.append_eos",
                    "the tokenizer has no EOS token",
                    "Set append_eos: false, or use a base that has one",
                )
            self.end = [tokenizer.eos_token_id]
        elif contract.architecture == "decoder" and not contract.append_eos:
            self.end = []

    def copy(self) -> "Prompter":
        """One with a tokenizer of its own, for another thread: they refuse to be shared."""
        return Prompter(copy.deepcopy(self.tokenizer), self.contract)

    def __call__(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        max_tokens: int | None = None,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Ids of texts in a role.

        Args:
            max_tokens: fewer than the contract's, to train on shorter texts.
            prompt: in place of the contract's own; see `instructed`.

        Raises:
            UserError: when the prompt leaves no room for the text, or a text is refused.
        """
        if not texts:
            return []
        prompt = self._prompt(role) if prompt is None else prompt
        room = self._room(max_tokens)
        before = self._before(prompt, room)
        # Two copies of a text are equal only if no token joins it to the prompt.
        joined = "" if self.contract.echo else prompt
        encoded = self.tokenizer(
            [joined + text for text in texts],
            add_special_tokens=False,
            **({"truncation": True, "max_length": room} if overlong == "cut" else {}),
        )["input_ids"]
        if self.contract.echo:
            return self._behind(before, encoded, room, overlong)
        if overlong != "cut":
            encoded = [
                self._fitted(ids, room, overlong, kept=_shared(before, ids)) for ids in encoded
            ]
        return self._ended(encoded, [_shared(before, ids) for ids in encoded])

    def of_ids(
        self,
        texts: Sequence[Sequence[int]],
        role: Role,
        *,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """The same of texts that a caller has tokenised, without special tokens.

        Raises:
            UserError: at an id that the tokenizer does not have, and as above.
        """
        size = len(self.tokenizer)
        for ids in texts:
            for unknown in (i for i in ids if not 0 <= i < size):
                raise UserError(
                    "input", f"there is no token {unknown}", f"Use the ids 0 to {size - 1}"
                )
        prompt = self._prompt(role) if prompt is None else prompt
        room = self._room(None)
        return self._behind(self._before(prompt, room), texts, room, overlong)

    def to_generate(self, pairs: Sequence[tuple[str, str]], *, max_tokens: int) -> list[Cloze]:
        """Prompts with completions, of which the completion and its EOS are to be predicted,
        each token by the causal state before it. A long prompt is cut at its beginning, so that
        half of the room is left to the completion."""
        eos = [self.tokenizer.eos_token_id]
        found = []
        for prompt, completion in pairs:
            after = self.tokenizer(completion, add_special_tokens=False)["input_ids"] + eos
            before = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            room = max(max_tokens // 2, max_tokens - len(self.start) - len(after))
            before = self.start + before[-room:] or eos
            after = after[: max(1, max_tokens - len(before))]
            targets = [NO_TARGET] * (len(before) - 1) + after + [NO_TARGET]
            found.append(Cloze(before + after, targets, "causal"))
        return found

    def _prompt(self, role: Role) -> str:
        return str(getattr(self.contract.prompts, role))

    def _room(self, max_tokens: int | None) -> int:
        """Ids for prompt and text. The end's are kept back, so that a cut text still closes
        with EOS, the token that "last" pools."""
        limit = min(max_tokens or self.contract.max_tokens, self.contract.max_tokens)
        return max(1, limit - len(self.start) - len(self.end))

    def _before(self, prompt: str, room: int) -> list[int]:
        """A prompt's ids."""
        if not prompt:
            return []
        ids = list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if len(ids) + (2 if self.contract.echo else 1) > room:
            # Cut off, all texts would be the same, and training would go on without a word.
            raise UserError(
                f"prompt {prompt!r}",
                f"takes {len(ids)} tokens, and prompt and text together may have {room}",
                "Shorten it, or raise max_tokens, query_tokens or passage_tokens",
            )
        return ids

    def _fitted(
        self, ids: Sequence[int], room: int, overlong: Overlong, kept: int = 0
    ) -> list[int]:
        """Ids of which there are no more than `room`; the first `kept` stay in any case."""
        if len(ids) <= room or overlong == "cut":
            return list(ids[:room])
        if overlong == "refuse":
            raise UserError(
                "input",
                f"a text takes {len(ids) - kept} tokens, and {room - kept} is the most",
                "Shorten it, or have it truncated",
            )
        return [*ids[:kept], *ids[len(ids) - room + kept :]]

    def _behind(
        self,
        before: list[int],
        texts: Sequence[Sequence[int]],
        room: int,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Texts' ids behind a prompt's; twice, to echo, and cut so that both copies fit."""
        room -= len(before)
        if not self.contract.echo:
            encoded = [before + self._fitted(text, room, overlong) for text in texts]
            return self._ended(encoded, [len(before)] * len(encoded))
        copies = [self._fitted(text, room // 2, overlong) for text in texts]
        return self._ended(
            [before + copy + copy for copy in copies], [len(before + copy) for copy in copies]
        )

    def _ended(self, encoded: list[list[int]], pooled_from: list[int]) -> list[Tokens]:
        # An empty text still needs a token to stand for it.
        nothing = [self.tokenizer.eos_token_id or 0]
        everything = self.contract.pool_prompt and not self.contract.echo
        found = []
        for text, place in zip(encoded, pooled_from, strict=True):
            ids = self.start + text + self.end or nothing
            first = 0 if everything else len(self.start) + place
            # Where nothing but a prompt is left, better its tokens than none.
            found.append(Tokens(ids, first if first < len(ids) else 0))
        return found


def _shared(prompt: list[int], ids: list[int]) -> int:
    """How many leading ids are the prompt's alone.

    A tokenizer may join the prompt's last letters with the text's first; such a token counts as
    the text's.
    """
    same = 0
    while same < min(len(prompt), len(ids)) and ids[same] == prompt[same]:
        same += 1
    return same


def instructed(task: str) -> str:
    """A query's prompt for a task, in the form that instruction-tuned embedders share (E5-mistral,
    arXiv 2401.00368)."""
    return f"Instruct: {task}\nQuery: "


def pad(
    tokens: Sequence[Tokens], pad_id: int, *, side: Literal["left", "right"] = "right"
) -> Batch:
    """Texts of one batch, padded to its longest."""
    length = np.array([len(one.ids) for one in tokens])
    longest = int(length.max())
    start_b1 = (longest - length if side == "left" else np.zeros_like(length))[:, None]
    pooled_b1 = np.array([one.pool_from for one in tokens])[:, None] + start_b1
    column = np.arange(longest)
    # One mask for all texts: a GPU waits for what Python does to each.
    inside_bl = (column >= start_b1) & (column < start_b1 + length[:, None])
    ids_bl = np.full((len(tokens), longest), pad_id)
    ids_bl[inside_bl] = _joined([one.ids for one in tokens])
    pooled_bl = inside_bl & (column >= pooled_b1)
    filled = (one.astype(np.int64, copy=False) for one in (ids_bl, inside_bl, pooled_bl))
    return Batch(*map(torch.from_numpy, filled))


def _joined(ids: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(ids), np.int64)


def pad_clozes(clozes: Sequence[Cloze], pad_id: int) -> ClozeBatch:
    """The same of texts to predict tokens of, which must share their attention."""
    [attention] = {one.attention for one in clozes}
    padded = pad([Tokens(one.ids) for one in clozes], pad_id)
    targets_bl = torch.full_like(padded.ids_bl, NO_TARGET)
    targets_bl[padded.mask_bl.bool()] = torch.from_numpy(_joined([one.targets for one in clozes]))
    return ClozeBatch(padded.ids_bl, padded.mask_bl, targets_bl, attention)
