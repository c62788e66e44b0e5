"""Renders a prompt as the text that the model reads. Imports nothing of Retort, which is not installed in vLLM's
environment.

The shared turns become the prefix, which is the same text for every row, so its tokens are computed only once. Both
parts end at the end of a line or turn, so that no token spans them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

Chat = Sequence[dict[str, str]]
"""`{"role": ..., "content": ...}` for each turn."""

_CONTEXT_TOKENS = 8
"""Of a prompt's end, to decode what follows it."""
_SENTINEL = "\u2063the row\u2063"


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def render(tokenizer: Any, shared: Chat) -> tuple[str, str, str]:
    """(prefix, before, after): a row's prompt is `prefix + before + item + after`.

    Uses the tokenizer's chat template, which includes its special tokens in the text; plain text if it has none.
    Raises ValueError if the template rejects the turns or would change a row's text.
    """
    if has_chat_template(tokenizer):
        return _chat(tokenizer, shared)
    blocks = []
    for turn in shared:
        # A completion follows its item on the next line; an empty line separates it from whatever comes after.
        blocks.append(turn["content"] + ("\n" if turn["role"] == "user" else "\n\n"))
    return "".join(blocks), "", "\n"


def row_text(tokenizer: Any, shared: Chat, rendered: tuple[str, str, str], earlier: Chat, item: str) -> str:
    """What stands between `before` and `after` for a row of several turns: `earlier`, then `item`, the last one.
    `rendered` is what `render` gave for the shared turns.

    Raises ValueError if the chat template does not render them as part of the same prompt.
    """
    if not earlier:
        return item
    if not has_chat_template(tokenizer):
        blocks = (turn["content"] + ("\n" if turn["role"] == "user" else "\n\n") for turn in earlier)
        return "".join(blocks) + item
    prefix, before, after = rendered
    whole = _render_turns(tokenizer, [*shared, *earlier, {"role": "user", "content": item}])
    start = prefix + before
    if not (whole.startswith(start) and whole.endswith(after)):
        raise ValueError("the chat template renders the turns before a row's own otherwise, the more turns there are")
    return whole[len(start) : len(whole) - len(after)]


def completion_text(tokenizer: Any, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text of a completion as vLLM decodes it token by token: without special tokens, and without the last ones as
    long as they end in a character whose bytes were not all written."""
    text = _text_after(tokenizer, prompt, token_ids)
    while token_ids and text.endswith("\ufffd"):
        token_ids = token_ids[:-1]
        text = _text_after(tokenizer, prompt, token_ids)
    return text


def _text_after(tokenizer: Any, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
    """By themselves, some tokenizers (SentencePiece) would begin it without its space."""
    end = tuple(prompt[-_CONTEXT_TOKENS:])
    before, whole = _decoded(tokenizer, end), _decode(tokenizer, [*end, *token_ids])
    return whole[len(before) :] if whole.startswith(before) else _decode(tokenizer, token_ids)


@lru_cache(maxsize=1024)
def _decoded(tokenizer: Any, token_ids: tuple[int, ...]) -> str:
    return _decode(tokenizer, token_ids)


def _decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _chat(tokenizer: Any, shared: Chat) -> tuple[str, str, str]:
    whole = _render_turns(tokenizer, [*shared, {"role": "user", "content": _SENTINEL}])
    other = _render_turns(tokenizer, [*shared, {"role": "user", "content": _SENTINEL + "x"}])
    before, _, after = whole.rpartition(_SENTINEL)
    if other != f"{before}{_SENTINEL}x{after}":  # a template that depends on the text, or changes or drops it
        raise ValueError("the chat template does not render the same turns to the same text, with the row as it is")
    return before, "", after


def _render_turns(tokenizer: Any, turns: Chat) -> str:
    from jinja2 import TemplateError  # of transformers, whose templates are Jinja's

    try:
        return _apply_template(tokenizer, turns)
    except TemplateError:
        pass
    try:
        return _apply_template(tokenizer, _without_system_turn(turns))
    except TemplateError as error:
        raise ValueError(f"the chat template refuses turns of user and assistant: {error}") from None


def _without_system_turn(turns: Chat) -> Chat:
    """Moves the instruction to the start of the first user turn, for templates without a system role (Gemma)."""
    if len(turns) < 2 or turns[0]["role"] != "system":
        return turns
    system, first, *others = turns
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _apply_template(tokenizer: Any, turns: Chat) -> str:
    # Templates of reasoning models (Qwen3) read enable_thinking; others ignore it.
    text: str = tokenizer.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text
