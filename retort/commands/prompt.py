"""`retort prompt`: shows the exact prompt for a row, as each LLM teacher would read it."""

import json
from dataclasses import asdict
from typing import Any

from retort.config import RecipeConfig
from retort.errors import ConfigError
from retort.models.weights import Weights, loading_fault
from retort.problems import problem_for
from retort.recipes import recipe_of
from retort.recipes.teacher_cost import Ingests
from retort.recipes.walk import llm_labelings, rows_of
from retort.records.base import Record
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import Store
from retort.store.opening import refusals, usable_store
from retort.teachers.identity import FIELD, teacher_weights
from retort.teachers.prompts import prompt_for
from retort.teachers.request_builder import request_builder
from retort.teachers.requests import Prompt
from retort.teachers.token_counts import token_counter


class ShownPrompt(Record):
    teacher: str
    """The teacher's kind and model."""
    example_id: str
    text: str
    """The prompt as the model reads it. For an endpoint, the messages, since the server renders them."""
    num_tokens: int
    shared_tokens: int
    """Tokens of the prefix that all rows of the pool share."""
    shared_characters: int
    exact: bool
    """If False, tokens are estimated from the number of characters."""

    @property
    def measure(self) -> str:
        about = "" if self.exact else "about "
        return (
            f"row '{self.example_id}': {about}{self.num_tokens:,} tokens, of which {about}{self.shared_tokens:,} "
            f"({self.shared_characters:,} characters) are the prefix that all rows share"
        )


async def show_prompts(config: RecipeConfig, example_id: str | None) -> list[ShownPrompt]:
    """One prompt per LLM teacher. Raises ConfigError if there is no such teacher, or if none labels or is shown a row
    with this id."""
    with refusals():
        store = usable_store(config)
        steps, ingests = await llm_labelings(recipe_of(config), config, store)
        if not steps:
            kind = recipe_of(config).teacher_facts(config)["kind"]
            raise ConfigError(f"teacher.kind = '{kind}': this teacher reads no prompt")
        shown: dict[str, ShownPrompt] = {}  # by the teacher's config: a teacher may label several sets of rows
        for step in steps:
            teacher = step.config.model_dump_json()
            found = None if teacher in shown else _prompt_of(config, store, step, ingests, example_id)
            shown |= {teacher: found} if found else {}
        if not shown:
            raise ConfigError(f"--row {example_id}: no row that a teacher labels or is shown has this id")
        return list({(one.teacher, one.text): one for one in shown.values()}.values())


def _prompt_of(
    config: RecipeConfig, store: Store, step: PseudolabelLlm, ingests: Ingests, example_id: str | None
) -> ShownPrompt | None:
    """The prompt for the row, or for the first row if no id is given; None if neither the pool nor the labeled set has
    the row."""
    with (
        rows_of(config, store, ingests[step.pool.key]) as pool,
        rows_of(config, store, ingests[step.labeled.key]) as labeled,
    ):
        builder = request_builder(problem_for(step.problem), step.config, labeled.gold())
        rows = (row for examples in (pool, labeled) for row in examples.rows())
        row = next((row for row in rows if example_id in (None, row["example_id"])), None)
    if row is None:
        return None
    shared = builder.shared(row["example_id"], row["text"])
    prompt = prompt_for(builder.problem, step.config.prompt, shared, row["text"])
    weights = teacher_weights(step.config, config.store.server)
    return _shown(f"{step.config.kind} {step.config.model}", row["example_id"], prompt, weights)


def _shown(teacher: str, example_id: str, prompt: Prompt, weights: Weights | None) -> ShownPrompt:
    if weights is None:
        shared = json.dumps([asdict(turn) for turn in prompt.shared], ensure_ascii=False, indent=1)
        text = json.dumps([asdict(turn) for turn in prompt.turns], ensure_ascii=False, indent=1)
        counter = token_counter(None)
        num_tokens, shared_tokens = counter.count(text), counter.count(shared)
        exact = False
    else:
        from retort.teachers.vllm.engine.rendering import render, row_text

        tokenizer = _tokenizer(weights)
        turns, earlier = ([asdict(turn) for turn in part] for part in (prompt.shared, prompt.earlier))
        shared, before, after = render(tokenizer, turns)
        rest = before + row_text(tokenizer, turns, (shared, before, after), earlier, prompt.item) + after
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
        return AutoTokenizer.from_pretrained(
            weights.address, revision=weights.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{FIELD} = '{weights.address}': its tokenizer cannot be loaded: {loading_fault(error)}"
        ) from None
