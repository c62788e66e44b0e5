"""Batches of a generative student give the loss of single rows, computed by hand with transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BloomConfig, BloomForCausalLM

from retort.students.generative_data import CausalTrainingData, Pair, Seq2SeqTrainingData, keeps_packed_rows_apart


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 12, size=(9, 2))
    return [Pair(generator.integers(2, 420, size=s), generator.integers(2, 420, size=t)) for s, t in sizes]


ALL = slice(None)


def test_seq2seq_loss(tiny_t5: Path, pairs: list[Pair]) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    data, rows = Seq2SeqTrainingData(model, pairs, pad=0, start=0, columns=ALL), np.arange(9)
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
    data, rows = CausalTrainingData(model, pairs, pad=0, columns=ALL, packs=packs), np.arange(9)
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


def test_rows_are_packed_only_where_the_architecture_keeps_them_apart(tiny_causal: Path) -> None:
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=420, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3))
    assert keeps_packed_rows_apart(AutoModelForCausalLM.from_pretrained(tiny_causal))
    assert not keeps_packed_rows_apart(bloom)
