"""Objectives against dense computations by torch.distributions and F.kl_div, their limits, and their gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from retort.students import losses as objectives
from retort.students.losses import (
    LEAST_REST,
    Divergence,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    mixture,
    reverse_kl,
    scoring_loss,
    soft_cross_entropy,
    token_distillation,
)

BATCH, LENGTH, VOCAB, K = 3, 5, 11, 4
EVERYWHERE = torch.ones(BATCH, LENGTH, dtype=torch.bool)
HALF_MIXED = partial(jensen_shannon, beta=0.3)
DIVERGENCES: list[Divergence] = [forward_kl, reverse_kl, HALF_MIXED]


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def listed(teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """ids and log-probabilities of the k likeliest tokens."""
    logprobs, ids = teacher.log_softmax(-1).topk(k, dim=-1)
    return ids, logprobs


def dense(divergence: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """The reference: torch.distributions, mixing probabilities and not logarithms as ours."""
    p, s = Categorical(logits=teacher), Categorical(logits=student)
    if divergence is HALF_MIXED:
        mixed = Categorical(probs=0.3 * p.probs + 0.7 * s.probs)
        return 0.3 * kl_divergence(p, mixed) + 0.7 * kl_divergence(s, mixed)
    return kl_divergence(p, s) if divergence is forward_kl else kl_divergence(s, p)


@pytest.fixture
def teacher() -> Tensor:
    return normal(BATCH, LENGTH, VOCAB, seed=1)


@pytest.fixture
def student() -> Tensor:
    return normal(BATCH, LENGTH, VOCAB, seed=2).requires_grad_()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_list_of_the_whole_vocabulary_is_the_dense_divergence(
    divergence: Divergence, temperature: float, teacher: Tensor, student: Tensor
) -> None:
    found = token_distillation(
        student,
        *listed(teacher, VOCAB),
        EVERYWHERE,
        divergence=divergence,
        distillation_temperature=temperature,
    )
    expected = temperature**2 * dense(divergence, teacher / temperature, student / temperature)
    assert_close(found, expected)
    (gradient,), (by_dense,) = (torch.autograd.grad(loss.sum(), student) for loss in (found, expected))
    assert_close(gradient, by_dense)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_rest_that_both_spread_alike_loses_nothing(divergence: Divergence, teacher: Tensor, student: Tensor) -> None:
    ids, logprobs = listed(teacher, K)
    in_rest = torch.ones_like(teacher, dtype=torch.bool).scatter(-1, ids, False)
    alike = torch.where(in_rest, teacher + 0.7, student)  # up to a factor, the teacher's own
    found = token_distillation(alike, ids, logprobs, EVERYWHERE, divergence=divergence)
    assert_close(found, dense(divergence, teacher, alike))


def test_what_the_rest_hides_is_the_chain_rules_second_term(teacher: Tensor, student: Tensor) -> None:
    ids, logprobs = listed(teacher, K)
    p_rest, s_rest = (logits.softmax(-1).scatter(-1, ids, 0.0) for logits in (teacher, student))
    hidden = kl_divergence(Categorical(probs=s_rest), Categorical(probs=p_rest))
    found = token_distillation(student, ids, logprobs, EVERYWHERE, divergence=reverse_kl)
    assert_close(found + s_rest.sum(-1) * hidden, dense(reverse_kl, teacher, student))
    assert (hidden > 0.01).all()


def test_reverse_kl_charges_what_is_written_outside_of_the_list() -> None:
    """A student that has the teacher's proportions among the listed, and all but a trace of its mass elsewhere."""
    teacher = torch.tensor([[[4.0, 3.0, -9.0, -9.0]]])
    straying = torch.tensor([[[4.0, 3.0, 12.0, 12.0]]], requires_grad=True)
    ids, logprobs = listed(teacher, 2)
    loss = token_distillation(straying, ids, logprobs, EVERYWHERE[:1, :1], divergence=reverse_kl)
    assert loss.item() > 5
    (gradient,) = torch.autograd.grad(loss.sum(), straying)
    assert (gradient[0, 0, 2:] > 0).all()
    assert (gradient[0, 0, :2] < 0).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("k", [1, K, VOCAB])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_of_the_teacher_itself_nothing(divergence: Divergence, k: int, temperature: float, teacher: Tensor) -> None:
    itself = teacher.clone().requires_grad_()
    found = token_distillation(
        itself + 5,
        *listed(teacher, k),
        EVERYWHERE,
        divergence=divergence,
        distillation_temperature=temperature,
    )
    assert_close(found, torch.zeros_like(found), atol=1e-10, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), itself)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_at_high_temperature_half_the_squared_distance_of_logits(
    divergence: Divergence, teacher: Tensor, student: Tensor
) -> None:
    """Hinton et al. 2015, section 2.1: of logits that are centred."""
    found = token_distillation(
        student,
        *listed(teacher, VOCAB),
        EVERYWHERE,
        divergence=divergence,
        distillation_temperature=1e4,
    )
    difference = teacher - student
    centred = difference - difference.mean(-1, keepdim=True)
    assert_close(found, centred.square().sum(-1) / (2 * VOCAB), rtol=2e-3, atol=1e-6)


def test_a_certain_teacher_is_cross_entropy(student: Tensor) -> None:
    said = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    sure = torch.zeros(BATCH, LENGTH, 1)
    found = token_distillation(student, said[..., None], sure, EVERYWHERE, divergence=forward_kl)
    assert_close(found, cross_entropy(student, said, EVERYWHERE), atol=30 * LEAST_REST, rtol=0)


def test_jensen_shannon_between_the_two(teacher: Tensor, student: Tensor) -> None:
    p, s = teacher.log_softmax(-1), student.log_softmax(-1)
    assert_close(jensen_shannon(p, s, 0.0), functional.kl_div(s, p, reduction="none", log_target=True).sum(-1))
    assert_close(jensen_shannon(p, s, 1.0), functional.kl_div(p, s, reduction="none", log_target=True).sum(-1))
    assert_close(jensen_shannon(p, s, 1e-6) / 1e-6, forward_kl(p, s), rtol=1e-3, atol=0)
    assert_close(jensen_shannon(p, s, 1 - 1e-6) / 1e-6, reverse_kl(p, s), rtol=1e-3, atol=0)
    assert_close(jensen_shannon(p, s), jensen_shannon(s, p))
    assert (jensen_shannon(p, s) < math.log(2)).all()
    apart = torch.tensor([[0.0, -1e9]]), torch.tensor([[-1e9, 0.0]])
    assert_close(jensen_shannon(*apart), torch.tensor([math.log(2)]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients(divergence: Divergence, temperature: float) -> None:
    ids, logprobs = listed(normal(1, 3, 6, seed=1), 2)
    mask = torch.tensor([[True, False, True]])
    student = normal(1, 3, 6, seed=2).requires_grad_()
    loss = partial(
        token_distillation,
        teacher_ids=ids,
        teacher_logprobs=logprobs,
        mask=mask,
        divergence=divergence,
        distillation_temperature=temperature,
    )
    assert torch.autograd.gradcheck(loss, student)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_is_masked_may_be_anything(divergence: Divergence, teacher: Tensor) -> None:
    mask = torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[1] = False
    ids, logprobs = listed(teacher, K)
    student = normal(BATCH, LENGTH, VOCAB, seed=2)
    whole = token_distillation(student, ids, logprobs, EVERYWHERE, divergence=divergence)
    ids[~mask], logprobs[~mask], student[~mask] = -1, torch.nan, torch.nan
    found = token_distillation(student.requires_grad_(), ids, logprobs, mask, divergence=divergence)
    assert_close(found, torch.where(mask, whole, 0.0))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert (gradient[~mask] == 0).all()
    assert gradient[mask].isfinite().all()


@pytest.mark.parametrize("shape", [(0, LENGTH), (BATCH, 0), (BATCH, LENGTH)])
def test_nothing_to_learn(shape: tuple[int, int]) -> None:
    mask, ids = torch.zeros(shape, dtype=torch.bool), torch.zeros(*shape, K, dtype=torch.long)
    student = torch.zeros(*shape, VOCAB, requires_grad=True)
    losses = [
        token_distillation(student, ids, torch.zeros(*shape, K), mask, divergence=reverse_kl),
        cross_entropy(student, ids[..., 0], mask),
        soft_cross_entropy(student, torch.ones(*shape, VOCAB), mask),
    ]
    for loss in losses:
        assert_close(loss, torch.zeros(shape))
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert (gradient == 0).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_shorter_list_is_padded(divergence: Divergence, teacher: Tensor, student: Tensor) -> None:
    ids, logprobs = listed(teacher, K)
    padded = torch.cat([ids.new_zeros(BATCH, LENGTH, 2), ids], -1), functional.pad(logprobs, (2, 0), value=-torch.inf)
    assert_close(
        token_distillation(student, *padded, EVERYWHERE, divergence=divergence),
        token_distillation(student, ids, logprobs, EVERYWHERE, divergence=divergence),
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_logits_are_computed_with_in_fp32(divergence: Divergence, teacher: Tensor) -> None:
    """Sure ones, too: what is left outside of the list is below the rounding of 1."""
    ids, logprobs = listed(10 * teacher, K)
    coarse = (10 * normal(BATCH, LENGTH, VOCAB, seed=2)).bfloat16().requires_grad_()
    found = token_distillation(coarse, ids, logprobs.float(), EVERYWHERE, divergence=divergence)
    precise = token_distillation(coarse.double(), ids, logprobs, EVERYWHERE, divergence=divergence)
    assert found.dtype == torch.float32
    # A rest that the teacher's own log-probabilities in fp32 cannot tell from 0 is known up to their rounding.
    assert_close(found.double(), precise, rtol=0.05, atol=0.1)
    (gradient,) = torch.autograd.grad(found.sum(), coarse)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()


class Widest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most values of one fp32 tensor that any operation gives."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in given if isinstance(given, tuple | list) else [given]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.most = max(self.most, tensor.numel())
        return given


def cross_entropy_of(student: Tensor) -> Tensor:
    return cross_entropy(student, torch.zeros(student.shape[:2], dtype=torch.long), EVERYWHERE)


def distillation_of(student: Tensor) -> Tensor:
    ids, logprobs = listed(normal(BATCH, LENGTH, VOCAB, seed=1), K)
    return token_distillation(student, ids, logprobs.float(), EVERYWHERE, divergence=reverse_kl)


@pytest.mark.parametrize("objective", [cross_entropy_of, distillation_of])
def test_a_few_positions_at_a_time(objective: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(values: int) -> tuple[Tensor, Tensor, int]:
        monkeypatch.setattr(objectives, "CHUNK_VALUES", values)
        student = normal(BATCH, LENGTH, VOCAB, seed=2).bfloat16().requires_grad_()
        with Widest() as widest:  # type: ignore[no-untyped-call]
            loss = objective(student)
            loss.sum().backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        return loss.detach(), student.grad, widest.most

    whole, parts = computed(10**6), computed(2 * BATCH * VOCAB)
    assert_close(parts[:2], whole[:2])
    assert parts[2] <= max(2 * BATCH * VOCAB, BATCH * LENGTH * K) < BATCH * LENGTH * VOCAB <= whole[2]


def test_cross_entropies(student: Tensor) -> None:
    targets = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = targets % 2 == 0
    expected = -Categorical(logits=student).log_prob(targets)  # type: ignore[no-untyped-call]
    assert_close(cross_entropy(student, targets.masked_fill(~mask, -100), mask), torch.where(mask, expected, 0.0))
    assert_close(cross_entropy(student.flatten(0, 1), targets.flatten()), expected.flatten())
    probabilities = normal(BATCH, LENGTH, VOCAB, seed=3).softmax(-1)
    soft = -(probabilities * student.softmax(-1).log()).sum(-1)
    assert_close(cross_entropy(student, probabilities, mask), torch.where(mask, soft, 0.0))
    assert_close(soft_cross_entropy(student.flatten(0, 1), probabilities.flatten(0, 1)), soft.flatten())
    one_hot = functional.one_hot(targets, VOCAB).double()
    assert_close(soft_cross_entropy(student, one_hot, EVERYWHERE), expected)


def test_a_mixture() -> None:
    hard, soft = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])
    assert_close(mixture(hard, soft, 0.25), torch.tensor([2.0, 1.0]))
    assert_close((mixture(hard, soft, 0.0), mixture(hard, soft, 1.0)), (hard, soft))


STUDENTS, ROWS, CLASSES = 3, 7, 4
GOLD = torch.tensor([0, 3, -1, 1, 2, -1, 0])
WEIGHTS, TEMPERATURES = torch.tensor([0.0, 0.5, 2.0]), torch.tensor([1.0, 4.0, 2.0])
SOFT_WEIGHTS = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0])


@pytest.fixture
def stack() -> Tensor:
    return normal(STUDENTS, ROWS, CLASSES).requires_grad_()


@pytest.fixture
def probabilities() -> Tensor:
    return normal(ROWS, CLASSES, seed=1).softmax(-1)


def by_loops(stack: Tensor, probabilities: Tensor) -> Tensor:
    """One row of one student at a time: with p_T from powers, as Hinton's softened softmax of log p."""
    found = torch.zeros(STUDENTS, ROWS, dtype=torch.float64)
    for student in range(STUDENTS):
        t = float(TEMPERATURES[student])
        for row in range(ROWS):
            hard = functional.cross_entropy(stack[student, row], GOLD[row]) if GOLD[row] >= 0 else 0.0
            powers = probabilities[row] ** (1 / t)
            soft = functional.cross_entropy(stack[student, row] / t, powers / powers.sum())
            found[student, row] = hard + WEIGHTS[student] * SOFT_WEIGHTS[row] * t**2 * soft
    return found


def test_scoring_losses_of_a_stack_are_each_students_own(stack: Tensor, probabilities: Tensor) -> None:
    expected = by_loops(stack, probabilities)
    found = scoring_loss(stack, GOLD, probabilities, WEIGHTS, TEMPERATURES, SOFT_WEIGHTS)
    assert_close(found, expected)
    (gradient,), (by_hand,) = (torch.autograd.grad(loss.sum(), stack) for loss in (found, expected))
    assert_close(gradient, by_hand)
    alone = scoring_loss(stack[1:2], GOLD, probabilities, 0.5, 4.0, SOFT_WEIGHTS)
    assert_close(alone, found[1:2])
    each = [
        tensor.expand(STUDENTS, *tensor.shape).clone().detach()
        for tensor in (GOLD, probabilities, WEIGHTS.new_tensor(SOFT_WEIGHTS.tolist()))
    ]
    assert_close(scoring_loss(stack, each[0], each[1], WEIGHTS, TEMPERATURES, each[2]), found)


def test_scoring_losses_of_rows_without_gold_or_without_a_teacher(stack: Tensor, probabilities: Tensor) -> None:
    probabilities[SOFT_WEIGHTS == 0] = torch.nan
    found = scoring_loss(stack, GOLD, probabilities, WEIGHTS, TEMPERATURES, SOFT_WEIGHTS)
    assert (found[:, 5] == 0).all()  # neither
    gold_only = functional.cross_entropy(stack[:, 1], GOLD[1].expand(STUDENTS), reduction="none")
    assert_close(found[:, 1], gold_only)
    (gradient,) = torch.autograd.grad(found.sum(), stack)
    assert gradient.isfinite().all()
    assert (gradient[:, 5] == 0).all()


def test_a_class_that_the_teacher_rules_out(stack: Tensor, probabilities: Tensor) -> None:
    probabilities[:, 1] = 0
    probabilities /= probabilities.sum(-1, keepdim=True)
    found = scoring_loss(stack, GOLD.new_full((ROWS,), -1), probabilities, 1.0, 3.0)
    powers = probabilities ** (1 / 3)
    softened = Categorical(probs=powers / powers.sum(-1, keepdim=True))
    rest = 9 * (stack / 3).log_softmax(-1)
    assert_close(found, -(softened.probs * rest).sum(-1))
    one_hot = functional.one_hot(GOLD.clamp(min=0), CLASSES)
    certain = scoring_loss(stack, GOLD.new_full((ROWS,), -1), one_hot, 1.0, 1.0)
    assert_close(certain, scoring_loss(stack, GOLD.clamp(min=0), one_hot, 0.0, 1.0))


def test_gradients_of_scoring_losses(stack: Tensor, probabilities: Tensor) -> None:
    def loss(logits: Tensor) -> Tensor:
        return scoring_loss(logits, GOLD, probabilities, WEIGHTS, TEMPERATURES, SOFT_WEIGHTS)

    assert torch.autograd.gradcheck(loss, stack)
    distilled = probabilities.log().expand(STUDENTS, ROWS, CLASSES).clone().requires_grad_()
    soft_only = scoring_loss(distilled, GOLD.new_full((ROWS,), -1), probabilities, 1.0, TEMPERATURES)
    (gradient,) = torch.autograd.grad(soft_only.sum(), distilled)
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
    assert scoring_loss(stack.bfloat16(), GOLD, probabilities, 1.0, 2.0).dtype == torch.float32
