"""What may be written next, by a grammar of the labels: a token that no label goes on with is never chosen.

Grammars are read in bytes, which the tokens of byte-level tokenizers and SentencePiece's have. Those of WordPiece lose
spaces and case, so that a student which has them writes freely.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerBase

_KNOWN_GRAMMARS = 64
"""A problem has one grammar for all texts, or one for each."""


class Grammar:
    """Grammars for the tokens of one tokenizer. Raises ValueError where these are no bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, end: int, num_logits: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError("the tokenizer does not say what its tokens are")
        backend = Tokenizer.from_str(backend.to_str())
        if isinstance(backend.decoder, decoders.Metaspace):
            # The library knows these as well, but by the other name only.
            backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        self._tokens, self._end = LLTokenizer(backend.to_str(), n_vocab=num_logits, eos_token=end), end
        self._compiled = lru_cache(_KNOWN_GRAMMARS)(self._compile)

    def batch(self, grammars: Sequence[str | None]) -> "GrammarState":
        started = [None if grammar is None else self._compiled(grammar) for grammar in grammars]
        matchers = [None if matcher is None else matcher.deep_copy() for matcher in started]
        return GrammarState(matchers, self._end, self._tokens.vocab_size)

    def _compile(self, grammar: str) -> LLMatcher | None:
        """None where it asks for what the library cannot do."""
        # SentencePiece writes a space before the first word; no problem counts it. Where one text only goes on, the
        # library would force its own choice of tokens.
        opening = '%llguidance {"no_forcing": true}\nstart: " "? label\n'
        matcher = LLMatcher(self._tokens, opening + grammar, log_level=0)
        return None if matcher.is_error() else matcher


class GrammarState:
    """Where each row of a batch is in its grammar. A row without one may write anything, and so may one whose grammar
    goes on with a character that no token has."""

    def __init__(self, matchers: list[LLMatcher | None], end: int, num_logits: int) -> None:
        self._matchers, self._end, self._num_logits = matchers, end, num_logits
        self.is_kept = [matcher is not None for matcher in matchers]
        """Whether all that the row wrote is as its grammar wants it."""

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Places in `rows` of those that may not write their token; the others have written it."""
        return [place for place, (row, token) in enumerate(zip(rows, tokens, strict=True)) if not self._add(row, token)]

    def _add(self, row: int, token: int) -> bool:
        matcher = self._matchers[row]
        if matcher is None:
            return True
        if token != self._end:
            return matcher.try_consume_tokens([token]) == 1
        if matcher.is_accepting():
            self._matchers[row] = None
            return True
        return False

    def allowed(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """`(rows, vocab)`: what each may write next."""
        bits = allocate_token_bitmask(len(rows), self._num_logits)
        for place, row in enumerate(rows):
            matcher = self._matchers[row]
            if matcher is None:
                continue
            fill_next_token_bitmask(matcher, bits, place)
            if matcher.is_error():
                self._matchers[row], self.is_kept[row], bits[place] = None, False, -1
        return np.unpackbits(bits.view(np.uint8), axis=1, count=self._num_logits, bitorder="little").astype(np.bool_)
