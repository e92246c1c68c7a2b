"""Artifacts, on local disk or object storage, and files that are complete or absent."""
