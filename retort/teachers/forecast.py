"""What labelling would cost, before anything is asked: of the rows that the ledger lacks."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retort.config.teachers import LlmTeacherConfig, VllmConfig
from retort.io.parquet import read_rows, write_rows
from retort.models.weights import Weights
from retort.records.base import Record
from retort.store import Store
from retort.teachers.labeler import ASKED, pending_rows
from retort.teachers.ledger import Ledger
from retort.teachers.prompts import item_text
from retort.teachers.request_builder import RequestBuilder
from retort.teachers.requests import Turn
from retort.teachers.token_counts import TokenCounter, token_counter
from retort.teachers.usage import Usage, token_money


class Forecast(Record):
    """Of the first try of every row; what gives no label is asked again and comes on top."""

    kind: str
    requests: int
    known: int = 0
    """Completions that the ledger has."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, what a server with a prefix cache has computed before."""
    completion_tokens: int = 0
    seconds: float | None = None
    """By the pace of this teacher's last run; None before its first."""
    money: float = 0.0
    exact_tokens: bool = True
    """False: prompt tokens are estimated from characters. Completion tokens always are an estimate."""


class Pace(Record):
    """How a teacher worked last; kept beside its ledger."""

    completions_per_second: float
    completion_tokens: float
    """Of one completion, mean."""
    start_seconds: float
    num_gpus: int


def keep_pace(store: Store, ledger: Ledger, spending: Usage) -> None:
    if spending.completions and spending.seconds:
        pace = Pace(
            completions_per_second=spending.completions / spending.seconds,
            completion_tokens=spending.completion_tokens / spending.completions,
            start_seconds=spending.start_seconds,
            num_gpus=spending.num_gpus,
        )
        store.place.write(f"{ledger.folder}/pace.json", pace.model_dump_json().encode())


def read_pace(store: Store, ledger: Ledger) -> Pace | None:
    try:
        return Pace.model_validate(json.loads(store.place.read(f"{ledger.folder}/pace.json")))
    except (FileNotFoundError, ValueError):
        return None


def forecast(
    store: Store, ledger: Ledger, questions: RequestBuilder, weights: Weights | None, files: Sequence[Path]
) -> Forecast:
    """`files`: the Parquet files of rows that would be labelled."""
    counter, teacher = token_counter(weights), questions.teacher
    requests = known = prompt_tokens = cached_tokens = 0
    shared_tokens: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for file in files:
        lacking, found = _lacking(ledger, questions, file)
        known += found
        for example_id, text in lacking:
            shared = questions.shared(example_id)
            if id(shared) not in shared_tokens:
                shared_tokens[id(shared)] = _tokens(counter, shared)
            requests += 1
            prompt_tokens += shared_tokens[id(shared)] + counter.count(item_text(teacher.prompt, text))
            cached_tokens += shared_tokens[id(shared)] if seen[id(shared)] else 0
            seen[id(shared)] += 1
    pace = read_pace(store, ledger)
    per_completion = pace.completion_tokens if pace else _demonstrated(counter, questions)
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


def _lacking(ledger: Ledger, questions: RequestBuilder, file: Path) -> tuple[list[tuple[str, str]], int]:
    """(id, text) for each completion that is missing, and how many are known."""
    samples = questions.teacher.sampling.samples
    with tempfile.TemporaryDirectory(prefix="retort-forecast-") as folder:
        asked = Path(folder) / "asked.parquet"
        total = write_rows(asked, ASKED, questions.keys(pending_rows(file), 0))
        batches = ledger.missing(asked, questions.teacher.sampling.max_tokens)
        positions = (position for batch in batches for position in batch.column(0).to_numpy())
        missing = Counter(int(position) // samples for position in positions)
    rows = enumerate(read_rows(file, ["example_id", "text"]))
    lacking = [(row["example_id"], row["text"]) for at, row in rows for _ in range(missing[at])]
    return lacking, total - len(lacking)


def _tokens(counter: TokenCounter, turns: Sequence[Turn]) -> int:
    return sum(counter.count(turn.content) for turn in turns)


def _demonstrated(counter: TokenCounter, questions: RequestBuilder) -> float:
    """Tokens of an answer, by the demonstrations' answers; 1 for soft labels, which are read off one token."""
    if questions.verbalizers:
        return 1.0
    answers = [counter.count(turn.content) for turn in questions.everything if turn.role == "assistant"]
    return sum(answers) / len(answers) if answers else min(32.0, questions.teacher.sampling.max_tokens)
