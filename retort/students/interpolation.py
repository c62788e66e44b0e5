"""Weights between those before and those after a training.

A student that is fine-tuned on few rows gains their right labels and loses some of what it knew. Between the two lie
weights that have most of the gain and little of the loss (WiSE-FT, arXiv 2109.01903, equation 1).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def interpolated(model: torch.nn.Module, share: float) -> Iterator[None]:
    """Leave the parameters that are trained inside at `share` (in (0, 1]) of the way from where they were to where they
    came. The model may move to another device inside."""
    if share == 1:
        yield
        return
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.copy_(before[name].to(parameter.device).lerp(parameter, share))
