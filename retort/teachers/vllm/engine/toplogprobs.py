"""Packs a completion's top log-probabilities into bytes. Imports only the standard library, since it also runs in
vLLM's environment."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

PADDING = (0, -math.inf)
"""Fills lists with fewer than k tokens, since a vocabulary can be smaller than k."""


@lru_cache(maxsize=8)
def tokenizer_identity(tokenizer: Any) -> str:
    """16 hex digits that identify what each token id means: a digest of the vocabulary with its added tokens.

    How the tokenizer splits text is not part of it, since a student learns from the ids as they were generated.
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def pack(token_ids: Sequence[int], listed: Iterable[Mapping[int, float]], k: int) -> tuple[bytes, bytes, bytes]:
    """Pack a completion as (token ids, top ids, top log-probabilities), all little-endian.

    The token ids are int32 `(tokens,)`; the k likeliest of `listed` are int32 ids and float32 natural
    log-probabilities, both `(tokens, k)`, likeliest first. `listed` holds log-probabilities by id for each token,
    possibly more or fewer than k.
    """
    rows = [sorted(at.items(), key=lambda one: (-one[1], one[0]))[:k] for at in listed]
    flat = [one for row in rows for one in [*row, *[PADDING] * (k - len(row))]]
    return (
        struct.pack(f"<{len(token_ids)}i", *token_ids),
        struct.pack(f"<{len(flat)}i", *(token for token, _ in flat)),
        struct.pack(f"<{len(flat)}f", *(logprob for _, logprob in flat)),
    )
