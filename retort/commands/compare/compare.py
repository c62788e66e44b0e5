"""Compares two sides row by row."""

from collections.abc import Iterator, Mapping, Sequence

from retort.commands.compare.sides import Asked, Side, Tested, find_sides
from retort.config import ClassificationConfig, Metric, MultiLabelConfig, Problem
from retort.errors import ConfigError
from retort.metrics.comparison import Systems, compare_systems, mcnemar_of
from retort.problems import problem_for
from retort.records.base import Label
from retort.report.comparison import Compared, Comparison, Difference, TestSet

SEED = 0
_WithLabels = ClassificationConfig | MultiLabelConfig


def compare(a: str, b: str, asked: Asked) -> Comparison:
    """Raises ConfigError, with one sentence, for what cannot be compared."""
    first, second = find_sides([a, b], asked)
    if first.problem.kind != second.problem.kind:
        raise ConfigError(
            f"'{a}' solves '{first.problem.kind}' and '{b}' '{second.problem.kind}': there is nothing to compare"
        )
    tests = tuple(_compared(first, second, *names) for names in _paired(first, second))
    return Comparison(a=_told(first), b=_told(second), tests=tests)


def _paired(a: Side, b: Side) -> Iterator[tuple[str, str]]:
    """Names of test sets that share rows: of equal names, or the only ones. Raises ConfigError if there are none."""
    pairs = [(name, name) for name in a.tests if name in b.tests]
    if not pairs and len(a.tests) == len(b.tests) == 1:
        pairs = [(*a.tests, *b.tests)]  # type: ignore[list-item]
    shared = [(one, other) for one, other in pairs if _common(a.tests[one], b.tests[other])]
    if not shared:
        counts = " and ".join(
            f"'{side.asked}' {sum(map(len, side.tests.values())):,} ({', '.join(side.tests)})" for side in (a, b)
        )
        raise ConfigError(
            f"no test row is in both, with the same id, text and gold label, so nothing can be compared: {counts}; run "
            "both with the same data.test"
        )
    yield from shared


def _common(a: Mapping[str, Tested], b: Mapping[str, Tested]) -> list[tuple[Tested, Tested]]:
    """Rows that both have."""
    pairs = ((row, b[example_id]) for example_id, row in a.items() if example_id in b)
    return [(one, other) for one, other in pairs if one.gold == other.gold and _same(one.text, other.text)]


def _same(text: str | None, other: str | None) -> bool:
    return text is None or other is None or text == other


def _compared(a: Side, b: Side, name: str, other: str) -> TestSet:
    rows = _common(a.tests[name], b.tests[other])
    metrics = tuple(dict.fromkeys((*a.metrics, *b.metrics)))
    problem = problem_for(_with_all_labels(a.problem, b.problem))
    golds = [row.gold for row, _ in rows]
    labels = [_by_seed([row for row, _ in rows]), _by_seed([row for _, row in rows])]
    size = min(map(len, labels))
    old, new = (Systems(problem, metrics, golds, own[:size]) for own in labels)
    only = mcnemar_of(old, new)

    def difference(metric: Metric) -> Difference:
        found = compare_systems(old, new, metric, a.resamples, SEED)
        return Difference(
            metric=metric,
            a=old.score(metric, a.resamples, SEED),
            b=new.score(metric, a.resamples, SEED),
            gain=found.gain,
            low=found.low,
            high=found.high,
            win_share=found.win_share,
        )

    return TestSet(
        name=name,
        rows=len(rows),
        rows_a=len(a.tests[name]),
        rows_b=len(b.tests[other]),
        differences=tuple(difference(metric) for metric in metrics),
        only_a=only.only_old,
        only_b=only.only_new,
        p_value=only.p_value,
    )


def _by_seed(rows: Sequence[Tested]) -> list[list[Label | None]]:
    """The labels of each seed's student."""
    return [list(labels) for labels in zip(*(row.labels for row in rows), strict=True)]


def _with_all_labels(a: Problem, b: Problem) -> Problem:
    """A's problem with the classes of both, as one side may know more of them."""
    if isinstance(a, _WithLabels) and isinstance(b, _WithLabels):
        known, more = a.labels or [], b.labels or []
        return a.model_copy(update={"labels": [*known, *(label for label in more if label not in known)]})
    return a


def _told(side: Side) -> Compared:
    return Compared(
        asked=side.asked,
        name=side.name,
        run_id=side.run_id,
        student=side.key,
        made_at=side.made_at,
        compute_seconds=side.compute_seconds,
        seconds=side.seconds,
        money=side.money,
        latency_ms=side.latency_ms,
        megabytes=side.megabytes,
    )
