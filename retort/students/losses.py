"""Training objectives: pure functions on tensors.

Each returns the loss of every unit, token or row, and leaves averaging to the caller. All compute in at least fp32,
whatever the logits' dtype. Vocabulary-wide logits are converted to fp32 for a few positions at a time, and again for
the gradient, to save memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_VALUES = 2**24
"""Number of logits converted to fp32 at once: 64 MiB."""
LEAST_REST = 1e-7
"""Minimum total probability of the tokens that a teacher does not list: less is lost in the rounding of the listed."""
_NEVER = -1e9
"""Stands for log 0. Finite, so that 0 log 0 is 0 and its gradient is not NaN."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Maps the teacher's and the student's log-probabilities, `(..., outcomes)` each, to `(...)`, in nats."""


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy in nats of each unit, `(units,)`, or of each token, `(batch, length)`.

    `logits` is `(units, classes)`. `targets` is class indices `(units,)` for hard labels, or probabilities
    `(units, classes)` for soft ones, see `soft_cross_entropy`. With a bool `mask` `(batch, length)`, logits are
    `(batch, length, vocab)` and targets `(batch, length)`; where the mask is False, targets are ignored and the loss is
    0.
    """
    if targets.is_floating_point():
        return soft_cross_entropy(logits, targets, mask)
    if mask is not None:
        return _by_chunks(cross_entropy, mask, logits, targets)
    return torch.nn.functional.cross_entropy(_at_least_fp32(logits), targets, reduction="none")


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """`-sum_c p(c) log softmax(logits)(c)` of each unit or token, shaped as in `cross_entropy`. `probabilities` has the
    logits' shape, and its rows sum to 1. A one-hot row gives the loss of the hard label."""
    if mask is not None:
        return _by_chunks(soft_cross_entropy, mask, logits, probabilities)
    logits = _at_least_fp32(logits)
    return torch.nn.functional.cross_entropy(logits, probabilities.to(logits.dtype), reduction="none")


def token_distillation(
    logits: Tensor,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    divergence: Divergence,
    distillation_temperature: float = 1.0,
) -> Tensor:
    """Divergence of the student from the teacher's top-k next-token probabilities, `(batch, length)`; 0 where the mask
    is False. Both models have the same tokenizer.

    `logits` is the student's, `(batch, length, vocab)`. `teacher_ids` `(batch, length, k)` are the tokens that the
    teacher lists at each position, without repetition, and `teacher_logprobs` their natural log-probabilities at
    temperature 1; the probabilities sum to at most 1, and -inf pads lists shorter than k. `mask` is bool `(batch,
    length)`; where it is False, the teacher's values are ignored. `divergence` is `forward_kl`, `reverse_kl`, or
    `partial(jensen_shannon, beta=0.5)`.

    All unlisted tokens together are one more outcome, the *rest*, on both sides: k + 1 outcomes. Dropping the rest and
    renormalizing over the listed tokens would not penalize probability outside of them, which is just what reverse KL
    is meant to forbid. By the chain rule, `KL(s || p)` over the vocabulary is the KL over the k + 1 outcomes plus
    `s(rest) KL(s | rest, p | rest)`. So the result is exact if both distribute the rest alike or the student has none,
    never exceeds the full divergence, and for forward KL falls short of it by `p(rest) KL(p | rest, s | rest)` at most.
    With k = vocab there is no rest. A rest below LEAST_REST is raised to it, so that reverse KL stays finite.

    The temperature T softens the k + 1 outcomes of both sides, `p_T = softmax(log p / T)`, and the divergence is
    multiplied by T^2 to keep the scale of its gradient (Hinton et al. 2015, arXiv 1503.02531, section 2.1). How the
    rest would be distributed at T is unknown: for T other than 1 and k < vocab it is softened as one outcome.
    """

    def of_tokens(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
        teacher, student = _outcomes(logits, ids, logprobs)
        teacher_log = (teacher / distillation_temperature).log_softmax(-1)
        student_log = (student / distillation_temperature).log_softmax(-1)
        return distillation_temperature**2 * divergence(teacher_log, student_log)

    return _by_chunks(of_tokens, mask, logits, teacher_ids, teacher_logprobs)


def _outcomes(logits: Tensor, ids: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's log-probabilities and the student's logits over the listed tokens and the rest, `(tokens, k + 1)`
    each, from logits `(tokens, vocab)`."""
    logits = _at_least_fp32(logits)
    logprobs = logprobs.to(logits.dtype)
    is_listed = logprobs > -torch.inf
    ids = torch.where(is_listed, ids, ids.gather(-1, logprobs.argmax(-1, keepdim=True)))
    teacher = torch.where(is_listed, logprobs, _NEVER)
    student = torch.where(is_listed, logits.gather(-1, ids), _NEVER)
    has_rest = is_listed.sum(-1, keepdim=True) < logits.shape[-1]
    rest = -torch.expm1(teacher.logsumexp(-1, keepdim=True))
    teacher_rest = torch.where(has_rest, rest.clamp(min=LEAST_REST).log(), _NEVER)
    # Summed over the rest of the vocabulary: 1 - sum(listed) would be mere rounding error for a confident student.
    student_rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    student_rest = torch.where(has_rest, student_rest, _NEVER)
    return torch.cat([teacher, teacher_rest], -1), torch.cat([student, student_rest], -1)


def forward_kl(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """`KL(p || s)` of teacher p and student s, mode-covering (Hinton et al. 2015, arXiv 1503.02531)."""
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def reverse_kl(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """`KL(s || p)` of teacher p and student s, mode-seeking (MiniLLM, arXiv 2306.08543, equation 1)."""
    return forward_kl(student_log, teacher_log)


def jensen_shannon(teacher_log: Tensor, student_log: Tensor, beta: float = 0.5) -> Tensor:
    """`beta KL(p || m) + (1 - beta) KL(s || m)` with `m = beta p + (1 - beta) s` (GKD, arXiv 2306.13649, equation 1).

    As in trl, `beta` 0 gives `forward_kl` and 1 gives `reverse_kl`: the limits of this divergence divided by beta and
    by 1 - beta, respectively; the undivided divergence is 0 at both ends.
    """
    if beta in (0, 1):
        return reverse_kl(teacher_log, student_log) if beta else forward_kl(teacher_log, student_log)
    weight = teacher_log.new_tensor(beta)
    mixed = torch.logaddexp(teacher_log + weight.log(), student_log + (-weight).log1p())
    return beta * forward_kl(teacher_log, mixed) + (1 - beta) * forward_kl(student_log, mixed)


def mixture(hard: Tensor, soft: Tensor, weight: float) -> Tensor:
    """`(1 - weight) hard + weight soft`, for losses of the same shape and `weight` in [0, 1]."""
    return (1 - weight) * hard + weight * soft


def scoring_loss(
    logits: Tensor,
    gold: Tensor,
    probabilities: Tensor,
    weight: Tensor | float,
    temperature: Tensor | float,
    soft_weights: Tensor | None = None,
) -> Tensor:
    """The tiny student's objective for each row, `(students, batch)`; `.mean(-1).sum()` trains a stack of students.

    `CE(y, s) + lambda T^2 CE(p_T, s_T)` (arXiv 2312.15842; the temperature on both sides and T^2 as in Hinton et
    al. 2015, arXiv 1503.02531), where `s_T = softmax(logits / T)` and `p_T = softmax(log p / T)`.

    `logits` is `(students, batch, classes)`. `gold` holds class indices, `(students, batch)` or `(batch,)`, negative
    for rows without one, whose first term is 0. `probabilities` is the teacher's, `(students, batch, classes)` or
    `(batch, classes)`, each row summing to 1. `weight` (lambda >= 0) and `temperature` (T > 0) are numbers or
    `(students,)`. `soft_weights`, `(students, batch)` or `(batch,)`, multiplies a row's second term; where it is 0, the
    teacher's probabilities are ignored and may be NaN. A row with neither gold label nor soft weight has loss 0, so
    that it can pad a batch.

    A student's losses depend on its own logits only, so the gradient of a sum over students is each one's own. The
    second term is a cross-entropy, as in the paper: for `s = p` it is the entropy of `p_T`, not 0, while its gradient
    is that of the Kullback-Leibler divergence. Computed in at least fp32.
    """
    logits = _at_least_fp32(logits)
    num_students, num_rows, _ = logits.shape
    gold = gold.expand(num_students, num_rows)
    log_s = logits.log_softmax(-1)
    hard = -log_s.gather(-1, gold.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    hard = hard.masked_fill(gold < 0, 0.0)
    if soft_weights is None:
        soft_weights = logits.new_ones(())
    # Replaced before any computation: the gradient of 0 * NaN is NaN.
    teacher = torch.where(soft_weights.unsqueeze(-1) == 0, 1.0, probabilities.to(logits.dtype))
    soft = _softened_cross_entropy(logits, teacher, _per_student(temperature, logits).unsqueeze(-1))
    return hard + _per_student(weight, logits) * soft_weights * soft


def _softened_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: Tensor) -> Tensor:
    """`T^2 CE(p_T, s_T)` over the last axis, `(..., classes)` -> `(...)`; the temperature broadcasts to the logits."""
    # log 0 = -inf: a class with probability 0 stays at 0 at every temperature.
    p_t = (probabilities.log() / temperature).softmax(-1)
    log_s_t = (logits / temperature).log_softmax(-1)
    return -(temperature.squeeze(-1) ** 2) * (p_t * log_s_t).sum(-1)


def _per_student(value: Tensor | float, logits: Tensor) -> Tensor:
    """The value as `(students or 1, 1)`, which broadcasts over rows."""
    return torch.as_tensor(value, dtype=logits.dtype, device=logits.device).reshape(-1, 1)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _by_chunks(objective: Callable[..., Tensor], mask: Tensor, logits: Tensor, *others: Tensor) -> Tensor:
    """`objective(logits, *others)` of the tokens where the mask `(batch, length)` is True, and 0 elsewhere.

    All tensors are `(batch, length, ...)`. A few positions are computed at a time, and recomputed for the gradient, so
    that intermediate results never exist for all positions at once.
    """
    batch, _, vocab = logits.shape
    positions = max(1, CHUNK_VALUES // max(1, batch * vocab))
    chunks = zip(*(torch.split(tensor, positions, dim=1) for tensor in (mask, logits, *others)), strict=True)
    losses = [checkpoint(_of_masked, objective, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(losses, dim=1)


def _of_masked(objective: Callable[..., Tensor], mask: Tensor, *tensors: Tensor) -> Tensor:
    found = objective(*(tensor[mask] for tensor in tensors))
    return found.new_zeros(mask.shape).masked_scatter(mask, found)
