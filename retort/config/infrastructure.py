"""The settings that all recipes' configs share: where and how a run happens."""

from typing import Annotated, Any, Literal

from pydantic import Field

from retort.config.base import Address, Name, Settings, Text, expand, home_expanded


class StoreConfig(Settings):
    """Where artifacts are stored."""

    root: Address = ".retort/store"
    """A folder, or s3://bucket/prefix; credentials come from the environment (AWS_ACCESS_KEY_ID ...)."""
    endpoint_url: Address | None = None
    """Address of an S3-compatible server other than AWS."""

    @property
    def address(self) -> str:
        """`root`, expanded."""
        return home_expanded(expand(self.root))

    @property
    def server(self) -> str | None:
        """`endpoint_url`, expanded."""
        return self.endpoint_url and expand(self.endpoint_url)


class TrackingConfig(Settings):
    """MLflow."""

    uri: Address
    """The tracking server, or sqlite:///file."""
    experiment: Name | None = None
    """Default: the config's name."""


class ExecutionConfig(Settings):
    """Where steps run, and how many at once. Nothing here changes a result, so nothing here is part of a key."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    parallel_students: Annotated[int, Field(ge=1)] | None = None
    """Students trained side by side. Default: one on each GPU, or as many as fill the cores. More than there are GPUs
    share them evenly."""
    gpus_per_student: Annotated[int, Field(ge=1)] = 1
    """The most GPUs of one machine that train a student together, each computing a share of every step's rows. Students
    trained side by side share the GPUs evenly first. The steps stay the same, so this is worth while where a step keeps
    one GPU busy: many `batch_tokens`, a large model. A student that does not fit one GPU is divided among them."""
    stage_timeout_seconds: Annotated[float, Field(gt=0)] = 24 * 3600
    """A supervised child process that runs longer is killed, and its stage fails."""
    teacher_pool: Text | None = None
    """The Prefect work pool for teachers that need a GPU, each in a separate run. Default: this process's machine."""
    student_pool: Text | None = None
    """The Prefect work pool on which students are trained, label and are scored. Default: this process's machine."""
    shard_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of a shard. Labeling, cross-labeling and evaluation of more rows are split, and each shard is a step of its
    own: on the work pool if there is one (an endpoint's shards go to `teacher_pool`), else side by side on this
    machine. Shards of a student are whole windows of 8,192 rows. Default: nothing is split."""


class RunSettings(Settings):
    """The settings needed to make a step of any recipe."""

    name: Name
    """The name of the experiment and of the registered model."""
    store: StoreConfig = StoreConfig()
    """Where artifacts are stored."""
    execution: ExecutionConfig = ExecutionConfig()
    """Where steps run."""


class RecipeConfig(RunSettings):
    """A YAML file. Each recipe has a subclass."""

    tracking: TrackingConfig | None = None
    """Where metrics go. Default: nowhere."""

    @property
    def run_settings(self) -> RunSettings:
        return RunSettings(name=self.name, store=self.store, execution=self.execution)

    def as_reported(self) -> dict[str, Any]:
        """The part of the config that shapes the result, and is therefore reported, as JSON values."""
        return self.model_dump(mode="json", exclude={"store", "tracking", "execution"})
