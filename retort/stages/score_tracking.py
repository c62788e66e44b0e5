"""`track-scores`: a run of the score flow as MLflow sees it, projected from its artifacts."""

from retort.config import TrackingConfig
from retort.config.scoring import ScoreConfig
from retort.records import ArtifactRef, Scored, Stage
from retort.stages.tracking import TRACKED
from retort.stages.work import Work
from retort.store import Product

VERSION = 1


def track_scores(
    config: ScoreConfig, tracking: TrackingConfig, scored: Scored, report: ArtifactRef, origin: dict[str, str]
) -> Stage:
    """`origin` as for the stage `track`: it is told, and is not part of the key."""
    return Stage(
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


def make_score_tracking(work: Work) -> Product:
    """Writes `tracking.json`. Raises TrackingUnavailable; what was logged by then is found again by the next try."""
    from retort.tracking.scores import project_scores

    tracked = project_scores(work)
    (work.folder / TRACKED).write_text(tracked.model_dump_json(indent=1), encoding="utf-8")
    return Product(rows=1, details=tracked.model_dump())
