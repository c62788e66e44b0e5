"""`track`: projects a run's artifacts into MLflow. Doing it twice changes nothing."""

from abc import abstractmethod
from typing import Annotated, Any

from pydantic import Field

from retort.artifacts.reports import Tracked, TrackingRun, write_tracked
from retort.records.base import ArtifactRef
from retort.steps.base import Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput, Store
from retort.tracking.address import is_current
from retort.tracking.registry import CHALLENGER, versions
from retort.tracking.student_versions import VERDICT


class Track(Step):
    """Bring MLflow up to date with the run's artifacts."""

    artifact = TrackingRun

    job: Annotated[str, Field(serialization_alias="name")]
    """The config's name."""
    uri: str
    """May contain `${VAR}`."""
    experiment: str
    config: dict[str, Any]
    """The part of the config that shapes the result, see `RecipeConfig.as_reported`."""
    report: ArtifactRef
    origin: Runtime[dict[str, str]]
    """Where the run comes from. Each entry becomes a tag `retort.NAME`; `git.commit` is also MLflow's own, and
    `started_at` (ISO 8601) is when the tracking run starts."""

    def run(self, context: StepContext) -> StepOutput:
        """Raises TrackingUnavailable. The next attempt finds what was already logged."""
        tracked = self.project(context)
        write_tracked(context.folder, tracked)
        return StepOutput(rows=1, details=tracked.model_dump())

    @abstractmethod
    def project(self, context: StepContext) -> Tracked:
        """Bring MLflow up to date with the run."""

    def is_projected(self, store: Store) -> bool:
        """Whether the artifact is in the store and MLflow still shows it: the run, and this verdict on the version,
        which another night may have overwritten. Raises TrackingUnavailable if MLflow does not say."""
        manifest = store.find(self.artifact_kind, self.key)
        tracked = manifest and TrackingRun.open(store, store.ref(manifest)).tracked()
        if not tracked or not is_current(self.uri, tracked.run_id):
            return False
        return not tracked.verdict or any(
            version.version == tracked.version
            and version.tags.get(VERDICT) == tracked.verdict
            and CHALLENGER in version.aliases
            for version in versions(self.uri, tracked.model)
        )

    def refresh(self, store: Store) -> None:
        """Raises TrackingUnavailable, and discards nothing, while MLflow is away: by the artifact, `retort maintain`
        knows where students are registered."""
        if not self.is_projected(store):
            store.discard(self.artifact_kind, self.key)
