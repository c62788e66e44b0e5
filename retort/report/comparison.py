"""Two students on the same test rows: the differences, and how they are told."""

from retort.config import ERRORS, Metric
from retort.metrics.format import TITLES, gain_text, p_text, score_text, seconds_text, with_interval
from retort.records.base import Record, Score
from retort.report.base import Table


class Compared(Record):
    """One side of a comparison."""

    asked: str
    """As on the command line."""
    name: str
    """Of the config."""
    run_id: str
    student: str
    """The key of the student's artifact."""
    made_at: str
    compute_seconds: float
    """Of the whole run, with its baselines."""
    seconds: float | None
    """Of all that the final student rests on; None in reports of before costs were kept. So is `money`."""
    money: float | None
    latency_ms: float | None
    """Of one row on one CPU thread; None if the run had no gate. So is `megabytes`."""
    megabytes: float | None


class Difference(Record):
    """One metric."""

    metric: Metric
    a: Score
    b: Score
    gain: float
    """How much better B is; of an error, by how much it is less."""
    low: float
    """Lower end of the gain's 95 % interval (paired bootstrap over rows)."""
    high: float
    win_share: float
    """Share of resamples in which B is better, in [0, 1]."""

    @property
    def verdict(self) -> str:
        """In one sentence, without its subject."""
        told = f"{gain_text(self.metric, self.gain)} {TITLES[self.metric]}, 95 % interval {self._interval}"
        if self.low > 0 or self.high < 0:
            return f"B is {'better' if self.low > 0 else 'worse'} than A: {told}"
        if self.low == self.high == 0:
            return f"A and B are equal in {TITLES[self.metric]}"
        return f"the difference may be chance: {told}"

    @property
    def _interval(self) -> str:
        return f"{gain_text(self.metric, self.low)} to {gain_text(self.metric, self.high)}"

    @property
    def cell(self) -> str:
        low, high = gain_text(self.metric, self.low), gain_text(self.metric, self.high)
        return f"{gain_text(self.metric, self.gain)} [{low}, {high}]"


class TestSet(Record):
    """The differences on one test set."""

    __test__ = False  # no class of tests, whatever pytest thinks

    name: str
    rows: int
    """Rows that both have, with the same text and gold label."""
    rows_a: int
    rows_b: int
    differences: tuple[Difference, ...]
    only_a: int
    """Rows whose whole label only A gets right."""
    only_b: int
    p_value: float
    """McNemar's p for these two counts."""

    @property
    def says(self) -> str:
        """What to see, in sentences."""
        deciding = self.differences[0]
        told = f"On {self.rows:,} test row{'' if self.rows == 1 else 's'} {deciding.verdict}."
        only = f" Whole labels: only A right {self.only_a:,}, only B right {self.only_b:,}, {p_text(self.p_value)}."
        if self.rows < max(self.rows_a, self.rows_b):
            told = (
                f"A has {self.rows_a:,} and B {self.rows_b:,} test rows; the {self.rows:,} that both have are "
                f"compared. {told}"
            )
        return told + only


class Comparison(Record):
    a: Compared
    b: Compared
    tests: tuple[TestSet, ...]

    @property
    def notes(self) -> list[str]:
        return ["A and B are the same student."] if self.a.student == self.b.student else []


def score_table(test: TestSet) -> Table:
    """The difference comes first, as the last columns may not fit a terminal."""
    rows = tuple((TITLES[one.metric], one.cell, with_interval(one.a), with_interval(one.b)) for one in test.differences)
    return Table(("", "B over A", "A", "B"), rows)


def cost_table(comparison: Comparison) -> Table:
    """What both cost, with the change from A to B; what neither run knows is left out."""
    a, b = comparison.a, comparison.b
    lines = (
        ("compute for the student", _seconds(a.seconds), _seconds(b.seconds), _times(a.seconds, b.seconds)),
        (
            "compute of the whole run",
            _seconds(a.compute_seconds),
            _seconds(b.compute_seconds),
            _times(a.compute_seconds, b.compute_seconds),
        ),
        ("money for labels", _number(a.money), _number(b.money), _times(a.money, b.money)),
        (
            "one row on one CPU thread, ms",
            _number(a.latency_ms),
            _number(b.latency_ms),
            _times(a.latency_ms, b.latency_ms),
        ),
        ("weights, MB", _number(a.megabytes), _number(b.megabytes), _times(a.megabytes, b.megabytes)),
    )
    known = tuple(line for line in lines if (line[1], line[2]) != ("-", "-"))
    return Table(("cost", "A", "B", "B / A"), known)


def axis_values(difference: Difference) -> tuple[float, float, float]:
    """(gain, low, high) as drawn: in percent points, or in the unit of the labels."""
    scale = 1 if difference.metric in ERRORS else 100
    return scale * difference.gain, scale * difference.low, scale * difference.high


def side_line(letter: str, side: Compared) -> str:
    run = f", run {side.run_id[:8]}" if side.run_id else ""
    return f"{letter}: {side.asked} ({side.name}{run}, student {side.student[:12]} of {side.made_at[:10]})"


def _seconds(value: float | None) -> str:
    return "-" if value is None else seconds_text(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _times(a: float | None, b: float | None) -> str:
    return f"{b / a:.2f}" if a and b is not None else "-"


def plain_scores(difference: Difference) -> str:
    """`89.6 -> 91.2`"""
    return " \u2192 ".join(score_text(difference.metric, one.value) for one in (difference.a, difference.b))
