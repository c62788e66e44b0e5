"""The base class of steps. A step is one unit of work, described completely before it runs."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from retort.artifacts.base import Artifact
from retort.records.base import ArtifactRef, Record, digest

if TYPE_CHECKING:
    from retort.steps.context import StepContext
    from retort.store import StepOutput, Store

T = TypeVar("T")
_RUNTIME = object()
Runtime = Annotated[T, _RUNTIME]
"""A field that `run` needs but that does not change the result: an address, or a limit that can only fail the step."""
Inputs = dict[str, tuple[ArtifactRef, ...]]


class Resources(NamedTuple):
    """What a step needs from the machine that it runs on."""

    gpu: Literal["none", "one", "several", "all"] = "none"
    """several: `execution.gpus_per_student`, with a process on each. all: the step's engine spreads over all GPUs by
    itself."""
    work_pool: Literal["teacher", "student"] | None = None
    """Whether it goes to `execution.teacher_pool` or `execution.student_pool`, if the config sets them."""


CPU = Resources()
STUDENT = Resources(gpu="one", work_pool="student")
TRAINING = Resources(gpu="several", work_pool="student")


class Step(Record):
    """One unit of work; its key is known without running anything.

    A subclass is one kind of work. The type of each field determines its role:

    - an `ArtifactRef`, or a tuple of them, is an input, and its key is part of the step's key (None and () are no
      input);
    - `Runtime[T]` is not part of the key: steps that differ only in such fields share one artifact;
    - everything else is a literal that changes the result, and its JSON is part of the key.

    A value that `run` takes from its context (device, memory, attempt) is never part of the key. allenai/tango's `Step`
    and marin's `ExecutorStep` work the same way. To add a step, see CONTRIBUTING.
    """

    kind: ClassVar[str]
    """The kind of work, as shown to people and written into manifests: `train-student`."""
    version: ClassVar[int]
    """To be raised when the same fields give another result; tests/test_step_versions.py checks that."""
    artifact: ClassVar[type[Artifact]]
    """The type of artifact that the step makes."""
    _input_names: ClassVar[frozenset[str]]
    _runtime_names: ClassVar[frozenset[str]]

    name: Runtime[str]
    """Unique within a run: `stage1/student-0`."""
    siblings: Runtime[int] = 1
    """How many steps of this kind run side by side. It determines the number of threads, so that a resumed run repeats
    exactly."""
    shares: Runtime[int] = 1
    """Into how many shares a CPU's cores are divided at least, because other work of the run can go on beside it."""
    is_urgent: Runtime[bool] = True
    """Whether other steps of the run wait for it. Those for which only the end of the run waits come after it."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields
        cls._runtime_names = frozenset(name for name, field in fields.items() if _RUNTIME in field.metadata)
        inputs = (name for name, field in fields.items() if _is_input(field.annotation))
        cls._input_names = frozenset(inputs) - cls._runtime_names

    @property
    def params(self) -> dict[str, Any]:
        """The literals that change the result, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude={*self._input_names, *self._runtime_names})

    @property
    def inputs(self) -> Inputs:
        """Inputs by role, which is the field's name."""
        given = {name: getattr(self, name) for name in sorted(self._input_names)}
        return {name: _as_tuple(value) for name, value in given.items() if value not in (None, ())}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The value whose digest is the key. Manifests keep it, so that a MISS can name what changed."""
        inputs = {role: [ref.key for ref in refs] for role, refs in self.inputs.items()}
        return {"verb": self.kind, "version": self.fingerprint_version, "params": self.params, "inputs": inputs}

    @property
    def fingerprint_version(self) -> int:
        """`version`, or an older version if the change did not affect steps with these fields."""
        return self.version

    @property
    def key(self) -> str:
        return digest(self.fingerprint)

    @property
    def cpu_shares(self) -> int:
        """Into how many shares a CPU's cores are divided, one of which it gets."""
        return max(self.siblings, self.shares)

    @property
    def artifact_kind(self) -> str:
        """The artifact's folder in the store: `examples`, `pseudolabels`, `students` ..."""
        return self.artifact.kind

    @property
    def resources(self) -> Resources:
        return CPU

    def input(self, role: str) -> ArtifactRef:
        """The only input of a role."""
        (ref,) = self.inputs[role]
        return ref

    @abstractmethod
    def run(self, context: "StepContext") -> "StepOutput":
        """Write the artifact's files into `context.folder`. If this raises, the step fails and nothing is stored."""

    def refresh(self, store: "Store") -> None:
        """Called before the store is searched for the step. Discards the step's artifact if it is no longer valid."""

    def published(self, context: "StepContext") -> None:
        """Called once the artifact is in the store. Deletes what is no longer needed then."""


def step_class(name: str) -> type[Step]:
    """The step class with this name. Raises KeyError."""
    return {cls.__name__: cls for cls in step_classes()}[name]


def step_classes(base: type[Step] = Step) -> list[type[Step]]:
    """Every step class imported so far; `import retort.recipes` imports those of all recipes."""
    return [one for sub in base.__subclasses__() for one in (sub, *step_classes(sub))]


def _is_input(annotation: Any) -> bool:
    """Whether it is `ArtifactRef`, `ArtifactRef | None` or `tuple[ArtifactRef, ...]`."""
    inner = [one for one in get_args(annotation) if one not in (type(None), ...)]
    return annotation is ArtifactRef or (get_origin(annotation) is not dict and inner == [ArtifactRef])


def _as_tuple(value: Any) -> tuple[ArtifactRef, ...]:
    return value if isinstance(value, tuple) else (value,)
