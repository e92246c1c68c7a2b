"""Log lines with context, and the journal and timeline of a run."""
