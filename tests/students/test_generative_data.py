"""Batches of a generative student give the loss of single rows, computed by hand with transformers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BloomConfig, BloomForCausalLM

from retort.students.generative_data import (
    CausalTrainingData,
    Pair,
    Seq2SeqTrainingData,
    TrainingPairs,
    keeps_packed_rows_apart,
)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 12, size=(9, 2))
    return [Pair(generator.integers(2, 420, size=s), generator.integers(2, 420, size=t)) for s, t in sizes]


ALL = slice(None)


def test_seq2seq_loss(tiny_t5: Path, pairs: list[Pair]) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    data, rows = Seq2SeqTrainingData(model, TrainingPairs(pairs), pad=0, start=0, columns=ALL), np.arange(9)
    each = [
        model(input_ids=torch.from_numpy(p.source)[None], labels=torch.from_numpy(p.target)[None]).loss * len(p.target)
        for p in pairs
    ]
    torch.testing.assert_close(data.loss(rows), torch.stack(each).sum(), rtol=1e-5, atol=1e-4)
    assert data.units(rows) == sum(len(pair.target) for pair in pairs)
    real, computed = data.tokens(rows)
    assert real == sum(len(pair.source) + len(pair.target) for pair in pairs) < computed


@pytest.mark.parametrize("packs", [True, False])
def test_causal_loss_is_on_the_target_alone_whether_packed_or_not(
    tiny_causal: Path, pairs: list[Pair], packs: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    data, rows = CausalTrainingData(model, TrainingPairs(pairs), pad=0, columns=ALL, packs=packs), np.arange(9)
    each = []
    for pair in pairs:
        ids = torch.from_numpy(np.concatenate([pair.source, pair.target]))[None]
        labels = ids.clone()
        labels[:, : len(pair.source)] = -100
        each.append(model(input_ids=ids, labels=labels).loss * len(pair.target))
    torch.testing.assert_close(data.loss(rows), torch.stack(each).sum(), rtol=1e-5, atol=1e-3)
    real, computed = data.tokens(rows)
    assert (computed == real) == packs
    assert data.units(rows) == sum(len(pair.target) for pair in pairs)


@pytest.mark.parametrize("kind", ["seq2seq", "packed", "padded"])
def test_each_row_counts_what_its_weight_says(tiny_t5: Path, tiny_causal: Path, pairs: list[Pair], kind: str) -> None:
    """By hand: the losses of the rows one by one, times their weights, over the weights of their tokens."""
    weighed = [
        replace(pair, weight=weight) for pair, weight in zip(pairs, (1, 1, 1, 0.25, 3, 0, 1, 0.5, 2), strict=True)
    ]

    def data(pairs: list[Pair]) -> Seq2SeqTrainingData | CausalTrainingData:
        if kind == "seq2seq":
            model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
            return Seq2SeqTrainingData(model, TrainingPairs(pairs), pad=0, start=0, columns=ALL)
        causal = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
        return CausalTrainingData(causal, TrainingPairs(pairs), pad=0, columns=ALL, packs=kind == "packed")

    plain, whole, rows = data(pairs), data(weighed), np.arange(9)
    by_hand = sum(pair.weight * plain.loss(rows[[at]]) for at, pair in enumerate(weighed))
    torch.testing.assert_close(whole.loss(rows), by_hand, rtol=1e-5, atol=1e-3)
    assert whole.units(rows) == pytest.approx(sum(pair.weight * len(pair.target) for pair in weighed))
    # Also in a batch whose rows all count alike, so that each batch has the same inputs.
    assert "weights" in whole.inputs(rows[:3], 1)
    assert "weights" not in plain.inputs(rows[:3], 1)


def test_rows_are_packed_only_where_the_architecture_keeps_them_apart(tiny_causal: Path) -> None:
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=420, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3))
    assert keeps_packed_rows_apart(AutoModelForCausalLM.from_pretrained(tiny_causal))
    assert not keeps_packed_rows_apart(bloom)
