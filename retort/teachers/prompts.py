"""What a teacher reads: instruction, schema and demonstrations, the same for every row; then the row."""

from collections.abc import Sequence

from retort.config.teachers import PromptConfig
from retort.problems import Problem
from retort.records.base import Example
from retort.teachers.requests import Prompt, Turn


def shared_turns(problem: Problem, config: PromptConfig, demonstrations: Sequence[Example]) -> tuple[Turn, ...]:
    """The turns before the row. Keep the result and pass the same object for every row, so that it is sent and
    computed once. A demonstration is the row's own form with its gold label as the answer."""
    instruction = config.instruction if config.instruction is not None else problem.instruction
    turns = [Turn("system", instruction.format(schema=problem.schema))]
    for example in demonstrations:
        assert example.label is not None, "demonstrations are gold-labelled"
        turns.append(Turn("user", item_text(config, example.text)))
        turns.append(Turn("assistant", problem.render(example.text, example.label)))
    return tuple(turns)


def item_text(config: PromptConfig, text: str) -> str:
    return config.item.format(text=text)


def prompt_for(config: PromptConfig, shared: tuple[Turn, ...], text: str) -> Prompt:
    return Prompt(shared, item_text(config, text))
