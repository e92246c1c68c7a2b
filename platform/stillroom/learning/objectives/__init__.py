"""What a training step minimises: contrastive, token prediction, distillation."""
