"""The final student meets the reigning champion on the same test rows, and the gate decides."""

from retort.config import MckdConfig
from retort.recipes.mckd.pipeline import Do
from retort.records.base import ArtifactRef, Champion, MckdResult
from retort.steps.evaluate import evaluate_student
from retort.steps.gate import gate


async def challenge(config: MckdConfig, distilled: MckdResult, reigning: Champion | None, do: Do) -> MckdResult:
    """Add the champion's scores and the verdict; nothing without tracking, which has the registry to promote in."""
    if config.tracking is None:
        return distilled
    scores = await score_champion(config, distilled, reigning, do) if reigning else None
    verdict = await do(gate(config, distilled, scores))
    return distilled.model_copy(update={"reigning": reigning, "reigning_scores": scores, "verdict": verdict})


async def score_champion(config: MckdConfig, distilled: MckdResult, reigning: Champion, do: Do) -> ArtifactRef:
    """On tonight's test rows, and with the length of rows that it was trained for."""
    max_length = reigning.made_of["params"]["training"]["max_length"]
    training = config.student.training.model_copy(update={"max_length": max_length})
    student = config.student.model_copy(update={"training": training})
    as_trained = config.model_copy(update={"student": student})
    return await do(evaluate_student(as_trained, "champion/test", reigning.student, distilled.data.test))
