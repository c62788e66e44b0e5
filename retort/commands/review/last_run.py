"""What the last finished run of a config made, as far as people are asked about it."""

from collections.abc import Iterator
from dataclasses import dataclass

from retort.artifacts.examples import Examples
from retort.artifacts.hygiene import Hygiene
from retort.artifacts.pseudolabels import Pseudolabels
from retort.artifacts.reports import Report
from retort.artifacts.scores import Scores
from retort.config import MckdConfig, RecipeConfig
from retort.errors import ConfigError
from retort.recipes import recipe_of
from retort.report.mckd.summary import MckdSummary
from retort.serving.addresses import FoundStudent, ModelName
from retort.store import Manifest, Store
from retort.store.runs import RunRecord, read_runs, run_paths


@dataclass(frozen=True)
class LastRun:
    store: Store
    pool: Examples
    labeled: Examples
    labels: dict[str, Pseudolabels]
    """By who gave them: `teacher`, `stage 1` and so on, `fine-tuned`."""
    student: FoundStudent
    test_scores: Scores


def last_run(config: RecipeConfig, store: Store) -> LastRun:
    """Raises ConfigError if no run of this recipe has finished, or what it made is gone."""
    if not isinstance(config, MckdConfig):
        raise ConfigError(
            f"kind = '{recipe_of(config).kind}': only runs of the recipe mckd have rows for people to review"
        )
    record = next(read_runs(store, run_paths(store, config.name)[:1]), None)
    made = list(_manifests(store, record)) if record else []
    by_key = {one.key: one for one in made}
    looked = next((one for one in made if one.kind == Hygiene.kind), None)
    page = next((one for one in made if one.kind == Report.kind), None)
    if looked is None or page is None:
        raise ConfigError(f"'{config.name}' has no finished run in {store.root}: `retort run` it first")
    roles = {role: keys[0] for role, keys in looked.fingerprint["inputs"].items()}
    final = Report.open(store, store.ref(page)).summary(MckdSummary).model_key
    wanted = {"student": [final], "gold": [roles["test"]]}
    scores = next((one for one in made if one.kind == Scores.kind and one.fingerprint["inputs"] == wanted), None)
    missing = [key for key in (roles["pool"], roles["labeled"], final) if key not in by_key]
    if scores is None or missing:
        raise ConfigError(f"'{config.name}': part of its last run is gone from {store.root}; run it again")
    pool, labeled = (Examples.open(store, store.ref(by_key[roles[role]])) for role in ("pool", "labeled"))
    return LastRun(
        store=store,
        pool=pool,
        labeled=labeled,
        labels={name: Pseudolabels.open(store, store.ref(one)) for name, one in _labelings(made)},
        student=FoundStudent(store, by_key[final], ModelName(key=final)),
        test_scores=Scores.open(store, store.ref(scores)),
    )


def _manifests(store: Store, record: RunRecord) -> Iterator[Manifest]:
    """In the order of execution, without those that were freed."""
    for artifact in record.artifacts:
        kind, _, key = artifact.rpartition("/")
        if (manifest := store.find(kind, key)) is not None:
            yield manifest


def _labelings(made: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for stage, one in enumerate(one for one in made if one.kind == Pseudolabels.kind):
        fine_tuned = one.name.startswith("fine-tuning/")
        yield "fine-tuned" if fine_tuned else f"stage {stage}" if stage else "teacher", one
