"""LLM teachers: prompts, engines, endpoints, and the ledger of every completion ever paid for."""
