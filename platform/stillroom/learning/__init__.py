"""Losses, objectives, batches and the training loop. Pure torch except for `engine`; no Ray."""
