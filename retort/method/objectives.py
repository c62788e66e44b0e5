"""What training minimises: pure functions on tensors."""

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each unit, `(units,)`.

    `logits` is `(units, classes)`. `targets` is class indices `(units,)` for hard labels, or probabilities
    `(units, classes)` for soft ones, whose rows sum to 1; a one-hot row equals the hard label.
    """
    if targets.ndim == 2:
        targets = targets.to(logits.dtype)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
