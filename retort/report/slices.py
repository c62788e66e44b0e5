"""Scores on parts of the test rows: by group, by class, and by the length of the text."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from retort.config import ERRORS, Metric
from retort.io.parquet import Row
from retort.metrics.bootstrap import Statistics
from retort.metrics.format import shortened
from retort.metrics.scores import score_of, statistics_of
from retort.problems import Problem
from retort.report.quality import Slice

MIN_ROWS = 10
"""Slices with fewer test rows are left out, for their scores say little."""
SHOWN = 12
MOST = 200
"""Slices that are scored, the largest."""


def worst_slices(
    problem: Problem,
    metric: Metric,
    rows: Sequence[Row],
    groups: Mapping[str, str],
    *,
    by_class: bool,
    resamples: int,
    seed: int,
    statistics: Statistics | None = None,
) -> tuple[Slice, ...]:
    """The slices with the worst scores, the worst first.

    `rows` are predictions with example_id, text, gold, predicted. `groups` are by example_id, and empty if the rows
    have none. `by_class` says whether the first of a label's parts is a class. `statistics` `(rows, d)` replaces those
    of the predictions.
    """
    if not rows:
        return ()
    if statistics is None:
        statistics = statistics_of(problem, metric, [row["gold"] for row in rows], [row["predicted"] for row in rows])
    members: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        for name in _names(problem, row, groups, by_class):
            members.setdefault(name, []).append(at)
    members |= _by_length([row["text"] for row in rows])
    large = sorted((one for one in members.items() if len(one[1]) >= MIN_ROWS), key=lambda one: -len(one[1]))[:MOST]
    scored = [
        Slice(name=name, score=score_of(problem, metric, statistics[places], resamples, seed)) for name, places in large
    ]
    sign = -1 if metric in ERRORS else 1
    known = [one for one in scored if math.isfinite(one.score.value)]
    return tuple(sorted(known, key=lambda one: (sign * one.score.value, -one.score.n, one.name))[:SHOWN])


def _names(problem: Problem, row: Row, groups: Mapping[str, str], by_class: bool) -> Iterator[str]:
    if (group := groups.get(row["example_id"])) is not None:
        yield f"group {shortened(group, 40)}"
    if by_class and (parts := problem.parts(row["gold"])):
        yield f"gold {shortened(parts[0], 40)}"


def _by_length(texts: Sequence[str]) -> dict[str, list[int]]:
    """Quarters of the rows by their number of words; of characters, where words are not separated by spaces."""
    lengths, unit = np.array([len(text.split()) for text in texts]), "words"
    if np.median(lengths) < 2:
        lengths, unit = np.array([len(text) for text in texts]), "characters"
    edges = sorted({int(edge) for edge in np.quantile(lengths, (0.25, 0.5, 0.75))} - {int(lengths.max())})
    if not edges:
        return {}
    low, found = 0, {}
    for edge in [*edges, int(lengths.max())]:
        places = np.flatnonzero((lengths > low) & (lengths <= edge)).tolist()
        found[_range(low + 1, edge, unit)] = places
        low = edge
    return found


def _range(first: int, last: int, unit: str) -> str:
    if first == last:
        return f"{last} {unit}" if last > 1 else f"1 {unit.removesuffix('s')}"
    return f"up to {last} {unit}" if first == 1 else f"{first} to {last} {unit}"
