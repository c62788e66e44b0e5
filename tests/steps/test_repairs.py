"""How many outputs of a student were no label before they were put right: what the stages count."""

from typing import Any

import numpy as np
import pytest

from retort.config import MckdConfig
from retort.io.parquet import read_rows
from retort.problems import problem_for
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.checks import resolve
from retort.recipes.mckd.steps import cross_label, evaluate_labels, evaluate_student, ingest, train_student
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.report.mckd.facts import Run, _invalid
from retort.steps.base import Step
from retort.store import Manifest
from retort.store.opening import open_store


def made(config: MckdConfig, step: Step) -> ArtifactRef:
    return make(config, step, 0, lambda *_: None)


def manifest_of(config: MckdConfig, ref: ArtifactRef) -> Manifest:
    manifest = open_store(config.store).find(ref.kind, ref.key)
    assert manifest is not None
    return manifest


def is_valid(tags: list[str], slots: list[str]) -> bool:
    """BIO by the book, and nothing but the intent's slots."""
    pairs = zip(["O", *tags], tags, strict=False)
    follows = all(tag[0] != "I" or before[1:] == tag[1:] for before, tag in pairs)
    return follows and all(tag == "O" or tag[2:] in slots for tag in tags)


@pytest.mark.slow
def test_a_students_invalid_outputs_are_counted(tiny_slots: dict[str, Any], tmp_path: Any) -> None:
    """Of one that has hardly learnt: counted here from its probabilities, as they lie in the artifact."""
    training = {**tiny_slots["student"]["training"], "epochs": 6}
    student = {**tiny_slots["student"], "training": training}
    values = {**tiny_slots, "student": student, "store": {"root": str(tmp_path)}}
    config = resolve(MckdConfig.model_validate(values))
    store = open_store(config.store)
    labeled, test = (made_or_found(config, ingest(config, role)) for role in ("labeled", "test"))
    trained = made(config, train_student(config, "final/student", labeled))
    crossed = made(config, cross_label(config, "crossed", trained, test, probabilities=True))
    scores = made(config, evaluate_student(config, "final/test", trained, test))

    problem = problem_for(config.problem)
    intents = config.problem.intents  # type: ignore[union-attr]
    invalid = []
    for row in read_rows(store.fetch(crossed) / "rows.parquet"):
        probabilities = np.asarray(row["probabilities"], dtype=np.float64).reshape(-1, len(problem.classes))
        allowed = np.where(problem.allowed(len(probabilities)), probabilities, -1)
        intent, *tags = (problem.classes[index] for index in allowed.argmax(axis=1))
        invalid.append(not is_valid(tags, intents[intent.removeprefix("IN:")]))
    assert 0 < sum(invalid) < len(invalid) == 20
    told = manifest_of(config, crossed)
    assert told.counts["repaired"] == sum(invalid)
    assert told.metrics["invalid_share"] == pytest.approx(sum(invalid) / 20)
    assert manifest_of(config, scores).metrics["invalid_share"] == pytest.approx(sum(invalid) / 20)
    given = made(config, evaluate_labels(config, "quality", crossed, test))
    assert "invalid_share" not in manifest_of(config, given).metrics, "labels that lie there are no outputs"

    result = MckdResult(
        data=Data(labeled=labeled, unlabeled=test, test=test, judge=labeled),
        labels=(crossed,),
        label_scores=(given,),
        teacher_scores=None,
        rounds=(),
        kept_stage=1,
        final_student=trained,
        final_scores=scores,
    )
    run = Run(config, problem, result, store)
    assert _invalid(run, (scores,)) == f"; {sum(invalid) / 20:.1%} repaired"
    assert _invalid(run, (given,)) == ""
