"""A causal model in this process, through transformers."""
