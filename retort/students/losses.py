"""What training minimises: pure functions on tensors.

Each gives the loss of every unit, token or row, so that whoever trains decides what to average over. All compute in
fp32 at least, whatever the logits' dtype. Of vocabulary-wide logits, what is computed in fp32 is held for a few
positions at a time, and computed again for the gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_VALUES = 2**24
"""Logits that are in fp32 at once: 64 MiB."""
LEAST_REST = 1e-7
"""Probability of all tokens that a teacher does not list, at least: less is lost in the rounding of those it lists."""
_NEVER = -1e9
"""The logarithm of a probability of 0. Finite, so that 0 log 0 is 0 and its gradient no NaN."""

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Of the teacher's and the student's log-probabilities, both `(..., outcomes)`; gives `(...)`."""


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of each unit, `(units,)`, or of each token, `(batch, length)`.

    `logits` is `(units, classes)`. `targets` is class indices `(units,)` for hard labels, or probabilities
    `(units, classes)` for soft ones, see `soft_cross_entropy`. With a `mask`, bool `(batch, length)`: logits `(batch,
    length, vocab)`, targets `(batch, length)` of whatever value where the mask is False, and a loss of 0 there.
    """
    if targets.is_floating_point():
        return soft_cross_entropy(logits, targets, mask)
    if mask is not None:
        return _by_chunks(cross_entropy, mask, logits, targets)
    return torch.nn.functional.cross_entropy(_at_least_fp32(logits), targets, reduction="none")


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """`-sum_c p(c) log softmax(logits)(c)` of each unit or token, as `cross_entropy`; `probabilities` has the logits'
    shape, and its rows sum to 1. A one-hot row equals the hard label."""
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
    """How far the student is from the teacher's listed next-token probabilities, `(batch, length)`; 0 where the mask
    is False. Both have the same tokenizer.

    `logits` is the student's, `(batch, length, vocab)`. `teacher_ids` `(batch, length, k)` are the tokens that the
    teacher lists at each position, each once, and `teacher_logprobs` their natural log-probabilities at temperature 1,
    which sum to at most 1; -inf pads a list shorter than k, whatever its id. `mask` is bool `(batch, length)`;
    where it is False the teacher's side may hold anything. `divergence`: `forward_kl`, `reverse_kl`, or
    `partial(jensen_shannon, beta=0.5)`.

    All tokens that are not listed are one outcome more, the *rest*, on both sides: k + 1 outcomes. Dropping the rest
    and renormalising over the listed would charge a student nothing for what it writes outside of them, which is just
    what reverse KL is there to forbid. By the chain rule `KL(s || p)` over the vocabulary is KL over the k + 1 outcomes
    plus `s(rest) KL(s | rest, p | rest)`: so this is exact where both spread the rest alike or the student has none
    there, never more than the whole, and for forward KL short of it by no more than `p(rest) KL(p | rest, s | rest)`.
    With k = vocab there is no rest. A rest of less than LEAST_REST counts as that much, so reverse KL stays finite.

    The temperature T softens the k + 1 outcomes of both sides, `p_T = softmax(log p / T)`, and the divergence is
    multiplied by T^2, so that its gradient keeps its scale (Hinton et al. 2015, arXiv 1503.02531, section 2.1). How the
    rest would part into tokens at T is not known: for T other than 1 and k < vocab it is softened as one outcome.
    """

    def of_tokens(logits: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
        teacher, student = _outcomes(logits, ids, logprobs)
        teacher_log = (teacher / distillation_temperature).log_softmax(-1)
        student_log = (student / distillation_temperature).log_softmax(-1)
        return distillation_temperature**2 * divergence(teacher_log, student_log)

    return _by_chunks(of_tokens, mask, logits, teacher_ids, teacher_logprobs)


def _outcomes(logits: Tensor, ids: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's logarithms of probabilities and the student's logits over the listed tokens and the rest, both
    `(tokens, k + 1)`, of logits `(tokens, vocab)`."""
    logits = _at_least_fp32(logits)
    logprobs = logprobs.to(logits.dtype)
    is_listed = logprobs > -torch.inf
    ids = torch.where(is_listed, ids, ids.gather(-1, logprobs.argmax(-1, keepdim=True)))
    teacher = torch.where(is_listed, logprobs, _NEVER)
    student = torch.where(is_listed, logits.gather(-1, ids), _NEVER)
    has_rest = is_listed.sum(-1, keepdim=True) < logits.shape[-1]
    rest = -torch.expm1(teacher.logsumexp(-1, keepdim=True))
    teacher_rest = torch.where(has_rest, rest.clamp(min=LEAST_REST).log(), _NEVER)
    # Summed over what is left of the vocabulary: 1 - the listed would be nothing but rounding for a sure student.
    student_rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    student_rest = torch.where(has_rest, student_rest, _NEVER)
    return torch.cat([teacher, teacher_rest], -1), torch.cat([student, student_rest], -1)


def forward_kl(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """`KL(p || s)`, teacher p and student s: the student covers all that the teacher may say (Hinton et al. 2015)."""
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1)


def reverse_kl(teacher_log: Tensor, student_log: Tensor) -> Tensor:
    """`KL(s || p)`: the student says nothing that the teacher would not (MiniLLM, arXiv 2306.08543, equation 1)."""
    return forward_kl(student_log, teacher_log)


def jensen_shannon(teacher_log: Tensor, student_log: Tensor, beta: float = 0.5) -> Tensor:
    """`beta KL(p || m) + (1 - beta) KL(s || m)` with `m = beta p + (1 - beta) s` (GKD, arXiv 2306.13649, equation 1).

    As in trl, `beta` 0 and 1 are `forward_kl` and `reverse_kl`, which divided by beta and by 1 - beta it tends to; the
    mixture itself is 0 there.
    """
    if beta in (0, 1):
        return reverse_kl(teacher_log, student_log) if beta else forward_kl(teacher_log, student_log)
    weight = teacher_log.new_tensor(beta)
    mixed = torch.logaddexp(teacher_log + weight.log(), student_log + (-weight).log1p())
    return beta * forward_kl(teacher_log, mixed) + (1 - beta) * forward_kl(student_log, mixed)


def mixture(hard: Tensor, soft: Tensor, weight: float) -> Tensor:
    """`(1 - weight) hard + weight soft`, of losses of one shape; `weight` in [0, 1]."""
    return (1 - weight) * hard + weight * soft


def scoring_loss(
    logits: Tensor,
    gold: Tensor,
    probabilities: Tensor,
    weight: Tensor | float,
    temperature: Tensor | float,
    soft_weights: Tensor | None = None,
) -> Tensor:
    """The tiny student's objective for each row, `(students, batch)`: take `.mean(-1).sum()` to train a stack.

    `CE(y, s) + lambda T^2 CE(p_T, s_T)` (arXiv 2312.15842; the temperature on both sides and T^2 as in Hinton et
    al. 2015, arXiv 1503.02531), where `s_T = softmax(logits / T)` and `p_T = softmax(log p / T)`.

    `logits` is `(students, batch, classes)`. `gold` holds class indices, `(students, batch)` or `(batch,)`, negative
    where a row has none: its first term is then 0. `probabilities` is the teacher's, `(students, batch, classes)` or
    `(batch, classes)`, each row summing to 1. `weight` is lambda and `temperature` T > 0: a number, or one for each
    student, `(students,)`. `soft_weights`, `(students, batch)` or `(batch,)`, multiplies a row's second term: 0 where
    the teacher is wrong or says nothing (its probabilities are then of no account, even NaN). A row with neither
    gold nor soft weight costs 0, so that it can fill a batch up.

    A student's losses depend on its own logits alone: the gradient of a sum over students is each one's own. The
    second term is a cross-entropy, as in the paper: where `s = p` it is the entropy of `p_T`, not 0, while its
    gradient is that of the Kullback-Leibler divergence. Computed in fp32 at least.
    """
    logits = _at_least_fp32(logits)
    num_students, num_rows, _ = logits.shape
    gold = gold.expand(num_students, num_rows)
    log_s = logits.log_softmax(-1)
    hard = -log_s.gather(-1, gold.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    hard = hard.masked_fill(gold < 0, 0.0)
    if soft_weights is None:
        soft_weights = logits.new_ones(())
    # Replaced before they are computed with: the gradient of 0 * NaN is NaN.
    taught = torch.where(soft_weights.unsqueeze(-1) == 0, 1.0, probabilities.to(logits.dtype))
    soft = _softened_cross_entropy(logits, taught, _per_student(temperature, logits).unsqueeze(-1))
    return hard + _per_student(weight, logits) * soft_weights * soft


def _softened_cross_entropy(logits: Tensor, probabilities: Tensor, temperature: Tensor) -> Tensor:
    """`T^2 CE(p_T, s_T)` over the last axis; the temperature broadcasts against the logits."""
    # log 0 = -inf: a class that the teacher rules out stays at 0 at every temperature.
    p_t = (probabilities.log() / temperature).softmax(-1)
    log_s_t = (logits / temperature).log_softmax(-1)
    return -(temperature.squeeze(-1) ** 2) * (p_t * log_s_t).sum(-1)


def _per_student(value: Tensor | float, logits: Tensor) -> Tensor:
    """`(students or 1, 1)`, which broadcasts over rows."""
    return torch.as_tensor(value, dtype=logits.dtype, device=logits.device).reshape(-1, 1)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _by_chunks(objective: Callable[..., Tensor], mask: Tensor, logits: Tensor, *others: Tensor) -> Tensor:
    """`objective(logits, *others)` of the tokens where the mask `(batch, length)` is True, 0 elsewhere.

    The tensors are `(batch, length, ...)`. A few positions are computed at a time, and again for the gradient, so that
    what the objective makes of the logits is never there for all of them.
    """
    batch, _, vocab = logits.shape
    positions = max(1, CHUNK_VALUES // max(1, batch * vocab))
    chunks = zip(*(torch.split(tensor, positions, dim=1) for tensor in (mask, logits, *others)), strict=True)
    losses = [checkpoint(_of_masked, objective, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.cat(losses, dim=1)


def _of_masked(objective: Callable[..., Tensor], mask: Tensor, *tensors: Tensor) -> Tensor:
    found = objective(*(tensor[mask] for tensor in tensors))
    return found.new_zeros(mask.shape).masked_scatter(mask, found)
