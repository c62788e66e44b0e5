"""`retort sweep`: one run per value of a field, side by side in a table and a picture.

Every run goes through the store, so a sweep that was stopped goes on where it was, and what settings have in common is
made once. Nothing is registered: a sweep looks for a setting, not for a champion.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retort.config import ERRORS
from retort.errors import ConfigError
from retort.metrics.format import score_text
from retort.recipes import load_config
from retort.report.base import Table

BASELINES = ("vanilla-kd", "supervised")
"""Steps `NAME/test` that are shown beside the final student."""

Setting = tuple[tuple[str, str], ...]
"""(field, value) pairs."""


class Point(NamedTuple):
    """The outcome of one setting; `failed` holds the exit code of a run that failed."""

    setting: Setting
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baselines: dict[str, float] = {}  # noqa: RUF012 - never changed
    seconds: float = 0.0
    failed: int = 0


def settings_of(vary: Sequence[str]) -> list[Setting]:
    """Every combination of `FIELD=V1,V2` options. Raises ConfigError for one without two values."""
    axes = []
    for option in vary:
        field, equals, listed = option.partition("=")
        values = [value.strip() for value in listed.split(",") if value.strip()]
        if not equals or len(values) < 2:
            raise ConfigError(f"--vary {option}: give a field and two values or more, as data.limit=500,1000,5000")
        axes.append([(field, value) for value in values])
    return list(itertools.product(*axes))


def sweep(config: str, overrides: Sequence[str], vary: Sequence[str]) -> Iterator[Point]:
    """Run every setting; yields each outcome as it is there. All settings are checked before the first run starts.

    Raises ConfigError for a setting that is no config.
    """
    settings = settings_of(vary)
    fields = {setting: _fields(overrides, setting) for setting in settings}
    for setting in settings:
        load_config(config, fields[setting])
    for setting in settings:
        yield _run(config, fields[setting], setting)


def _fields(overrides: Sequence[str], setting: Setting) -> list[str]:
    return [*overrides, *(f"{field}={value}" for field, value in setting), "tracking=null"]


def _run(config: str, fields: Sequence[str], setting: Setting) -> Point:
    options = [argument for field in fields for argument in ("--set", field)]
    command = [sys.executable, "-m", "retort.cli", "run", config, "--json", "--quiet", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return Point(setting, failed=done.returncode)
    told = json.loads(done.stdout.splitlines()[-1])
    metric, score = _first_score(told["final"]["scores"])
    by_step = {stage["name"]: stage["scores"] for stage in told["stages"]}
    return Point(
        setting,
        metric,
        score.get("value", score.get("mean")),
        score["low"],
        score["high"],
        {name: by_step[f"{name}/test"][metric] for name in BASELINES if metric in by_step.get(f"{name}/test", {})},
        told["seconds"],
    )


def _first_score(scores: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The deciding metric and its score; the first test set's, where there are several."""
    metric, score = next(iter(scores.items()))
    return (metric, score) if "low" in score else _first_score(score)


def sweep_table(points: Sequence[Point]) -> Table:
    """One line per setting: its values, the final student's score and those of the baselines, and the run's seconds."""
    fields = [field for field, _ in points[0].setting]
    baselines = [name for name in BASELINES if any(name in point.baselines for point in points)]
    metric = next((point.metric for point in points if point.metric), "score")
    rows = tuple(
        (
            ", ".join(value for _, value in point.setting),
            f"failed ({point.failed})" if point.failed else _with_interval(point),
            *(
                score_text(point.metric, point.baselines[name]) if name in point.baselines else "-"
                for name in baselines
            ),
            f"{point.seconds:.0f}",
        )
        for point in points
    )
    return Table((", ".join(fields), f"final student, {metric}", *baselines, "seconds"), rows)


def _with_interval(point: Point) -> str:
    values = (point.value, point.low, point.high)
    value, low, high = (score_text(point.metric, one or 0.0) for one in values)
    return f"{value} [{low}, {high}]"


def draw_sweep(points: Sequence[Point], path: Path) -> None:
    """A curve over the values of the field, or over the settings where there are several fields or no numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [point for point in points if not point.failed]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [", ".join(value for _, value in point.setting) for point in good]
    places = [float(name) for name in names] if all(map(_is_number, names)) else list(map(float, range(len(good))))
    is_error = bool(good) and good[0].metric in ERRORS
    scale, unit = (1, "in the unit of the labels") if is_error else (100, "percent")
    values = [scale * (point.value or 0.0) for point in good]
    below = [scale * ((point.value or 0.0) - (point.low or 0.0)) for point in good]
    above = [scale * ((point.high or 0.0) - (point.value or 0.0)) for point in good]
    axes.errorbar(places, values, yerr=[below, above], marker="o", capsize=3, label="final student")
    for name in BASELINES:
        if all(name in point.baselines for point in good):
            axes.plot(places, [scale * point.baselines[name] for point in good], marker=".", ls="--", label=name)
    if min(places, default=0) > 0 and max(places) > 8 * min(places):
        axes.set_xscale("log")
    axes.set_xticks(places, names)
    axes.minorticks_off()
    axes.set_xlabel(", ".join(field for field, _ in points[0].setting))
    axes.set_ylabel(f"{good[0].metric}, {unit}, with 95 % intervals" if good else "")
    axes.set_title("The final student by setting, on the test rows")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
