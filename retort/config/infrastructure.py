"""Where a run happens: what every recipe's config holds beside its own fields."""

from typing import Annotated, Any, Literal

from pydantic import Field

from retort.config.base import Address, Name, Settings, Text, expand


class StoreConfig(Settings):
    """Where artifacts lie."""

    root: Address = ".retort/store"
    """A folder, or s3://bucket/prefix; credentials come from the environment (AWS_ACCESS_KEY_ID ...)."""
    endpoint_url: Address | None = None
    """Of an S3-compatible server that is not AWS."""

    @property
    def server(self) -> str | None:
        """`endpoint_url`, expanded."""
        return self.endpoint_url and expand(self.endpoint_url)


class TrackingConfig(Settings):
    """MLflow."""

    uri: Address
    """The tracking server, or sqlite:///file."""
    experiment: Name | None = None
    """Left out: the config's name."""


class ExecutionConfig(Settings):
    """Where and how wide things run. Nothing here changes a result, so nothing here is in a key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one."""
    parallel_students: Annotated[int, Field(ge=1)] | None = None
    """Students trained side by side. Left out: one per GPU, or one per core."""
    stage_timeout_seconds: Annotated[float, Field(gt=0)] = 24 * 3600
    """A supervised child process that runs longer is ended, and its stage fails."""
    teacher_pool: Text | None = None
    """The Prefect work pool on which a teacher that needs a GPU labels, each as a run of its own; left out: here."""
    student_pool: Text | None = None
    """The Prefect work pool on which students are trained, label and are scored; left out: here."""


class RunSettings(Settings):
    """What making one step takes, whatever the recipe."""

    name: Name
    """Of the experiment and of the registered model."""
    store: StoreConfig = StoreConfig()
    """Where artifacts lie."""
    execution: ExecutionConfig = ExecutionConfig()
    """Where it runs."""


class RecipeConfig(RunSettings):
    """A YAML file; each recipe has its own."""

    tracking: TrackingConfig | None = None
    """Where metrics go; left out: nowhere."""

    @property
    def run_settings(self) -> RunSettings:
        return RunSettings(name=self.name, store=self.store, execution=self.execution)

    def told(self) -> dict[str, Any]:
        """All that is reported of the config, as JSON values: what shapes the result."""
        return self.model_dump(mode="json", exclude={"store", "tracking", "execution"})
