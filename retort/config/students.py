"""Settings of students."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.config.base import Settings, Text
from retort.config.training import StudentTrainingConfig


class EncoderConfig(Settings):
    """What all kinds of students have in common."""

    model: Text
    """A hub name, a folder, an s3:// address, or pkg:package/folder for weights in an installed package."""
    revision: Text = "main"
    """Branch, tag or commit of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: take only the architecture and the tokenizer from `model`."""
    training: StudentTrainingConfig = StudentTrainingConfig()
    """How the student is trained."""
    warm_start: bool = False
    """Start the final student from the reigning champion's weights. The other students never do: a student that
    relabels rows must not have been trained on them, and the champion was."""


class TokenClassificationConfig(EncoderConfig):
    """An encoder with a linear layer on each word, which predicts tags."""

    kind: Literal["token-classification"]


class SequenceClassificationConfig(EncoderConfig):
    """An encoder with a linear layer on the whole text, which predicts one class."""

    kind: Literal["sequence-classification"]


class GenerativeConfig(EncoderConfig):
    """A student that generates the label, token by token."""

    target: Literal["classes", "text"] | None = None
    """classes: one token per unit for its class (the intent and tags of slots, as in the paper; the class of a text),
    limited to the legal ones. text: what a teacher would write, held to the grammar of the labels. Left out: classes if
    the problem has them and no adapters are trained, else text."""
    max_target_length: Annotated[int, Field(ge=1)] = 128
    """Maximum number of tokens of a label."""
    long_targets: Literal["error", "cut"] = "error"
    """What to do with longer training labels: error, or cut off the end."""

    def form(self, *, has_classes: bool) -> Literal["classes", "text"]:
        """`target`, or its default for a problem with or without classes."""
        return self.target or ("classes" if has_classes else "text")


class Seq2SeqConfig(GenerativeConfig):
    """An encoder and a decoder: T5, BART, or an encoder with a new decoder."""

    kind: Literal["seq2seq"]
    decoder_layers: Annotated[int, Field(ge=1, le=24)] | None = None
    """For an encoder-only `model`: number of layers of the new decoder that is added to it."""


class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers; the other weights stay as they are."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """r, the inner dimension of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """An adapter's output is scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability on an adapter's input."""


class CausalConfig(GenerativeConfig):
    """A decoder-only model, which continues the text: GPT, Llama, Qwen."""

    kind: Literal["causal"]
    lora: LoraConfig | None = None
    """Train adapters, which are merged into the weights afterwards; left out: train all weights."""

    @model_validator(mode="after")
    def _adapters_write_text(self) -> Self:
        if self.lora is not None and self.target == "classes":
            raise ValueError("target 'classes' needs new tokens, which adapters cannot learn; use text, or no lora")
        return self

    def form(self, *, has_classes: bool) -> Literal["classes", "text"]:
        return super().form(has_classes=has_classes and self.lora is None)


Student = Annotated[
    TokenClassificationConfig | SequenceClassificationConfig | Seq2SeqConfig | CausalConfig,
    Field(discriminator="kind"),
]
