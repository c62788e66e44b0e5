"""`retort why` of a tiny student: back to the teacher and the data, and the history of one row."""

from typing import Any

from retort.lineage.row import history
from retort.lineage.student import Traced, trace
from retort.store.opening import open_store


def traced(done: Any) -> Traced:
    _, config, result = done
    return Traced(open_store(config.store).ref(open_store(config.store).manifest_of(result.final_student)).uri, None)


def test_every_step_back_to_the_data_is_told(done: Any) -> None:
    lineage = trace(traced(done))
    names = [step.name for step in lineage.steps]
    assert names[-1] == "final/student"
    assert {"ingest/train", "ingest/dev", "ingest/unlabeled", "teacher/train", "soft-grid/students"} <= set(names)
    assert not lineage.swept


def test_a_training_row_s_history(done: Any) -> None:
    job, _, _ = done
    row = next(row for row in job.read("train.jsonl") if row["fold"] == 1)
    said = next(one for one in job.read("said.jsonl") if one["id"] == row["id"])["probabilities"]
    found = history(traced(done), row["id"])
    assert (found.sets, found.gold, found.unknown_sets) == (("train",), row["label"], ())
    assert {"hard/students", "soft-grid/students", "with-pool/students"} <= set(found.trained)
    (teacher,) = [label for label in found.labels if label.stage == "teacher/train"]
    assert teacher.label == max(said, key=said.get)
    assert abs(teacher.confidence - 0.8) < 1e-6


def test_a_row_of_the_pool_is_learned_by_the_arm_with_it_alone(done: Any) -> None:
    job, _, _ = done
    found = history(traced(done), job.read("pool.jsonl")[0]["id"])
    assert (found.sets, found.trained) == (("unlabeled",), ("with-pool/students",))


def test_a_dev_row_is_learned_by_none(done: Any) -> None:
    job, _, _ = done
    row = next(row for row in job.read("train.jsonl") if row["fold"] == 0)
    found = history(traced(done), row["id"])
    assert (found.sets, found.trained) == (("dev",), ())
