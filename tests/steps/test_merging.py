"""Cross-labels of a pool in which some rows have no label, and training on the teacher's sure labels alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from any_step import AnyStep
from retort.artifacts.examples import ROWS, Examples
from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import ClassificationConfig, ExecutionConfig, MckdConfig, MergeConfig
from retort.data.partitions import cell_of
from retort.errors import StageFailed
from retort.io.parquet import EXAMPLES, PSEUDOLABELS, Row, write_rows
from retort.recipes.execute import make
from retort.recipes.mckd.steps import cross_label, ingest, seen_cells, train_student, unseen_cells
from retort.records.base import ArtifactRef, ParseFailure
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.merge_labels import MergeLabels
from retort.store import Manifest, StepOutput, Store
from retort.store.opening import open_store

PROBLEM = ClassificationConfig(kind="classification", labels=["down", "up"])
POOL = [f"p{number}" for number in range(5)]
Said = Mapping[str, tuple[str, float]]
"""(label, confidence) by example_id."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def labels(store: Store, tmp_path: Path) -> Callable[[str, Said], ArtifactRef]:
    """Publishes pseudolabels; the label has its confidence as its probability."""

    def publish(name: str, said: Said) -> ArtifactRef:
        def row(example_id: str, label: str, confidence: float) -> Row:
            share = confidence if label == "up" else 1 - confidence
            probabilities = np.array([1 - share, share], dtype=np.float16)
            about = {"example_id": example_id, "text": f"text of {example_id}", "labeler": name}
            return {**about, "label": label, "confidence": confidence, "probabilities": probabilities}

        rows = [row(example_id, *said[example_id]) for example_id in POOL if example_id in said]
        return _published(store, tmp_path, name, Pseudolabels.kind, PSEUDOLABELS, rows)

    return publish


def _published(store: Store, tmp_path: Path, name: str, kind: str, schema: Any, rows: list[Row]) -> ArtifactRef:
    folder = tmp_path / name
    folder.mkdir()
    write_rows(folder / ROWS, schema, rows)
    step = AnyStep(name=name, values={"name": name}, made=kind)
    return store.publish(step, folder, StepOutput(rows=len(rows)), 0.0, "merging")


@pytest.fixture
def merged(
    store: Store, labels: Callable[[str, Said], ArtifactRef], tmp_path: Path
) -> Callable[..., tuple[dict[str, Row], StepOutput]]:
    """(rows by example_id, what the step counted)."""

    def merge(old: Said, *votes: Said, soft: bool = False, **settings: Any) -> tuple[dict[str, Row], StepOutput]:
        texts = [{"example_id": example_id, "text": f"text of {example_id}"} for example_id in POOL]
        step = MergeLabels(
            name="stage1/pseudolabels",
            problem=PROBLEM,
            merge=MergeConfig.model_validate(settings),
            soft=soft,
            pool=_published(store, tmp_path, "pool", Examples.kind, EXAMPLES, texts),
            previous=labels("old", old),
            cross_labels=tuple(labels(f"student-{at}", said) for at, said in enumerate(votes)),
        )
        folder = tmp_path / "merged"
        folder.mkdir()
        output = step.run(StepContext(store, folder, ExecutionConfig()))
        rows = list(Pseudolabels.open(store, store.publish(step, folder, output, 0.0, "merging")).rows())
        assert [row["example_id"] for row in rows] == [i for i in POOL if i in {row["example_id"] for row in rows}]
        return {row["example_id"]: row for row in rows}, output

    return merge


Merged = Callable[..., tuple[dict[str, Row], StepOutput]]


def found(rows: Mapping[str, Row]) -> dict[str, str]:
    return {example_id: row["label"] for example_id, row in rows.items()}


def test_rows_without_a_label_get_one_and_rows_without_a_vote_keep_theirs(merged: Merged) -> None:
    old = {"p0": ("up", 1.0), "p1": ("up", 1.0), "p2": ("down", 1.0)}
    rows, output = merged(old, {"p0": ("down", 0.9), "p3": ("up", 0.6)}, {"p1": ("up", 0.7)})
    assert found(rows) == {"p0": "down", "p1": "up", "p2": "down", "p3": "up"}  # p4: nobody labeled it
    assert output.counts == {"changed": 1, "kept": 1, "new": 1, "unlabeled": 1}
    assert output.rows == 4
    assert output.metrics["changed_share"] == 0.25
    assert [rows[i]["labeler"] for i in ("p0", "p1", "p2", "p3")] == ["student-0", "student-1", "old", "student-0"]


def test_an_unsure_label_is_better_than_none_but_not_than_the_old_one(merged: Merged) -> None:
    rows, output = merged(
        {"p0": ("up", 1.0), "p1": ("up", 1.0)},
        {"p0": ("down", 0.6), "p1": ("down", 0.8), "p2": ("down", 0.6)},
        kind="when-confident",
        threshold=0.8,
    )
    assert found(rows) == {"p0": "up", "p1": "down", "p2": "down"}
    assert output.counts == {"changed": 1, "kept": 1, "new": 1, "unlabeled": 2}


def test_several_votes_count_by_their_probabilities_also_if_one_is_missing(merged: Merged) -> None:
    rows, output = merged(
        {}, {"p0": ("up", 0.6), "p1": ("down", 0.9)}, {"p0": ("down", 0.9)}, {"p0": ("up", 0.7)}, soft=True
    )
    assert found(rows) == {"p0": "down", "p1": "down"}
    assert rows["p0"]["probabilities"] == pytest.approx([1.6 / 3, 1.4 / 3], abs=1e-3)
    assert rows["p1"]["probabilities"] == pytest.approx([0.9, 0.1], abs=1e-3)
    assert rows["p0"]["labeler"] == "student-0+student-1+student-2"
    assert output.counts == {"changed": 0, "kept": 0, "new": 2, "unlabeled": 3}


def test_hard_labels_keep_no_probabilities(merged: Merged) -> None:
    rows, _ = merged({}, {"p0": ("up", 0.6)})
    assert rows["p0"]["probabilities"] is None


def test_nothing_that_was_never_labeled_is_an_empty_pool(merged: Merged) -> None:
    rows, output = merged({}, {})
    assert rows == {}
    assert output.counts["unlabeled"] == 5
    assert output.metrics["changed_share"] == 0.0


def with_store(values: dict[str, Any], root: Path, **method: Any) -> MckdConfig:
    problem = {"kind": "classification", "labels": ["down", "up"]}
    changed = {**values, "problem": problem, "store": {"root": str(root)}}
    return MckdConfig.model_validate({**changed, "method": {**values["method"], **method}})


def _made(config: MckdConfig, step: Step) -> ArtifactRef:
    return make(config, step, 0, lambda *_: None)


def manifest_of(config: MckdConfig, ref: ArtifactRef) -> Manifest:
    manifest = open_store(config.store).find(ref.kind, ref.key)
    assert manifest is not None
    return manifest


def ids_of(config: MckdConfig, ref: ArtifactRef) -> list[str]:
    return [row["example_id"] for row in Pseudolabels.open(open_store(config.store), ref).rows()]


def test_a_student_labels_every_row_of_its_cells_and_not_one_that_it_saw(
    tiny_classes: dict[str, Any], tmp_path: Path
) -> None:
    """Rows to which the teacher gave no label are labeled too: the pool is read, not the labels."""
    config = with_store(tiny_classes, tmp_path / "store", partitions=4, scheme="leave-one-out")
    labeled, pool = (_made(config, ingest(config, role)) for role in ("labeled", "unlabeled"))
    student = _made(config, train_student(config, "stage1/student-2", labeled, cells=seen_cells(config, 2), stage=1))
    step = cross_label(config, "stage1/cross-labels-2", student, pool, cells=unseen_cells(config, 2))
    ids = [f"unlabeled-{number}" for number in range(60)]
    assert ids_of(config, _made(config, step)) == [i for i in ids if cell_of(i, 4, 0) == 2]


def test_a_row_to_which_a_student_writes_no_label_has_no_cross_label(
    tiny_classes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retort.steps.cross_label import CrossLabel

    config = with_store(tiny_classes, tmp_path / "store")
    labeled, pool = (_made(config, ingest(config, role)) for role in ("labeled", "unlabeled"))
    student = _made(config, train_student(config, "stage1/student-0", labeled))
    really = CrossLabel.outcomes

    def failing(step: CrossLabel, *arguments: Any) -> Any:
        for row, outcome in really(step, *arguments):
            failed = row["example_id"] == "unlabeled-7"
            yield row, ParseFailure("unparsable", "No label.", "?") if failed else outcome

    monkeypatch.setattr(CrossLabel, "outcomes", failing)
    crossed = _made(config, cross_label(config, "stage1/cross-labels-0", student, pool))
    assert set(ids_of(config, crossed)) == {f"unlabeled-{n}" for n in range(60)} - {"unlabeled-7"}
    manifest = manifest_of(config, crossed)
    assert (manifest.rows, manifest.counts["failures"]) == (59, 1)


def test_students_train_on_labels_that_are_sure_enough(tiny_classes: dict[str, Any], tmp_path: Path) -> None:
    config = with_store(tiny_classes, tmp_path / "store", min_confidence=0.75)
    store = open_store(config.store)
    sure = {number: (0.5, 0.75, 0.9)[number % 3] for number in range(60)}
    rows = [
        {
            "example_id": f"unlabeled-{number}",
            "text": f"the film {number}",
            "label": "up" if number % 2 else "down",
            "confidence": confidence,
            "labeler": "teacher",
            "probabilities": None,
        }
        for number, confidence in sure.items()
    ]
    teacher = _published(store, tmp_path, "teacher", Pseudolabels.kind, PSEUDOLABELS, rows)
    trained = {
        stage: manifest_of(config, _made(config, train_student(config, "final/student", teacher, stage=stage))).rows
        for stage in (1, 2)
    }
    assert trained == {1: 40, 2: 60}, "later stages train on what students said, however sure they were"
    strict = with_store(tiny_classes, tmp_path / "store", min_confidence=0.95)
    message = r"there is no labeled row with a confidence of 0\.95 or more to train on in the pool"
    with pytest.raises(StageFailed, match=message):
        _made(strict, train_student(strict, "final/student", teacher, stage=1))
    plain = with_store(tiny_classes, tmp_path / "store")
    assert "min_confidence" not in train_student(plain, "final/student", teacher, stage=1).params, "old keys stay"
