"""Data sources: rows from files, buckets and hubs as examples, and a teacher's completions."""

from retort.data.reading import fingerprint, read_examples, read_rows_of

__all__ = ["fingerprint", "read_examples", "read_rows_of"]
