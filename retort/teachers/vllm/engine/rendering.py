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
    Raises ValueError where the template refuses the turns, or a row's text would not stand in it as it is.
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
    if other != f"{before}{_SENTINEL}x{after}":  # a template that counts, or that changes or drops what it is given
        raise ValueError("the chat template does not render the same turns to the same text, with the row as it is")
    return before, "", after


def _templated(tokenizer: Any, turns: Chat) -> str:
    from jinja2 import TemplateError  # of transformers, whose templates are Jinja's

    try:
        return _applied(tokenizer, turns)
    except TemplateError:
        pass
    try:
        return _applied(tokenizer, _without_system_turn(turns))
    except TemplateError as error:
        raise ValueError(f"the chat template refuses turns of user and assistant: {error}") from None


def _without_system_turn(turns: Chat) -> Chat:
    """The instruction at the head of the first user turn, for templates that know no system role (Gemma)."""
    if len(turns) < 2 or turns[0]["role"] != "system":
        return turns
    system, first, *others = turns
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _applied(tokenizer: Any, turns: Chat) -> str:
    # Models that can think before they answer (Qwen3) read enable_thinking; other templates ignore it.
    text: str = tokenizer.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text
