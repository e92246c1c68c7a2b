"""Hard negatives: exact and approximate search, BM25, cross-encoders, selection rules. No Ray."""
