"""Renders a conversation with a student's own chat template."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from retort.errors import ConfigError
from retort.problems.turns import Message, alternating


def templated(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message]) -> str:
    """The conversation as text, up to where the assistant's turn begins. The system's turn is one of its own, unless
    the template does not know any. Raises ConfigError if the template refuses turns of user and assistant."""
    first = turns[0]
    if first.role == "system" and len(turns) > 1:
        system = [{"role": "system", "content": first.content}]
        try:
            return _applied(tokenizer, [*system, *_messages(turns[1:])])
        except TemplateError:
            pass
    try:
        return _applied(tokenizer, _messages(turns))
    except TemplateError as error:
        raise ConfigError(f"student.model: its chat template refuses turns of user and assistant: {error}") from None


def _messages(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in alternating(turns)]


def _applied(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    # Templates of reasoning models (Qwen3) read enable_thinking; others ignore it.
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )
