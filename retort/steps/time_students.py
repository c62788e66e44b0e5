"""`time-students`: measures what scoring costs: parameters, bytes, latency of one row, throughput of many."""

from collections.abc import Sequence
from itertools import islice

from retort.artifacts.examples import Examples
from retort.artifacts.students import TrainedStudent
from retort.artifacts.times import TIMES, Scorers, ScorerTimes, ScoringCosts, Times
from retort.config import ClassificationConfig
from retort.data.fields import fields_of
from retort.problems import problem_for
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput

MOST_ROWS = 256


class TimeStudents(Step):
    """Measure size, latency and throughput, one scorer after another in a single step, so that all run on the same
    machine."""

    kind = "time-students"
    version = 1
    artifact = Times

    problem: ClassificationConfig
    fields: list[str]
    max_length: dict[str, int]
    """Most tokens of a row that each encoder reads."""
    student: ArtifactRef
    """The exported tiny student."""
    teacher: ArtifactRef | None
    tinybert: ArtifactRef | None
    rows: ArtifactRef

    def run(self, context: StepContext) -> StepOutput:
        import torch

        rows = Examples.open(context.store, self.rows).rows(["text"])
        texts = [row["text"] for row in islice(rows, MOST_ROWS)]
        encoders: dict[Scorers, ArtifactRef | None] = {"tinybert": self.tinybert, "teacher": self.teacher}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            scorers: dict[Scorers, ScorerTimes] = {"student": self._student_times(context, texts)}
            for name, ref in encoders.items():
                if ref is not None:
                    scorers[name] = self._encoder_times(context, name, ref, texts)
        finally:
            torch.set_num_threads(threads)
        machine = str(torch.cpu.get_capabilities()["cpu_name"])
        costs = ScoringCosts(machine=machine, timed_rows=len(texts), scorers=scorers)
        (context.folder / TIMES).write_text(costs.model_dump_json(indent=1), encoding="utf-8")
        return StepOutput(rows=len(texts), metrics={f"{name}_ms": one.latency_ms for name, one in scorers.items()})

    def _student_times(self, context: StepContext, texts: Sequence[str]) -> ScorerTimes:
        """Time the exported folder with the runtime that serves it."""
        from retort.students.tiny.scorer import Scorer, measure

        student = TrainedStudent.open(context.store, self.student)
        names, details = tuple(self.fields), student.manifest.details
        speed = measure(Scorer(student.model).probabilities, [fields_of(text, names) for text in texts])
        return ScorerTimes(
            parameters=details["parameters"],
            bytes=details["bytes"],
            latency_ms=speed.latency_ms,
            rows_per_second=speed.rows_per_second,
        )

    def _encoder_times(
        self, context: StepContext, name: Scorers, ref: ArtifactRef, texts: Sequence[str]
    ) -> ScorerTimes:
        from retort.models.device import Device
        from retort.students.loading import load_student
        from retort.students.tiny.scorer import measure

        trained, device = TrainedStudent.open(context.store, ref), Device("cpu", "fp32", 1)
        problem = problem_for(self.problem)
        encoder = load_student(trained.model, "sequence-classification", self.max_length[name], problem)

        def score(rows: Sequence[Sequence[str]]) -> None:
            list(encoder.predict([text for (text,) in rows], device=device, total=len(rows)))

        speed = measure(score, [(text,) for text in texts])
        return ScorerTimes(
            parameters=trained.manifest.details["parameters"],
            bytes=trained.weights_bytes,
            latency_ms=speed.latency_ms,
            rows_per_second=speed.rows_per_second,
        )
