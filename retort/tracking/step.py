"""`track`: the run as MLflow sees it, projected from its artifacts, so that doing it twice changes nothing."""

from retort.config import MckdConfig, TrackingConfig
from retort.records.base import ArtifactRef, MckdResult, Step
from retort.steps.context import StepContext
from retort.store import StepOutput, Store
from retort.tracking.mckd import is_projected, project

VERSION = 1
TRACKED = "tracking.json"


def track(
    config: MckdConfig, tracking: TrackingConfig, distilled: MckdResult, report: ArtifactRef, origin: dict[str, str]
) -> Step:
    """`origin` says where the run comes from; it is told, and is not part of the key. Each entry becomes a tag
    `retort.NAME`; `git.commit` is also MLflow's own, and `started_at` (ISO 8601) is when the tracking run starts."""
    return Step(
        name="tracking",
        verb="track",
        version=VERSION,
        kind="tracking",
        params={
            "name": config.name,
            "uri": tracking.uri,
            "experiment": tracking.experiment or config.name,
            "config": config.model_dump(mode="json", exclude={"store", "tracking", "execution"}),
        },
        inputs={"all": tuple(distilled.refs()), "report": (report,)},
        knobs={"distilled": distilled.model_dump(mode="json"), "origin": origin},
    )


def forget_if_gone(store: Store, stage: Step) -> None:
    """If the tracking database was deleted or emptied since, or tells another night's verdict of the same student, what
    the store knows of it is worth nothing."""
    manifest = store.find(stage.kind, stage.key)
    if manifest is None:
        return
    tracked = store.fetch(store.ref(manifest)) / TRACKED
    if not is_projected(stage.params["uri"], tracked):
        store.discard(stage.kind, stage.key)


def make_tracking(work: StepContext) -> StepOutput:
    """Writes `tracking.json`. Raises TrackingUnavailable; what was logged by then is found again by the next try."""
    tracked = project(work)
    (work.folder / TRACKED).write_text(tracked.model_dump_json(indent=1), encoding="utf-8")
    return StepOutput(rows=1, details=tracked.model_dump())
