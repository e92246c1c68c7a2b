"""The optimizer step: plain torch, or DeepSpeed."""
