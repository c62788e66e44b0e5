"""`train-student`: trains a fresh student, from pretrained weights or the champion's, on the labels of some cells."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import compress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from retort.artifacts.examples import Examples
from retort.artifacts.pseudolabels import Pseudolabels, labeled_rows
from retort.artifacts.students import HISTORY, MODEL, TrainedStudent
from retort.config import EncoderConfig, GenerativeConfig, Problem, Student, TrainingConfig, expand
from retort.data.partitions import Cells, in_cells
from retort.errors import ConfigError, StageFailed
from retort.io.parquet import Row, aligned
from retort.models.weights import Weights, find_weights
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.problems.base import spread
from retort.records.base import ArtifactRef
from retort.steps.base import TRAINING, Resources, Runtime, Step
from retort.steps.context import StepContext
from retort.store import StepOutput

if TYPE_CHECKING:
    from retort.students.base import Rows, TrainingRow
    from retort.students.base import Student as NewStudent

_WARM = {True: "another student", False: "another student, with a new head, for the class names differ"}
_STUDENT: TypeAdapter[Student] = TypeAdapter(Student)


class TrainingStep(Step):
    """A step that trains students of one kind, from the same start."""

    problem: Problem
    student: Literal["token-classification", "sequence-classification", "seq2seq", "causal"]
    weights: str
    """Identity of the initial weights, see `retort.models.weights.Weights`."""
    pretrained: bool
    training: TrainingConfig
    seed: int
    cells: Cells | None
    """Cells of the pool that the student may see; None is all of it."""
    soft: bool
    """Whether it is trained on the rows' probabilities instead of their labels."""
    min_confidence: Annotated[float, Field(exclude_if=lambda least: least == 0)] = 0.0
    """It is trained on rows whose label has at least this confidence."""
    options: Annotated[dict[str, Any] | None, Field(exclude_if=lambda options: not options)] = None
    """The options that only this kind of student has."""
    labels: ArtifactRef
    """Pseudolabels, or gold-labeled examples."""
    start: ArtifactRef | None = None
    """The student whose weights it starts from."""
    stopping: ArtifactRef | None = None
    """The labeled set that decides when training stops."""
    interpolation: Annotated[float, Field(exclude_if=lambda share: share == 1)] = 1.0
    """Its weights are this share of the way from those it starts from to those that the training reaches."""
    model: Runtime[str]
    """Where the initial weights are."""
    revision: Runtime[str] = "main"
    endpoint_url: Runtime[str | None] = None

    @property
    def resources(self) -> Resources:
        return TRAINING

    @property
    def config(self) -> Student:
        """The student's config as far as the step needs it, with this step's training settings."""
        weights = "pretrained" if self.pretrained else "random"
        named = {"kind": self.student, "model": self.model, "revision": self.revision, "weights": weights}
        return _STUDENT.validate_python({**named, **(self.options or {}), "training": dict(self.training)})

    def untrained(self, context: StepContext, weights: Weights) -> "tuple[NewStudent, str]":
        """Return (the student at its start, what it starts from if not from `weights`)."""
        import torch

        from retort.students.loading import new_student

        torch.manual_seed(self.seed)
        pretrained = self.pretrained and not self.start
        student = new_student(self.config, weights, pretrained=pretrained, problem=problem_for(self.problem))
        if self.start is None:
            return student, ""
        same_head = student.continue_from(TrainedStudent.open(context.store, self.start).model)
        return student, _WARM[same_head]

    def found_weights(self) -> Weights:
        """Find the weights again, since another machine may have planned the step.

        Raises ConfigError if they are not the ones in the step's key.
        """
        found = find_weights(self.config, self.endpoint_url and expand(self.endpoint_url))
        if found.identity != self.weights:
            raise ConfigError(
                f"student.model = '{self.model}': what {self.name} finds there is not what the run began with; the "
                "files were changed since, or this worker has others: give all machines the same, or an s3:// address"
            )
        return found


class TrainStudent(TrainingStep):
    """Train one student on its cells of the pool."""

    kind = "train-student"
    version = 1
    artifact = TrainedStudent

    def run(self, context: StepContext) -> StepOutput:
        return self.train(context, self.found_weights())

    def train(self, context: StepContext, weights: Weights) -> StepOutput:
        from retort.models.device import choose_device
        from retort.students.checkpoints import StoredCheckpoint
        from retort.students.data_parallel import joined
        from retort.students.interpolation import interpolated

        rank = context.rank
        device = choose_device(context.execution.device, self.training.precision, self.cpu_shares * rank.size)
        student, start = self.untrained(context, weights)
        problem = problem_for(self.problem)
        rows, held_out = self._held_out(context, self._rows(context, problem, student))
        with joined(rank), interpolated(student.model, self.interpolation):
            result = student.train(
                rows,
                self.training,
                seed=self.seed,
                device=device,
                micro_batches=2**context.attempt,
                checkpoint=StoredCheckpoint(context.store, self.key),
                progress=context.progress,
                held_out=held_out,
            )
        if rank.is_first:
            student.save(context.folder / MODEL)
        history = result.history
        (context.folder / HISTORY).write_text(json.dumps(asdict(history)))
        return StepOutput(
            rows=len(rows),
            counts=result.counts,
            metrics={
                "loss": history.losses[-1],
                "examples_per_second": history.examples_per_second,
                **({"held_out_loss": min(history.held_out_losses)} if held_out else {}),
            },
            details={
                **device.describe(),
                **({"processes": rank.size} if rank.size > 1 else {}),
                "parameters": student.num_parameters,
                "training_seconds": history.seconds,
                "tokens": history.tokens,
                "padding_share": history.padding_share,
                **({"start": start} if start else {}),
                **({"ended_by": history.ended_by, "kept_step": history.kept_step} if held_out else {}),
            },
        )

    def published(self, context: StepContext) -> None:
        from retort.students.checkpoints import discard_checkpoint

        discard_checkpoint(context.store, self.key)

    def _rows(self, context: StepContext, problem: ProblemKind, student: "NewStudent") -> "StoredRows":
        """Raises StageFailed if there are none."""
        columns = ["example_id", *(["confidence"] if self.min_confidence else [])]
        count = sum(1 for _ in self._seen(labeled_rows(context.store, self.labels, columns)))
        if not count:
            where = "the pool" if self.cells is None else "its cells of the pool; lower method.partitions"
            sure = f" with a confidence of {self.min_confidence:g} or more" if self.min_confidence else ""
            raise StageFailed(f"{self.name}: there is no labeled row{sure} to train on in {where}")

        def read() -> "Iterator[TrainingRow]":
            labeled = labeled_rows(context.store, self.labels)
            known = aligned(labeled, self._top_tokens(context, student), self._rationales(context))
            rows = ({**row, "top": top, "rationale": rationale} for row, (top, rationale) in known)
            return (self._training_row(problem, row) for row in self._seen(rows))

        return StoredRows(read, np.ones(count, dtype=np.bool_))

    def _seen(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Those that the student is trained on."""
        seen = in_cells(rows, self.cells)
        return (row for row in seen if row["confidence"] >= self.min_confidence) if self.min_confidence else seen

    def _training_row(self, problem: ProblemKind, row: Row) -> "TrainingRow":
        """If `soft`, with probabilities `(units, classes)`; if the row has none, they are what its label stands for."""
        from retort.students.base import TopTokens, TrainingRow

        classes = len(problem.classes)
        if not self.soft:
            top, rationale = row["top"] and row["top"]["top"], row["rationale"] and row["rationale"]["rationale"]
            lists = TopTokens(top.token_ids, top.ids, top.logprobs) if top else None
            return TrainingRow(row["text"], row["label"], top=lists, rationale=rationale)
        if row.get("probabilities") is None:
            alone = spread(problem, row["text"], row["label"]).astype(np.float32)
            return TrainingRow(row["text"], row["label"], alone)
        probabilities: NDArray[np.float32] = np.asarray(row["probabilities"], dtype=np.float32).reshape(-1, classes)
        probabilities /= probabilities.sum(-1, keepdims=True)
        return TrainingRow(row["text"], row["label"], probabilities)

    def _held_out(self, context: StepContext, rows: "StoredRows") -> "tuple[Rows, Rows]":
        """Return (training rows, held-out rows that decide when training stops).

        The choice depends only on the student's seed and the order of the rows, so that the students of one stage and
        the next differ only in their labels.
        """
        from retort.students.base import TrainingRow

        stopping = self.training.stopping
        if stopping is None:
            return rows, []
        if self.stopping:
            gold = Examples.open(context.store, self.stopping).gold()
            return rows, [TrainingRow(one.text, str(one.label)) for one in gold]
        if len(rows) < 2:
            raise StageFailed(f"{self.name}: stopping holds rows out, and there is one row only; train without it")
        return rows.without(held_out_places(len(rows), stopping.share, self.seed))

    def _rationales(self, context: StepContext) -> Iterator[Row]:
        """The teacher's rationales, in the order of the labels."""
        if not self.training.rationale_weight or self.labels.kind != Pseudolabels.kind:
            return iter(())
        return Pseudolabels.open(context.store, self.labels).rationales()

    def _top_tokens(self, context: StepContext, student: "NewStudent") -> Iterator[Row]:
        """The teacher's likeliest tokens, in the order of the labels. Only labels that the teacher itself wrote have
        them.

        Raises ConfigError if the teacher's tokenizer differs from the student's.
        """
        from retort.students.generative import GenerativeStudent
        from retort.teachers.top_logprobs import read_teacher_tokens
        from retort.teachers.vllm.engine.toplogprobs import tokenizer_identity

        if self.training.distillation is None or not isinstance(student, GenerativeStudent):
            return iter(())
        if self.labels.kind != Pseudolabels.kind:
            return iter(())
        file = Pseudolabels.open(context.store, self.labels).teacher_tokens
        if file is None:
            return iter(())
        found = read_teacher_tokens(file, tokenizer_identity(student.tokenizer), student.num_logits)
        return ({"example_id": one.example_id, "top": one} for one in found)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows that are read from the store each time that one goes through them."""

    read: "Callable[[], Iterator[TrainingRow]]"
    chosen: NDArray[np.bool_]
    """For each row that `read` yields, whether it is one of them."""

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def __iter__(self) -> "Iterator[TrainingRow]":
        return compress(self.read(), self.chosen)

    def without(self, places: set[int]) -> "tuple[StoredRows, StoredRows]":
        """Return (the rows elsewhere, the rows at these places), if these are all rows."""
        there = np.zeros_like(self.chosen)
        there[list(places)] = True
        return StoredRows(self.read, ~there), StoredRows(self.read, there)


def held_out_places(num_rows: int, share: float, seed: int) -> set[int]:
    """Indices of the held-out rows; at least one."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return set(order[: max(1, round(share * num_rows))].tolist())


def student_options(config: Student, *, has_classes: bool) -> dict[str, object]:
    """The options that only this kind of student has. Empty for encoders, whose keys are older than this field."""
    options = config.model_dump(mode="json", exclude={*EncoderConfig.model_fields, "kind"})
    if isinstance(config, GenerativeConfig):
        options["target"] = config.form(has_classes=has_classes)
    return options
