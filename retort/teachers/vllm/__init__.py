"""Teachers on local vLLM engines. This package is Retort's side; `engine/` runs in vLLM's own environment."""
