"""A completion's likeliest next tokens, token by token, in bytes. Imports the standard library alone, as `rendering`
imports nothing: vLLM's environment runs it too."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

PADDING = (0, -math.inf)
"""In the place of a token that is not there: a vocabulary can be smaller than k."""


@lru_cache(maxsize=8)
def tokenizer_identity(tokenizer: Any) -> str:
    """16 hex digits that stand for what each id means: the vocabulary with its added tokens.

    How a text is parted into tokens is not in it, for whoever learns from the ids takes them as they were written.
    """
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def packed(token_ids: Sequence[int], listed: Iterable[Mapping[int, float]], k: int) -> tuple[bytes, bytes, bytes]:
    """`token_ids` `(tokens,)` as int32; the k likeliest of `listed`, ids as int32 and natural log-probabilities as
    float32, both `(tokens, k)`, likeliest first. All little-endian. `listed` holds, for each of the tokens,
    log-probabilities by id; more than k or fewer."""
    rows = [sorted(at.items(), key=lambda one: (-one[1], one[0]))[:k] for at in listed]
    flat = [one for row in rows for one in [*row, *[PADDING] * (k - len(row))]]
    return (
        struct.pack(f"<{len(token_ids)}i", *token_ids),
        struct.pack(f"<{len(flat)}i", *(token for token, _ in flat)),
        struct.pack(f"<{len(flat)}f", *(logprob for _, logprob in flat)),
    )
