"""Class probabilities from trained weights, by torch: for many rows, where the trainer is at hand."""

import numpy as np
import torch
from numpy.typing import NDArray

from retort.students.tiny.network import as_bags, logits, stacked, word_traits
from retort.students.tiny.shape import TinyTexts, Weights

BATCH_ROWS = 256


@torch.inference_mode()
def predict(weights: Weights, texts: TinyTexts) -> NDArray[np.float64]:
    """`(rows, classes)`, each summing to 1, in the order of `texts`."""
    one = stacked([weights])
    num_fields, overlap = len(weights["fields"]), "overlaps" in weights
    traits = word_traits(texts, num_fields, overlap=overlap)
    found = np.zeros((len(texts), len(weights["out_bias"])))
    for start in range(0, len(texts), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        bags = as_bags(texts.word_ids[part], traits[part], num_fields, overlap=overlap)
        found[part] = logits(one, *(piece[None] for piece in bags.parts))[0].double().softmax(-1)
    return found
