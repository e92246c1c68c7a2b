"""Text → prompted, cut and properly ended ids. Prompts are added to texts only here."""

import copy
from collections.abc import Sequence
from typing import Any

from stillroom.encoders.contract import Contract, Overlong, Role
from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledTokens, Tokens
from stillroom.encoders.tokens.cut_text import TextCutter
from stillroom.encoders.tokens.special_tokens import special_tokens_around
from stillroom.errors import UserError


class Prompter:
    """Turns texts into the ids that the encoder reads: start + prompt + text + end.

    Built by hand, since tokenizers differ in when they cut off the special tokens that they add.
    Start and end are the tokens that the tokenizer puts around a text, such as CLS and SEP. The
    text is cut so that all of it fits, its end included. To echo (arXiv 2402.15449), the text comes
    twice and its second copy is pooled: under causal attention that copy has seen the whole text.
    """

    def __init__(self, tokenizer: Any, contract: Contract):
        self.tokenizer, self.contract = tokenizer, contract
        self.start, self.end = special_tokens_around(tokenizer)
        self._cutter = TextCutter(tokenizer)

    def copy(self) -> "Prompter":
        """A prompter with its own tokenizer, for another thread: tokenizers are not thread-safe."""
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
        """Ids of texts.

        Args:
            max_tokens: fewer than the contract's, to train on shorter texts.
            prompt: replaces the contract's prompt; see `instruct_prompt`.

        Raises:
            UserError: when the prompt leaves no room for the text, or `overlong` refuses a text.
        """
        if not texts:
            return []
        prompt = self._prompt(role) if prompt is None else prompt
        room = self._room(max_tokens)
        prompt_ids = self._prompt_ids(prompt, room)
        # Two copies of a text are equal only if no token joins the text to the prompt.
        prefix = "" if self.contract.echo else prompt
        prefixed = [prefix + text for text in texts]
        if overlong != "cut_left":
            enough = room if overlong == "cut" else room + 1  # one too many is enough to refuse
            prefixed = [self._cutter.cut(text, enough) for text in prefixed]
        encoded = self.tokenizer(
            prefixed,
            add_special_tokens=False,
            **({"truncation": True, "max_length": room} if overlong == "cut" else {}),
        )["input_ids"]
        if self.contract.echo:
            return self._prepend_prompt(prompt_ids, encoded, room, overlong)
        if overlong != "cut":
            encoded = [
                _shorten(ids, room, overlong, fixed=_common_prefix(prompt_ids, ids))
                for ids in encoded
            ]
        return self._add_start_and_end(encoded, [_common_prefix(prompt_ids, i) for i in encoded])

    def from_ids(
        self,
        texts: Sequence[Sequence[int]],
        role: Role,
        *,
        prompt: str | None = None,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Ids of texts that a caller has tokenised, without special tokens; see `__call__`.

        Raises:
            UserError: at an id that the tokenizer does not have, and as `__call__` does.
        """
        size = len(self.tokenizer)
        for ids in texts:
            for unknown in (i for i in ids if not 0 <= i < size):
                raise UserError(
                    "input", f"there is no token {unknown}", f"Use the ids 0 to {size - 1}"
                )
        prompt = self._prompt(role) if prompt is None else prompt
        room = self._room(None)
        return self._prepend_prompt(self._prompt_ids(prompt, room), texts, room, overlong)

    def label_completions(
        self, pairs: Sequence[tuple[str, str]], *, max_tokens: int
    ) -> list[LabelledTokens]:
        """(prompt, completion) pairs with labels for the completion and its EOS, each predicted by
        the causal state before it.

        The beginning of a long prompt is cut off, so that the completion gets half of the room.
        """
        eos = [self.tokenizer.eos_token_id]
        labelled = []
        for prompt, completion in pairs:
            completion_ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"] + eos
            prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            room = max(max_tokens // 2, max_tokens - len(self.start) - len(completion_ids))
            prompt_ids = self.start + prompt_ids[-room:] or eos
            completion_ids = completion_ids[: max(1, max_tokens - len(prompt_ids))]
            unlabelled = [IGNORE_INDEX] * (len(prompt_ids) - 1)
            labels = [*unlabelled, *completion_ids, IGNORE_INDEX]
            labelled.append(LabelledTokens(prompt_ids + completion_ids, labels, "causal"))
        return labelled

    def _prompt(self, role: Role) -> str:
        return str(getattr(self.contract.prompts, role))

    def _room(self, max_tokens: int | None) -> int:
        """The most ids of prompt and text. The end is not cut, because "last" pools it even if the
        text was cut.
        """
        limit = min(max_tokens or self.contract.max_tokens, self.contract.max_tokens)
        return max(1, limit - len(self.start) - len(self.end))

    def _prompt_ids(self, prompt: str, room: int) -> list[int]:
        if not prompt:
            return []
        ids = list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if len(ids) + (2 if self.contract.echo else 1) > room:
            # With the texts cut off entirely, all would be equal, and training would not notice.
            raise UserError(
                f"prompt {prompt!r}",
                f"takes {len(ids)} tokens, and prompt and text together may have {room}",
                "Shorten it, or raise max_tokens, query_tokens or passage_tokens",
            )
        return ids

    def _prepend_prompt(
        self,
        prompt_ids: list[int],
        texts: Sequence[Sequence[int]],
        room: int,
        overlong: Overlong = "cut",
    ) -> list[Tokens]:
        """Prompt and text; to echo, the text twice, cut so that both copies fit."""
        room -= len(prompt_ids)
        if not self.contract.echo:
            encoded = [prompt_ids + _shorten(text, room, overlong) for text in texts]
            return self._add_start_and_end(encoded, [len(prompt_ids)] * len(encoded))
        copies = [_shorten(text, room // 2, overlong) for text in texts]
        return self._add_start_and_end(
            [prompt_ids + copy + copy for copy in copies],
            [len(prompt_ids + copy) for copy in copies],
        )

    def _add_start_and_end(self, encoded: list[list[int]], text_starts: list[int]) -> list[Tokens]:
        """Whole ids; `text_starts` counts the leading ids that do not belong to the text."""
        # An empty text still needs one token.
        empty = [self.tokenizer.eos_token_id or 0]
        pools_all = self.contract.pool_prompt and not self.contract.echo
        tokens = []
        for text, text_start in zip(encoded, text_starts, strict=True):
            ids = self.start + text + self.end or empty
            # Without a prompt nothing is left out: CLS, too, is pooled.
            pool_from = 0 if pools_all or not text_start else len(self.start) + text_start
            # If only the prompt is left, pool the prompt.
            tokens.append(Tokens(ids, pool_from if pool_from < len(ids) else 0))
        return tokens


def _shorten(ids: Sequence[int], room: int, overlong: Overlong, fixed: int = 0) -> list[int]:
    """At most `room` ids; the first `fixed` always stay."""
    if len(ids) <= room or overlong == "cut":
        return list(ids[:room])
    if overlong == "refuse":
        raise UserError(
            "input",
            f"a text takes at least {len(ids) - fixed} tokens, and {room - fixed} is the most",
            "Shorten it, or have it truncated",
        )
    return [*ids[:fixed], *ids[len(ids) - room + fixed :]]


def _common_prefix(prompt_ids: list[int], ids: list[int]) -> int:
    """Number of leading ids that belong only to the prompt.

    A tokenizer may join the prompt's last letters with the text's first; such a token counts as
    the text's.
    """
    same = 0
    while same < min(len(prompt_ids), len(ids)) and ids[same] == prompt_ids[same]:
        same += 1
    return same


def instruct_prompt(task: str) -> str:
    """A query's prompt for a task, in the form that instruction-tuned embedders share (E5-mistral,
    arXiv 2401.00368)."""
    return f"Instruct: {task}\nQuery: "
