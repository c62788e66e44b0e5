"""What people answered: checked as any gold row is, appended to a file of gold rows, or made an estimate of."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retort.commands.review.files import Answer
from retort.commands.review.record import Review, ReviewRow
from retort.config import ColumnsConfig, MckdConfig
from retort.data.bad_rows import BadRow
from retort.errors import ConfigError, DataError, RowFault
from retort.metrics.active_testing import FEWEST, estimate
from retort.problems import problem_for
from retort.problems.base import Problem
from retort.records.base import Label, Score


@dataclass(frozen=True)
class Gold:
    """A row with the label that people gave it."""

    row: ReviewRow
    label: Label
    written: Any
    """The label as a gold row of the data has it."""
    by: tuple[str, ...]
    at: str
    """ISO 8601."""


@dataclass
class Answers:
    gold: dict[str, Gold] = field(default_factory=dict)
    """By example_id."""
    open: int = 0
    """Rows of the file without a label."""
    bad: list[BadRow] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(one.reason for one in self.bad).most_common())


def read_answers(review: Review, answers: Iterable[Answer | BadRow], by: str | None) -> Answers:
    """Check each answer; one that cannot be used is set aside with the reason. `by` is who gave those that do not say.

    Several people may label a row: if they agree it is gold by all of them, and if not it is set aside.
    """
    problem, rows = problem_for(review.problem), {row.example_id: row for row in review.rows}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found, disputed = Answers(), set[str]()
    for one in answers:
        if isinstance(one, BadRow):
            found.bad.append(one)
            continue
        try:
            row = _asked(review, rows, one)
            written, label = _label(problem, review.problem.kind, row, one)
            if label is None:
                found.open += 1
                continue
            who = one.by or by
            if who is None:
                raise RowFault(f"{one.place}: nobody is named who gave the label; give --by NAME", "nobody")
            earlier = found.gold.get(row.example_id)
            if row.example_id in disputed or (earlier and earlier.label != label):
                disputed.add(row.example_id)
                raise RowFault(f"{one.place}: row '{row.example_id}' has another label from somebody else", "disputed")
        except RowFault as fault:
            found.bad.append(BadRow.of(one.place, fault, one.raw, one.example_id or None))
            continue
        people = tuple(dict.fromkeys([*(earlier.by if earlier else ()), who]))
        found.gold[row.example_id] = Gold(row, label, written, people, one.at or now)
    for example_id in disputed:
        del found.gold[example_id]
    return found


def _asked(review: Review, rows: dict[str, ReviewRow], answer: Answer) -> ReviewRow:
    """The row that was asked for. Raises RowFault."""
    if answer.review_id not in (None, review.review_id):
        raise RowFault(f"{answer.place}: belongs to the review '{answer.review_id}'", "other-review")
    row = rows.get(answer.example_id)
    if row is None:
        raise RowFault(f"{answer.place}: id '{answer.example_id}' was not asked for", "unknown-id")
    if answer.text is not None and answer.text.split() != row.text.split():
        raise RowFault(f"{answer.place}: the text of '{row.example_id}' is not that which was asked for", "other-text")
    return row


def _label(problem: Problem, kind: str, row: ReviewRow, answer: Answer) -> tuple[Any, Label | None]:
    """(the label as it was written, the label). Raises RowFault."""
    value = answer.label
    if kind not in ("multi-label", "entities", "chat") and isinstance(value, list):
        if len(value) > 1:
            raise RowFault(f"{answer.place}: {len(value)} labels where one is needed", "bad-gold")
        value = value[0] if value else None
    columns = ColumnsConfig()
    try:
        return value, problem.gold({columns.text: row.text, columns.label: value}, columns)
    except DataError as error:
        raise RowFault(f"{answer.place}: {error}", "bad-gold") from error


def append_gold(config: MckdConfig, review: Review, gold: list[Gold], path: Path) -> tuple[int, int]:
    """Append rows that `data.labeled` can read, in the config's columns. Returns (rows appended, rows that were there
    before). Raises ConfigError if the file is something else or cannot be written."""
    columns = config.data.columns
    try:
        known = _ids_in(path, columns.id)
        new = [one for one in gold if one.row.example_id not in known]
        lines = [json.dumps(_gold_row(review, one, columns), ensure_ascii=False) + "\n" for one in new]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        raise ConfigError(f"--gold '{path}': cannot be written ({error.strerror})") from error
    return len(new), len(known & {one.row.example_id for one in gold})


def _ids_in(path: Path, column: str) -> set[str]:
    if not path.exists():
        return set()
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise ConfigError(f"--gold '{path}': its last line is not complete; end it, or give another file")
    try:
        return {str(_inner(json.loads(line), column)) for line in text.splitlines() if line.strip()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f"--gold '{path}': holds no JSON lines with a column '{column}'; give another file to append to"
        ) from None


def _gold_row(review: Review, gold: Gold, columns: ColumnsConfig) -> dict[str, Any]:
    text: Any = json.loads(gold.row.text) if review.problem.kind == "chat" else gold.row.text
    row: dict[str, Any] = {}
    for column, value in ((columns.id, gold.row.example_id), (columns.text, text), (columns.label, gold.written)):
        *path, name = column.split(".")
        place = row
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    said = {"by": list(gold.by), "at": gold.at, "id": review.review_id}
    return {**row, "review": said}


def _inner(row: Any, column: str) -> Any:
    for part in column.split("."):
        row = row[part]
    return row


def scores_of(config: MckdConfig, review: Review, gold: dict[str, Gold]) -> tuple[list[Score], int, str | None]:
    """(the estimated scores on all test rows, from how many labels, the first row without one).

    The labels must be those of the first rows: which rows have none may not depend on how hard they are. Spearman's
    correlation, which is not computed from sums, is left out. Raises DataError for too few.
    """
    ids = [row.example_id for row in review.rows]
    usable = next((place for place, one in enumerate(ids) if one not in gold), len(ids))
    gap = ids[usable] if usable < len(ids) else None
    if usable < min(FEWEST, len(ids)):
        raise DataError(
            f"only the first {usable} of the {len(ids)} rows have a label, and an estimate takes at least {FEWEST}, "
            f"in the order of the file; label '{gap}' next"
        )
    problem = problem_for(review.problem)
    drawn = [(gold[row.example_id].label, row.predicted, row.chance) for row in review.rows[:usable]]
    scores = [
        estimate(problem, metric, known, review.population, drawn, config.evaluation.resamples, config.method.seed)
        for metric, known in review.sums.items()
        if metric != "spearman"
    ]
    return scores, usable, gap
