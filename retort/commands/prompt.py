"""What `retort prompt` shows: the exact prompt of a row, as each teacher that is asked would read it."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from retort.config import LlmTeacherConfig, MckdConfig
from retort.errors import ConfigError
from retort.io.parquet import read_rows
from retort.models.weights import Weights
from retort.recipes.mckd.checks import members_of, refusals, resolve, usable_store
from retort.records.base import Record
from retort.steps.ingest import ROWS
from retort.steps.teacher_cost import questions_of, rows_of
from retort.teachers.identity import FIELD, teacher_weights
from retort.teachers.prompts import prompt_for
from retort.teachers.requests import Prompt
from retort.teachers.token_counts import token_counter


class ShownPrompt(Record):
    teacher: str
    """Its kind and model."""
    example_id: str
    text: str
    """As the model reads it; for an endpoint the messages, since the server renders them."""
    num_tokens: int
    shared_tokens: int
    """Of the prefix that all rows of the pool share."""
    shared_characters: int
    exact: bool
    """False: tokens are estimated from the number of characters."""

    @property
    def measure(self) -> str:
        about = "" if self.exact else "about "
        return (
            f"row '{self.example_id}': {about}{self.num_tokens:,} tokens, of which {about}{self.shared_tokens:,} "
            f"({self.shared_characters:,} characters) are the prefix that all rows share"
        )


def show_prompts(config: MckdConfig, example_id: str | None) -> Iterator[ShownPrompt]:
    """One for each teacher that is asked. Raises ConfigError where there is none, or no such row in the pool or the
    labelled set."""
    with refusals():
        store, config = usable_store(config), resolve(config)
        asked = [
            (name, teacher) for name, teacher in members_of(config.teacher) if isinstance(teacher, LlmTeacherConfig)
        ]
        if not asked:
            raise ConfigError(f"teacher.kind = '{config.teacher.kind}': this teacher reads no prompt")
        with rows_of(config, store, "unlabeled") as pool, rows_of(config, store, "labeled") as labelled:
            for _, teacher in asked:
                questions = questions_of(config, teacher, labelled)
                rows = (row for folder in (pool, labelled) for row in read_rows(folder / ROWS))
                row = next((row for row in rows if example_id in (None, row["example_id"])), None)
                if row is None:
                    raise ConfigError(f"--row {example_id}: neither the pool nor the labelled set has this id")
                prompt = prompt_for(teacher.prompt, questions.shared(row["example_id"]), row["text"])
                weights = teacher_weights(teacher, config.store.server)
                yield _shown(f"{teacher.kind} {teacher.model}", row["example_id"], prompt, weights)


def _shown(teacher: str, example_id: str, prompt: Prompt, weights: Weights | None) -> ShownPrompt:
    if weights is None:
        shared = json.dumps([asdict(turn) for turn in prompt.shared], ensure_ascii=False, indent=1)
        text = json.dumps(
            [*(asdict(turn) for turn in prompt.shared), {"role": "user", "content": prompt.item}],
            ensure_ascii=False,
            indent=1,
        )
        counter = token_counter(None)
        num_tokens, shared_tokens = counter.count(text), counter.count(shared)
        exact = False
    else:
        from retort.teachers.vllm.engine.rendering import render

        tokenizer = _tokenizer(weights)
        shared, before, after = render(tokenizer, [asdict(turn) for turn in prompt.shared])
        rest = before + prompt.item + after
        text = shared + rest
        shared_tokens = len(tokenizer.encode(shared))
        num_tokens = shared_tokens + len(tokenizer.encode(rest, add_special_tokens=False))
        exact = True
    return ShownPrompt(
        teacher=teacher,
        example_id=example_id,
        text=text,
        num_tokens=num_tokens,
        shared_tokens=shared_tokens,
        shared_characters=len(shared),
        exact=exact,
    )


def _tokenizer(weights: Weights) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(weights.address, revision=weights.revision or "main")
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{FIELD} = '{weights.address}': its tokenizer cannot be loaded: {first}") from None
