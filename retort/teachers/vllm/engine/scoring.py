"""Computes the probability of each of a few texts as a completion, from next-token log-probabilities.

The texts form a trie of tokens: one forward pass per inner node, so labels of one token cost one pass per row. A text
that is a prefix of another ("correct", "correct but incomplete") is terminated by the end token, since its probability
would otherwise include the longer one's. Imports nothing of Retort, like `rendering`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[int, ...]


def continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """The tokens of `text` after a prompt that ends with `before`. Some tokenizers (SentencePiece) prepend a space to a
    text that is tokenized by itself."""
    start = tokenizer.encode(before, add_special_tokens=False)
    whole = tokenizer.encode(before + text, add_special_tokens=False)
    if whole[: len(start)] == start:
        return list(whole[len(start) :])
    return list(tokenizer.encode(text, add_special_tokens=False))


def end_token(tokenizer: Any, *, chat: bool) -> int:
    """The token that the model writes after a completion: the end of its turn, or in a plain prompt the empty line that
    ends each demonstration. Raises ValueError if a chat tokenizer has no end token."""
    if not chat:
        return continuation(tokenizer, "x", "\n\nx")[0]
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has a chat template and no end token")
    return int(tokenizer.eos_token_id)


def ended(token_ids: Sequence[Sequence[int]], end: int) -> list[Path]:
    """Each text's tokens, followed by `end` (see `end_token`) if the text is a prefix of another one."""
    paths = [tuple(ids) for ids in token_ids]
    return [(*path, end) if any(o != path and o[: len(path)] == path for o in paths) else path for path in paths]


def nodes(paths: Sequence[Path]) -> list[Path]:
    """The inner nodes of the trie, as the tokens to append to the prompt: every proper prefix, the empty one first."""
    return sorted({path[:length] for path in paths for length in range(len(path))}, key=lambda node: (len(node), node))


def children(paths: Sequence[Path], node: Path) -> list[int]:
    """The tokens whose log-probability is needed after a node."""
    return sorted({path[len(node)] for path in paths if len(path) > len(node) and path[: len(node)] == node})


def log_probabilities(paths: Sequence[Path], next_token: Mapping[Path, Mapping[int, float]]) -> list[float]:
    """The log-probability of each path: the sum of `next_token[node][token]`, the natural logarithms (<= 0) of
    p(token | prompt, node)."""
    return [sum(next_token[path[:at]][path[at]] for at in range(len(path))) for path in paths]
