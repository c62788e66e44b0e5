"""Counts the tokens of a text without starting an engine."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from retort.models.weights import Weights
from retort.teachers.usage import CHARACTERS_PER_TOKEN


class TokenCounter(NamedTuple):
    count: Callable[[str], int]
    exact: bool
    """False if the count is an estimate from the number of characters."""


def token_counter(weights: Weights | None) -> TokenCounter:
    """Counts with the model's tokenizer if it is in a local folder; otherwise estimates from the length of the text."""
    file = Path(weights.address) / "tokenizer.json" if weights else None
    if file is None or not file.is_file():
        return TokenCounter(lambda text: round(len(text) / CHARACTERS_PER_TOKEN), exact=False)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return TokenCounter(lambda text: len(tokenizer.encode(text, add_special_tokens=False)), exact=True)
