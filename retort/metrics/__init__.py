"""The method itself: pure and deterministic, no files, no network, no models."""
