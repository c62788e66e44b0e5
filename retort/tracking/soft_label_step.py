"""`track-scores`: a run of the score flow as MLflow sees it, projected from its artifacts."""

from retort.config import TrackingConfig
from retort.config.soft_label import SoftLabelConfig
from retort.records.base import ArtifactRef, SoftLabelResult, Step
from retort.steps.context import StepContext
from retort.store import StepOutput
from retort.tracking.step import TRACKED

VERSION = 1


def track_scores(
    config: SoftLabelConfig,
    tracking: TrackingConfig,
    scored: SoftLabelResult,
    report: ArtifactRef,
    origin: dict[str, str],
) -> Step:
    """`origin` as for the stage `track`: it is told, and is not part of the key."""
    return Step(
        name="tracking",
        verb="track-scores",
        version=VERSION,
        kind="tracking",
        params={
            "name": config.name,
            "uri": tracking.uri,
            "experiment": tracking.experiment or config.name,
            "config": config.model_dump(mode="json", exclude={"store", "tracking", "execution"}),
        },
        inputs={"student": (scored.student,), "report": (report,)},
        knobs={"origin": origin},
    )


def make_score_tracking(work: StepContext) -> StepOutput:
    """Writes `tracking.json`. Raises TrackingUnavailable; what was logged by then is found again by the next try."""
    from retort.tracking.soft_label import project_scores

    tracked = project_scores(work)
    (work.folder / TRACKED).write_text(tracked.model_dump_json(indent=1), encoding="utf-8")
    return StepOutput(rows=1, details=tracked.model_dump())
