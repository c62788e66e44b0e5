"""Estimates what labeling would cost, before any request is sent; only rows missing from the ledger count."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retort.config.teachers import LlmTeacherConfig, VllmConfig
from retort.io.parquet import read_rows, write_rows
from retort.io.scratch import scratch
from retort.models.weights import Weights
from retort.records.base import Record
from retort.store import Store
from retort.teachers.labeler import ASKED, pending_rows
from retort.teachers.ledger import Ledger
from retort.teachers.prompts import row_turns
from retort.teachers.request_builder import RequestBuilder
from retort.teachers.requests import Turn
from retort.teachers.token_counts import TokenCounter, token_counter
from retort.teachers.usage import Usage, token_money


class Forecast(Record):
    """The cost of the first attempt at every row. Retries of rows that get no label come on top."""

    kind: str
    requests: int
    known: int = 0
    """Completions that the ledger already has."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that a server with a prefix cache has already computed."""
    completion_tokens: int = 0
    seconds: float | None = None
    """Estimated from the throughput of this teacher's last run; None before its first run."""
    money: float = 0.0
    exact_tokens: bool = True
    """False if prompt tokens are estimated from characters. Completion tokens are always an estimate."""


class Pace(Record):
    """A teacher's throughput in its last run; stored beside its ledger."""

    completions_per_second: float
    completion_tokens: float
    """Mean tokens of one completion."""
    start_seconds: float
    num_gpus: int


def keep_pace(store: Store, ledger: Ledger, usage: Usage) -> None:
    if usage.completions and usage.seconds:
        pace = Pace(
            completions_per_second=usage.completions / usage.seconds,
            completion_tokens=usage.completion_tokens / usage.completions,
            start_seconds=usage.start_seconds,
            num_gpus=usage.num_gpus,
        )
        store.place.write(f"{ledger.folder}/pace.json", pace.model_dump_json().encode())


def read_pace(store: Store, ledger: Ledger) -> Pace | None:
    try:
        return Pace.model_validate(json.loads(store.place.read(f"{ledger.folder}/pace.json")))
    except (FileNotFoundError, ValueError):
        return None


def forecast(
    store: Store, ledger: Ledger, builder: RequestBuilder, weights: Weights | None, files: Sequence[Path]
) -> Forecast:
    """Estimate the cost of labeling the rows in `files`, which are Parquet files."""
    counter, teacher = token_counter(weights), builder.teacher
    requests = known = prompt_tokens = cached_tokens = 0
    shared_tokens: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for file in files:
        missing_rows, found = _missing_rows(ledger, builder, file)
        known += found
        for example_id, text in missing_rows:
            shared = builder.shared(example_id, text)
            if id(shared) not in shared_tokens:
                shared_tokens[id(shared)] = _tokens(counter, shared)
            requests += 1
            prompt_tokens += shared_tokens[id(shared)] + _tokens(
                counter, row_turns(builder.problem, teacher.prompt, text)
            )
            cached_tokens += shared_tokens[id(shared)] if seen[id(shared)] else 0
            seen[id(shared)] += 1
    pace = read_pace(store, ledger)
    thoughts = 0 if builder.verbalizers else teacher.max_tokens - teacher.sampling.max_tokens
    per_completion = pace.completion_tokens if pace else _expected_completion_tokens(counter, builder) + thoughts
    completion_tokens = round(requests * per_completion)
    seconds = requests / pace.completions_per_second + pace.start_seconds if pace and requests else None
    return Forecast(
        kind=str(getattr(teacher, "kind", "")),
        requests=requests,
        known=known,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        seconds=seconds,
        money=token_money(teacher.prices, prompt_tokens, cached_tokens, completion_tokens)
        + _gpu_money(teacher, pace, seconds),
        exact_tokens=counter.exact,
    )


def _gpu_money(teacher: LlmTeacherConfig, pace: Pace | None, seconds: float | None) -> float:
    if pace is None or seconds is None or not isinstance(teacher, VllmConfig):
        return 0.0
    return seconds / 3600 * pace.num_gpus * teacher.prices.gpu_hour


def _missing_rows(ledger: Ledger, builder: RequestBuilder, file: Path) -> tuple[list[tuple[str, str]], int]:
    """(example_id, text) for each completion missing from the ledger, and the number of completions it has."""
    samples = builder.teacher.sampling.samples
    with scratch("forecast") as folder:
        keys_file = folder / "asked.parquet"
        total = write_rows(keys_file, ASKED, builder.keys(pending_rows(file), 0))
        batches = ledger.missing(keys_file, builder.teacher.max_tokens)
        positions = (position for batch in batches for position in batch.column(0).to_numpy())
        num_missing = Counter(int(position) // samples for position in positions)
    rows = enumerate(read_rows(file, ["example_id", "text"]))
    missing_rows = [(row["example_id"], row["text"]) for at, row in rows for _ in range(num_missing[at])]
    return missing_rows, total - len(missing_rows)


def _tokens(counter: TokenCounter, turns: Sequence[Turn]) -> int:
    return sum(counter.count(turn.content) for turn in turns)


def _expected_completion_tokens(counter: TokenCounter, builder: RequestBuilder) -> float:
    """Mean tokens of the demonstrations' labels; 1 for soft labels, which are read from a single token."""
    if builder.verbalizers:
        return 1.0
    lengths = [counter.count(turn.content) for turn in builder.everything if turn.role == "assistant"]
    return sum(lengths) / len(lengths) if lengths else min(32.0, builder.teacher.sampling.max_tokens)
