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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.students.tiny.bags import EncodedRows
from retort.students.tiny.shape import TinyShape, Weights

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


def predict(weights: Weights, rows: EncodedRows) -> Iterator[NDArray[np.float64]]:
    """Class probabilities of one student, each row summing to 1, in batches of rows: `(batch, classes)`."""
    one, overlap = stacked([weights]), "overlaps" in weights
    for start in range(0, len(rows), BATCH_ROWS):
        bags = rows.bags(np.arange(start, min(start + BATCH_ROWS, len(rows))), overlap=overlap)
        with torch.inference_mode():
            found = logits(one, *(part[None] for part in bags.parts))[0].double().softmax(-1)
        yield found.numpy()
