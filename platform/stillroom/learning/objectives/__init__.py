"""Objectives of a training step: contrastive, token prediction, distillation."""
