"""`export-student`: chooses a tiny student on the dev rows and writes it as an ONNX folder with a model card."""

import json
from typing import Any

from retort.artifacts.grids import Grid, TriedSetting
from retort.artifacts.students import ONNX, TrainedStudent
from retort.config import ClassificationConfig
from retort.config.soft_label import TinyConfig
from retort.problems import problem_for
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.steps.train_grid import num_parameters_of
from retort.store import StepOutput


class ExportStudent(Step):
    """Choose the student on the dev rows, and write it as ONNX with its model card."""

    kind = "export-student"
    version = 1
    artifact = TrainedStudent

    problem: ClassificationConfig
    student: TinyConfig
    fields: list[str]
    arms: list[str]
    """Names of the arms, in the order of `grids`."""
    grids: tuple[ArtifactRef, ...]

    def run(self, context: StepContext) -> StepOutput:
        """Export the most accurate seed of the best arm.

        The best arm has the highest mean accuracy on the dev rows over its seeds; ties go to the lowest dev loss.
        """
        from retort.students.tiny.export import export

        found = [Grid.open(context.store, ref) for ref in self.grids]
        best = [grid.tried()[grid.best] for grid in found]
        at = max(range(len(found)), key=lambda one: _merit(best[one]))
        vocabulary, weights = found[at].students()
        seed = max(range(len(weights)), key=lambda one: best[at].dev_accuracies[one])
        details = {
            "arm": self.arms[at],
            "setting": best[at].setting,
            "seed": found[at].seeds[seed],
            "dev_accuracy": best[at].dev_accuracies[seed],
            "parameters": num_parameters_of(weights[seed]),
        }
        classes = problem_for(self.problem).classes
        folder = context.folder / ONNX
        folder.mkdir()
        export(folder, weights[seed], vocabulary, classes, self._card(classes, details))
        details["bytes"] = sum(file.stat().st_size for file in folder.iterdir())
        (context.folder / "chosen.json").write_text(json.dumps(details))
        return StepOutput(rows=len(weights), metrics={"dev_accuracy": details["dev_accuracy"]}, details=details)

    def _card(self, classes: tuple[str, ...], details: dict[str, Any]) -> str:
        """A model card for people who have only the folder."""
        setting = ", ".join(f"{name} {value:g}" for name, value in details["setting"].items()) or "gold labels only"
        return "\n".join(
            [
                "# A tiny student",
                "",
                f"Scores texts as one of: {', '.join(classes)}. It reads the fields "
                f"{', '.join(self.fields)}, in this order.",
                "",
                f"- {details['parameters']:,} parameters, embeddings included; arm {details['arm']} ({setting}), seed "
                f"{details['seed']}; right on {100 * details['dev_accuracy']:.1f} % of the dev rows, which chose it",
                f"- made by Retort from {', '.join(ref.key[:12] for ref in self.grids)}",
                "- trained on texts whose licence may bind what is made of them: see where the data came from",
                "",
            ]
        )


def _merit(best: TriedSetting) -> tuple[float, float]:
    return round(best.dev_accuracy, 9), -best.dev_loss
