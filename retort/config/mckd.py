"""The YAML file of the MCKD recipe."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.config.base import Metric, Settings
from retort.config.data import DataConfig
from retort.config.gate import GateConfig
from retort.config.infrastructure import RecipeConfig
from retort.config.problems import MOST_CLASSES, WITHOUT_CLASSES, Problem, RegressionConfig
from retort.config.students import GenerativeConfig, Student
from retort.config.teachers import EnsembleConfig, LlmTeacherConfig, PromptConfig, RecordedConfig, Teacher


class MergeConfig(Settings):
    """Which new labels replace the old ones."""

    kind: Literal["always", "when-confident"] = "always"
    """always: all, as in the paper. when-confident: only if the student is confident enough."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """when-confident: the least confidence (geometric mean of the probabilities of the label's parts)."""


class SelectionConfig(Settings):
    """Whether a stage's labels must prove to be better before they are kept."""

    kind: Literal["better", "always"] = "better"
    """better: students trained on the new labels must beat those trained on the old ones on the judging rows.
    always: labels are kept, as in the paper."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """better: the least share of paired bootstrap resamples in which the new labels must win. With less, a few dozen
    judging rows let labels pass that are worse than a strong teacher's."""


class FineTuningConfig(Settings):
    """Fine-tuning on the labeled set, after training on pseudolabels: of the students that relabel the pool last, and
    of the final student. The other settings are those of `student.training`."""

    kind: Literal["better", "always", "never"] = "better"
    """better: if a student, fine-tuned on a part of the labeled set, gains on the rest of it."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 40
    """Number of passes over the labeled set."""
    interpolation: Annotated[float, Field(gt=0, le=1)] = 0.75
    """How far the weights go from those before fine-tuning to those after it (WiSE-FT, arXiv 2109.01903). Below 1, a
    student keeps more of what a good teacher taught it."""
    folds: Annotated[int, Field(ge=2, le=100)] = 10
    """better: number of parts of the labeled set, each of which judges a student that was fine-tuned on the others.
    With `evaluation.judge: dev`, the dev set judges instead."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """better: the least share of paired bootstrap resamples in which the fine-tuned students must win. Far below a
    half, because a teacher that had the labeled set as demonstrations labels rows like these better than others, and so
    do the students that learn from it alone; and because a mistake costs little next to what is won."""


class MethodConfig(Settings):
    """Multistage collaborative knowledge distillation (arXiv 2311.08640)."""

    stages: Annotated[int, Field(ge=1, le=20)] = 2
    """S. Stage s trains on the labels of stage s-1; stage 0 is the teacher. 1 is vanilla distillation."""
    partitions: Annotated[int, Field(ge=2, le=64)] = 4
    """k disjoint cells of the pool, one student each."""
    scheme: Literal["disjoint", "leave-one-out"] = "leave-one-out"
    """disjoint: train on one cell, label the others, as in the paper. leave-one-out: train on k-1, label the remaining
    one."""
    cross_labels: Literal["hard", "soft"] | None = None
    """soft: the next stage trains on the students' probabilities instead of their decisions. Default: soft if the
    student has probabilities of classes."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    """Students are trained on those of the teacher's labels that have at least this confidence: for one completion, the
    share of the text that it accounts for; for several, the share that agrees; for soft labels, the probability. The
    other rows are labeled by the students, from stage 1 on. Default: 1 if the teacher writes one completion for each
    row (a label whose end had to be made up teaches the wrong thing), else 0."""
    merge: MergeConfig = MergeConfig()
    """Which new labels replace the old ones."""
    selection: SelectionConfig | None = None
    """Whether new labels must prove to be better. Default: better, or always if the teacher was trained on the judging
    rows."""
    fine_tuning: FineTuningConfig | None = None
    """Fine-tuning of students on the labeled set. Default: better, or never if the teacher was trained on it."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Determines partitions, initial weights and batch order."""


Baseline = Literal[
    "vanilla-kd",
    "vanilla-fine-tuned",
    "compute-matched-kd",
    "same-partition",
    "self-relabelling",
    "early-stopped",
    "supervised",
]

_METRICS: Mapping[str, tuple[Metric, ...]] = {
    "slots": ("slot_f1", "intent_accuracy", "exact_match"),
    "classification": ("accuracy", "macro_f1", "quadratic_weighted_kappa"),
    "multi-label": ("micro_f1", "macro_f1", "jaccard", "exact_match"),
    "entities": ("entity_f1", "exact_match"),
    "constituency": ("bracket_f1", "bracket_precision", "bracket_recall", "unlabeled_f1", "exact_match"),
    "text": ("exact_match", "chrf", "bleu", "rouge_l", "field_f1"),
    "chat": ("exact_match", "chrf", "bleu", "rouge_l", "field_f1"),
    "regression": ("rmse", "mae", "pearson", "spearman", "quadratic_weighted_kappa"),
}
_FIELDS = {"text": "json_schema", "chat": "tools"}
"""What must be given so that labels have fields."""
_STUDENTS = {
    "slots": ("token-classification", "seq2seq", "causal"),
    "classification": ("sequence-classification", "seq2seq", "causal"),
    "multi-label": ("sequence-classification", "seq2seq", "causal"),
    "entities": ("token-classification", "seq2seq", "causal"),
    "constituency": ("token-classification", "seq2seq", "causal"),
    "text": ("seq2seq", "causal"),
    "chat": ("seq2seq", "causal"),
    "regression": ("sequence-classification", "seq2seq", "causal"),
}


class EvaluationConfig(Settings):
    """What is measured."""

    metrics: list[Metric] = Field(default=[])
    """The first one decides. Default: all that suit the problem."""
    judge: Literal["labeled", "dev"] = "labeled"
    """The rows that stages are judged on; no student trains on them."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Bootstrap resamples behind each interval and comparison."""


class MckdConfig(RecipeConfig):
    """One distillation, from data to the final student."""

    problem: Problem
    """What a label is."""
    data: DataConfig
    """The rows."""
    teacher: Teacher
    """The teacher, which labels the pool first."""
    student: Student
    """The student to train."""
    method: MethodConfig = MethodConfig()
    """The distillation method."""
    baselines: list[Baseline] = Field(default=["vanilla-kd", "supervised"])
    """Baselines to compute for comparison; the gate refuses a final student that is worse than one of them. Steps that
    they have in common with the main run are shared."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured."""
    gate: GateConfig = GateConfig()
    """What the final student must prove before it becomes the champion."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kind = self.problem.kind
        if self.student.kind not in _STUDENTS[kind]:
            usable = " or ".join(_STUDENTS[kind])
            raise ValueError(f"student.kind '{self.student.kind}' cannot learn '{kind}'; use {usable}")
        if (
            isinstance(self.student, GenerativeConfig)
            and self.student.target == "classes"
            and not self.has_class_tokens
        ):
            what = "a set of classes is no single one" if kind == "multi-label" else "a free text has none"
            raise ValueError(f"student.target 'classes': {what}; use text")
        self._check_writer()
        self._check_distillation()
        self._check_rationales()
        named = [("evaluation.metrics", metric) for metric in self.evaluation.metrics]
        named += [(f"gate.slices.{at}.metric", part.metric) for at, part in enumerate(self.gate.slices) if part.metric]
        wrong = [(field, metric) for field, metric in named if metric not in _METRICS[kind]]
        if wrong:
            (field, metric), allowed = wrong[0], ", ".join(_METRICS[kind])
            raise ValueError(f"{field} '{metric}' does not measure '{kind}'; allowed: {allowed}")
        if "field_f1" in [metric for _, metric in named] and not self._has_fields:
            raise ValueError(f"field_f1 measures {'calls' if kind == 'chat' else 'JSON'}; give problem.{_FIELDS[kind]}")
        if kind in WITHOUT_CLASSES and self.teacher.kind == "ensemble":
            raise ValueError(f"teacher.kind 'ensemble' cannot vote on '{kind}', which has no classes; use one teacher")
        if kind == "chat":
            self._check_item()
        self.gate.check_floors(self.metrics[0])
        if self.gate.max_suspicious_share is not None and self.method.stages == 1:
            raise ValueError(
                "gate.max_suspicious_share: with method.stages 1 no student labels the pool; use 2 or more"
            )
        if isinstance(self.problem, RegressionConfig):
            self._check_scale(self.problem, [metric for _, metric in named])
        if kind not in ("classification", "regression") and self.has_soft_teacher:
            raise ValueError(f"teacher.labels 'soft' needs a problem with one class for each row, not '{kind}'")
        if self.evaluation.judge == "dev" and self.data.dev is None:
            raise ValueError("evaluation.judge is 'dev', but data.dev is not given")
        if self.selection.kind == "better" and not self.has_fair_judge:
            raise ValueError(
                "method.selection.kind = 'better': the fine-tuned teacher was trained on the labeled set, so its own "
                "labels look better there than they are; give data.dev and evaluation.judge: dev, or kind: always"
            )
        return self

    def _check_item(self) -> None:
        """Raises ValueError for a form of rows: a conversation's turns are turns of the prompt."""
        prompt = getattr(self.teacher, "prompt", None)
        if prompt is not None and prompt.item != PromptConfig().item:
            raise ValueError("teacher.prompt.item: the turns of a chat are given as they are; leave it out")

    @property
    def _has_fields(self) -> bool:
        """Whether labels are JSON as far as is known: `field_f1` measures something."""
        return getattr(self.problem, _FIELDS.get(self.problem.kind, ""), None) not in (None, [])

    def _check_scale(self, problem: RegressionConfig, named: list[Metric]) -> None:
        """Raises ValueError for what only ordinal labels have."""
        if "quadratic_weighted_kappa" in named and not problem.ordered:
            raise ValueError("quadratic_weighted_kappa measures ordinal labels; give problem.step")
        if self.has_soft_teacher and not problem.has_class_for_each:
            raise ValueError(
                f"teacher.labels 'soft' needs the probability of each number, of at most {MOST_CLASSES}; give a larger "
                "problem.step, or use teacher.labels: hard"
            )

    def _check_writer(self) -> None:
        """Raises ValueError if the student writes text but class probabilities are needed: its own, which it does not
        have, or the teacher's, which it cannot be trained on."""
        if self.form == "classes":
            return
        method = self.method
        if self.has_soft_teacher and self.problem.kind in ("classification", "regression"):
            raise ValueError(
                "teacher.labels 'soft': stage 1 trains on probabilities of classes, and this student writes text; use "
                "student.target: classes (without lora), or teacher.labels: hard"
            )
        if method.cross_labels == "soft":
            raise ValueError("method.cross_labels 'soft' needs probabilities of classes; use student.target: classes")
        votes = method.stages > 1 and method.scheme == "disjoint" and method.partitions > 2
        if votes and self.problem.kind != "regression":
            raise ValueError(
                f"method.partitions {method.partitions}: each row gets several labels, and a vote on them needs "
                "probabilities of classes; use 2, scheme: leave-one-out, or student.target: classes"
            )

    def _check_distillation(self) -> None:
        """Raises ValueError for token-level distillation if the teacher has no token probabilities or the student does
        not write text."""
        student, sampling = self.student, getattr(self.teacher, "sampling", None)
        if student.training.distillation is None:
            return
        if self.form != "text":
            raise ValueError(
                f"student.training.distillation goes token by token, and this student (kind '{student.kind}') gives "
                "classes; use kind: causal or seq2seq with target: text, or no distillation"
            )
        if sampling is None or not sampling.top_logprobs:
            raise ValueError(
                "student.training.distillation needs the teacher's likeliest next tokens, and this teacher (kind "
                f"'{self.teacher.kind}') lists none; use kind: vllm or transformers with sampling.top_logprobs: 20, say"
            )

    def _check_rationales(self) -> None:
        """Raises ValueError for rationales that nobody gives, or that the student cannot write."""
        teachers = self.teacher.members if isinstance(self.teacher, EnsembleConfig) else [self.teacher]
        given = [one for one in teachers if isinstance(one, LlmTeacherConfig | RecordedConfig) and one.rationales]
        if given and self.problem.kind == "chat":
            raise ValueError("teacher.rationales: a chat's label is the assistant's whole turn; leave it out")
        shows = any(isinstance(one, LlmTeacherConfig) and one.prompt.demonstrations != 0 for one in given)
        if shows and self.data.columns.rationale is None:
            raise ValueError(
                "teacher.rationales: the demonstrations need rationales too; name their column of the labeled rows in "
                "data.columns.rationale, or set teacher.prompt.demonstrations: 0"
            )
        if not self.student.training.rationale_weight:
            return
        if self.form != "text":
            raise ValueError(
                f"student.training.rationale_weight: this student (kind '{self.student.kind}') gives classes and "
                "writes no rationale; use kind: causal or seq2seq with target: text"
            )
        if self.teacher not in given:
            raise ValueError(
                f"student.training.rationale_weight: this teacher (kind '{self.teacher.kind}') gives no rationales; "
                "set teacher.rationales of one that writes, or leave the weight out"
            )

    @property
    def form(self) -> Literal["classes", "text"]:
        """Whether the student gives probabilities of classes, or writes text."""
        student = self.student
        return student.form(has_classes=self.has_class_tokens) if isinstance(student, GenerativeConfig) else "classes"

    @property
    def has_class_tokens(self) -> bool:
        """Whether a student that writes can write a label as one token per unit."""
        return self.problem.kind not in (*WITHOUT_CLASSES, "multi-label")

    @property
    def cross_labels(self) -> Literal["hard", "soft"]:
        """`method.cross_labels`, or the default for the student."""
        return self.method.cross_labels or ("soft" if self.form == "classes" else "hard")

    @property
    def min_confidence(self) -> float:
        """`method.min_confidence`, or the default for the teacher."""
        if self.method.min_confidence is not None:
            return self.method.min_confidence
        teacher = self.teacher
        asked_once = (
            isinstance(teacher, LlmTeacherConfig) and teacher.labels == "hard" and teacher.sampling.samples == 1
        )
        return 1.0 if isinstance(teacher, RecordedConfig) or asked_once else 0.0

    @property
    def has_fair_judge(self) -> bool:
        """Whether no teacher was trained on the rows that judge stages."""
        teachers = self.teacher.members if isinstance(self.teacher, EnsembleConfig) else [self.teacher]
        return self.evaluation.judge == "dev" or all(teacher.kind != "finetuned" for teacher in teachers)

    @property
    def has_soft_teacher(self) -> bool:
        """Whether stage 0 yields probabilities, on which stage 1 then trains."""
        teachers = self.teacher.members if isinstance(self.teacher, EnsembleConfig) else [self.teacher]
        return all(isinstance(teacher, LlmTeacherConfig) and teacher.labels == "soft" for teacher in teachers)

    @property
    def selection(self) -> SelectionConfig:
        """`method.selection`, or the default for the teacher."""
        return self.method.selection or SelectionConfig(kind="better" if self.has_fair_judge else "always")

    @property
    def fine_tuning(self) -> FineTuningConfig:
        """`method.fine_tuning`, or the default for the teacher."""
        return self.method.fine_tuning or FineTuningConfig(kind="better" if self.has_fair_judge else "never")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics, the deciding one first."""
        return tuple(self.evaluation.metrics) or tuple(
            metric
            for metric in _METRICS[self.problem.kind]
            if metric != "quadratic_weighted_kappa" or getattr(self.problem, "ordered", False)
            if metric != "field_f1" or self._has_fields
        )
