"""Probabilities of teachers, from what they say to what is trained on."""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mckd_order import ASKED, Recorder, config_of, data_of
from retort.artifacts.examples import GOLD_ROWS, ROWS, Examples
from retort.artifacts.pseudolabels import OWN_ROWS, Pseudolabels
from retort.config import ClassificationConfig, ExecutionConfig, MckdConfig, StoreConfig
from retort.config.teachers import EndpointConfig
from retort.errors import StageFailed
from retort.io.parquet import EXAMPLES, GOLD, PSEUDOLABELS, write_rows
from retort.metrics.calibration import label_probabilities
from retort.recipes.mckd.pipeline import distill
from retort.recipes.mckd.steps import cross_label
from retort.records.base import ArtifactRef, ParseFailure
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.pseudolabel_ensemble import PseudolabelEnsemble
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store import StepOutput, Store
from retort.teachers.requests import Completion

PROBLEM = ClassificationConfig(kind="classification", labels=["down", "up"])
GOLDS = ["up", "up", "down", "up", "down", "down", "up", "down"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def kept(store: Store, step: Step, folder: Path, rows: int) -> ArtifactRef:
    return store.publish(step, folder, StepOutput(rows=rows), 0.0, "soft")


def examples(store: Store, folder: Path, name: str) -> ArtifactRef:
    from any_step import AnyStep

    folder.mkdir()
    rows = [{"example_id": f"{name}{at}", "text": f"{name} text {at}"} for at in range(len(GOLDS))]
    write_rows(folder / ROWS, EXAMPLES, rows)
    write_rows(folder / GOLD_ROWS, GOLD, [{**row, "label": gold} for row, gold in zip(rows, GOLDS, strict=True)])
    return kept(store, AnyStep(name=name, values={"name": name}, made=Examples.kind), folder, len(rows))


class SureClient:
    """Says 0.99 for one class of each row, and is wrong in a quarter of them: far too sure."""

    facts: dict[str, Any] = {}  # noqa: RUF012

    def ask(self, requests: Iterator[Any]) -> Iterator[Completion]:
        for request in requests:
            at = int(request.prompt.item.split("text ")[1].split("\n")[0])
            said = GOLDS[at] if at % 4 else {"up": "down", "down": "up"}[GOLDS[at]]
            scores = tuple(math.log(0.99 if name == said else 0.01) for name in PROBLEM.labels or ())
            yield Completion(request.key, 0, said, "stop", 10, 0, 1, scores)


def test_the_calibration_temperature_is_applied_to_the_pool(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def opened(*_: object) -> Iterator[SureClient]:
        yield SureClient()

    monkeypatch.setattr("retort.steps.pseudolabel_llm.open_client", opened)
    teacher = EndpointConfig.model_validate(
        {"kind": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1", "labels": "soft"}
    )
    step = PseudolabelLlm.by(
        teacher,
        name="stage0/pseudolabels",
        problem=PROBLEM,
        metric="accuracy",
        pool=examples(store, tmp_path / "pool", "p"),
        labeled=examples(store, tmp_path / "labeled", "l"),
        store=StoreConfig(root=store.root),
    )
    folder = tmp_path / "made"
    folder.mkdir()
    output = step.run(StepContext(store, folder, ExecutionConfig()))
    temperature = output.metrics["calibration_temperature"]
    assert temperature > 2, "0.99 where three of four are right is far too sure"
    labels = Pseudolabels.open(store, kept(store, step, folder, output.rows))
    expected = label_probabilities(np.log([[0.99, 0.01]]), temperature)[0].max()
    assert [max(row["probabilities"]) for row in labels.rows()] == pytest.approx([expected] * 8, abs=1e-3)
    assert expected < 0.9


def soft_config(baselines: tuple[str, ...] = (), **method: Any) -> MckdConfig:
    config = config_of(baselines, **method).model_dump(mode="json")
    return MckdConfig.model_validate({**config, "teacher": {**ASKED, "labels": "soft"}})


def soft_by_name(config: MckdConfig) -> dict[str, bool]:
    """Which students learn probabilities."""
    do = Recorder()

    async def run() -> None:
        await distill(config, data_of(), do)

    asyncio.run(run())
    return {step.name: step.params["soft"] for step in do.steps if step.kind == "train-student"}


def test_students_of_a_soft_teacher_learn_its_probabilities_and_later_ones_what_was_asked_for() -> None:
    hard_later = soft_by_name(soft_config(stages=2))
    assert hard_later["stage1/student-0"]
    assert not hard_later["final/student"]
    assert soft_by_name(soft_config(stages=1))["final/student"]
    hard_teacher = soft_by_name(config_of(stages=2, cross_labels="soft"))
    assert not hard_teacher["stage1/student-0"]
    assert hard_teacher["final/student"]


def test_relabeling_arms_are_soft_where_the_main_run_is() -> None:
    arms = ("self-relabelling", "early-stopped")
    soft = soft_by_name(soft_config(arms, stages=3, cross_labels="soft"))
    own = {name: value for name, value in soft.items() if name.startswith(arms)}
    assert len(own) == 5
    assert all(own.values())
    hard = soft_by_name(config_of(arms, stages=3))
    assert not any(value for name, value in hard.items() if name.startswith(arms))


def test_their_labels_keep_probabilities_where_the_next_student_learns_them() -> None:
    do = Recorder()
    config = soft_config(("self-relabelling", "early-stopped"), stages=3, cross_labels="soft")

    async def run() -> None:
        await distill(config, data_of(), do)

    asyncio.run(run())
    labels = [step for step in do.steps if step.kind == "cross-label" and step.name.endswith("/pseudolabels")]
    assert [step.name for step in labels] == [
        "self-relabelling/stage1/pseudolabels",
        "self-relabelling/stage2/pseudolabels",
        "early-stopped/pseudolabels",
    ]
    assert all(step.params["probabilities"] for step in labels)


def member(store: Store, folder: Path, name: str, share: float, right: int) -> ArtifactRef:
    """A teacher that gives `up` this share everywhere, and has so many of the labeled rows right."""
    from any_step import AnyStep

    folder.mkdir()
    label = "up" if share > 0.5 else "down"
    said = {"label": label, "confidence": share, "labeler": name, "probabilities": np.float16([1 - share, share])}
    write_rows(
        folder / ROWS, PSEUDOLABELS, [{"example_id": f"p{at}", "text": f"p text {at}", **said} for at in range(8)]
    )
    other = {"up": "down", "down": "up"}
    own = [gold if at < right else other[gold] for at, gold in enumerate(GOLDS)]
    write_rows(
        folder / OWN_ROWS,
        PSEUDOLABELS,
        [
            {"example_id": f"l{at}", "text": f"l text {at}", "label": one, "confidence": 1.0}
            for at, one in enumerate(own)
        ],
    )
    return kept(store, AnyStep(name=name, values={"name": name}, made=Pseudolabels.kind), folder, 8)


@pytest.mark.parametrize("merge", ["vote", "weighted"])
def test_a_weighted_ensemble_s_probabilities_are_the_weighted_mean(store: Store, tmp_path: Path, merge: Any) -> None:
    step = PseudolabelEnsemble(
        name="stage0/pseudolabels",
        problem=PROBLEM,
        merge=merge,
        asked=True,
        soft=True,
        members=(member(store, tmp_path / "a", "a", 0.9, 8), member(store, tmp_path / "b", "b", 0.3, 6)),
        pool=examples(store, tmp_path / "pool", "p"),
        labeled=examples(store, tmp_path / "labeled", "l"),
        kinds=["endpoint", "endpoint"],
    )
    folder = tmp_path / "made"
    folder.mkdir()
    output = step.run(StepContext(store, folder, ExecutionConfig()))
    weights = [one["weight"] for one in output.details["members"]]
    assert (weights[0] > weights[1]) == (merge == "weighted")
    rows = list(Pseudolabels.open(store, kept(store, step, folder, output.rows)).rows())
    expected = float(np.average([0.9, 0.3], weights=weights))
    assert [row["probabilities"][1] for row in rows] == pytest.approx([expected] * 8, abs=1e-3)
    assert step.fingerprint["version"] == (2 if merge == "weighted" else 1), "what meant the same keeps its key"


def test_a_fine_tuned_teacher_must_label_enough_rows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(stages=1)
    assert config.teacher.min_success_ratio == 0.9
    do = Recorder()
    asyncio.run(distill(config, data_of(), do))
    (labeling,) = [step for step in do.made("cross-label") if step.name == "stage0/pseudolabels"]
    assert labeling.min_success_ratio == 0.9
    assert labeling.key == cross_label(config, "any", labeling.student, labeling.rows).key, "a limit is not identity"

    failed = ParseFailure("unparsable", "No label.", "?")
    rows = [{"example_id": f"p{at}", "text": f"p text {at}"} for at in range(8)]
    monkeypatch.setattr(type(labeling), "outcomes", lambda *_: ((row, failed) for row in rows))
    pool = examples(store, tmp_path / "pool", "p")
    step = cross_label(config, "stage0/pseudolabels", labeling.student, pool, min_success_ratio=0.9)
    folder = tmp_path / "made"
    folder.mkdir()
    with pytest.raises(StageFailed, match=r"only 0 of 8 rows got a label \(0.0%\), below teacher.min_success_ratio"):
        step.run(StepContext(store, folder, ExecutionConfig()))
