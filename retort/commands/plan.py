"""`retort plan`: what a run would do. Lists each step as HIT or MISS, and for a MISS what changed."""

from collections.abc import Iterator
from typing import Any, Literal

from retort.config import RecipeConfig
from retort.errors import DamagedArtifact
from retort.recipes import recipe_of
from retort.recipes.teacher_cost import forecasts, teacher_cost
from retort.recipes.walk import walk
from retort.records.base import ArtifactRef, Record
from retort.steps.base import Step
from retort.steps.ingest import Ingest
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import Store
from retort.store.opening import refusals, usable_store
from retort.tracking.champion import reigning_student
from retort.tracking.step import Track


class PlannedStep(Record):
    name: str
    status: Literal["HIT", "MISS"]
    changed: tuple[str, ...] = ()
    """For a MISS: the parts of the key that differ from the last artifact of this name; `new` if there was none."""


class Plan(Record):
    stages: tuple[PlannedStep, ...]
    teacher: dict[str, Any]
    """`kind`, and the cost of its labels: `requests`, `money`. For an LLM, all fields of `Forecast`; for several
    teachers, the sums and `members`."""

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        width = max(len(stage.name) for stage in self.stages)
        for stage in self.stages:
            yield f"{stage.status:4}  {stage.name:{width}}  {', '.join(stage.changed)}".rstrip()
        misses = sum(stage.status == "MISS" for stage in self.stages)
        yield f"{misses} of {len(self.stages)} stages would be made."
        yield from _teacher_lines(self.teacher)


def _teacher_lines(teacher: dict[str, Any]) -> Iterator[str]:
    money = "the price is not forecast" if teacher["money"] is None else f"{teacher['money']:.2f} to pay"
    yield f"teacher ({teacher['kind']}): {teacher['requests']} requests, {money}"
    for one in [teacher, *teacher.get("members", [])]:
        if "prompt_tokens" not in one:
            continue
        if not one["requests"]:
            yield f"  {one['kind']}: {one['known']} completions known"
            continue
        about = "" if one["exact_tokens"] else "about "
        seconds = "not known before the first run" if one["seconds"] is None else f"about {one['seconds']:.0f} s"
        yield (
            f"  {one['kind']}: {one['known']} completions known; {about}{one['prompt_tokens']:,} prompt tokens, "
            f"{one['cached_tokens']:,} of them in the shared prefix; about {one['completion_tokens']:,} completion "
            f"tokens; time {seconds}"
        )


async def plan(config: RecipeConfig) -> Plan:
    """Look up each of the recipe's steps in the store. Reads sources to fingerprint them, but writes and starts
    nothing."""
    with refusals():
        store = usable_store(config)
        look, recipe = _Lookup(store, config.name), recipe_of(config)
        await walk(recipe, config, look, reigning_student(config, store))
        found = forecasts(config, store, look.llm_labelings, look.ingests)
        return Plan(stages=tuple(look.planned), teacher=teacher_cost(recipe.teacher_facts(config), found))


async def repair(config: RecipeConfig) -> list[str]:
    """Discard every damaged artifact that a run of this config would use, so that the run makes it again. Returns a
    sentence for each."""
    store = usable_store(config)
    faults: list[str] = []

    def check(step: Step) -> ArtifactRef:
        try:
            manifest = store.find(step.artifact_kind, step.key)
            if manifest is not None:
                store.verify(manifest)
                return store.ref(manifest)
        except DamagedArtifact as damage:
            store.discard(step.artifact_kind, step.key)
            faults.append(f"{step.name}: {damage}")
        return ArtifactRef(uri="", kind=step.artifact_kind, key=step.key)

    with refusals():
        await walk(recipe_of(config), config, check, reigning_student(config, store))
    return faults


class _Lookup:
    """Finds each step in the store, or what is new about it."""

    def __init__(self, store: Store, run_name: str) -> None:
        self._store, self._run_name = store, run_name
        self.planned: list[PlannedStep] = []
        self.llm_labelings: list[PseudolabelLlm] = []
        """Labelings by an LLM that are not in the store."""
        self.ingests: dict[str, Ingest] = {}
        """Ingest steps by key."""

    def __call__(self, step: Step) -> ArtifactRef:
        if isinstance(step, Ingest):
            self.ingests[step.key] = step
        manifest = self._store.find(step.artifact_kind, step.key)
        if manifest is not None and isinstance(step, Track) and not step.is_projected(self._store):
            self.planned.append(PlannedStep(name=step.name, status="MISS", changed=("the tracking run is gone",)))
        elif manifest is not None:
            self.planned.append(PlannedStep(name=step.name, status="HIT"))
            return self._store.ref(manifest)
        else:
            before = self._store.latest(self._run_name, step.name)
            changed = differences(before.fingerprint, step.fingerprint) if before else ("new",)
            self.planned.append(PlannedStep(name=step.name, status="MISS", changed=changed))
            if isinstance(step, PseudolabelLlm):
                self.llm_labelings.append(step)
        return ArtifactRef(uri="", kind=step.artifact_kind, key=step.key)


def differences(before: Any, after: Any, path: str = "") -> tuple[str, ...]:
    """`training.epochs: 6 -> 8` for each leaf that differs. Digests are too long to print, so only their names are
    given."""
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
