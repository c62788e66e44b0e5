"""Finds what `retort compare` was asked to compare: the final student of a run, and how it labeled the test rows."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter

from retort.artifacts.reports import SUMMARY
from retort.artifacts.scores import Scores, SeedScores
from retort.artifacts.verdicts import Verdict
from retort.config import Metric, Problem, RecipeConfig
from retort.errors import ConfigError
from retort.recipes import load_config, recipe_of
from retort.records.base import Label
from retort.report.course import ArmCost
from retort.serving.addresses import find_student
from retort.store import Manifest, Store
from retort.store.opening import refusals, usable_store
from retort.store.runs import RunRecord, runs

DEFAULT_STORE = ".retort/store"
ID_CHARACTERS = 4
"""At least so many of a run's id name it."""
_STUDENT = re.compile(r"models:/.+|[^/]+@[^/]+|.+/students/[0-9a-f]{2}/[0-9a-f]{64}/*")
_CONFIG = re.compile(r".+\.ya?ml", re.IGNORECASE)


class _Told(BaseModel, extra="ignore"):
    """The facts of any recipe's report that are compared. Other fields differ between recipes and versions."""

    name: str
    model_key: str
    made_at: str
    metrics: tuple[Metric, ...]
    compute_seconds: float
    config: dict[str, Any]
    arm_costs: tuple[ArmCost, ...] = ()
    gate: Verdict | None = None
    data: tuple[dict[str, Any], ...] = ()
    """MCKD: role and key of each set of rows."""
    data_keys: dict[str, str] = {}
    """Soft-label: keys by role."""
    student: dict[str, Any] = {}

    @property
    def tests(self) -> dict[str, str]:
        """Names of the test sets by the keys of their rows."""
        keys = {one["role"]: one["key"] for one in self.data if one["role"] == "test"} or self.data_keys
        return {key: role for role, key in keys.items() if role not in ("train", "dev", "unlabeled")}


class Tested(NamedTuple):
    """A row of a test set."""

    text: str | None
    """None where only the answers were kept."""
    gold: Label
    labels: tuple[Label | None, ...]
    """Of the student; of each seed, where the students of an arm were scored together."""


class Side(NamedTuple):
    """One of the two."""

    asked: str
    """As on the command line."""
    name: str
    """Of the config."""
    run_id: str
    key: str
    """Of the student's artifact."""
    made_at: str
    problem: Problem
    metrics: tuple[Metric, ...]
    resamples: int
    tests: dict[str, dict[str, Tested]]
    """By test set, then by example_id."""
    compute_seconds: float
    """Of the whole run, with its baselines."""
    seconds: float | None
    """Of all that the final student rests on; None in reports of before costs were kept."""
    money: float | None
    latency_ms: float | None
    """Of one row, as the gate measured it; None if the run had no gate."""
    megabytes: float | None


class Asked(NamedTuple):
    """What the command line says besides the two."""

    overrides: Sequence[str] = ()
    store: str | None = None
    tracking: str | None = None


def find_sides(names: Sequence[str], asked: Asked) -> list[Side]:
    """Raises ConfigError, with one sentence, for what cannot be compared or is not known."""
    with refusals():
        named = {name: _found(name, asked) for name in names if not _is_run(name)}
        stores = [Store(asked.store)] if asked.store else [store for store, _ in named.values()]
        found = {
            name: _run_of(name, stores or [_default_store(name)]) if _is_run(name) else named[name] for name in names
        }
        return [_side(name, *found[name]) for name in names]


def _is_run(name: str) -> bool:
    return not _STUDENT.fullmatch(name) and not _CONFIG.fullmatch(name) and not Path(name).is_file()


def _found(name: str, asked: Asked) -> tuple[Store, "_Run"]:
    if _STUDENT.fullmatch(name):
        student = find_student(name, asked.tracking)
        return student.store, _run_with(name, student.store, student.manifest.key)
    config = load_config(name, asked.overrides)
    store = usable_store(config)
    return store, _run_with_settings(name, store, recipe_of(config).resolve(config))


class _Run(NamedTuple):
    """A finished run, with its report."""

    record: RunRecord
    report: Manifest
    told: _Told


def _run_with(name: str, store: Store, key: str) -> _Run:
    """The newest run whose final student is the artifact with this key."""
    for run in _runs(store, (one for one in runs(store) if f"students/{key}" in one.artifacts)):
        if run.told.model_key == key:
            return run
    raise ConfigError(
        f"'{name}': no run that {store.root} still knows of has this student as its final one, so its scores on the "
        "test rows are not known; `retort run` with its config finds what is stored and scores it again"
    )


def _run_with_settings(name: str, store: Store, config: RecipeConfig) -> _Run:
    """The newest run of the config with just these settings."""
    wanted = json.loads(json.dumps(config.as_reported()))
    others: list[_Run] = []
    for run in _runs(store, runs(store, config.name)):
        if not _differences(run.told.config, wanted):
            return run
        others.append(run)
    if not others:
        raise ConfigError(f"'{name}': no run of '{config.name}' has finished in {store.root}: `retort run {name}`")
    first, *more = _differences(others[0].told.config, wanted)
    rest = f" and {len(more)} other field{'s' if len(more) > 1 else ''} differ" if more else ""
    raise ConfigError(
        f"'{name}': no finished run of '{config.name}' in {store.root} has these settings; the last one had {first}"
        f"{rest}. `retort run {name}` makes one, or name that run: {others[0].record.run_id[:8]}"
    )


def _differences(there: Any, here: Any, field: str = "") -> list[str]:
    """Fields that both have, with other values. A field that only one has is of another version of Retort."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        both = [name for name in here if name in there]
        return [one for name in both for one in _differences(there[name], here[name], f"{field}.{name}".lstrip("."))]
    return [] if there == here else [f"{field} = {json.dumps(there)[:60]} (here {json.dumps(here)[:60]})"]


def _default_store(name: str) -> Store:
    if not Path(DEFAULT_STORE).is_dir():
        raise ConfigError(f"'{name}' is no file, so it is taken for a run, of which --store must name the store")
    return Store(DEFAULT_STORE)


def _run_of(name: str, stores: Sequence[Store]) -> tuple[Store, _Run]:
    """The run with this id, or its beginning, or the newest of this config's name."""
    for store in stores:
        known = runs(store)
        by_id = [one for one in known if len(name) >= ID_CHARACTERS and one.run_id.startswith(name)]
        if len({one.run_id for one in by_id}) > 1:
            raise ConfigError(f"'{name}' is the beginning of the ids of {len(by_id)} runs in {store.root}: give more")
        for run in _runs(store, [one for one in known if one.name == name] or by_id):
            return store, run
    names = ", ".join(sorted({one.name for one in known})[:10]) or "(none)"
    raise ConfigError(
        f"'{name}' is no file, no registered student (models:/NAME/VERSION) and no run in {stores[-1].root}, which has "
        f"runs of {names}; a run is named by its config's name or the first characters of its id"
    )


def _runs(store: Store, records: Iterable[RunRecord]) -> Iterator[_Run]:
    """Those of which the report is still there."""
    for record in records:
        keys = [artifact.partition("/")[2] for artifact in record.artifacts if artifact.startswith("reports/")]
        report = store.find("reports", keys[0]) if keys else None
        if report is not None:
            yield _Run(record, report, _Told.model_validate_json(store.open_file(report, SUMMARY).read_bytes()))


def _side(asked: str, store: Store, run: _Run) -> Side:
    told, params = run.told, run.report.fingerprint["params"]
    settings = told.config.get("evaluation", told.config)
    final = next((cost for cost in told.arm_costs if cost.name == "final student"), None)
    return Side(
        asked=asked,
        name=told.name,
        run_id=run.record.run_id,
        key=told.model_key,
        made_at=told.made_at,
        problem=TypeAdapter[Problem](Problem).validate_python(params["problem"]),
        metrics=told.metrics,
        resamples=int(settings.get("resamples", 1000)),
        tests=dict(_tests(asked, store, run)),
        compute_seconds=told.compute_seconds,
        seconds=final.seconds if final else None,
        money=final.money if final else None,
        latency_ms=told.gate.cost.latency_ms if told.gate else None,
        megabytes=told.gate.cost.megabytes if told.gate else None,
    )


def _tests(asked: str, store: Store, run: _Run) -> Iterator[tuple[str, dict[str, Tested]]]:
    """(name, rows) of each test set. The final student's own labels if they were kept, else those of its arm."""
    artifacts = [artifact.split("/") for artifact in run.record.artifacts]
    scores = [found for kind, key in artifacts if kind == "scores" and (found := store.find(kind, key))]
    for key, name in run.told.tests.items():
        on_test = [one for one in scores if one.fingerprint["inputs"].get("gold") == [key]]
        own = [one for one in on_test if one.fingerprint["inputs"].get("student") == [run.told.model_key]]
        arm = [one for one in on_test if one.name == f"{run.told.student.get('arm')}/{name}-scores"]
        if not (own or arm):
            raise ConfigError(
                f"'{asked}': {store.root} has no scores of its final student on the rows of '{name}' any more; `retort "
                "run` with its config makes them again"
            )
        yield name, _labels(store, own[0]) if own else _labels_of_seeds(store, arm[0])


def _labels(store: Store, scores: Manifest) -> dict[str, Tested]:
    rows = Scores.open(store, store.ref(scores)).predictions()
    return {row["example_id"]: Tested(row["text"], row["gold"], (row["predicted"],)) for row in rows}


def _labels_of_seeds(store: Store, scores: Manifest) -> dict[str, Tested]:
    opened = SeedScores.open(store, store.ref(scores))
    rows = zip(opened.gold(), zip(*opened.answers(), strict=True), strict=True)
    return {example_id: Tested(None, gold, labels) for (example_id, gold), labels in rows}
