"""Grammar-constrained decoding: tokens that cannot continue a legal label are masked out.

Grammars are matched in bytes, so tokens must map to bytes, as those of byte-level tokenizers and SentencePiece do.
WordPiece loses spaces and case, so students with such a tokenizer generate without constraints.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerBase

from retort.problems.base import LARK_OPTIONS

_KNOWN_GRAMMARS = 64
"""Size of the cache of compiled grammars; a problem has one grammar for all texts or one per text."""


class Grammar:
    """Compiles grammars for one tokenizer. Raises ValueError if its tokens do not map to bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, end: int, num_logits: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError("the tokenizer does not say what its tokens are")
        backend = Tokenizer.from_str(backend.to_str())
        if isinstance(backend.decoder, decoders.Metaspace):
            # llguidance supports this decoder, but only in its expanded form.
            backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        self._tokens, self._end = LLTokenizer(backend.to_str(), n_vocab=num_logits, eos_token=end), end
        self._compiled = lru_cache(_KNOWN_GRAMMARS)(self._compile)

    def batch(self, grammars: Sequence[str | None]) -> "GrammarState":
        """The initial state of one row per grammar; None leaves a row unconstrained."""
        started = [None if grammar is None else self._compiled(grammar) for grammar in grammars]
        matchers = [None if matcher is None else matcher.deep_copy() for matcher in started]
        return GrammarState(matchers, self._end, self._tokens.vocab_size)

    def _compile(self, grammar: str) -> LLMatcher | None:
        """None if the library does not support the grammar."""
        # SentencePiece puts a space before the first word, which no parser minds.
        opening = f'{LARK_OPTIONS}start: " "? label\n'
        matcher = LLMatcher(self._tokens, opening + grammar, log_level=0)
        return None if matcher.is_error() else matcher


class GrammarState:
    """The position of each row of a batch in its grammar. Rows without a grammar are unconstrained, and so are rows
    whose grammar requires a character that no token contains."""

    def __init__(self, matchers: list[LLMatcher | None], end: int, num_logits: int) -> None:
        self._matchers, self._end, self._num_logits = matchers, end, num_logits
        self.is_kept = [matcher is not None for matcher in matchers]
        """For each row, whether everything it wrote follows its grammar."""

    def write(self, rows: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Advances each row by its token. Returns the indices into `rows` of those whose token is not allowed; these do
        not advance."""
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
        """`(rows, vocab)`: which tokens each row may write next."""
        bits = allocate_token_bitmask(len(rows), self._num_logits)
        for place, row in enumerate(rows):
            matcher = self._matchers[row]
            if matcher is None:
                continue
            fill_next_token_bitmask(matcher, bits, place)
            if matcher.is_error():
                self._matchers[row], self.is_kept[row], bits[place] = None, False, -1
        return np.unpackbits(bits.view(np.uint8), axis=1, count=self._num_logits, bitorder="little").astype(np.bool_)
