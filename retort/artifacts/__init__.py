"""Artifacts as types: one for each kind, the only reader (and writer) of its files."""
