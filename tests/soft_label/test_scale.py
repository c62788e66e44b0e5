"""What a step holds of each row: numbers, not the rows."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from any_step import AnyStep
from retort.artifacts.examples import GOLD_ROWS, GROUP_ROWS, ROWS
from retort.config.soft_label import SoftLabelConfig
from retort.errors import StageFailed
from retort.io import database, parquet
from retort.io.parquet import EXAMPLES, GOLD, GROUPS, PSEUDOLABELS, Row, write_rows
from retort.recipes.execute import make
from retort.recipes.soft_label import steps
from retort.recipes.soft_label.checks import check_probabilities
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store import StepOutput
from retort.store.opening import open_store
from retort.students import ragged

FEW, MANY = 4_096, 12_288
"""Both more than is read or written at once, after `few_at_once`."""
CLASSES = ["wrong", "half", "right"]
MOST_BYTES = {"check": 60, "recorded": 80, "labels": 40, "train": 80, "majority": 40, "tiny": 40, "score": 150}
"""A row more may take so many; when rows were held, it took 290 to 1,310."""


class Rows(NamedTuple):
    """Examples with their gold labels, a teacher's labels for them, and its probabilities in a file."""

    examples: ArtifactRef
    labels: ArtifactRef
    file: str


def row(number: int) -> Row:
    said = " ".join(f"word{number * prime % 97}" for prime in (2, 3, 5, 7, 11, 13))
    text = f"answer: {said}\nreference: {said[:24]}"
    return {"example_id": f"row-{number:06}", "text": text, "label": CLASSES[number % 3], "group": f"q{number % 9}"}


def published(config: SoftLabelConfig, kind: str, name: str, files: dict[str, Any], rows: list[Row]) -> ArtifactRef:
    values = {"problem": config.problem.model_dump(mode="json"), "name": name}
    folder = Path(config.store.root).parent / name
    folder.mkdir()
    for file, schema in files.items():
        write_rows(folder / file, schema, ({name: one[name] for name in schema.names if name in one} for one in rows))
    step = AnyStep(name=name, values=values, made=kind)
    return open_store(config.store).publish(step, folder, StepOutput(rows=len(rows)), 0.0, "elsewhere")


def made_rows(config: SoftLabelConfig, name: str, numbers: range) -> Rows:
    rows, said = [row(number) for number in numbers], [0.2, 0.5, 0.3]
    files = {ROWS: EXAMPLES, GOLD_ROWS: GOLD, GROUP_ROWS: GROUPS}
    examples = published(config, "examples", f"{name}-rows", files, rows)
    labeled = [{**one, "probabilities": np.float16(said)} for one in rows]
    labels = published(config, "pseudolabels", f"{name}-labels", {ROWS: PSEUDOLABELS}, labeled)
    path = Path(config.store.root).parent / f"{name}.jsonl"
    given = dict(zip(CLASSES, said, strict=True))
    path.write_text("".join(json.dumps({"id": r["example_id"], "probabilities": given}) + "\n" for r in rows[::-1]))
    return Rows(examples, labels, str(path))


def peak_bytes(config: SoftLabelConfig, rows: Rows, dev: Rows) -> Iterator[tuple[str, int]]:
    """The most that was held while each of the steps was made."""
    teacher = config.teacher.model_copy(update={"probabilities": rows.file})
    name = rows.examples.key
    store = open_store(config.store)

    def measured(step: Step) -> tuple[ArtifactRef, int]:
        tracemalloc.start()
        ref = make(config, step, 0, lambda *_: None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return ref, peak

    tracemalloc.start()
    check_probabilities(config, teacher, store, {"train": rows.examples, "dev": dev.examples})
    yield "check", tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    known, peak = measured(steps.gather_recorded(config, teacher, {"train": rows.examples})["train"])
    yield "recorded", peak
    yield "labels", measured(steps.gather_labels(config, f"{name}/labels", rows.examples, (rows.labels,)))[1]
    few = make(config, steps.gather_recorded(config, teacher, {"dev": dev.examples})["dev"], 0, lambda *_: None)
    train = steps.train_grid(config, "with-pool", dev.examples, dev.examples, few, (rows.examples, known))
    grid, peak = measured(train)
    yield "train", peak
    yield "majority", measured(steps.predict_baseline(config, name, "majority", dev.examples, rows.examples))[1]
    predicted, peak = measured(steps.predict_grid(config, name, grid, rows.examples))
    yield "tiny", peak
    yield "score", measured(steps.score(config, name, (predicted,), rows.examples))[1]


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 2**12)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 256)
    monkeypatch.setattr(database, "BATCH_ROWS", 2048)


@pytest.mark.slow
@pytest.mark.usefixtures("few_at_once")
def test_no_step_holds_its_rows(job: Any) -> None:
    job.values["student"]["training"] = {"epochs": 1, "batch_rows": 512}
    job.values["grid"] = {"lambda": [1], "distillation_temperature": [1], "seeds": 1}
    config = job.config()
    dev = made_rows(config, "dev", range(10**5, 10**5 + 100))
    list(peak_bytes(config, made_rows(config, "first", range(100)), dev))  # imports what there is to import
    few = dict(peak_bytes(config, made_rows(config, "few", range(FEW)), dev))
    many = dict(peak_bytes(config, made_rows(config, "many", range(MANY)), dev))
    bytes_a_row = {name: (many[name] - few[name]) / (MANY - FEW) for name in few}
    assert not {name: one for name, one in bytes_a_row.items() if one > MOST_BYTES[name]}


def test_labels_that_are_not_those_of_the_rows_are_refused(job: Any) -> None:
    config = job.config()
    dev = made_rows(config, "dev", range(20))
    rows = [{**row(number), "probabilities": np.float16([0.2, 0.5, 0.3])} for number in reversed(range(20))]
    turned = published(config, "pseudolabels", "turned", {ROWS: PSEUDOLABELS}, rows)
    with pytest.raises(StageFailed, match="not those of the rows, in their order"):
        make(config, steps.gather_labels(config, "turned", dev.examples, (turned,)), 0, lambda *_: None)
