"""The probability of each of a few texts as a completion, from next-token log-probabilities.

Texts are walked as a trie of tokens: one forward pass for each node that branches or continues, so labels of one token
cost one pass a row. A text that another one begins with ("correct", "correct but incomplete") is ended by the token
that ends a completion, else its probability would hold the longer one's. Imports nothing, as `rendering` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[int, ...]


def continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """The tokens of `text` where a prompt ends with `before`. Some tokenizers (SentencePiece) begin a text that is
    tokenised by itself with a space of their own."""
    start = tokenizer.encode(before, add_special_tokens=False)
    whole = tokenizer.encode(before + text, add_special_tokens=False)
    if whole[: len(start)] == start:
        return list(whole[len(start) :])
    return list(tokenizer.encode(text, add_special_tokens=False))


def end_token(tokenizer: Any, *, chat: bool) -> int:
    """What the model writes after a completion: the end of its turn, or, in a plain prompt, the empty line that the
    demonstrations end with. Raises ValueError where a chat's tokenizer has no end token."""
    if not chat:
        return continuation(tokenizer, "x", "\n\nx")[0]
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has a chat template and no end token")
    return int(tokenizer.eos_token_id)


def ended(token_ids: Sequence[Sequence[int]], end: int) -> list[Path]:
    """Each text's tokens, with `end` (see `end_token`) where another text begins with it."""
    paths = [tuple(ids) for ids in token_ids]
    return [(*path, end) if any(o != path and o[: len(path)] == path for o in paths) else path for path in paths]


def nodes(paths: Sequence[Path]) -> list[Path]:
    """What has to be appended to the prompt to ask for a next token: every proper beginning, the empty one first."""
    return sorted({path[:length] for path in paths for length in range(len(path))}, key=lambda node: (len(node), node))


def children(paths: Sequence[Path], node: Path) -> list[int]:
    """The tokens whose log-probability is wanted after a node."""
    return sorted({path[len(node)] for path in paths if len(path) > len(node) and path[: len(node)] == node})


def log_probabilities(paths: Sequence[Path], next_token: Mapping[Path, Mapping[int, float]]) -> list[float]:
    """Sum over each path of log p(token | prompt, node): `next_token[node][token]`, natural logarithms, <= 0."""
    return [sum(next_token[path[:at]][path[at]] for at in range(len(path))) for path in paths]
