"""How anything is trained."""

from typing import Annotated, Literal

from pydantic import Field

from retort.config.base import Settings


class TrainingConfig(Settings):
    """How a student is trained."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 6
    """Passes over the training rows, fixed in advance."""
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
