"""A whole run of ten pool rows through the real algorithm and the real steps; only students are hand-written."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from paper_method import PAPER
from retort.artifacts.examples import ROWS, Examples
from retort.artifacts.pseudolabels import open_rows
from retort.artifacts.scores import PREDICTED, PREDICTIONS, SCORES
from retort.artifacts.students import HISTORY, MODEL
from retort.config import ExecutionConfig, MckdConfig
from retort.data.partitions import folds_of, in_cells
from retort.io.parquet import PSEUDOLABELS, write_rows
from retort.metrics.scores import score
from retort.problems import problem_for
from retort.recipes.mckd.recipe import MckdRecipe
from retort.recipes.mckd.steps import report
from retort.records.base import ArtifactRef
from retort.records.mckd import MckdResult
from retort.records.result import Champion
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.cross_label import CrossLabel
from retort.steps.cross_validate import CrossValidate
from retort.steps.evaluate import EvaluateStudent
from retort.steps.gate import Gate
from retort.steps.train_student import TrainStudent
from retort.store import StepOutput, Store

PLAY_ARTIST, PLAY_TRACK = "[IN:PLAY [SL:ARTIST {} ] ]", "[IN:PLAY [SL:TRACK {} ] ]"
CITY = "[IN:WEATHER [SL:CITY {} ] ]"
POOL = {
    "p0": ("play madonna", PLAY_ARTIST.format("madonna")),
    "p1": ("play thriller", PLAY_TRACK.format("thriller")),
    "p2": ("weather in paris", CITY.format("paris")),
    "p3": ("weather in rome", CITY.format("rome")),
    "p4": ("play queen", PLAY_ARTIST.format("queen")),
    "p5": ("play yesterday", PLAY_TRACK.format("yesterday")),
    "p6": ("weather now", "[IN:WEATHER ]"),
    "p7": ("play abba", None),
    "p8": ("play sting", PLAY_ARTIST.format("sting")),
    "p9": ("weather oslo", CITY.format("oslo")),
}
TEACHER = {
    **{name: gold for name, (_, gold) in POOL.items() if gold},
    "p1": PLAY_ARTIST.format("thriller"),  # wrong
    "p4": PLAY_TRACK.format("queen"),  # wrong
    "p6": "[IN:PLAY ]",  # wrong
    "p7": PLAY_ARTIST.format("abba"),
    "p8": "[IN:PLAY [SL:ARTIST <b>bowie</b> ] ]",  # no label: these words are not in the request
}
del TEACHER["p9"]  # no completion
CROSS = {
    **{name: label for name, label in TEACHER.items() if name != "p8"},
    "p0": PLAY_TRACK.format("madonna"),  # broken
    "p1": PLAY_TRACK.format("thriller"),  # fixed
    "p4": CITY.format("queen"),  # still wrong, and changed in most parts
    "p7": PLAY_TRACK.format("abba"),  # changed, gold not known
}
TUNED_CROSS = {**CROSS, "p0": PLAY_ARTIST.format("madonna"), "p9": CITY.format("oslo")}
"""What the fine-tuned students say: p0 is fixed, p9 had no label."""
LABELED = {"l0": ("play prince", PLAY_ARTIST.format("prince")), "l1": ("weather in bonn", CITY.format("bonn"))}
TEST = {
    "t0": ("play cher", PLAY_ARTIST.format("cher")),
    "t1": ("play bad", PLAY_TRACK.format("bad")),
    "t2": ("weather in kiel", CITY.format("kiel")),
    "t3": ("weather in lima", CITY.format("lima")),
}
WRONG = {
    "stage1/test-0": {"t0": PLAY_TRACK.format("cher")},
    "stage2/judge": {"l0": "[IN:PLAY ]", "l1": "[IN:PLAY ]"},
    "stage2/test": {"t0": "[IN:PLAY ]", "t1": PLAY_ARTIST.format("bad")},
    "final/test": {"t1": PLAY_ARTIST.format("bad"), "t3": "[IN:PLAY ]"},
    "vanilla-kd/test": {"t1": PLAY_ARTIST.format("bad"), "t3": "[IN:PLAY ]"},  # the final student, which may come later
    "champion/test": {"t0": PLAY_TRACK.format("cher"), "t1": PLAY_ARTIST.format("bad"), "t3": "[IN:PLAY ]"},
}
"""What students say instead of the gold, by the beginning of the evaluation's name."""


class Run(NamedTuple):
    config: MckdConfig
    store: Store
    distilled: MckdResult
    report: ArtifactRef
    perform: Callable[[Step], ArtifactRef]


Wrong = Mapping[str, Mapping[str, str]]


def synthetic(
    tmp_path: Path, wrong: Wrong = WRONG, reigning: Champion | None = None, *, pictures: bool = False, **changes: Any
) -> Run:
    """`changes` are fields of the config. Every artifact is told to have taken one second, a row 2.5 ms. The report has
    pictures only if they are wanted, for they take longer than all else."""
    values = {**_config(tmp_path), **changes}
    values["method"] = {"stages": 3, **PAPER, **values["method"]}
    config = MckdConfig.model_validate(values)
    store = Store(config.store.root)

    def perform(step: Step) -> ArtifactRef:
        found = store.find(step.artifact_kind, step.key)
        if found:
            return store.ref(found)
        with tempfile.TemporaryDirectory() as folder:
            context = StepContext(store, Path(folder), ExecutionConfig(), 0, lambda done, total, note: None)
            return store.publish(step, Path(folder), _made(step, context, wrong), 1.0, config.name)

    async def do(step: Step) -> ArtifactRef:
        return perform(step)

    distilled = asyncio.run(MckdRecipe().run(config, do, reigning))
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr("retort.report.mckd.pictures.draw_all", lambda summary, folder: [])
        page = perform(report(config, distilled))
    return Run(config, store, distilled, page, perform)


def crowned(run: Run, version: str) -> Champion:
    """The final student of a run as the champion of the next."""
    student = run.distilled.final_student
    manifest = run.store.find(student.kind, student.key)
    assert manifest is not None
    before = manifest.fingerprint["inputs"].get("start", [student.key])[0]
    trained = run.store.find(student.kind, before)
    assert trained is not None
    return Champion(
        model=run.config.name,
        version=version,
        student=student,
        fingerprint=manifest.fingerprint,
        trained=trained.fingerprint,
    )


def _config(folder: Path) -> dict[str, Any]:
    sets: Mapping[str, Mapping[str, tuple[str, str | None]]] = {"labeled": LABELED, "unlabeled": POOL, "test": TEST}
    for role, rows in sets.items():
        lines = [{"id": name, "text": text, "label": label} for name, (text, label) in rows.items()]
        _write_lines(folder / f"{role}.jsonl", lines)
    _write_lines(folder / "completions.jsonl", [_completion(name, text) for name, text in TEACHER.items()])
    return {
        "name": "tiny",
        "problem": {"kind": "slots", "intents": {"PLAY": ["ARTIST", "TRACK"], "WEATHER": ["CITY"]}},
        "data": {role: str(folder / f"{role}.jsonl") for role in sets},
        "teacher": {
            "kind": "recorded",
            "completions": str(folder / "completions.jsonl"),
            "min_success_ratio": 0.5,
        },
        "student": {"kind": "token-classification", "model": "example/encoder"},
        "method": {},
        "evaluation": {"resamples": 200},
        "baselines": ["vanilla-kd", "supervised"],
        "store": {"root": str(folder / "store")},
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _completion(name: str, text: str) -> dict[str, Any]:
    message = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"custom_id": name, "response": {"status_code": 200, "body": {"choices": [message]}}, "error": None}


def _made(step: Step, context: StepContext, wrong: Wrong) -> StepOutput:
    match step:
        case TrainStudent():
            return _make_student(context)
        case CrossLabel():
            return _make_cross_labels(step, context)
        case EvaluateStudent():
            return _make_student_scores(wrong, step, step.gold, context)
        case CrossValidate():
            return _make_student_scores(wrong, step, step.labels, context)
        case Gate():
            return step.judge(context, lambda gate, context, texts: ([2.5] * len(texts), "a machine"))
    return step.run(context)


def _make_student(context: StepContext) -> StepOutput:
    (context.folder / MODEL).mkdir()
    (context.folder / MODEL / "model.safetensors").write_bytes(b"weights")
    history = {"steps": [1, 2, 3], "losses": [2.0, 1.0, 0.5], "learning_rates": [1e-4, 5e-5, 0.0], "seconds": 0.5}
    (context.folder / HISTORY).write_text(json.dumps(history))
    return StepOutput(
        rows=8,
        metrics={"loss": 0.5, "examples_per_second": 250.0},
        details={"device": "cpu", "precision": "bf16", "threads": 1},
    )


def _make_cross_labels(step: CrossLabel, context: StepContext) -> StepOutput:
    """The students' part is in `CROSS`; with probabilities, 0.9 for what they say and the rest for all else."""
    problem, cross = problem_for(step.problem), TUNED_CROSS if step.name.startswith("fine-tuning") else CROSS

    def labeled(row: dict[str, Any]) -> dict[str, Any]:
        label = problem.parse(row["text"], cross[row["example_id"]])
        assert isinstance(label, str), label
        probabilities = None
        if step.probabilities:
            classes = len(problem.classes)
            sure = 0.99 if row["example_id"] == "p7" else 0.9
            units = np.eye(classes)[problem.targets(row["text"], label)]
            probabilities = (units * sure + (1 - units) * (1 - sure) / (classes - 1)).astype(np.float16).ravel()
        return {**row, "label": label, "confidence": 0.9, "labeler": step.name, "probabilities": probabilities}

    rows = in_cells(open_rows(context.store, step.rows).rows(["example_id", "text"]), step.cells)
    named = (row for row in rows if row["example_id"] in cross)
    return StepOutput(rows=write_rows(context.folder / ROWS, PSEUDOLABELS, map(labeled, named)))


def _make_student_scores(
    wrong: Wrong, step: EvaluateStudent | CrossValidate, gold: ArtifactRef, context: StepContext
) -> StepOutput:
    problem = problem_for(step.problem)
    said = next((labels for name, labels in wrong.items() if step.name.startswith(name)), {})
    rows: list[dict[str, Any]] = []
    examples = Examples.open(context.store, gold).gold()
    if isinstance(step, CrossValidate):
        folds = folds_of([example.example_id for example in examples], step.folds, step.seed)
        held = {at for number, fold in enumerate(folds) if number in step.only for at in fold}
        examples = [example for at, example in enumerate(examples) if at in held]
    for example in examples:
        predicted = example.label
        if example.example_id in said:
            predicted = problem.parse(example.text, said[example.example_id])  # type: ignore[assignment]
        row = {"example_id": example.example_id, "text": example.text, "gold": example.label, "predicted": predicted}
        rows.append({**row, "confidence": 0.9})
    write_rows(context.folder / PREDICTIONS, PREDICTED, rows)
    golds, labels = [row["gold"] for row in rows], [row["predicted"] for row in rows]
    scores = [score(problem, metric, golds, labels, 200, 0) for metric in step.metrics]
    (context.folder / SCORES).write_text(json.dumps([item.model_dump() for item in scores]))
    return StepOutput(rows=len(rows), metrics={item.metric: item.value for item in scores})
