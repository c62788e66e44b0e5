"""Scores verbalizers as completions when a server lists only the likeliest first tokens."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from retort.errors import ConfigError

MIN_REST = 1e-7
"""Lower bound on the mass that is not listed, which rounding may otherwise make zero or negative."""


@lru_cache(maxsize=8)
def check_first_tokens(verbalizers: tuple[str, ...]) -> None:
    """Raises ConfigError if one verbalizer is a prefix of another, since first tokens cannot tell them apart."""
    texts = sorted(text.strip() for text in verbalizers)
    for text, next_text in pairwise(texts):
        if not text or next_text.startswith(text):
            raise ConfigError(
                f"teacher.verbalizers: '{next_text}' begins with '{text}', and an endpoint shows only first tokens, so "
                "the two cannot be told apart; write verbalizers of which none begins with another, or use labels: hard"
            )


def first_token_scores(verbalizers: tuple[str, ...], alternatives: Sequence[tuple[str, float]]) -> tuple[float, ...]:
    """Natural logarithm of each verbalizer's probability, from the listed `(token, log-probability)` pairs.

    A token counts for the verbalizer that begins with it (ignoring outer white space), if only one does; the
    probabilities of such tokens are added. A verbalizer without any gets an upper bound: the probability of the least
    likely listed token, or an equal share of the mass that is not listed (at least 1e-7), whichever is smaller.
    """
    owners = _owners(verbalizers)
    found: dict[int, list[float]] = {}
    for token, log_probability in alternatives:
        owner = owners.get(token.strip())
        if owner is not None:
            found.setdefault(owner, []).append(log_probability)
    rest = max(1 - sum(math.exp(value) for _, value in alternatives), MIN_REST)
    share = math.log(rest / max(len(verbalizers) - len(found), 1))
    floor = min(share, *(value for _, value in alternatives))
    return tuple(_log_sum(found[index]) if index in found else floor for index in range(len(verbalizers)))


@lru_cache(maxsize=8)
def _owners(verbalizers: tuple[str, ...]) -> Mapping[str, int]:
    """For each text that exactly one verbalizer begins with, that verbalizer's index."""
    beginnings = [[beginning.rstrip() for beginning in set(accumulate(text.strip()))] for text in verbalizers]
    counts = Counter(beginning for own in beginnings for beginning in set(own))
    return {beginning: index for index, own in enumerate(beginnings) for beginning in own if counts[beginning] == 1}


def _log_sum(values: Sequence[float]) -> float:
    """log-sum-exp, capped at 0."""
    most = max(values)
    return min(most + math.log(sum(math.exp(value - most) for value in values)), 0.0)
