"""Token-level distillation of a teacher's completion into a student that generates text.

The target is not the re-tokenized label but the very tokens that the teacher wrote: token i of the target is token i
of the completion, and the teacher's probabilities there are compared with the student's logits that predict it. A
decoder-only model reads its prompt (the text and a line break, after which the teacher's answer begins too), then the
target without its last token: the logits at the prompt's last token predict token 0 of the target, those at token
i - 1 predict token i. In an encoder-decoder, the start token takes the place of the prompt. The teacher's prompt
contains demonstrations and the student's does not; their effect is what is distilled.

Teacher and student may use different end tokens: a base model ends with a line break, a chat model with a token of its
template. In the target and in all of the teacher's lists, that token is replaced by the student's end token. If no
token ended the completion (the teacher's decoding was constrained), the end is learned by cross-entropy.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.config import DistillationConfig
from retort.records.base import Label
from retort.students.base import TopTokens
from retort.students.losses import Divergence, forward_kl, jensen_shannon, mixture, reverse_kl, token_distillation
from retort.students.targets import TextTarget
from retort.students.training_data import Inputs


@dataclass(frozen=True, slots=True)
class Listed:
    """The teacher's most likely tokens at the first positions of a target; nothing is known about those after them."""

    ids: NDArray[np.int32]
    """`(tokens, k)`: token ids."""
    logprobs: NDArray[np.float32]
    """`(tokens, k)`: natural log-probabilities; -inf pads shorter lists."""


def distillation_target(
    target: TextTarget, text: str, label: Label, top: TopTokens, num_logits: int
) -> tuple[list[int], Listed] | None:
    """The target's token ids, including the end token, with the teacher's lists.

    None if the completion's tokens are not the label, because it was mended, relabeled or truncated, or contains tokens
    that the student does not have.
    """
    ids = [int(token) for token in top.token_ids]
    if not ids or max(ids) >= num_logits:
        return None
    last = ids[-1]
    if last == target.end:
        return (ids, Listed(top.ids, top.logprobs)) if target.keeps(text, label, ids) else None
    if not target.completion([last]).strip() and target.keeps(text, label, ids[:-1]):
        return [*ids[:-1], target.end], renamed(Listed(top.ids, top.logprobs), last, target.end)
    if target.keeps(text, label, ids):
        return [*ids, target.end], Listed(top.ids, top.logprobs)
    return None


def renamed(listed: Listed, old: int, new: int) -> Listed:
    """Moves the probability of token `old` to token `new`, adding to what `new` already has."""
    is_there = np.isfinite(listed.logprobs)
    is_old, is_new = (listed.ids == old) & is_there, (listed.ids == new) & is_there
    has_old, has_new = is_old.any(-1, keepdims=True), is_new.any(-1, keepdims=True)
    olds, news = (np.where(which, listed.logprobs, -np.inf).max(-1, keepdims=True) for which in (is_old, is_new))
    together = np.logaddexp(olds, news)
    logprobs = np.where(is_old & has_new, -np.inf, np.where(is_new & has_old, together, listed.logprobs))
    ids = np.where(is_old & ~has_new, new, listed.ids)
    return Listed(ids.astype(np.int32), logprobs.astype(np.float32))


def distilled(hard: Tensor, logits: Tensor, inputs: Inputs, distillation: DistillationConfig) -> Tensor:
    """The loss of each token, `(rows, length)`: the cross-entropy `hard`, `(rows, length)`, mixed with the divergence
    from the teacher where it lists tokens. `logits` is `(rows, length, vocab)`; `inputs` contains `listed_ids` and
    `listed_logprobs`, `(rows, length, k)` each, with -inf throughout where the teacher lists nothing."""
    logprobs = inputs["listed_logprobs"]
    is_known = logprobs.isfinite().any(-1)
    soft = token_distillation(
        logits,
        inputs["listed_ids"],
        logprobs,
        is_known,
        divergence=divergence_of(distillation),
        distillation_temperature=distillation.distillation_temperature,
    )
    return torch.where(is_known, mixture(hard, soft, distillation.weight), hard)


def divergence_of(distillation: DistillationConfig) -> Divergence:
    """The divergence that `objective` names."""
    match distillation.objective:
        case "forward_kl":
            return forward_kl
        case "reverse_kl":
            return reverse_kl
        case "jensen_shannon":
            return partial(jensen_shannon, beta=distillation.beta)
