"""A cross-encoder: query and passage read together, and scored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from stillroom.errors import UserError

BATCH_TOKENS = 8192  # of one forward, padding counted


class CrossEncoder:
    """A sequence classifier with one label, from Safetensors and without code of its own.

    Raises:
        UserError: when the folder holds none.
    """

    def __init__(self, folder: Path, *, device: str = "cpu"):
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if config.num_labels != 1:
                raise UserError(
                    str(folder),
                    f"classifies into {config.num_labels} labels, which is no score",
                    "Name a cross-encoder with one",
                )
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, use_safetensors=True, trust_remote_code=False
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as fault:
            problem = f"is no cross-encoder that we can load: {' '.join(str(fault).split())}"
            raise UserError(
                str(folder), problem, "Name a sequence classifier's folder, with Safetensors"
            ) from fault
        self.model = model.eval().to(device)
        known = getattr(config, "max_position_embeddings", None) or 512
        self.most = min(self.tokenizer.model_max_length, known)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Scores between 0 and 1 of (query, passage), float32 (n,)."""
        ids = [
            self.tokenizer(query, passage, truncation="longest_first", max_length=self.most)
            for query, passage in pairs
        ]
        lengths = [len(one["input_ids"]) for one in ids]
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
