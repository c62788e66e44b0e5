"""A step of any kind, for tests of what handles steps and does not care what they do."""

from typing import Any

from pydantic import Field

from retort.artifacts.base import Artifact
from retort.records.base import ArtifactRef
from retort.steps.base import Resources, Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput


class AnyStep(Step):
    kind = "any"
    version = 1
    artifact = Artifact

    values: Runtime[dict[str, Any]] = Field(default={})
    """What `params` gives."""
    refs: Runtime[dict[str, tuple[ArtifactRef, ...]]] = Field(default={})
    """What `inputs` gives."""
    made: Runtime[str] = "things"
    """Kind of the artifact."""
    wants: Runtime[Resources] = Resources()

    @property
    def params(self) -> dict[str, Any]:
        return self.values

    @property
    def inputs(self) -> dict[str, tuple[ArtifactRef, ...]]:
        return dict(sorted(self.refs.items()))

    @property
    def artifact_kind(self) -> str:
        return self.made

    @property
    def resources(self) -> Resources:
        return self.wants

    def run(self, context: StepContext) -> StepOutput:
        raise AssertionError("nobody runs this step")
