"""The one forward that training, the stages and serving share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stillroom.encoders.contract import Attention, Contract
from stillroom.encoders.interface import ByTokens, prefix
from stillroom.encoders.layers import packing
from stillroom.encoders.layers.backbone import attending
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.onednn_linear import use_onednn
from stillroom.encoders.layers.pooling import POOLINGS
from stillroom.encoders.tokens.prompter import NO_TARGET, Batch, ClozeBatch, Prompter, Tokens, pad

# Of one forward: more of them leave a CPU's caches, fewer leave a GPU idle.
CPU_TOKENS, GPU_TOKENS = 2048, 8192


class Encoder(ByTokens, torch.nn.Module):
    """A backbone under a contract.

    Args:
        projection: bias-free linear map of the pooled vector into another model's dims.
        head: the language model's own, (vocabulary, hidden), to train on predicted tokens.
        latent_attention: what the states go through before a latent pooling.
    """

    def __init__(
        self,
        contract: Contract,
        tokenizer: Any,
        backbone: Any,
        projection: torch.nn.Linear | None = None,
        head: torch.nn.Linear | None = None,
        latent_attention: LatentAttention | None = None,
    ):
        super().__init__()
        self.contract = contract
        self.tokenizer = tokenizer
        self.prompter = Prompter(tokenizer, contract)
        self.backbone = backbone
        self.projection = projection
        self.head = head
        self.latent_attention = latent_attention
        use_onednn(self)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def packed(self) -> bool:
        return packing.is_packed(self.backbone)

    @property
    def concurrent(self) -> bool:
        """A decoder's configuration is changed for the time of a forward; see `attending`."""
        return self.contract.architecture == "encoder"

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def parameters_total(self) -> int:
        head = 0 if self.head is None else self.head.weight.numel()
        return sum(p.numel() for p in self.parameters()) - head

    @property
    def _forward_tokens(self) -> int:
        return CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS

    def forward(self, batch: Batch | ClozeBatch) -> torch.Tensor:
        """Vectors of texts, or what their targets' prediction costs; one door for both, since
        DeepSpeed gathers weights on the way through it.

        Returns:
            Of a Batch, float32 (b, dims[0]), of unit length where the contract says so. Of a
            ClozeBatch, each text's sum of negative log-likelihoods, float32 (b,).
        """
        batch = batch.to(self.device)
        if isinstance(batch, ClozeBatch):
            return self._unlikelihood(batch)
        vectors = self.pooled(batch)
        if self.projection is not None:
            vectors = F.linear(vectors, self.projection.weight.float())
        return F.normalize(vectors, dim=-1) if self.contract.normalise else vectors

    def pooled(self, batch: Batch) -> torch.Tensor:
        """What is projected and brought to unit length: float32, (b, the backbone's width)."""
        states = self._states(batch.ids_bl, batch.mask_bl, self.contract.attention)
        if self.latent_attention is not None:
            with self._autocast():
                states = self.latent_attention(states)
        # CLS is a token of the prompt's side, and is pooled whatever becomes of the prompt.
        first = self.contract.pooling == "cls" and not self.contract.echo
        mask = batch.mask_bl if first else batch.pool_mask_bl
        return POOLINGS[self.contract.pooling](states, mask)

    def _states(
        self, ids_bl: torch.Tensor, mask_bl: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        if self.contract.architecture == "encoder":
            with self._autocast():
                if packing.is_packed(self.backbone):
                    return packing.states(self.backbone, ids_bl, mask_bl)
                return self.backbone(input_ids=ids_bl, attention_mask=mask_bl).last_hidden_state
        # Nothing is generated, and all layers' keys are large: no cache.
        with self._autocast(), attending(self.backbone, attention):
            if packing.is_packed(self.backbone):
                return packing.states(self.backbone, ids_bl, mask_bl, use_cache=False)
            return self.backbone(
                input_ids=ids_bl, attention_mask=mask_bl, use_cache=False
            ).last_hidden_state

    def _autocast(self) -> Any:
        precision = getattr(torch, self.contract.precision)
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    def _unlikelihood(self, batch: ClozeBatch) -> torch.Tensor:
        assert self.head is not None, "predicting tokens needs the language model's head"
        states = self._states(batch.ids_bl, batch.mask_bl, batch.attention)
        predicted = batch.targets_bl != NO_TARGET
        with self._autocast():
            logits_mv = self.head(states[predicted])  # m targets, v words
        losses_m = F.cross_entropy(logits_mv.float(), batch.targets_bl[predicted], reduction="none")
        of_text_m = predicted.nonzero()[:, 0]
        return torch.zeros(len(predicted), device=losses_m.device).index_add(0, of_text_m, losses_m)

    def encode_tokens(
        self, tokens: Sequence[Tokens], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `encode`, of ids that were made elsewhere."""
        training = self.training
        if training:  # it asks every module
            self.eval()
        with torch.inference_mode():
            found = in_batches(
                lambda batch: self(batch).cpu().numpy(),
                tokens,
                self.contract,
                self.pad_id,
                batch_tokens=batch_tokens or self._forward_tokens,
                dims=dims,
                packed=self.packed,
            )
        if training:
            self.train()
        return found


def in_batches(
    forward: Callable[[Batch], np.ndarray],
    tokens: Sequence[Tokens],
    contract: Contract,
    pad_id: int,
    *,
    batch_tokens: int,
    dims: int | None,
    packed: bool = False,
) -> np.ndarray:
    """Vectors of texts in their order, whatever makes a batch's: see `Encoder.encode`."""
    size, full = contract.size(dims), contract.dims[0]
    found = np.empty((len(tokens), full), dtype=np.float32)
    for rows in micro_batches([len(one.ids) for one in tokens], batch_tokens, packed=packed):
        found[rows] = forward(pad([tokens[row] for row in rows], pad_id))
    return found if size == full else prefix(found, size, contract.normalise)


def micro_batches(
    lengths: Sequence[int], budget: int, at_least: int = 1, *, packed: bool = False
) -> list[np.ndarray]:
    """Rows of like length, together under a budget of tokens; longest first.

    Args:
        at_least: so many micro-batches, if there are as many rows.
        packed: padding costs nothing, and is not counted.
    """
    order = np.argsort(lengths, kind="stable")[::-1].copy()  # torch takes no negative stride
    before = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64)[order])])
    found: list[np.ndarray] = []
    start = 0
    while start < len(order):
        size = budget // max(1, lengths[order[start]])
        if packed:
            size = int(np.searchsorted(before, before[start] + budget, side="right")) - 1 - start
        size = max(1, size)
        found.append(order[start : start + size])
        start += size
    while len(found) < min(at_least, len(order)):
        place = max(range(len(found)), key=lambda i: len(found[i]))
        half = len(found[place]) // 2
        found[place : place + 1] = [found[place][:half], found[place][half:]]
    return found
