"""Which classes, intents and slots a student gets wrong, and what it predicts instead."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from retort.config import (
    ClassificationConfig,
    ConstituencyConfig,
    EntitiesConfig,
    MultiLabelConfig,
    RegressionConfig,
    SlotsConfig,
)
from retort.config import Problem as ProblemConfig
from retort.io.parquet import Row
from retort.metrics.format import shortened
from retort.problems import Problem
from retort.report.quality import Confusion, ErrorTable, HeatMap, NameErrors

CONFUSIONS_SHOWN = 15
MATRIX_CLASSES = 24
"""The confusion matrix is left out if there are more classes than this."""
HEAT_CLASSES = 16
"""More would be too small to read in the heat map, which shows the most often mistaken ones."""
NOTHING = "(none)"
"""Stands for the other side of a missed or invented span, and for a row without a prediction."""
OTHER_WORDS = "(other words)"
"""A span of the right name that covers other words."""
OTHERS = "(others)"
"""Stands in a heat map for all names that are left out."""


class _Span(NamedTuple):
    name: str
    start: int
    end: int
    """Words counted from 1, `end` included."""

    def overlap(self, other: "_Span") -> int:
        return max(0, min(self.end, other.end) - max(self.start, other.start) + 1)


class _Pair(NamedTuple):
    """A gold name and the name predicted for it."""

    gold: str
    predicted: str
    text: str


def error_tables(config: ProblemConfig, problem: Problem, rows: Iterable[Row]) -> tuple[ErrorTable, ...]:
    """`rows` are an evaluation's predictions: text, gold, predicted (None without a label)."""
    if isinstance(config, MultiLabelConfig | EntitiesConfig):
        return (_parts_table(config, problem, rows),)
    if not isinstance(config, SlotsConfig | ConstituencyConfig | ClassificationConfig | RegressionConfig):
        return ()
    wholes: list[_Pair] = []
    spans: list[_Pair] = []
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        gold = problem.parts(row["gold"])
        predicted = problem.parts(row["predicted"]) if row["predicted"] is not None else [NOTHING]
        wholes.append(_Pair(gold[0], predicted[0], row["text"]))
        if config.kind in ("slots", "constituency"):
            spans += _span_pairs(_spans(gold[1:]), _spans(predicted[1:]), row["text"], counts)
    match config:
        case SlotsConfig():
            return _span_table("Slots", spans, counts), _class_table("Intents", wholes)
        case ConstituencyConfig():
            return _span_table("Constituents", spans, counts), _class_table("Whole sentences", wholes)
        case ClassificationConfig(labels=labels):
            return (_class_table("Classes", wholes, labels),)
        case RegressionConfig():
            title = "Numbers" if config.has_class_for_each else "Numbers, to the nearest of these"
            return (_class_table(title, wholes, problem.classes),)


def _parts_table(config: MultiLabelConfig | EntitiesConfig, problem: Problem, rows: Iterable[Row]) -> ErrorTable:
    """Errors by class or type, for labels that consist of any number of parts."""
    pairs: list[_Pair] = []
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        gold, predicted = (problem.parts(row[name]) if row[name] is not None else [] for name in ("gold", "predicted"))
        if isinstance(config, EntitiesConfig):
            pairs += _span_pairs(_spans(gold), _spans(predicted), row["text"], counts)
        else:
            pairs += _set_pairs(set(gold), set(predicted), row["text"], counts)
    return _span_table("Entities" if isinstance(config, EntitiesConfig) else "Classes", pairs, counts)


def _set_pairs(gold: set[str], predicted: set[str], text: str, exact: Counter[tuple[str, str]]) -> list[_Pair]:
    """Pair the class that was missed with the wrong one, if there is one of each. Adds the counts for F1 to `exact`."""
    missed, wrong = sorted(gold - predicted), sorted(predicted - gold)
    exact.update((name, name) for name in gold & predicted)
    exact.update((name, NOTHING) for name in missed)
    exact.update((NOTHING, name) for name in wrong)
    if len(missed) == len(wrong) == 1:
        return [_Pair(missed[0], wrong[0], text)]
    return [_Pair(name, NOTHING, text) for name in missed] + [_Pair(NOTHING, name, text) for name in wrong]


def _class_table(title: str, pairs: Sequence[_Pair], order: Sequence[str] | None = None) -> ErrorTable:
    """Errors by class and the confusion matrix, for pairs with one name per row."""
    cells = Counter((pair.gold, pair.predicted) for pair in pairs)
    occurring = {name for cell in cells for name in cell} - {NOTHING}
    names = [name for name in order if name in occurring] if order else sorted(occurring)
    small = len(names) <= MATRIX_CLASSES
    return ErrorTable(
        title=title,
        names=tuple(_errors_on(name, cells) for name in names),
        confusions=_confusions(pairs),
        matrix=tuple(tuple(cells[gold, name] for name in [*names, NOTHING]) for gold in names) if small else None,
        heat=heat_map(cells, names),
    )


def _span_table(title: str, pairs: Sequence[_Pair], exact: Counter[tuple[str, str]]) -> ErrorTable:
    names = sorted({name for cell in exact for name in cell} - {NOTHING})
    cells = Counter({cell: count for cell, count in exact.items() if cell[0] == cell[1]})
    suffix = f" {OTHER_WORDS}"
    cells.update((pair.gold, OTHER_WORDS if pair.predicted.endswith(suffix) else pair.predicted) for pair in pairs)
    return ErrorTable(
        title=title,
        names=tuple(_errors_on(name, exact) for name in names),
        confusions=_confusions(pairs),
        heat=heat_map(cells, names),
    )


def heat_map(cells: Mapping[tuple[str, str], int], names: Sequence[str]) -> HeatMap | None:
    """The counts of (gold, predicted) with the names that are most often mistaken; None without two names."""
    if len(names) < 2:
        return None
    mistaken = Counter[str]()
    for cell, count in cells.items():
        for name in set(cell) if cell[0] != cell[1] else ():
            mistaken[name] += count
    most = sorted(names, key=lambda name: -mistaken[name])[:HEAT_CLASSES]
    shown = [name for name in names if name in most]
    counts: Counter[tuple[str, str]] = Counter()
    for cell, count in cells.items():
        gold, said = (name if name in (*most, NOTHING, OTHER_WORDS) else OTHERS for name in cell)
        counts[gold, said] += count
    extra = (OTHERS, OTHER_WORDS, NOTHING)
    gold_names = [*shown, *(name for name in extra if any(cell[0] == name for cell in counts))]
    said_names = [*shown, *(name for name in extra if any(cell[1] == name for cell in counts))]
    return HeatMap(
        gold=tuple(gold_names),
        predicted=tuple(said_names),
        counts=tuple(tuple(counts[gold, said] for said in said_names) for gold in gold_names),
    )


def _errors_on(name: str, cells: Counter[tuple[str, str]]) -> NameErrors:
    """`cells` counts (gold, predicted)."""
    right = cells[name, name]
    support = sum(count for (gold, _), count in cells.items() if gold == name)
    predicted = sum(count for (_, found), count in cells.items() if found == name)
    return NameErrors(
        name=name,
        precision=right / predicted if predicted else 0.0,
        recall=right / support if support else 0.0,
        f1=2 * right / (support + predicted) if support + predicted else 0.0,
        support=support,
        predicted=predicted,
    )


def _confusions(pairs: Iterable[_Pair]) -> tuple[Confusion, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for pair in pairs:
        if pair.gold != pair.predicted:
            counts[pair.gold, pair.predicted] += 1
            examples.setdefault((pair.gold, pair.predicted), pair.text)
    return tuple(
        Confusion(gold=gold, predicted=predicted, count=count, example=shortened(examples[gold, predicted]))
        for (gold, predicted), count in counts.most_common(CONFUSIONS_SHOWN)
    )


def _spans(parts: Iterable[str]) -> list[_Span]:
    """Parse the form that `Problem.parts` returns: `ARTIST:2-4`."""
    found = []
    for part in parts:
        name, _, place = part.rpartition(":")
        start, _, end = place.partition("-")
        found.append(_Span(name, int(start), int(end)))
    return found


def _span_pairs(
    gold: Sequence[_Span], predicted: Sequence[_Span], text: str, exact: Counter[tuple[str, str]]
) -> list[_Pair]:
    """Pair each missed span with the wrong span that covers most of it. Adds the counts for span F1 to `exact`."""
    right = set(gold) & set(predicted)
    missed, wrong = [s for s in gold if s not in right], [s for s in predicted if s not in right]
    exact.update((span.name, span.name) for span in right)
    exact.update((span.name, NOTHING) for span in missed)
    exact.update((NOTHING, span.name) for span in wrong)
    pairs = []
    for span in missed:
        rival = max(wrong, key=span.overlap, default=None)
        if rival is None or not span.overlap(rival):
            pairs.append(_Pair(span.name, NOTHING, text))
        else:
            same = rival.name == span.name
            pairs.append(_Pair(span.name, f"{rival.name} {OTHER_WORDS}" if same else rival.name, text))
    pairs += [_Pair(NOTHING, span.name, text) for span in wrong if not any(map(span.overlap, missed))]
    return pairs
