"""Settings of training."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retort.config.base import Retired, RetiredFields, Settings


class DistillationConfig(Settings):
    """Token-level distillation into a student that generates text, from completions with the teacher's most likely next
    tokens (`teacher.sampling.top_logprobs`). Teacher and student must have the same tokenizer. Rows without such lists,
    as those that students relabeled, are learned by cross-entropy alone."""

    objective: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """forward_kl: cover everything the teacher may say (Hinton et al. 2015). reverse_kl: say nothing that the teacher
    would not (MiniLLM, arXiv 2306.08543). jensen_shannon: between the two (GKD, arXiv 2306.13649)."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The loss is weight x objective + (1 - weight) x cross-entropy."""
    distillation_temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """T, which softens both sides' probabilities; the objective is multiplied by T^2."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """jensen_shannon: the teacher's share in the mixture that both sides are compared with."""


class StoppingConfig(Settings):
    """Early stopping: ends training before `epochs`, and keeps the weights of the epoch with the lowest loss on
    held-out rows. The learning rate follows the schedule of all epochs."""

    by: Literal["labeled", "distillation_loss"]
    """labeled: the loss on the labeled set; a model that is trained on that set holds out a share of it.
    distillation_loss: the training loss on a held-out share of the training rows, which needs no gold labels."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of consecutive epochs without a new lowest loss after which training ends."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training rows that is held out, if `by` requires it."""


class TrainingConfig(Settings):
    """How a model is trained."""

    retired: ClassVar[RetiredFields] = {
        "max_grad_norm": Retired(1.0, "gradients are always clipped to a norm of 1"),
    }

    epochs: Annotated[float, Field(gt=0, le=1000)] = 6
    """Number of passes over the training rows, which may be fractional; with `stopping`, the maximum."""
    min_updates: Annotated[int, Field(ge=0, exclude_if=lambda updates: updates == 0)] = 0
    """Minimum number of optimizer steps: training goes on beyond `epochs` until there were this many."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-4
    """AdamW's peak learning rate."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all steps in which the learning rate rises linearly; then it falls linearly to 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's weight decay, applied to matrices only."""
    batch_tokens: Annotated[int, Field(ge=8)] = 384
    """Maximum number of tokens in an optimizer step, padding included; batches contain rows of similar length."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Maximum number of tokens of a row; longer rows are truncated, counted and reported."""
    freeze_embeddings: bool = True
    """Keep the word embeddings as pretrained: twice as fast, and rare words keep their meaning."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 if the device computes it natively, else fp32."""
    distillation: Annotated[DistillationConfig | None, Field(exclude_if=lambda given: given is None)] = None
    """Learn from the teacher's most likely next tokens; left out: from labels alone."""
    rationale_weight: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda weight: weight == 0)] = 0.0
    """Share of the objective that is writing the teacher's rationales (`teacher.rationales`), asked for in rows of
    their own; the rest is writing labels, which is all that the student is asked for later. A relabeled row keeps its
    rationale only if it keeps its label."""
    stopping: Annotated[StoppingConfig | None, Field(exclude_if=lambda given: given is None)] = None
    """Early stopping; left out: train for all `epochs`."""


class StudentTrainingConfig(TrainingConfig):
    """How a student is trained on pseudolabels."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 4
    """Number of passes over the training rows, which may be fractional; with `stopping`, the maximum."""
    min_updates: Annotated[int, Field(ge=0)] = 500
    """Minimum number of optimizer steps: training goes on beyond `epochs` until there were this many. A student of a
    part of the pool has fewer rows than the final one, and below some hundred steps a tagger learns nothing."""


class GoldTrainingConfig(TrainingConfig):
    """How a model is trained on gold labels, without distillation."""

    @model_validator(mode="after")
    def _has_no_teacher(self) -> Self:
        reason = "is for student.training alone: a fine-tuned teacher and the arm tinybert are trained on gold labels"
        if self.distillation is not None:
            raise ValueError(f"training.distillation {reason}")
        if self.rationale_weight:
            raise ValueError(f"training.rationale_weight {reason}")
        if self.stopping is not None and self.stopping.by == "distillation_loss":
            raise ValueError(f"training.stopping.by 'distillation_loss' {reason}; use labeled")
        return self
