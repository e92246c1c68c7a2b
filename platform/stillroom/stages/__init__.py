"""One function a stage, from input artifacts to one output artifact; Ray at work."""
