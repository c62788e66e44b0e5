"""What a student that writes text learns from a teacher's completion, token by token.

Its target is not the label written anew, but the very tokens that the teacher wrote: the target's token i is the
completion's token i, whatever way the tokenizer itself would have parted the text, and what the teacher could have
written there is compared with the student's logits before it. A decoder only reads its prompt (the text and a line
break, after which the teacher's answer begins too) and then the target without its last token: the logits at the
prompt's last token are of the target's token 0, those at the target's token i - 1 are of its token i. An
encoder-decoder's first token takes the place of the prompt. That the teacher's prompt held demonstrations, and the
student's holds none, is what there is to distil.

A teacher may end otherwise than the student: a plain one with a line break, one that chats with a mark of its template.
In the target and in all of the teacher's lists that token becomes the student's end. Where no token ended the
completion (the teacher was held to a choice), the end is learnt by cross-entropy.
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
    """What the teacher could have written at the first tokens of a target; where it ends, nothing is known."""

    ids: NDArray[np.int32]
    """`(tokens, k)`"""
    logprobs: NDArray[np.float32]
    """`(tokens, k)`; -inf pads."""


def taught_target(
    target: TextTarget, text: str, label: Label, top: TopTokens, num_logits: int
) -> tuple[list[int], Listed] | None:
    """Token ids to be written, the end included, with the teacher's lists. None where the completion's tokens are not
    the label: it was mended, relabelled or broken off, or holds tokens that the student cannot write."""
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
    """With what `old` has given to `new`."""
    is_there = np.isfinite(listed.logprobs)
    is_old, is_new = (listed.ids == old) & is_there, (listed.ids == new) & is_there
    has_old, has_new = is_old.any(-1, keepdims=True), is_new.any(-1, keepdims=True)
    olds, news = (np.where(which, listed.logprobs, -np.inf).max(-1, keepdims=True) for which in (is_old, is_new))
    together = np.logaddexp(olds, news)
    logprobs = np.where(is_old & has_new, -np.inf, np.where(is_new & has_old, together, listed.logprobs))
    ids = np.where(is_old & ~has_new, new, listed.ids)
    return Listed(ids.astype(np.int32), logprobs.astype(np.float32))


def distilled(hard: Tensor, logits: Tensor, inputs: Inputs, distillation: DistillationConfig) -> Tensor:
    """The loss of each token, `(rows, length)`: `hard`, the cross-entropy, and where the teacher listed something mixed
    with the distance from it. `logits` is `(rows, length, vocab)`; `inputs` holds `listed_ids` and `listed_logprobs`,
    `(rows, length, k)`, all -inf where it said nothing."""
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
    match distillation.objective:
        case "forward_kl":
            return forward_kl
        case "reverse_kl":
            return reverse_kl
        case "jensen_shannon":
            return partial(jensen_shannon, beta=distillation.beta)
