"""What it costs to hold a real model to a grammar, and what the labels are worth: `teacher_gpu.py --model FOLDER`.

Short labels (SNIPS, 50 demonstrations) and trees (CRAFT, 25), each set labeled in these ways by the same engine:

    free          no constraint: a label is what parses, or can be mended
    held          each row to its own grammar, as with `constrained: true`
    free, then    no constraint, and the rows without a whole label once more, held: `constrained: when-needed`
    free, at last the same, but a mended label need not be whole: only the rows without any are asked again

Rows are of the pool, which has gold labels; a row without a label counts as wrong. What the ways share is asked for
once: the seconds of the last two are those of `free` and of the round that each adds, whose prompts are in the engine's
cache. `held` has a line break more in its prompts, so that none of them are.

With `--completions FOLDER` there is one way more, `free, logprobs`: as `free, then`, and with the log-probability of
each completion. These go to FOLDER/SET.jsonl, as recorded completions that `reproduce/logprobs.py` reads.
"""

import gzip
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from retort.config import ColumnsConfig, Metric, VllmConfig
from retort.config.problems import Problem as ProblemConfig
from retort.config.teachers import PromptConfig
from retort.problems import Problem, infer_schema, problem_for
from retort.records.base import Example, ParseFailure
from retort.teachers.demonstrations import choose_demonstrations
from retort.teachers.prompts import prompt_for, shared_turns
from retort.teachers.requests import Completion, CompletionRequest, Rejection, Turn
from retort.teachers.salvage import Reading, parse_completion
from retort.teachers.vllm.client import VllmClient, open_vllm

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPT, MEMORY_SHARE = PromptConfig(), 0.9
SETS: dict[str, dict[str, Any]] = {
    "snips": {"config": "snips.yaml", "pool": "snips/unlabeled_6000.jsonl.gz", "demonstrations": 50, "max_tokens": 96},
    "craft": {"config": "craft-llm.yaml", "pool": "craft/train.jsonl.gz", "demonstrations": 25, "max_tokens": 600},
}
METRICS: dict[str, Metric] = {"snips": "slot_f1", "craft": "bracket_f1"}


@dataclass(frozen=True)
class Pool:
    """Rows with gold labels, and what a teacher is shown before each."""

    name: str
    problem: Problem
    shared: tuple[Turn, ...]
    rows: Sequence[Example]
    max_tokens: int

    @property
    def uncached(self) -> "Pool":
        """The same with a line break after the instruction, so that an engine has computed nothing of it."""
        first, *others = self.shared
        return replace(self, shared=(replace(first, content=f"{first.content}\n"), *others))

    def requests(self, rows: Iterable[Example], *, held: bool, logprobs: bool) -> Iterable[CompletionRequest]:
        for row in rows:
            prompt = prompt_for(self.problem, PROMPT, self.shared, row.text)
            constraint = self.problem.constraint(row.text) if held else None
            key, most = row.example_id.encode(), self.max_tokens
            yield CompletionRequest(key, prompt, constraint, max_tokens=most, top_logprobs=int(logprobs))

    def score(self, readings: Mapping[str, Reading]) -> float:
        """The metric's value, in percent."""
        metric = METRICS[self.name]
        labels = (readings[row.example_id].outcome for row in self.rows)
        found = [None if isinstance(label, ParseFailure) else label for label in labels]
        sums = sum(
            self.problem.statistics(metric, str(row.label), label) for row, label in zip(self.rows, found, strict=True)
        )
        return 100 * float(self.problem.value(metric, sums))


class Round(NamedTuple):
    completions: dict[str, Completion]
    readings: dict[str, Reading]
    seconds: float
    tokens: int

    def mended_by(self, again: "Round") -> "Round":
        """With what was asked for again where that is a label."""
        better = {key for key, reading in again.readings.items() if not is_failure(reading)}
        return Round(
            {**self.completions, **{key: again.completions[key] for key in better}},
            {**self.readings, **{key: again.readings[key] for key in better}},
            self.seconds + again.seconds,
            self.tokens + again.tokens,
        )


def measure(
    own: Mapping[str, Any], names: Sequence[str], num_rows: int, completions: Path | None, *, on_gpu: bool
) -> Iterable[dict[str, Any]]:
    """What is measured for each set and way. `own` are fields of the teacher's config. `num_rows` short labels are
    asked for, and half as many trees."""
    size = {} if on_gpu else {"max_sequences": 32}
    given = {"kind": "vllm", "memory_share": MEMORY_SHARE, "max_length": 8192, **size, **own}
    config = VllmConfig.model_validate(given)
    with open_vllm(config, 0, config.model, None) as client:
        facts = {name: client.facts[name] for name in ("start_seconds", "version", "device_name", "num_gpus")}
        for name in names:
            warm_up, pool = read_pool(name, num_rows if name == "snips" else num_rows // 2, 64 if on_gpu else 2)
            for result in ways(client, pool, warm_up, completions):
                yield {"set": name, **result, **facts}


def ways(client: VllmClient, pool: Pool, warm_up: Sequence[Example], folder: Path | None) -> Iterable[dict[str, Any]]:
    rows = pool.rows
    ask(client, pool, warm_up, held=False)
    free = ask(client, pool, rows, held=False)
    yield outcome(pool, "free", free, free)
    ask(client, pool.uncached, warm_up, held=True)
    yield outcome(pool, "held", ask(client, pool.uncached, rows, held=True), free)
    for way, is_needed in {"free, then": is_not_whole, "free, at last": is_failure}.items():
        again = ask(client, pool, [row for row in rows if is_needed(free.readings[row.example_id])], held=True)
        yield {**outcome(pool, way, free.mended_by(again), free), "asked_again": share(again, rows)}
    if folder:
        found = ask(client, pool, rows, held=False, logprobs=True)
        lacking = [row for row in rows if is_not_whole(found.readings[row.example_id])]
        again = ask(client, pool, lacking, held=True, logprobs=True)
        both = found.mended_by(again)
        write_completions(folder / f"{pool.name}.jsonl", both, again)
        yield {**outcome(pool, "free, logprobs", both, free), "asked_again": share(again, rows)}


def share(again: Round, rows: Sequence[Example]) -> float:
    return round(len(again.readings) / len(rows), 4)


def write_completions(path: Path, found: Round, again: Round) -> None:
    """In OpenAI's batch format, with `logprob`, `tokens` and whether it was `held` beside each response."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for key, one in found.completions.items():
            choice = {"message": {"content": one.text}, "finish_reason": one.finish_reason}
            facts = {"logprob": one.logprob, "tokens": one.completion_tokens, "held": again.completions.get(key) is one}
            response = {"status_code": 200, "body": {"choices": [choice]}}
            file.write(json.dumps({"custom_id": key, "response": response, **facts}) + "\n")


def is_failure(reading: Reading) -> bool:
    return isinstance(reading.outcome, ParseFailure)


def is_not_whole(reading: Reading) -> bool:
    return is_failure(reading) or reading.covered < 1


def ask(client: VllmClient, pool: Pool, rows: Sequence[Example], *, held: bool, logprobs: bool = False) -> Round:
    texts = {row.example_id: row.text for row in rows}
    outcomes: dict[str, Completion | Rejection] = {}
    begun = time.perf_counter()
    for one in client.ask(iter(pool.requests(rows, held=held, logprobs=logprobs))):
        outcomes[one.key.decode()] = one
    seconds = time.perf_counter() - begun
    completions = {key: one for key, one in outcomes.items() if isinstance(one, Completion)}
    readings = {
        key: parse_completion(pool.problem, texts[key], one.text, one.finish_reason)
        if isinstance(one, Completion)
        else Reading(ParseFailure(one.reason, one.detail, one.raw))
        for key, one in outcomes.items()
    }
    return Round(completions, readings, seconds, sum(one.completion_tokens for one in completions.values()))


def outcome(pool: Pool, way: str, found: Round, free: Round) -> dict[str, Any]:
    readings, num_rows = found.readings.values(), len(pool.rows)
    return {
        "way": way,
        "rows": num_rows,
        "seconds": round(found.seconds, 2),
        "rows_per_second": round(num_rows / found.seconds, 1),
        "tokens_per_second": round(found.tokens / found.seconds),
        "of_free": round(free.seconds / found.seconds, 3),
        "tokens": round(found.tokens / num_rows, 1),
        "labeled": round(sum(not is_failure(one) for one in readings) / num_rows, 4),
        "whole": round(sum(not is_not_whole(one) for one in readings) / num_rows, 4),
        "f1": round(pool.score(found.readings), 2),
    }


def read_pool(name: str, num_rows: int, num_warm_up: int) -> tuple[Sequence[Example], Pool]:
    """Rows to warm the engine up with, and the others."""
    config = yaml.safe_load((EXAMPLES / SETS[name]["config"]).read_text())
    columns = ColumnsConfig.model_validate(config["data"].get("columns", {}))
    labeled = read(EXAMPLES / name / "labeled.jsonl")
    problem = problem_for(infer_schema(problem_config(config["problem"]), labeled, columns))
    shown = choose_demonstrations(golds(problem, labeled, columns), SETS[name]["demonstrations"], "diverse")
    known = {row["id"] for row in labeled}
    pool = (row for row in read(EXAMPLES / SETS[name]["pool"]) if row["id"] not in known)
    rows = golds(problem, itertools.islice(pool, num_rows + num_warm_up), columns)
    turns = shared_turns(problem, PROMPT, shown)
    return rows[:num_warm_up], Pool(name, problem, turns, rows[num_warm_up:], SETS[name]["max_tokens"])


def problem_config(given: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter[Any](ProblemConfig).validate_python(given)


def golds(problem: Problem, rows: Iterable[dict[str, Any]], columns: ColumnsConfig) -> list[Example]:
    return [Example(row["id"], row["text"], problem.gold(row, columns)) for row in rows]


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


def show(results: Sequence[Mapping[str, Any]]) -> None:
    speed = ("rows", "seconds", "rows_per_second", "tokens_per_second", "of_free")
    columns = (*speed, "tokens", "labeled", "whole", "f1", "asked_again")
    print(f"{'':20}" + "".join(f"{name.replace('_per_', '/'):>14}" for name in columns))
    for result in results:
        print(f"{result['set']:6}{result['way']:14}" + "".join(f"{result.get(name, ''):>14}" for name in columns))
    for result in results[:1]:
        device = f"{result['num_gpus']} GPUs, {result['device_name']}"
        print(f"{result['version']}, {device}, started in {result['start_seconds']:.0f} s")
