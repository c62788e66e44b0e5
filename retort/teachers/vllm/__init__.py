"""Engines of our own: Retort's side here, the side that runs in vLLM's environment in `engine/`."""
