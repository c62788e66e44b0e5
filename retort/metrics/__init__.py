"""Scores, their uncertainty and comparisons: pure and deterministic; no files, network or models."""
