"""Who learns."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from retort.config.base import Settings, Text
from retort.config.training import TrainingConfig


class EncoderConfig(Settings):
    model: Text
    """A hub name, a folder, an s3:// address, or pkg:package/folder for weights in an installed package."""
    revision: Text = "main"
    """Of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: only the architecture and the tokenizer are taken from `model`."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""
    warm_start: bool = False
    """Start the final student from the reigning champion's weights. Never the others: who relabels rows must not have
    been trained on them, and the champion was."""


class TokenClassificationConfig(EncoderConfig):
    """An encoder with a linear layer on each word: tags."""

    kind: Literal["token-classification"]


class SequenceClassificationConfig(EncoderConfig):
    """An encoder with a linear layer on the whole text: one class."""

    kind: Literal["sequence-classification"]


class GenerativeConfig(EncoderConfig):
    """A student that writes the label, token by token."""

    target: Literal["classes", "text"] | None = None
    """classes: one token for each unit's class (the tags of slots, as in the paper), of which none but a legal one can
    be written. text: what a teacher would write, held to what the problem allows. Left out: classes, where the problem
    has them and no adapter is trained."""
    max_target_length: Annotated[int, Field(ge=1)] = 128
    """Tokens of a label."""
    long_targets: Literal["error", "cut"] = "error"
    """Labels to train on that are longer: an error, or cut at the end."""

    def form(self, *, has_classes: bool) -> Literal["classes", "text"]:
        """`target`, or what suits the problem."""
        return self.target or ("classes" if has_classes else "text")


class Seq2SeqConfig(GenerativeConfig):
    """An encoder and a decoder: T5, BART, or an encoder with a new decoder."""

    kind: Literal["seq2seq"]
    decoder_layers: Annotated[int, Field(ge=1, le=24)] | None = None
    """For a `model` that is an encoder only: layers of the new decoder that is put on it."""


class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers; the rest stays as pretrained."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """r, the adapters' inner width."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """An adapter's output is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """On an adapter's input."""


class CausalConfig(GenerativeConfig):
    """A decoder only, which goes on from the text: GPT, Llama, Qwen."""

    kind: Literal["causal"]
    lora: LoraConfig | None = None
    """Train adapters, which the student's weights then absorb; left out: all weights."""

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
