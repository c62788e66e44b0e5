"""The tiny network, evaluated for many students at once: weights and results have a leading axis of students.

    x = words[id] + fields[field] + sum of overlaps[f] over the other fields f in which the word occurs
    h = tanh(x read + read_bias)                                     for each word
    a = softmax over words of (h attend)
    v = the mean of h, weighted by a, concatenated with the elementwise maximum of h
    logits = relu(v mix + mix_bias) out + out_bias

Attention pooling replaces the paper's BiLSTM (arXiv 2312.15842): `benchmarks/tiny.py --only accuracy` compares the two.
Words are read as a bag, so h depends only on a word, its field and the other fields in which it occurs, and rows of a
batch share the computation for the words that they share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.students.tiny.shape import TinyShape, TinyTexts, Weights

Indices = NDArray[np.int64]

BATCH_ROWS = 256
"""Rows that are predicted at once."""


def layout(shape: TinyShape, vocabulary_size: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one student's weights, in order. `vocabulary_size` is the size of the fitted vocabulary."""
    embedding, hidden, num_fields = shape.embedding_size, shape.hidden_size, len(shape.fields)
    sizes: dict[str, tuple[int, ...]] = {
        "words": (vocabulary_size, embedding),
        "fields": (num_fields, embedding),
        "overlaps": (num_fields, embedding),
        "read": (embedding, hidden),
        "read_bias": (hidden,),
        "attend": (hidden, 1),
        "mix": (hidden * (2 if shape.pooling == "mean-and-max" else 1), hidden),
        "mix_bias": (hidden,),
        "out": (hidden, num_classes),
        "out_bias": (num_classes,),
    }
    if not shape.overlap or num_fields == 1:
        del sizes["overlaps"]
    return sizes


def has_max(weights: Mapping[str, Any]) -> bool:
    """Whether a student, or a stack of students, pools by `mean-and-max`."""
    return int(weights["mix"].shape[-2]) > int(weights["read"].shape[-1])


def num_parameters(weights: Weights) -> int:
    """The number of all weights, embeddings included."""
    return sum(array.size for array in weights.values())


def initial(sizes: dict[str, tuple[int, ...]], seed: int) -> Tensor:
    """One student's initial weights, flat, `(parameters,)`: normal with standard deviation 1 / sqrt(inputs) for
    matrices and 0.3 for embeddings, zero for biases."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([_draw(name, size, generator).flatten() for name, size in sizes.items()])


def _draw(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if len(size) == 1:
        return torch.zeros(size)
    deviation = 0.3 if name in ("words", "fields", "overlaps") else 1 / math.sqrt(size[0])
    return torch.randn(size, generator=generator) * deviation


def unflatten(flat: Tensor, sizes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """`(students, parameters)` -> weights by name, `(students, ...)`, as views, so that gradients reach `flat`."""
    parts = torch.split(flat, [math.prod(size) for size in sizes.values()], dim=1)
    return {name: part.view(len(flat), *size) for (name, size), part in zip(sizes.items(), parts, strict=True)}


def stacked(weights: Sequence[Weights]) -> dict[str, Tensor]:
    """The weights of several students, by name, `(students, ...)`."""
    return {name: torch.from_numpy(np.stack([one[name] for one in weights])) for name in weights[0]}


@dataclass(frozen=True, slots=True)
class Bags:
    """A batch as bags of word kinds (a word with its field and overlaps), each of which is stored once."""

    word_ids: Tensor
    """`(kinds,)`: the word id of each kind."""
    features: Tensor
    """`(kinds, features)`, 0 or 1: one-hot the word's field, then the other fields in which it occurs."""
    counts: Tensor
    """`(rows, kinds)`: how often each kind occurs in a row."""
    members: Tensor
    """`(rows, length)`: the kind of each word of a row; that of the first word pads the row."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The arguments of `logits`, without its axis of students."""
        return self.word_ids, self.features, self.counts, self.members


def word_traits(texts: TinyTexts, num_fields: int, *, overlap: bool) -> Indices:
    """Encodes each word's field `f` and, with `overlap`, the other fields `g` in which it occurs, as
    `f + num_fields * sum of 2^g`: `(rows, length)`."""
    traits = texts.field_ids.copy()
    if not overlap or num_fields == 1:
        return traits
    fields = np.arange(num_fields)
    for start in range(0, len(traits), 256):  # compares all pairs of words of a row
        ids, own = (part[start : start + 256] for part in (texts.word_ids, texts.field_ids))
        is_own = (own[..., None] == fields) & (ids > 0)[..., None]
        occurs = np.matmul(ids[:, :, None] == ids[:, None, :], is_own, dtype=np.float32) > 0
        traits[start : start + 256] += num_fields * ((occurs & ~is_own & (ids > 0)[..., None]) @ 2**fields)
    return traits


def as_bags(word_ids: Indices, traits: Indices, num_fields: int, *, overlap: bool) -> Bags:
    """The batch of the words `(rows, length)`, 0 for padding, with their traits `(rows, length)`."""
    rows, places = np.nonzero(word_ids)
    size = int(word_ids.max(initial=0)) + 1
    kinds, kind_of = np.unique(traits[rows, places] * size + word_ids[rows, places], return_inverse=True)
    counts = np.bincount(rows * len(kinds) + kind_of, minlength=len(word_ids) * len(kinds))
    own, elsewhere = np.divmod(kinds // size, num_fields)[::-1]
    fields = np.arange(num_fields)
    features = own[:, None] == fields
    if overlap and num_fields > 1:
        features = np.concatenate([features, elsewhere[:, None] >> fields & 1], axis=1)
    return Bags(
        torch.from_numpy(kinds % size),
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(counts.reshape(len(word_ids), len(kinds)).astype(np.float32)),
        torch.from_numpy(_members(word_ids, rows, places, kind_of)),
    )


def _members(word_ids: Indices, rows: Indices, places: Indices, kind_of: Indices) -> Indices:
    """See `Bags.members`. Every row must begin with a word, as encoded rows do."""
    longest = int(places.max(initial=0)) + 1
    members = np.zeros((len(word_ids), longest), dtype=np.int64)
    members[rows, places] = kind_of
    return np.where(word_ids[:, :longest] > 0, members, members[:, :1])


def logits(weights: dict[str, Tensor], word_ids: Tensor, features: Tensor, counts: Tensor, members: Tensor) -> Tensor:
    """The logits `(students, rows, classes)`, from the parts of `Bags` with a leading axis of students.

    Kinds that pad have a count of 0 in all rows. Each row needs at least one word; field marks count as words. The
    means of all rows are computed as `(counts e^a h) / (counts e^a)`. Attention weights below e^-80 of the greatest in
    the batch are raised to that, so that no row divides by 0.
    """
    words = weights["words"]
    first = torch.arange(len(words), device=word_ids.device)[:, None] * words.shape[1]
    vectors = torch.nn.functional.embedding(word_ids + first, words.flatten(0, 1))
    traits = torch.cat([weights[name] for name in ("fields", "overlaps") if name in weights], dim=1)
    x = torch.baddbmm(vectors, features, traits)
    h = torch.baddbmm(weights["read_bias"][:, None], x, weights["read"]).tanh()
    scores = torch.bmm(h, weights["attend"])
    shares = (scores - scores.detach().amax(1, keepdim=True)).clamp(min=-80).exp()
    pooled = torch.bmm(counts, shares * h) / torch.bmm(counts, shares)
    if has_max(weights):
        pooled = torch.cat([pooled, _greatest(h, members)], dim=2)
    mixed = torch.baddbmm(weights["mix_bias"][:, None], pooled, weights["mix"]).relu()
    return torch.baddbmm(weights["out_bias"][:, None], mixed, weights["out"])


def _greatest(h: Tensor, members: Tensor) -> Tensor:
    """The elementwise maximum of h over each row's words: `(students, kinds, hidden)` and `(students, rows, length)` ->
    `(students, rows, hidden)`.

    The argmax is found without gradients, along the last axis: a third less work than `amax`, whose gradient visits
    every word.
    """
    students, rows, length = members.shape
    with torch.no_grad():
        numbers = h.transpose(1, 2).contiguous()
        places = members.flatten(1)[:, None].expand(-1, numbers.shape[1], -1)
        held = numbers.gather(2, places).view(students, -1, rows, length)
        words = held.argmax(3).transpose(1, 2)
    return h.gather(1, members.gather(2, words))


@torch.inference_mode()
def predict(weights: Weights, texts: TinyTexts) -> NDArray[np.float64]:
    """Class probabilities of one student, `(rows, classes)`, each row summing to 1."""
    one = stacked([weights])
    num_fields, overlap = len(weights["fields"]), "overlaps" in weights
    traits = word_traits(texts, num_fields, overlap=overlap)
    found = np.zeros((len(texts), len(weights["out_bias"])))
    for start in range(0, len(texts), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        bags = as_bags(texts.word_ids[part], traits[part], num_fields, overlap=overlap)
        found[part] = logits(one, *(piece[None] for piece in bags.parts))[0].double().softmax(-1)
    return found
