"""Builds prompts: instruction, schema and demonstrations, identical for every row, followed by the row."""

from collections.abc import Sequence

from retort.config.teachers import PromptConfig
from retort.problems import Problem
from retort.records.base import Example
from retort.teachers.requests import Prompt, Turn


def shared_turns(problem: Problem, config: PromptConfig, demonstrations: Sequence[Example]) -> tuple[Turn, ...]:
    """The turns before the row. Pass the same returned object for every row, so that it is sent and computed only
    once. A demonstration looks like a row, followed by its gold label as the assistant's turn."""
    instruction = config.instruction if config.instruction is not None else problem.instruction
    turns = [Turn("system", instruction.format(schema=problem.schema))]
    for example in demonstrations:
        assert example.label is not None, "demonstrations are gold-labeled"
        turns.append(Turn("user", item_text(config, example.text)))
        turns.append(Turn("assistant", problem.render(example.text, example.label)))
    return tuple(turns)


def item_text(config: PromptConfig, text: str) -> str:
    return config.item.format(text=text)


def prompt_for(config: PromptConfig, shared: tuple[Turn, ...], text: str) -> Prompt:
    return Prompt(shared, item_text(config, text))
