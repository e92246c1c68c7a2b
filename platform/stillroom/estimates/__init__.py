"""Memory and FLOPs of training, by arithmetic, without torch."""
