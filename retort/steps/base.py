"""What a step is: one unit of work, described completely before it is done."""

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
"""A field that `run` needs and that does not change the result: an address, a limit that only fails."""
Inputs = dict[str, tuple[ArtifactRef, ...]]


class Resources(NamedTuple):
    """What a step wants of the machine that it runs on."""

    gpu: Literal["none", "one", "all"] = "none"
    """all: an engine that spreads over every GPU by itself."""
    work_pool: Literal["teacher", "student"] | None = None
    """Which of `execution.teacher_pool` and `execution.student_pool` it goes to, where the config names them."""


CPU = Resources()
STUDENT = Resources(gpu="one", work_pool="student")


class Step(Record):
    """One unit of work; its key is known without running anything.

    A subclass is one kind of work. Each of its fields has one of three roles, read off its type:

    - an `ArtifactRef`, or a tuple of them, is an input: its key is identity (None and () are no input);
    - `Runtime[T]` is not in the key: two runs that need the same work share it, whatever it holds;
    - everything else is a literal that changes the result: its JSON is identity.

    A value that `run` pulls from its context (device, memory, an earlier attempt) is never identity. The same scheme as
    in allenai/tango's `Step` and marin's `ExecutorStep`. To add one, see CONTRIBUTING.
    """

    kind: ClassVar[str]
    """The kind of work, as people read it and as it is written in manifests: `train-student`."""
    version: ClassVar[int]
    """Raised when the same fields come to mean another result; tests/test_versions.py reminds."""
    artifact: ClassVar[type[Artifact]]
    """What the step makes."""
    _input_names: ClassVar[frozenset[str]]
    _runtime_names: ClassVar[frozenset[str]]

    name: Runtime[str]
    """Unique in its run: `stage1/student-0`."""
    siblings: Runtime[int] = 1
    """How many steps of this kind run side by side; decides threads, so that a resumed run repeats exactly."""

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
        """By role, which is the field's name."""
        given = {name: getattr(self, name) for name in sorted(self._input_names)}
        return {name: _as_tuple(value) for name, value in given.items() if value not in (None, ())}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the key is the digest of; kept in the manifest, so that a MISS can name what changed."""
        inputs = {role: [ref.key for ref in refs] for role, refs in self.inputs.items()}
        return {"verb": self.kind, "version": self.fingerprint_version, "params": self.params, "inputs": inputs}

    @property
    def fingerprint_version(self) -> int:
        """`version`, or an older one where that did not change what these fields mean."""
        return self.version

    @property
    def key(self) -> str:
        return digest(self.fingerprint)

    @property
    def artifact_kind(self) -> str:
        """A folder in the store: `examples`, `pseudolabels`, `students` ..."""
        return self.artifact.kind

    @property
    def resources(self) -> Resources:
        return CPU

    def input(self, role: str) -> ArtifactRef:
        """The only artifact of a role."""
        (ref,) = self.inputs[role]
        return ref

    @abstractmethod
    def run(self, context: "StepContext") -> "StepOutput":
        """Write the artifact's files into `context.folder`. What is raised fails the step; then nothing is stored."""

    def refresh(self, store: "Store") -> None:
        """Called before the step is looked for: forget its artifact if that is worth nothing any more."""

    def published(self, context: "StepContext") -> None:
        """Called once the artifact is in the store: what is then no longer needed goes."""


def step_class(name: str) -> type[Step]:
    """The class of this name. Raises KeyError."""
    return {cls.__name__: cls for cls in step_classes()}[name]


def step_classes(base: type[Step] = Step) -> list[type[Step]]:
    """Every kind of step that is imported by now: `import retort.recipes` brings those of all recipes."""
    return [one for sub in base.__subclasses__() for one in (sub, *step_classes(sub))]


def _is_input(annotation: Any) -> bool:
    """`ArtifactRef`, `ArtifactRef | None` or `tuple[ArtifactRef, ...]`."""
    inner = [one for one in get_args(annotation) if one not in (type(None), ...)]
    return annotation is ArtifactRef or (get_origin(annotation) is not dict and inner == [ArtifactRef])


def _as_tuple(value: Any) -> tuple[ArtifactRef, ...]:
    return value if isinstance(value, tuple) else (value,)
