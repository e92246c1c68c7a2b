"""Retrieval scores, the release gate, and the fidelity of exports and small vectors. No Ray."""
