"""The one forward that training, the stages and serving share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stillroom.encoders.contract import Contract, Role
from stillroom.encoders.pooling import POOLINGS
from stillroom.encoders.prompt import Batch, Prompter, Tokens, pad
from stillroom.errors import UserError


class Encoder(torch.nn.Module):
    """A backbone under a contract.

    Args:
        projection: bias-free linear map of the pooled vector into another model's dims.
    """

    def __init__(
        self,
        contract: Contract,
        tokenizer: Any,
        backbone: Any,
        projection: torch.nn.Linear | None = None,
    ):
        super().__init__()
        self.contract = contract
        self.tokenizer = tokenizer
        self.prompter = Prompter(tokenizer, contract)
        self.backbone = backbone
        self.projection = projection

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def parameters_total(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, batch: Batch) -> torch.Tensor:
        """Vectors of a batch: float32, (b, dims[0]), of unit length where the contract says so."""
        batch = batch.to(self.device)
        precision = getattr(torch, self.contract.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            states = self.backbone(
                input_ids=batch.ids_bl, attention_mask=batch.mask_bl
            ).last_hidden_state
        # CLS is a token of the prompt's side, and is pooled whatever becomes of the prompt.
        mask = batch.mask_bl if self.contract.pooling == "cls" else batch.pool_mask_bl
        vectors = POOLINGS[self.contract.pooling](states, mask)
        if self.projection is not None:
            vectors = F.linear(vectors, self.projection.weight.float())
        return F.normalize(vectors, dim=-1) if self.contract.normalise else vectors

    def encode(
        self,
        texts: Sequence[str],
        role: Role,
        *,
        batch_tokens: int = 8192,
        dims: int | None = None,
        instruction: str | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32, (n, dims).

        Args:
            batch_tokens: the most tokens of one forward, padding counted.
            dims: one of the contract's sizes; a prefix is brought to unit length again.

        Raises:
            UserError: when dims is not one of the contract's.
        """
        tokens = self.prompter(texts, role, instruction=instruction)
        return self.encode_tokens(tokens, batch_tokens=batch_tokens, dims=dims)

    def encode_tokens(
        self, tokens: Sequence[Tokens], *, batch_tokens: int = 8192, dims: int | None = None
    ) -> np.ndarray:
        """As `encode`, of ids that were made elsewhere."""
        full = self.contract.dims[0]
        if dims is not None and dims not in self.contract.dims:
            allowed = ", ".join(str(size) for size in self.contract.dims)
            raise UserError("dims", f"{dims} is not a size of this encoder", f"Use {allowed}")
        found = np.empty((len(tokens), full), dtype=np.float32)
        training = self.training
        self.eval()
        with torch.inference_mode():
            for rows in micro_batches([len(one.ids) for one in tokens], batch_tokens):
                batch = pad(
                    [tokens[row] for row in rows],
                    self.pad_id,
                    pool_prompt=self.contract.pool_prompt,
                )
                found[rows] = self(batch).cpu().numpy()
        self.train(training)
        return found if dims in (None, full) else prefix(found, dims, self.contract.normalise)


def prefix(vectors: np.ndarray, dims: int, normalise: bool) -> np.ndarray:
    """The first `dims` of each vector (Matryoshka, arXiv 2205.13147), of unit length again."""
    cut = vectors[:, :dims]
    if not normalise:
        return cut
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)


def micro_batches(lengths: Sequence[int], budget: int) -> Iterator[np.ndarray]:
    """Rows of like length, together under a budget of padded tokens; longest first."""
    order = np.argsort(lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
