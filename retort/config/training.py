"""How anything is trained."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from retort.config.base import Settings


class DistillationConfig(Settings):
    """What a student that writes text learns at each token of a completion whose likeliest next tokens the teacher
    listed (`teacher.sampling.top_logprobs`); both have the same tokenizer. Rows without such lists, as those that
    students relabelled, are learnt by cross-entropy alone."""

    objective: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """forward_kl: say all that the teacher may say (Hinton et al. 2015). reverse_kl: say nothing that the teacher would
    not (MiniLLM, arXiv 2306.08543). jensen_shannon: between the two (GKD, arXiv 2306.13649)."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The loss is weight x objective + (1 - weight) x cross-entropy."""
    distillation_temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Softens both sides; the objective is multiplied by its square."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """jensen_shannon: the teacher's share of the mixture that both are compared with."""


class StoppingConfig(Settings):
    """Ends a training before its `epochs` are over, and keeps the weights of the epoch with the lowest loss on rows
    that are not trained on. The learning rate falls as if all epochs came."""

    by: Literal["labeled", "distillation_loss"]
    """labeled: the loss on the labelled set; a model that is trained on that set itself holds a share of it out.
    distillation_loss: the training's own loss on a held-out share of the rows, which needs no gold label."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Epochs in a row without a lower loss than the lowest so far, after which training ends."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Of the training rows, where a part of them is held out."""


class TrainingConfig(Settings):
    """How a student is trained."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 6
    """Passes over the training rows, fixed in advance; with `stopping`, at most."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-4
    """AdamW's peak learning rate."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all steps over which the learning rate rises; then it falls linearly to 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's weight decay, on matrices only."""
    batch_tokens: Annotated[int, Field(ge=8)] = 384
    """Tokens in one optimizer step, padding included; batches hold rows of similar length."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of one row; what is longer is cut, counted and reported."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    freeze_embeddings: bool = True
    """Leave the word embeddings as pretrained: twice as fast, and rare words keep their meaning."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes it natively, else fp32."""
    distillation: Annotated[DistillationConfig | None, Field(exclude_if=lambda given: given is None)] = None
    """Learn from the teacher's likeliest next tokens; left out: from labels alone."""
    stopping: Annotated[StoppingConfig | None, Field(exclude_if=lambda given: given is None)] = None
    """End before the last epoch; left out: after `epochs`."""


def _of_gold_labels(training: TrainingConfig) -> TrainingConfig:
    told = "is for student.training alone: a fine-tuned teacher and the arm tinybert are trained on gold labels"
    if training.distillation is not None:
        raise ValueError(f"training.distillation {told}")
    if training.stopping is not None and training.stopping.by == "distillation_loss":
        raise ValueError(f"training.stopping.by 'distillation_loss' {told}; use labeled")
    return training


GoldTrainingConfig = Annotated[TrainingConfig, AfterValidator(_of_gold_labels)]
"""Of a model that nothing is distilled into."""
