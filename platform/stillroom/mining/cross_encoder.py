"""A cross-encoder, which reads query and passage together and scores the pair."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from stillroom.errors import UserError, one_line

BATCH_TOKENS = 8192  # of one forward, padding counted


class CrossEncoder:
    """A sequence classifier with one label, loaded from Safetensors, without custom code.

    Raises:
        UserError: when the folder has no such model.
    """

    def __init__(self, folder: Path, *, device: str = "cpu"):
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if config.num_labels != 1:
                raise UserError(
                    str(folder),
                    f"classifies into {config.num_labels} labels, not one score",
                    "Name a cross-encoder with one label",
                )
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, use_safetensors=True, trust_remote_code=False
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            problem = f"is not a cross-encoder that can be loaded: {one_line(error)}"
            raise UserError(
                str(folder), problem, "Name a sequence classifier's folder, with Safetensors"
            ) from error
        self.model = model.eval().to(device)
        positions = getattr(config, "max_position_embeddings", None) or 512
        self.max_tokens = min(self.tokenizer.model_max_length, positions)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Scores between 0 and 1 of (query, passage) pairs, float32 (n,)."""
        ids = [
            self.tokenizer(query, passage, truncation="longest_first", max_length=self.max_tokens)
            for query, passage in pairs
        ]
        lengths = [len(tokens["input_ids"]) for tokens in ids]
        scores = np.empty(len(pairs), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")[::-1]
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, BATCH_TOKENS // lengths[order[start]])]
            batch = self.tokenizer.pad([ids[row] for row in rows], return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits[:, 0]
            scores[rows] = torch.sigmoid(logits.float()).cpu().numpy()
            start += len(rows)
        return scores
