"""Chooses rows for people: those that the labelers disagree on most, or those that tell most about the test score."""

import heapq
import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from retort.commands.review.last_run import LastRun
from retort.commands.review.record import Purpose, Review, ReviewRow
from retort.config import MckdConfig, Metric
from retort.data.near_duplicates import NearDuplicates, sketches
from retort.data.reading import read_pool
from retort.errors import DataError
from retort.io.parquet import aligned
from retort.metrics.active_testing import draw, draw_chances, if_right
from retort.problems.agreement import disagreement
from retort.problems.base import Floats, Problem
from retort.records.base import Example, Label, digest
from retort.serving.student import LoadedStudent, problem_of

CANDIDATES, MORE = 1000, 10
"""The final student labels so many rows, or so many times the rows that are asked for: those that the others disagree
on most."""


class Candidate(NamedTuple):
    disagreement: float
    """Mean over pairs of labelers, in [0, 1]."""
    confidence: float
    """Mean over the labelers; the surer, the more there is to learn from the row."""
    order: str
    example_id: str
    text: str
    labels: dict[str, Label]
    """By labeler."""


class Predicted(NamedTuple):
    example_id: str
    text: str
    label: Label | None
    confidence: float


def most_disputed(config: MckdConfig, run: LastRun, student: LoadedStudent, count: int) -> Review:
    """Query by committee (Seung, Opper and Sompolinsky 1992) on the rows of the pool that are not gold yet, without
    those that nearly repeat one that was chosen."""
    problem = student.problem
    known = {row["text"] for row in run.labeled.rows(["text"])}
    several = (one for one in _candidates(problem, run) if one.text not in known)
    best = heapq.nlargest(max(CANDIDATES, MORE * count), several)
    answers = student.label([one.text for one in best])
    asked = []
    for candidate, answer in zip(best, answers, strict=True):
        labels = {**candidate.labels, "student": answer.label}
        confidence = candidate.confidence + (answer.confidence - candidate.confidence) / len(labels)
        asked.append(candidate._replace(labels=labels, disagreement=_mean(problem, labels), confidence=confidence))
    rows = tuple(
        ReviewRow(
            example_id=one.example_id,
            text=one.text,
            said={name: problem.render(one.text, label) for name, label in one.labels.items()},
        )
        for one in itertools.islice(_apart(sorted(asked, reverse=True)), count)
    )
    return _review(config, run, "disagreement", rows, run.pool.manifest.rows, {})


def _candidates(problem: Problem, run: LastRun) -> Iterator[Candidate]:
    """Every row that has a label, by all that labeled it."""
    columns = ["example_id", "label", "confidence"]
    files = [labels.rows(columns) for labels in run.labels.values()]
    for row, found in aligned(run.pool.rows(["example_id", "text"]), *files):
        said = {name: one for name, one in zip(run.labels, found, strict=True) if one is not None}
        if said:
            labels = {name: one["label"] for name, one in said.items()}
            sure = float(np.mean([one["confidence"] for one in said.values()]))
            order = digest(row["example_id"])
            yield Candidate(_mean(problem, labels), sure, order, row["example_id"], row["text"], labels)


def _mean(problem: Problem, labels: Mapping[str, Label]) -> float:
    pairs = list(itertools.combinations(labels.values(), 2))
    return sum(disagreement(problem, one, other) for one, other in pairs) / len(pairs) if pairs else 0.0


def _apart(candidates: list[Candidate]) -> Iterator[Candidate]:
    chosen = NearDuplicates()
    for candidate, sketch in zip(candidates, sketches((one.example_id, one.text) for one in candidates), strict=True):
        if candidate.disagreement > 0 and not chosen.matches(sketch):
            chosen.add(sketch)
            yield candidate


def most_telling(
    config: MckdConfig, run: LastRun, metrics: tuple[Metric, ...], predicted: list[Predicted], count: int
) -> Review:
    """Test rows for an estimate of the student's score on all of them, see `retort.metrics.active_testing`."""
    problem = problem_of(run.student)
    units = np.array([_units(problem, one.text) for one in predicted])
    chances = draw_chances(np.array([one.confidence for one in predicted]), units)
    rows = tuple(
        ReviewRow(
            example_id=predicted[place].example_id,
            text=predicted[place].text,
            predicted=predicted[place].label,
            chance=float(chances[place]),
        )
        for place in draw(chances, count, config.method.seed)
    )
    known = {metric: _sums(problem, metric, predicted).tolist() for metric in metrics}
    return _review(config, run, "estimate", rows, len(predicted), known)


def _units(problem: Problem, text: str) -> float:
    """How many decisions a label is; one for a text that was written."""
    return max(1.0, len(problem.sites(len(problem.words(text))))) if problem.classes else 1.0


def _sums(problem: Problem, metric: Metric, predicted: list[Predicted]) -> Floats:
    total: Floats = sum((if_right(problem, metric, one.label) for one in predicted), start=np.zeros(1))
    return total


def test_predictions(run: LastRun) -> list[Predicted]:
    """What the final student said of the test rows in its run."""
    rows = run.test_scores.predictions(["example_id", "text", "predicted", "confidence"])
    return [Predicted(row["example_id"], row["text"], row["predicted"], row["confidence"] or 0.0) for row in rows]


def predictions_of(config: MckdConfig, source: str, student: LoadedStudent) -> tuple[list[Predicted], int]:
    """What the student says of the rows of a file, which need no label, and how many rows cannot be used."""
    read = read_pool(source, config.data.columns, student.problem, config.store.endpoint_url)
    rows = list(read)
    good = [row for row in rows if isinstance(row, Example)]
    if not good:
        raise DataError(f"--from '{source}': none of its {len(rows)} rows can be used")
    answers = student.label([row.text for row in good])
    found = [
        Predicted(row.example_id, row.text, answer.label, answer.confidence)
        for row, answer in zip(good, answers, strict=True)
    ]
    return found, len(rows) - len(good)


def _review(
    config: MckdConfig,
    run: LastRun,
    purpose: Purpose,
    rows: tuple[ReviewRow, ...],
    population: int,
    known: dict[Metric, list[float]],
) -> Review:
    manifest = run.student.manifest
    names = [[row.example_id, row.chance] for row in rows]
    return Review(
        review_id=digest([purpose, manifest.key, names])[:12],
        purpose=purpose,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        problem=manifest.fingerprint["params"]["problem"],
        student=run.store.ref(manifest).uri,
        rows=rows,
        population=population,
        known=known,
    )
