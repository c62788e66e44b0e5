"""The stacked network against the same in plain numpy, one student, one row and one word at a time."""

from collections import Counter

import numpy as np
import pytest
import torch

from retort.students.tiny.bags import Bags, as_bags, word_traits
from retort.students.tiny.network import initial, layout, logits, num_parameters, unflatten
from retort.students.tiny.shape import TinyShape, TinyTexts
from retort.students.tiny.vocabulary import Vocabulary

FIELDS = ("question", "reference", "answer")


def draw_texts(seed: int) -> TinyTexts:
    generator = np.random.default_rng(seed)
    word_ids, field_ids = np.zeros((7, 11), dtype=np.int64), np.zeros((7, 11), dtype=np.int64)
    for row in range(7):
        length = 3 + row if row < 6 else 11
        word_ids[row, :length] = generator.integers(1, 12, length)
        field_ids[row, :length] = np.sort(generator.integers(0, 3, length))
    return TinyTexts(word_ids, field_ids)


def bags_of(word_ids: np.ndarray, traits: np.ndarray, num_fields: int, *, overlap: bool) -> Bags:
    """Of rows `(rows, length)`, 0 for padding."""
    words = np.nonzero(word_ids)
    return as_bags(word_ids[words], traits[words], *words, num_fields, overlap=overlap)


def test_a_word_occurs_in_another_field_where_it_does():
    texts = draw_texts(0)
    found = word_traits(texts, 3, overlap=True)
    for row, (words, fields) in enumerate(zip(texts.word_ids, texts.field_ids, strict=True)):
        held = [{w for w, f in zip(words, fields, strict=True) if f == field and w} for field in range(3)]
        for place, (word, own) in enumerate(zip(words, fields, strict=True)):
            elsewhere = sum(2**field for field in range(3) if field != own and word in held[field])
            assert word == 0 or found[row, place] == own + 3 * elsewhere


def test_a_bag_holds_each_word_of_its_rows_as_often_as_they_do():
    texts = draw_texts(1)
    traits = word_traits(texts, 3, overlap=True)
    bags = bags_of(texts.word_ids, traits, 3, overlap=True)
    kinds = list(zip(bags.word_ids.tolist(), bags.features.int().tolist(), strict=True))
    assert len({str(kind) for kind in kinds}) == len(kinds)
    for row in range(7):
        expected = Counter(
            (word, str([int(code % 3 == f) for f in range(3)] + [int(code // 3 >> f & 1) for f in range(3)]))
            for word, code in zip(texts.word_ids[row].tolist(), traits[row].tolist(), strict=True)
            if word
        )
        counts = zip(kinds, bags.counts[row].int().tolist(), strict=True)
        assert {(word, str(kind)): n for (word, kind), n in counts if n} == dict(expected)
        members = {(word, str(kind)) for word, kind in (kinds[place] for place in bags.members[row].tolist())}
        assert members == set(expected)


@pytest.mark.parametrize("pooling", ["mean", "mean-and-max"])
@pytest.mark.parametrize("overlap", [True, False])
def test_each_student_of_a_stack_gives_what_it_gives_by_hand(overlap, pooling):
    shape = TinyShape(fields=FIELDS, embedding_size=5, hidden_size=6, overlap=overlap, pooling=pooling)
    sizes = layout(shape, 12, 4)
    flat = torch.stack([initial(sizes, seed) for seed in range(3)])
    flat += 0.1 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(9))  # biases too
    weights = unflatten(flat, sizes)
    texts = draw_texts(1)
    traits = word_traits(texts, 3, overlap=overlap)
    bags = bags_of(texts.word_ids, traits, 3, overlap=overlap)
    found = logits(weights, *(part.expand(3, *part.shape) for part in bags.parts))
    for student in range(3):
        one = {name: part[student].numpy().astype(np.float64) for name, part in weights.items()}
        for row in range(7):
            expected = by_hand(one, texts.word_ids[row], traits[row])
            np.testing.assert_allclose(found[student, row].numpy(), expected, atol=1e-5)


def by_hand(w: dict[str, np.ndarray], ids: np.ndarray, traits: np.ndarray) -> np.ndarray:
    hidden, scores = [], []
    for word, trait in zip(ids, traits, strict=True):
        if word == 0:
            continue
        x = w["words"][word] + w["fields"][trait % 3]
        for field in range(3):
            if trait // 3 >> field & 1:
                x = x + w["overlaps"][field]
        hidden.append(np.tanh(x @ w["read"] + w["read_bias"]))
        scores.append(hidden[-1] @ w["attend"])
    attention = np.exp(scores) / np.exp(scores).sum(axis=0)
    mean = sum(a * h for a, h in zip(attention, hidden, strict=True))
    pooled = mean if len(w["mix"]) == len(mean) else np.concatenate([mean, np.max(hidden, axis=0)])
    mixed = np.maximum(pooled @ w["mix"] + w["mix_bias"], 0)
    return mixed @ w["out"] + w["out_bias"]


def test_a_word_far_less_attended_than_another_rows_divides_nothing_by_0():
    shape = TinyShape(embedding_size=4, hidden_size=4)
    sizes = layout(shape, 4, 2)
    weights = unflatten(initial(sizes, 0)[None], sizes)
    weights["attend"] = torch.full((1, 4, 1), 1e4)
    word_ids = np.array([[1], [2], [3]])
    bags = bags_of(word_ids, np.zeros_like(word_ids), 1, overlap=False)
    found = logits(weights, *(part[None] for part in bags.parts))
    assert found.isfinite().all()
    assert len(found[0].unique(dim=0)) == 3


def test_by_default_it_has_about_30_000_parameters_with_embeddings():
    """And at least 700 times fewer than the 22.7 million of the encoder that teaches."""
    shape = TinyShape(fields=FIELDS)
    words = [[f"{n:06}", "", ""] for n in range(2000) for _ in range(2)]
    vocabulary = Vocabulary.fit(words, shape)
    sizes = layout(shape, vocabulary.size, 3)
    count = num_parameters({name: np.zeros(size) for name, size in sizes.items()})
    assert count == (1200 + 3 + 3) * 24 + (24 + 1) * 32 + 32 + (64 + 1) * 32 + (32 + 1) * 3
    assert 28_000 < count < 32_000
    assert 22_713_216 / count > 700


def test_a_single_field_has_nothing_to_overlap_with():
    assert "overlaps" not in layout(TinyShape(), 100, 2)
