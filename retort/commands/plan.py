"""What a run would do, without doing it: each stage with HIT or MISS, and for a MISS what changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from retort.config import LlmTeacherConfig, MckdConfig
from retort.config.soft_label import Job, SoftLabelConfig
from retort.errors import DamagedArtifact
from retort.recipes.mckd.baselines import compare_baselines
from retort.recipes.mckd.challenge import challenge
from retort.recipes.mckd.checks import refusals, resolve, usable_store
from retort.recipes.mckd.pipeline import Do, distil, ingest_data
from retort.recipes.soft_label.checks import resolve_scores
from retort.recipes.soft_label.pipeline import distil_scores
from retort.records.base import ArtifactRef, Champion, Record, Step
from retort.report.soft_label.step import report_scores
from retort.report.step import report
from retort.steps.teacher_cost import teacher_cost
from retort.store import Manifest, Store
from retort.tracking.champion import reigning_student
from retort.tracking.mckd import is_projected
from retort.tracking.soft_label_step import track_scores
from retort.tracking.step import TRACKED, track

Look = Callable[[Step], ArtifactRef]


class PlannedStep(Record):
    name: str
    status: Literal["HIT", "MISS"]
    changed: tuple[str, ...] = ()
    """Of a MISS: the parts of the key that differ from the last artifact of this name; `new` if there was none."""


class Plan(Record):
    stages: tuple[PlannedStep, ...]
    teacher: dict[str, Any]
    """`kind`, and what asking it would cost: `requests`, `money`; of a teacher that is asked row by row all of
    `Forecast`; of an ensemble the sums, and `members`."""


async def plan(config: Job) -> Plan:
    """Walk the algorithm over the store. Reads sources to know their content; writes and starts nothing."""
    with refusals():
        store = usable_store(config)
        look = _Lookup(store, config.name)
        if isinstance(config, SoftLabelConfig):
            await walk_scores(config, look)
            return Plan(stages=tuple(look.planned), teacher=score_cost(config, look.asked))
        await walk(config, look, reigning_student(config, store))
        return Plan(stages=tuple(look.planned), teacher=teacher_cost(resolve(config), store, look.asked))


async def repair(config: Job) -> list[str]:
    """Forget every artifact that a run of this config would use and whose files are not what its manifest says, so
    that the run makes it again. Returns a sentence for each."""
    store = usable_store(config)
    faults: list[str] = []

    def check(stage: Step) -> ArtifactRef:
        try:
            manifest = store.find(stage.kind, stage.key)
            if manifest is not None:
                store.verify(manifest)
                return store.ref(manifest)
        except DamagedArtifact as damage:
            store.discard(stage.kind, stage.key)
            faults.append(f"{stage.name}: {damage}")
        return ArtifactRef(uri="", kind=stage.kind, key=stage.key)

    with refusals():
        if isinstance(config, SoftLabelConfig):
            await walk_scores(config, check)
        else:
            await walk(config, check, reigning_student(config, store))
    return faults


async def stages_of(config: Job, store: Store, reigning: Champion | None = None) -> list[Step]:
    """Every stage of a run, in the order of the work; a verdict that is not known yet counts as accepted."""
    stages: list[Step] = []

    def look(stage: Step) -> ArtifactRef:
        stages.append(stage)
        manifest = store.find(stage.kind, stage.key)
        return store.ref(manifest) if manifest else ArtifactRef(uri="", kind=stage.kind, key=stage.key)

    if isinstance(config, SoftLabelConfig):
        await walk_scores(config, look)
    else:
        await walk(config, look, reigning)
    return stages


async def walk(config: MckdConfig, look: Look, reigning: Champion | None = None) -> None:
    """The whole run, where each stage is only looked at."""
    do = _at_once(look)
    config = resolve(config)
    distilled = await distil(config, await ingest_data(config, do), do, reigning)
    distilled = await compare_baselines(config, distilled, do)
    distilled = await challenge(config, distilled, reigning, do)
    page = await do(report(config, distilled))
    if config.tracking:
        await do(track(config, config.tracking, distilled, page, {}))


async def walk_scores(config: SoftLabelConfig, look: Look) -> None:
    """The same for the score flow."""
    do = _at_once(look)
    config = resolve_scores(config)
    scored = await distil_scores(config, do)
    page = await do(report_scores(config, scored))
    if config.tracking:
        await do(track_scores(config, config.tracking, scored, page, {}))


def score_cost(config: SoftLabelConfig, asked: list[Step]) -> dict[str, Any]:
    """A fine-tuned or recorded teacher costs nothing; of one that is asked row by row, how many rows it is asked about,
    as far as they are in the store."""
    if not isinstance(config.teacher, LlmTeacherConfig):
        return {"kind": config.teacher.kind, "requests": 0, "money": 0.0}
    requests = sum(ref.rows for stage in asked for ref in stage.inputs["pool"])
    return {"kind": config.teacher.kind, "requests": requests, "money": None}


def _at_once(look: Look) -> Do:
    """A `do` with nothing to wait for: coroutines that an error leaves behind unawaited would be warned about."""

    def do(stage: Step) -> Awaitable[ArtifactRef]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(look(stage))
        return answer

    return do


class _Lookup:
    """Finds each stage in the store, or what is new about it."""

    def __init__(self, store: Store, run_name: str) -> None:
        self._store, self._run_name = store, run_name
        self.planned: list[PlannedStep] = []
        self.asked: list[Step] = []
        """Stages not in the store in which a teacher would be asked row by row."""

    def __call__(self, stage: Step) -> ArtifactRef:
        manifest = self._store.find(stage.kind, stage.key)
        if manifest is not None and stage.verb in ("track", "track-scores") and not self._is_tracked(stage, manifest):
            self.planned.append(PlannedStep(name=stage.name, status="MISS", changed=("the tracking run is gone",)))
        elif manifest is not None:
            self.planned.append(PlannedStep(name=stage.name, status="HIT"))
            return self._store.ref(manifest)
        else:
            before = self._store.latest(self._run_name, stage.name)
            changed = differences(before.made_of, stage.made_of) if before else ("new",)
            self.planned.append(PlannedStep(name=stage.name, status="MISS", changed=changed))
            if stage.params.get("teacher") == "asked":
                self.asked.append(stage)
        return ArtifactRef(uri="", kind=stage.kind, key=stage.key)

    def _is_tracked(self, stage: Step, manifest: Manifest) -> bool:
        return is_projected(stage.params["uri"], self._store.fetch(self._store.ref(manifest)) / TRACKED)


def differences(before: Any, after: Any, path: str = "") -> tuple[str, ...]:
    """`training.epochs: 6 -> 8` for each leaf that differs; digests are too long to print and only named."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted(before.keys() | after.keys())
        parts = (differences(before.get(n), after.get(n), f"{path}.{n}".lstrip(".")) for n in names)
        return tuple(change for part in parts for change in part)
    if before == after:
        return ()
    path = path.removeprefix("params.")
    if path.startswith("inputs.") or path in ("content", "completions", "weights"):
        return (path,)
    return (f"{path}: {_short(before)} -> {_short(after)}",)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
