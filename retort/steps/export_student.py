"""`export-student`: the tiny student that is kept, chosen on the dev rows, as an ONNX folder with its model card."""

import json
from typing import Any

from retort.config.soft_label import SoftLabelConfig
from retort.records.base import ArtifactRef, Step
from retort.steps.context import StepContext
from retort.steps.train_grid import num_parameters_of, read_students
from retort.store import StepOutput

VERSION = 1
ONNX = "onnx"
"""The folder to ship: it needs onnxruntime and numpy, and nothing of Retort."""


def export_student(config: SoftLabelConfig, grids: dict[str, ArtifactRef]) -> Step:
    return Step(
        name="final/student",
        verb="export-student",
        version=VERSION,
        kind="students",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "student": config.student.model_dump(mode="json"),
            "fields": config.data.columns.text,
            "arms": list(grids),
        },
        inputs={"grids": tuple(grids.values())},
    )


def make_export(work: StepContext) -> StepOutput:
    """The arm that is most often right on the dev rows, over its seeds; of equals the one that is least surprised; of
    its seeds the most right."""
    from retort.students.tiny.export import export

    found = [read_students(work.fetch_ref(ref)) for ref in work.stage.inputs["grids"]]
    arms = work.stage.params["arms"]
    at = max(range(len(found)), key=lambda one: _merit(found[one][0]))
    grid, vocabulary, weights = found[at]
    best = grid["tried"][grid["best"]]
    seed = max(range(len(weights)), key=lambda one: best["dev_accuracies"][one])
    details = {
        "arm": arms[at],
        "setting": best["setting"],
        "seed": grid["seeds"][seed],
        "dev_accuracy": best["dev_accuracies"][seed],
        "parameters": num_parameters_of(weights[seed]),
    }
    folder = work.folder / ONNX
    folder.mkdir()
    export(folder, weights[seed], vocabulary, work.problem.classes, _card(work, details))
    details["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    (work.folder / "chosen.json").write_text(json.dumps(details))
    return StepOutput(rows=len(weights), metrics={"dev_accuracy": details["dev_accuracy"]}, details=details)


def _merit(grid: dict[str, Any]) -> tuple[float, float]:
    best = grid["tried"][grid["best"]]
    return round(best["dev_accuracy"], 9), -best["dev_loss"]


def _card(work: StepContext, details: dict[str, Any]) -> str:
    """For people who find the folder alone."""
    params = work.stage.params
    setting = ", ".join(f"{name} {value:g}" for name, value in details["setting"].items()) or "gold labels only"
    return "\n".join(
        [
            "# A tiny student",
            "",
            f"Scores texts as one of: {', '.join(work.problem.classes)}. It reads the fields "
            f"{', '.join(params['fields'])}, in this order.",
            "",
            f"- {details['parameters']:,} parameters, embeddings included; arm {details['arm']} ({setting}), seed "
            f"{details['seed']}; right on {100 * details['dev_accuracy']:.1f} % of the dev rows, which chose it",
            f"- made by Retort from {', '.join(ref.key[:12] for ref in work.stage.inputs['grids'])}",
            "- trained on texts whose licence may bind what is made of them: see where the data came from",
            "",
        ]
    )
