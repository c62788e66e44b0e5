"""Builds prompts: instruction, schema and demonstrations, identical for every row, followed by the row."""

from collections.abc import Sequence
from typing import cast

from retort.config.teachers import PromptConfig
from retort.problems import Problem
from retort.problems.chat import Chat
from retort.problems.turns import alternating
from retort.records.base import Example
from retort.teachers.rationales import INSTRUCTION, with_rationale
from retort.teachers.requests import Prompt, Role, Turn

NEW_CONVERSATION = "(A new conversation.)"
"""Opens each conversation, since all of them are turns of one chat."""


def shared_turns(
    problem: Problem, config: PromptConfig, demonstrations: Sequence[Example], *, rationales: bool = False
) -> tuple[Turn, ...]:
    """The turns before the row. Pass the same returned object for every row, so that it is sent and computed only
    once. A demonstration looks like a row, followed by its gold label as the assistant's turn; with `rationales`, by
    its rationale and its label."""
    instruction = config.instruction if config.instruction is not None else problem.instruction
    told = instruction.format(schema=problem.schema)
    turns = [Turn("system", f"{told}\n{INSTRUCTION}" if rationales else told)]
    for example in demonstrations:
        assert example.label is not None, "demonstrations are gold-labeled"
        answer = problem.render(example.text, example.label)
        if rationales:
            answer = with_rationale(problem, example.text, answer, example.rationale or "")
        turns += row_turns(problem, config, example.text)
        turns.append(Turn("assistant", answer))
    return tuple(turns)


def row_turns(problem: Problem, config: PromptConfig, text: str) -> list[Turn]:
    """A row: one turn of the user, or for chat the turns of the conversation, the last of which is the user's."""
    if isinstance(problem, Chat):
        spoken = alternating(problem.turns(text), NEW_CONVERSATION)
        return [Turn(cast("Role", role), content) for role, content in spoken]
    return [Turn("user", item_text(config, text))]


def item_text(config: PromptConfig, text: str) -> str:
    return config.item.format(text=text)


def prompt_for(problem: Problem, config: PromptConfig, shared: tuple[Turn, ...], text: str) -> Prompt:
    *earlier, item = row_turns(problem, config, text)
    return Prompt(shared, item.content, tuple(earlier))
