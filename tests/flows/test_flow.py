"""The whole flow on tiny data, and what a second run of it finds."""

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows import run
from retort.config import MckdConfig
from retort.io.parquet import read_rows
from retort.store import Manifest
from retort.store.opening import open_store

Build = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
BASELINES = ["vanilla-kd", "compute-matched-kd", "same-partition", "self-relabelling", "early-stopped", "supervised"]
STAGES_OF_TWO = 19
"""3 ingest, the teacher, 2 students with 4 scores, 2 cross-labels, merge, final with score, 2 label scores, report."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores") / "first"


@pytest.fixture(scope="module")
def values(tiny_slots: dict[str, Any], configured: Build, root: Path) -> dict[str, Any]:
    return configured(tiny_slots, root)


@pytest.fixture(scope="module")
def first(values: dict[str, Any], run_here: Run) -> Any:
    return run_here(values)


def statuses(finished: Any) -> dict[str, str]:
    return {stage.name: stage.status for stage in finished.stages}


def manifest_of(values: dict[str, Any], stage: str) -> Manifest:
    config = MckdConfig.model_validate(values)
    manifest = open_store(config.store).latest(config.name, stage)
    assert manifest is not None, f"{stage} was not made"
    return manifest


def rows_of(values: dict[str, Any], stage: str, file: str = "rows.parquet") -> dict[str, dict[str, Any]]:
    store = open_store(MckdConfig.model_validate(values).store)
    folder = store.fetch(store.ref(manifest_of(values, stage)))
    return {row["example_id"]: row for row in read_rows(folder / file)}


@pytest.mark.slow
def test_a_run_goes_to_the_end_and_prefect_shows_its_tasks(first: Any, task_states: Callable[[str, int], Any]) -> None:
    assert set(statuses(first).values()) == {"MADE"}
    assert len(first.stages) == STAGES_OF_TWO
    states = task_states(first.run_id, STAGES_OF_TWO)
    assert set(states) == {"Completed"}
    assert set(states["Completed"]) == set(statuses(first))
    assert first.summary.final.scores["slot_f1"].n == 20


def test_the_pictures_are_on_the_runs_page(first: Any, artifact: Callable[[str, str], str]) -> None:
    for key in ("scores-by-stage", "timeline", "losses", "stages", "label-flow", "costs"):
        assert artifact(first.run_id, key).startswith("data:image/png;base64,"), key


def test_every_artifact_on_the_runs_page_says_what_it_is(first: Any, prefect_api: str) -> None:
    body = {"artifacts": {"flow_run_id": {"any_": [first.run_id]}}}
    said = {
        one["key"]: one["description"]
        for one in httpx.post(f"{prefect_api}/artifacts/filter", json=body, timeout=60).json()
    }
    assert {"report", "scores", "scores-by-stage", "timeline"} <= set(said)
    assert all(said.values())
    assert first.summary.conclusion.startswith(said["report"])
    assert ". " not in said["report"], "a sentence, since the report itself begins with all of them"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"config": "jobs/films.yaml"}, "films"),
        ({"config": "s3://bucket/jobs/films.yaml", "overrides": ["data.limit=5"]}, "films"),
        ({"config": "jobs/films.yaml", "overrides": ["name=films-quick", "data.limit=5"]}, "films-quick"),
        ({"config": "jobs/films.yaml", "overrides": ["name=a", "name=b"]}, "b"),
        ({"config": "jobs/films.yaml", "overrides": ["name="]}, "films"),
    ],
)
def test_a_run_is_named_after_its_config(
    parameters: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.flow_run, "parameters", parameters, raising=False)
    assert run.run_name() == name


def test_manifests_say_where_and_when_outside_the_key(first: Any, values: dict[str, Any]) -> None:
    manifest = manifest_of(values, "stage1/student-0")
    assert manifest.details["host"] == platform.node()
    assert manifest.details["started_at"] < manifest.created_at
    assert "host" not in json.dumps(manifest.fingerprint)
    (span,) = (one for one in first.summary.spans if (one.group, one.what) == ("final student", "student"))
    assert (span.host, span.device) == (platform.node(), "CPU")


def test_the_unparsable_completion_is_kept_aside(first: Any, values: dict[str, Any]) -> None:
    manifest = manifest_of(values, "stage0/pseudolabels")
    assert (manifest.rows, manifest.counts["failures"]) == (59, 1)
    (failure,) = rows_of(values, "stage0/pseudolabels", "failures.parquet").values()
    assert failure["example_id"] == "unlabeled-5"
    assert failure["reason"] == "unbalanced-brackets"


def test_every_row_is_labeled_by_the_student_that_did_not_see_it(first: Any, values: dict[str, Any]) -> None:
    halves = [rows_of(values, f"stage1/cross-labels-{index}") for index in range(2)]
    merged = rows_of(values, "stage1/pseudolabels")
    assert not halves[0].keys() & halves[1].keys()
    assert merged.keys() == halves[0].keys() | halves[1].keys() == {f"unlabeled-{number}" for number in range(60)}
    by_teacher = rows_of(values, "stage0/pseudolabels").keys()
    for index, half in enumerate(halves):
        assert {merged[name]["labeler"] for name in half} == {f"stage1/cross-labels-{index}"}
        assert manifest_of(values, f"stage1/student-{1 - index}").rows == len(half.keys() & by_teacher)
    assert manifest_of(values, "stage1/pseudolabels").counts["new"] == 1


@pytest.mark.slow
def test_a_second_run_is_cached_in_every_task(
    first: Any, values: dict[str, Any], run_here: Run, task_states: Callable[[str, int], Any]
) -> None:
    second = run_here(values)
    assert set(statuses(second).values()) == {"HIT"}
    states = task_states(second.run_id, STAGES_OF_TWO)
    assert set(states) == {"Cached"}
    assert set(states["Cached"]) == set(statuses(first))
    assert second.summary == first.summary


@pytest.mark.slow
def test_another_process_and_another_machines_path_find_it_cached_too(
    first: Any,
    values: dict[str, Any],
    root: Path,
    run_there: Callable[..., dict[str, Any]],
    task_states: Callable[[str, int], Any],
    configured: Build,
    tmp_path: Path,
) -> None:
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    finished = run_there(configured(values, moved), tmp_path)
    assert {stage["status"] for stage in finished["stages"]} == {"HIT"}
    assert set(task_states(finished["run_id"], STAGES_OF_TWO)) == {"Cached"}
    assert finished["final"]["scores"]["slot_f1"]["value"] == first.summary.final.scores["slot_f1"].value
    assert finished["status"] == "COMPLETED"
    assert finished["final"]["stage"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage1/student-1", "stage1/pseudolabels", "final/test", "report"])
def test_a_manifest_that_vanished_is_made_again_alone(
    first: Any,
    values: dict[str, Any],
    root: Path,
    run_here: Run,
    configured: Build,
    tmp_path: Path,
    manifests: Callable[[Path], dict[str, bytes]],
    name: str,
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    manifest = manifest_of(values, name)
    (copy / manifest.kind / manifest.key[:2] / manifest.key / "manifest.json").unlink()
    again = run_here(configured(values, copy))
    assert [stage for stage, status in statuses(again).items() if status == "MADE"] == [name]
    assert again.summary.final.scores == first.summary.final.scores
    made = {file["path"]: file["sha256"] for file in json.loads(manifests(copy)[name])["files"]}
    same = {file.path for file in manifest.files if made[file.path] == file.sha256}
    assert {file.path for file in manifest.files} - same <= {"history.json", "summary.json", "report.html", "report.md"}


@pytest.mark.slow
def test_fine_tuned_students_relabel_the_pool_and_the_final_one_is_fine_tuned(
    tiny_slots: dict[str, Any],
    configured: Build,
    run_here: Run,
    task_states: Callable[[str, int], Any],
    tmp_path: Path,
) -> None:
    tuning = {"kind": "better", "epochs": 4, "folds": 3, "confidence": 0}  # even if it does not gain
    values = configured(tiny_slots, tmp_path, method__fine_tuning=tuning)
    finished = run_here(values)
    made = statuses(finished)
    assert set(made.values()) == {"MADE"}
    ours = [name for name in made if name.startswith("fine-tuning")]
    assert len(ours) == 4 + 3 * 2 + 2
    assert len(made) == STAGES_OF_TWO + len(ours) + 1  # final/before-fine-tuning
    assert set(task_states(finished.run_id, len(made))["Completed"]) == set(made)
    judged = rows_of(values, "fine-tuning/judge", "predictions.parquet")
    assert judged.keys() == rows_of(values, "ingest/labeled").keys()
    relabeled = rows_of(values, "fine-tuning/pseudolabels")
    assert relabeled.keys() == {f"unlabeled-{number}" for number in range(60)}
    for index in range(2):
        own = rows_of(values, f"fine-tuning/cross-labels-{index}").keys()
        assert own == rows_of(values, f"stage1/cross-labels-{index}").keys()
        assert {relabeled[name]["labeler"] for name in own} == {f"fine-tuning/cross-labels-{index}"}
    assert manifest_of(values, "final/before-fine-tuning").rows == 60
    assert manifest_of(values, "final/student").rows == 12
    assert finished.summary.final.note.startswith("labels of the fine-tuned students, fine-tuned")
    assert set(statuses(run_here(values)).values()) == {"HIT"}


@pytest.mark.slow
def test_leave_one_out_with_soft_labels(
    tiny_slots: dict[str, Any], configured: Build, run_here: Run, tmp_path: Path
) -> None:
    method = {"stages": 3, "partitions": 3, "scheme": "leave-one-out", "cross_labels": "soft"}
    values = configured(tiny_slots, tmp_path, method={**tiny_slots["method"], **method})
    finished = run_here(values)
    assert finished.summary.kept_stage == 3
    for name, row in rows_of(values, "stage2/pseudolabels").items():
        assert "+" not in row["labeler"], name
        assert sum(row["probabilities"].tolist()) == pytest.approx(1 + len(row["text"].split()), rel=0.01)
    sizes = [manifest_of(values, f"stage1/student-{index}").rows for index in range(3)]
    assert sum(sizes) == 2 * 59
    assert manifest_of(values, "stage2/student-0").fingerprint["params"]["soft"]


@pytest.mark.slow
def test_three_disjoint_cells_merge_by_mean_probability_and_all_baselines(
    tiny_slots: dict[str, Any], configured: Build, run_here: Run, tmp_path: Path
) -> None:
    values = configured(tiny_slots, tmp_path, method__partitions=3, baselines=BASELINES)
    finished = run_here(values)
    votes = [rows_of(values, f"stage1/cross-labels-{index}") for index in range(3)]
    merged = rows_of(values, "stage1/pseudolabels")
    assert all(sum(name in vote for vote in votes) == 2 for name in merged)
    assert all(row["labeler"].count("+") == 1 and row["probabilities"] is None for row in merged.values())
    problem = manifest_of(values, "stage1/pseudolabels").fingerprint["params"]["problem"]
    check_means(problem, votes, merged)
    assert [row.name for row in finished.summary.systems if row.role == "baseline"] == BASELINES
    assert all(row.scores["slot_f1"].n == 20 for row in finished.summary.systems if row.role == "baseline")


def check_means(problem: dict[str, Any], votes: list[Any], merged: dict[str, dict[str, Any]]) -> None:
    import numpy as np

    from retort.problems.slots import Slots

    slots = Slots(problem["intents"])
    for name, row in merged.items():
        both = [np.asarray(vote[name]["probabilities"], dtype=np.float64) for vote in votes if name in vote]
        label, confidence = slots.decide(row["text"], np.mean(both, axis=0).reshape(-1, len(slots.classes)))
        assert row["label"] == label
        assert row["confidence"] == pytest.approx(confidence, rel=1e-5)


@pytest.mark.slow
def test_only_confident_labels_replace_the_old_ones(
    first: Any, values: dict[str, Any], root: Path, configured: Build, run_here: Run, tmp_path: Path
) -> None:
    confidences = sorted(row["confidence"] for row in rows_of(values, "stage1/pseudolabels").values())
    threshold = confidences[30]
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    sure = configured(values, copy, method__merge={"kind": "when-confident", "threshold": threshold})
    finished = run_here(sure)
    assert statuses(finished)["stage1/cross-labels-0"] == "HIT"
    merged, before = rows_of(sure, "stage1/pseudolabels"), rows_of(sure, "stage0/pseudolabels")
    kept = [name for name, row in merged.items() if row["labeler"] == "teacher"]
    assert manifest_of(sure, "stage1/pseudolabels").counts["kept"] == len(kept) == 30
    assert all(merged[name] == before[name] for name in kept)


@pytest.mark.slow
def test_classification_with_a_finetuned_teacher_and_proven_stages(
    tiny_classes: dict[str, Any], configured: Build, run_here: Run, tmp_path: Path
) -> None:
    dev = shutil.copy(tiny_classes["data"]["test"], tmp_path / "dev.jsonl")
    values = configured(
        tiny_classes,
        tmp_path / "store",
        data__dev=str(dev),
        evaluation__judge="dev",
        method__selection={"kind": "better"},
        baselines=["vanilla-kd"],
    )
    finished = run_here(values)
    selection = manifest_of(values, "stage2/selection")
    assert selection.kind == "selections"
    assert finished.summary.kept_stage == 1 + selection.metrics["accepted"]
    assert statuses(finished)["teacher/student"] == "MADE"
    kinds = {row.role for row in finished.summary.systems}
    assert kinds == {"teacher", "stage", "final", "baseline"}
    assert set(finished.summary.final.scores) == {"accuracy", "macro_f1"}
    if finished.summary.kept_stage == 1:
        found = statuses(finished)
        assert {found["vanilla-kd/student"], found["final/student"]} == {"MADE", "HIT"}, "whichever comes first"


@pytest.mark.slow
def test_one_stage_is_one_student(
    first: Any, values: dict[str, Any], root: Path, configured: Build, run_here: Run, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    finished = run_here(configured(values, copy, method__stages=1, baselines=["vanilla-kd"]))
    made = [name for name, status in statuses(finished).items() if status == "MADE"]
    assert made == ["final/student", "final/test", "hygiene", "report"]
    assert statuses(finished)["vanilla-kd/student"] == "HIT"
    assert finished.summary.kept_stage == 1


@pytest.mark.slow
def test_duplicated_texts_and_a_cell_of_one_row(
    tiny_slots: dict[str, Any], configured: Build, run_here: Run, tmp_path: Path
) -> None:
    lines = Path(tiny_slots["data"]["unlabeled"]).read_text().splitlines()[:5]
    twin = {**json.loads(lines[0]), "id": "twin"}
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join([*lines[:3], json.dumps(twin)]))
    answers = Path(tiny_slots["teacher"]["completions"]).read_text().splitlines()[:3]
    answers.append(json.dumps({**json.loads(answers[0]), "custom_id": "twin"}))
    completions = tmp_path / "completions.jsonl"
    completions.write_text("\n".join(answers))
    values = configured(
        tiny_slots,
        tmp_path / "store",
        data__unlabeled=str(pool),
        teacher__completions=str(completions),
        method__seed=seed_with_a_cell_of_one(["unlabeled-0", "unlabeled-1", "unlabeled-2", "twin"]),
    )
    finished = run_here(values)
    assert sorted(manifest_of(values, f"stage1/student-{index}").rows for index in range(2)) == [1, 3]
    assert finished.summary.kept_stage == 2


def seed_with_a_cell_of_one(ids: list[str]) -> int:
    from retort.data.partitions import cell_of

    return next(seed for seed in range(100) if sum(cell_of(name, 2, seed) for name in ids) == 1)
