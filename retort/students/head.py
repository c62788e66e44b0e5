"""A language model's output layer together with the cross-entropy of its logits.

The logits of all positions are the largest tensor of a training: 16,000 positions of a vocabulary of 150,000 take
10 GB in fp32, and as much again for their gradient. Here they exist for some positions at a time, in the precision of
the weights, and their gradient is computed with them (as in Liger Kernel, arXiv 2410.10989).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from retort.students.sharding import forget_pass

CHUNK_VALUES = 2**27
"""Number of logits that exist at once: 256 MiB in bf16, and some 2 GiB with what their losses take uncompiled."""


class TokenLoss(torch.nn.Module):
    """The cross-entropy of logits and its gradient, at once. A module, so that it can be compiled like a layer."""

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(tokens, classes)`, targets `(tokens,)` and what each token counts `(tokens,)` to the losses
        `(tokens,)` in fp32 and their gradient by the logits, `(tokens, classes)` in the logits' dtype."""
        log = logits.float().log_softmax(-1)
        losses = -log.gather(-1, targets[:, None])[:, 0] * weights
        is_target = torch.arange(logits.shape[-1], device=logits.device) == targets[:, None]
        gradient = torch.where(is_target, log.exp() - 1, log.exp()) * weights[:, None]
        return losses, gradient.to(logits.dtype)


def head_cross_entropy(
    hidden: Tensor,
    head: torch.nn.Linear,
    columns: slice,
    targets: Tensor,
    weights: Tensor,
    places: Tensor,
    token_loss: TokenLoss,
) -> Tensor:
    """The summed cross-entropy, in nats, of the logits `head(hidden)[..., columns]`: a scalar in fp32.

    `hidden` is `(positions, width)`; `places` `(tokens,)` are the positions that have a target, each once, or
    `positions` for a token that only pads; `targets` and `weights` `(tokens,)` belong to them, and a weight is 0 where
    nothing is learned.
    """
    bias = None if head.bias is None else head.bias[columns]
    hidden = hidden.to(head.weight.dtype)
    loss: Tensor = _HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight[columns], bias, targets, weights, places, token_loss
    )
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Tensor:
        targets, weights, places, token_loss = others
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # One position more, which takes the gradients of padding.
        of_hidden = hidden.new_zeros(len(hidden) + 1, hidden.shape[1]) if needs_hidden else None
        of_weight = torch.zeros_like(weight) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        total = torch.zeros((), device=hidden.device)
        for chunk in range(0, len(places), size := max(1, CHUNK_VALUES // len(weight))):
            own = slice(chunk, chunk + size)
            read = hidden.index_select(0, places[own].clamp(max=len(hidden) - 1))
            losses, gradient = token_loss(torch.nn.functional.linear(read, weight, bias), targets[own], weights[own])
            total += losses.sum()
            if of_hidden is not None:
                of_hidden.index_copy_(0, places[own], gradient @ weight)
            if of_weight is not None:
                of_weight.addmm_(gradient.T, read)
            if of_bias is not None:
                of_bias += gradient.sum(0, dtype=torch.float32)
        ctx.gradients = (None if of_hidden is None else of_hidden[:-1], of_weight, of_bias)
        return total

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        # In fp32: a factor that is rounded to bf16 first would be off by up to 0.4 %.
        own = [
            None if gradient is None else (gradient.float() * by_loss).to(gradient.dtype) for gradient in ctx.gradients
        ]
        return *own, None, None, None, None


@contextlib.contextmanager
def bypassed(head: torch.nn.Linear) -> Iterator[None]:
    """Lets a model give what its output layer reads in place of logits."""
    head.forward = _same  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def _same(hidden: Tensor) -> Tensor:
    return hidden


def head_of(model: torch.nn.Module, logits: Callable[[], Tensor]) -> torch.nn.Linear | None:
    """The output layer of `model`, whose outputs `logits` computes of some input; None if the logits are not just what
    that layer gives, but for example scaled, capped or shifted."""
    find: Callable[[], torch.nn.Module | None] = getattr(model, "get_output_embeddings", lambda: None)
    head = find()
    if not isinstance(head, torch.nn.Linear):
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = logits()
            with bypassed(head):
                hidden = logits()
            found = head(hidden)
    except RuntimeError:  # what follows the layer does not fit what it reads
        forget_pass(model)
        return None
    finally:
        model.train(was_training)
    return head if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3) else None
