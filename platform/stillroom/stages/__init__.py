"""One function per stage, from input artifacts to one output artifact, run with Ray."""
