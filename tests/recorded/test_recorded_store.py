"""A store that an earlier version made is found whole, and can be read."""

import asyncio
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.examples import Examples
from retort.artifacts.grids import Grid
from retort.artifacts.probabilities import Probabilities
from retort.artifacts.pseudolabels import Pseudolabels
from retort.artifacts.reports import Report
from retort.artifacts.scores import Scores, SeedScores
from retort.artifacts.students import TrainedStudent
from retort.artifacts.times import Times
from retort.artifacts.verdicts import Selection
from retort.commands.plan import plan
from retort.recipes import load_config, recipe_of
from retort.recipes.mckd import pipeline
from retort.recipes.mckd.steps import ingests
from retort.recipes.walk import steps_of
from retort.steps.base import Step
from retort.steps.cross_label import StudentStep
from retort.steps.gather_probabilities import GatherProbabilities
from retort.steps.pseudolabel_recorded import PseudolabelRecorded
from retort.steps.score_predictions import ScorePredictions
from retort.store import Store
from retort.store.opening import open_store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEFAULTS: dict[str, list[str]] = {
    "slots": [
        "student.training.min_updates=0",
        "method.min_confidence=0",
        "method.partitions=2",
        "method.scheme=disjoint",
        "method.cross_labels=hard",
        "method.fine_tuning.kind=never",
    ],
    "classes": ["student.training.min_updates=0"],
    "answers": [],
}
"""What 0.1.0 did where its files said nothing."""
KEPT = ("ingest/", "stage0/", "teacher/", "stage1/student-", "stage1/judge-", "stage1/test-")
"""Names of steps that mean what they meant."""
EXAMPLES: list[dict[str, Any]] = json.loads((HERE / "keys.json").read_text())


def steps_by_name(example: dict[str, Any], folder: Path, *overrides: str) -> dict[str, Step]:
    # In a store of its own: hygiene compares with the last night that the config's store knows.
    config = load_config(example["config"], [*example["overrides"], *overrides, f"store.root={folder}"])
    steps = asyncio.run(steps_of(recipe_of(config), config, Store(str(folder))))
    return {step.name: step for step in steps}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["config"])
def test_steps_keep_their_keys(example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {name: step.key for name, step in steps_by_name(example, tmp_path).items()} == example["keys"]


def test_what_means_something_else_has_a_new_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since version 2 a student that writes text writes legal labels only; since 3 more of its trees are mended. All
    others are as they were."""
    monkeypatch.chdir(ROOT)
    (example,) = [one for one in EXAMPLES if "seq2seq" in one["config"]]
    classes = steps_by_name(example, tmp_path, "method.stages=2")
    texts = steps_by_name(example, tmp_path, "method.stages=2", "student.target=text")
    assert {step.fingerprint["version"] for step in texts.values() if isinstance(step, StudentStep)} == {2}
    assert {step.fingerprint["version"] for step in classes.values() if isinstance(step, StudentStep)} == {1}


def test_recorded_labels_mean_something_else(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since version 2 they are salvaged like those that are asked for; all that is before them is found."""
    monkeypatch.setattr(PseudolabelRecorded, "version", 2)
    found = {step.name: step.status for step in asyncio.run(plan(load_config("slots.yaml"))).stages}
    first = ["ingest/labeled", "ingest/unlabeled", "ingest/test", "stage0/pseudolabels"]
    assert [found[name] for name in first] == ["HIT", "HIT", "HIT", "MISS"]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store, as if labels still were what they were in it, and a pool with the rows of the labeled set: nothing
    else may have changed."""
    monkeypatch.setattr(PseudolabelRecorded, "version", 1)
    whole = {"without": None, "labeled": None}
    monkeypatch.setattr(pipeline, "ingests", lambda *given: [one.model_copy(update=whole) for one in ingests(*given)])
    with tarfile.open(HERE / "store.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["slots", "classes", "answers"])
def test_what_means_the_same_is_found(recorded: Path, name: str) -> None:
    """With the settings that were the defaults, the students of stage 1 are the old ones. The labels that they give now
    are those of the whole pool, so what rests on them is new."""
    planned = asyncio.run(plan(load_config(f"{name}.yaml", DEFAULTS[name])))
    found = {step.name: step.status for step in planned.stages}
    kept = [status for step, status in found.items() if _is_kept(name, step)]
    assert len(kept) > 8
    assert set(kept) == {"HIT"}
    assert found.get("stage1/cross-labels-0") == (None if name == "answers" else "MISS")
    shutil.rmtree(recorded / "store" / "scores")
    again = asyncio.run(plan(load_config(f"{name}.yaml", DEFAULTS[name])))
    assert {step.name for step in again.stages if step.status == "MISS"} > {n for n, s in found.items() if s == "MISS"}


@pytest.mark.parametrize("name", ["slots", "classes", "answers"])
def test_everything_can_be_read(recorded: Path, name: str) -> None:
    config = load_config(f"{name}.yaml", DEFAULTS[name])
    recipe, store = recipe_of(config), open_store(config.store)
    steps = asyncio.run(steps_of(recipe, config, store))
    read = {step.artifact_kind for step in steps if _is_kept(name, step.name) and _read(store, step)}
    own = {"grids", "students"} if name == "answers" else {"pseudolabels"}
    assert read >= {"examples", "scores"} | own
    report = store.latest(config.name, "report")
    if name == "answers":  # reports have more pictures now, but what they say can still be read
        assert report is not None
        facts = Report.open(store, store.ref(report)).summary(recipe.summary)
        assert facts.conclusion
        assert all(table.rows for table in facts.tables().values())


def _is_kept(name: str, step: str) -> bool:
    return step.startswith(KEPT) or (name == "answers" and step != "report")


def _read(store: Store, step: Step) -> bool:
    """Through the kind's own reader; all that it has must be there."""
    manifest = store.find(step.artifact_kind, step.key)
    assert manifest is not None
    ref = store.ref(manifest)
    match step.artifact_kind:
        case "examples":
            assert len(list(Examples.open(store, ref).rows())) == manifest.rows
        case "pseudolabels":
            assert len(list(Pseudolabels.open(store, ref).rows())) == manifest.rows
        case "scores" if isinstance(step, ScorePredictions):
            scores = SeedScores.open(store, ref)
            assert scores.right().shape[1] == scores.scores().n
        case "scores":
            found = Scores.open(store, ref)
            assert {score.n for score in found.scores().values()} <= {len(list(found.predictions()))}
        case "selections":
            assert Selection.open(store, ref).verdict().n > 0
        case "predictions" if isinstance(step, GatherProbabilities):
            assert Probabilities.open(store, ref).classes == ("wrong", "half", "right")
        case "grids":
            assert len(Grid.open(store, ref).students()[1]) == 2
        case "times":
            assert Times.open(store, ref).costs().scorers["student"].latency_ms > 0
        case "students" if step.name == "final/student":
            assert TrainedStudent.open(store, ref).weights_bytes > 1000
        case _:
            return False
    return True
