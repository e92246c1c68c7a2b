"""The one forward that training, the stages and serving share.

Shapes: b texts padded to l tokens, d dims of a state, m labelled tokens, v words of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stillroom.encoders.contract import Attention, Contract
from stillroom.encoders.interface import TokenEncoder
from stillroom.encoders.layers import packing
from stillroom.encoders.layers.attention import use_attention
from stillroom.encoders.layers.backbone import broken_weight
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.local_maps import LocalMaps
from stillroom.encoders.layers.onednn_linear import use_onednn
from stillroom.encoders.layers.pooling import POOLINGS
from stillroom.encoders.layers.projection import Projection
from stillroom.encoders.micro_batches import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, encode_in_batches
from stillroom.encoders.tokens.batch import IGNORE_INDEX, Batch, LabelledBatch, Tokens, pad
from stillroom.encoders.tokens.prompter import Prompter


class Encoder(TokenEncoder, torch.nn.Module):
    """A transformer that encodes according to its contract.

    Args:
        projection: the layers between the pooled states and the vector.
        head: the language model's head, (vocabulary, hidden), to train on predicted tokens.
        latent_attention: transforms the states before latent pooling.
    """

    def __init__(
        self,
        contract: Contract,
        tokenizer: Any,
        backbone: Any,
        projection: Projection | LocalMaps | None = None,
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
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def packed(self) -> bool:
        """Whether `pack_attention` was called on the backbone."""
        return packing.is_packed(self.backbone)

    @property
    def thread_safe(self) -> bool:
        """False for decoders, whose config changes during a forward; see `use_attention`."""
        return self.contract.architecture == "encoder"

    @property
    def pad_id(self) -> int:
        """The token id of padding."""
        return int(self.tokenizer.pad_token_id)

    @property
    def parameters_total(self) -> int:
        """Number of weights, the language model's head not counted."""
        head = 0 if self.head is None else self.head.weight.numel()
        return sum(p.numel() for p in self.parameters()) - head

    def broken_weight(self) -> str | None:
        """As `TokenEncoder.broken_weight`."""
        return broken_weight(self)

    @property
    def _forward_tokens(self) -> int:
        return CPU_BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS

    def forward(self, batch: Batch | LabelledBatch) -> torch.Tensor:
        """Vectors of texts, or the loss of predicting their labels.

        One method for both, since DeepSpeed gathers weights only around `forward`.

        Returns:
            For a Batch, vectors, float32 (b, dims[0]), of unit length if the contract requires it.
            For a LabelledBatch, `summed_nll`, float32 (b,).
        """
        batch = batch.to(self.device)
        if isinstance(batch, LabelledBatch):
            return self.summed_nll(batch)
        return self.vectors(self.token_states(batch), batch)

    def token_states(self, batch: Batch, **inputs: torch.Tensor) -> torch.Tensor:
        """The states that are pooled, (b, l, d).

        Args:
            inputs: of the transformer, beside the batch's.
        """
        states = self._states(batch.ids_bl, batch.mask_bl, self.contract.attention, **inputs)
        if self.latent_attention is not None:
            with self._autocast():
                states = self.latent_attention(states)
        return states

    def vectors(self, states_bld: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Vectors of the batch with these states, as `forward` returns them."""
        vectors = self._pool(states_bld, batch)
        if self.projection is not None:
            vectors = self.projection(vectors)
        vectors = vectors[:, : self.contract.dims[0]]  # a base's vectors may be cut
        return F.normalize(vectors, dim=-1) if self.contract.normalise else vectors

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Pooled states, before projection and normalisation: float32 (b, d)."""
        return self._pool(self.token_states(batch), batch)

    def _pool(self, states_bld: torch.Tensor, batch: Batch) -> torch.Tensor:
        # CLS is before the prompt; it is pooled even if the prompt is not.
        pools_cls = self.contract.pooling == "cls" and not self.contract.echo
        mask_bl = batch.mask_bl if pools_cls else batch.pool_mask_bl
        return POOLINGS[self.contract.pooling](states_bld, mask_bl)

    def _states(
        self,
        ids_bl: torch.Tensor,
        mask_bl: torch.Tensor,
        attention: Attention,
        **inputs: torch.Tensor,
    ) -> torch.Tensor:
        if self.contract.architecture == "encoder":
            with self._autocast():
                if packing.is_packed(self.backbone):
                    return packing.packed_states(self.backbone, ids_bl, mask_bl)
                return self.backbone(
                    input_ids=ids_bl, attention_mask=mask_bl, **inputs
                ).last_hidden_state
        # No cache: nothing is generated, and all layers' keys take much memory.
        with self._autocast(), use_attention(self.backbone, attention):
            if packing.is_packed(self.backbone):
                return packing.packed_states(self.backbone, ids_bl, mask_bl, use_cache=False)
            return self.backbone(
                input_ids=ids_bl, attention_mask=mask_bl, use_cache=False, **inputs
            ).last_hidden_state

    def _autocast(self) -> Any:
        precision = getattr(torch, self.contract.precision)
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    def summed_nll(self, batch: LabelledBatch) -> torch.Tensor:
        """Each text's sum of negative log-likelihoods over its labels, float32 (b,)."""
        assert self.head is not None, "predicting tokens needs the language model's head"
        states = self._states(batch.ids_bl, batch.mask_bl, batch.attention)
        labelled = batch.labels_bl != IGNORE_INDEX
        with self._autocast():
            logits_mv = self.head(states[labelled])
        losses_m = F.cross_entropy(logits_mv.float(), batch.labels_bl[labelled], reduction="none")
        text_m = labelled.nonzero()[:, 0]
        return torch.zeros(len(labelled), device=losses_m.device).index_add(0, text_m, losses_m)

    def encode_batch(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Vectors of texts that fit into one forward, in their order: float32 (b, dims[0])."""
        with self._inference():
            return self._forward_numpy(pad(tokens, self.pad_id))

    def encode_tokens(
        self, tokens: Sequence[Tokens], *, batch_tokens: int | None = None, dims: int | None = None
    ) -> np.ndarray:
        """As `encode`, for texts that are token ids already."""
        with self._inference():
            return encode_in_batches(
                self._forward_numpy,
                tokens,
                self.contract,
                self.pad_id,
                max_tokens=batch_tokens or self._forward_tokens,
                dims=dims,
                packed=self.packed,
            )

    def _forward_numpy(self, batch: Batch) -> np.ndarray:
        return np.asarray(self(batch).cpu())

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Inside this block the encoder is in evaluation mode and keeps no gradients."""
        training = self.training
        if training:  # `eval` visits every module
            self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.train()
