"""A prompt as the model reads it. Imports nothing, since vLLM's environment, where Retort is not installed, runs it.

The shared turns become the prefix, the same text for every row; its tokens are computed once. Both parts end at a
line's or a turn's end, so that no token spans them.
"""

from collections.abc import Sequence
from typing import Any

Chat = Sequence[dict[str, str]]
"""`{"role": ..., "content": ...}` for each turn."""

_SENTINEL = "\u2063the row\u2063"


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def render(tokenizer: Any, shared: Chat) -> tuple[str, str, str]:
    """(prefix, before, after): a row's prompt is `prefix + before + item + after`.

    With the tokenizer's chat template where it has one, and then with its own special tokens in the text; else plain.
    """
    if has_chat_template(tokenizer):
        return _chat(tokenizer, shared)
    blocks = []
    for turn in shared:
        # An answer follows its item on the next line; whatever comes after is set apart by an empty line.
        blocks.append(turn["content"] + ("\n" if turn["role"] == "user" else "\n\n"))
    return "".join(blocks), "", "\n"


def _chat(tokenizer: Any, shared: Chat) -> tuple[str, str, str]:
    whole = _templated(tokenizer, [*shared, {"role": "user", "content": _SENTINEL}])
    other = _templated(tokenizer, [*shared, {"role": "user", "content": _SENTINEL + "x"}])
    before, _, after = whole.rpartition(_SENTINEL)
    if not other.startswith(before):  # a template that writes dates or counts
        raise ValueError("the chat template does not render the same turns to the same text")
    return before, "", after


def _templated(tokenizer: Any, turns: Chat) -> str:
    text: str = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    return text
