"""Students on a toy task that a linear head could learn: the tag of a word is the word's own."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retort.config import SequenceClassificationConfig, TokenClassificationConfig, TrainingConfig
from retort.models.device import Device
from retort.models.weights import find_weights
from retort.problems import Problem
from retort.problems.classification import Classification
from retort.problems.multi_label import MultiLabel
from retort.problems.slots import encode
from retort.students.classifier import predict
from retort.students.encoder import Encoder, encode_all, load_encoder, new_encoder
from retort.students.losses import cross_entropy
from retort.students.schedule import Schedule
from retort.students.training import History, TrainingRows, UnitTrainingData, train
from separable_slots import SLOTS, separable_rows

MOODS = Classification(["down", "up"])
CPU = Device("cpu", "fp32", 1)
TRAINING = TrainingConfig(epochs=4, learning_rate=5e-3, batch_tokens=256, freeze_embeddings=False, precision="fp32")


@dataclass
class Toy:
    problem: Problem
    kind: str
    texts: list[str]
    labels: list[str]


@pytest.fixture(scope="module")
def tagging() -> Toy:
    rows = separable_rows(80, 8)
    return Toy(SLOTS, "token-classification", [row.text for row in rows], [row.label for row in rows])


@pytest.fixture(scope="module")
def moods() -> Toy:
    texts = [f"the film {letter} was {word}" for letter in "abcdefghij" for word in ("great", "awful")]
    return Toy(MOODS, "sequence-classification", texts, ["up", "down"] * 10)


Fresh = Callable[..., Encoder]


@pytest.fixture
def fresh(tiny_encoder: Path) -> Fresh:
    """A student before its training, always the same for one toy."""

    def build(toy: Toy, *, pretrained: bool = True, max_length: int = 32, seed: int = 0) -> Encoder:
        configs: dict[str, Any] = {
            "token-classification": TokenClassificationConfig,
            "sequence-classification": SequenceClassificationConfig,
        }
        weights = find_weights(configs[toy.kind](kind=toy.kind, model=str(tiny_encoder)))
        torch.manual_seed(seed)
        return new_encoder(toy.kind, weights, pretrained=pretrained, problem=toy.problem, max_length=max_length)

    return build


def rows_of(encoder: Encoder, toy: Toy, soft: bool = False) -> TrainingRows:
    targets: list[Any] = [
        np.array(toy.problem.targets(text, label)) for text, label in zip(toy.texts, toy.labels, strict=True)
    ]
    if soft:
        targets = [np.eye(len(toy.problem.classes), dtype=np.float32)[target] for target in targets]
    return TrainingRows(list(encode_all(encoder, toy.problem, toy.texts)), targets)


def trained(encoder: Encoder, toy: Toy, training: TrainingConfig = TRAINING, **options: Any) -> History:
    soft = options.pop("soft", False)
    return train(encoder, rows_of(encoder, toy, soft), training, seed=0, device=CPU, **options)


def accuracy(encoder: Encoder, toy: Toy) -> float:
    predicted = predict(encoder, toy.problem, toy.texts, device=CPU, total=len(toy.texts))
    return float(np.mean([p.label == label for p, label in zip(predicted, toy.labels, strict=True)]))


def digest_of(encoder: Encoder, folder: Path) -> str:
    encoder.model.save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def without_dropout(encoder: Encoder) -> Encoder:
    """Which draws other numbers for other batches."""
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return encoder


def mean_difference(one: Encoder, other: Encoder) -> float:
    """AdamW magnifies rounding where a gradient is near 0, so single weights may differ by a step."""
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return float(torch.cat([(a - b).detach().abs().flatten() for a, b in pairs]).mean())


def largest_difference(one: Encoder, other: Encoder) -> float:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_training_twice_gives_the_same_bytes(fresh: Fresh, tagging: Toy, tmp_path: Path) -> None:
    digests = []
    for name in ("once", "again"):
        encoder = fresh(tagging)
        trained(encoder, tagging)
        digests.append(digest_of(encoder, tmp_path / name))
    assert digests[0] == digests[1]


def test_micro_batches_give_nearly_the_same_weights(fresh: Fresh, tagging: Toy) -> None:
    whole, halves, start = without_dropout(fresh(tagging)), without_dropout(fresh(tagging)), fresh(tagging)
    one, two = trained(whole, tagging), trained(halves, tagging, micro_batches=2)
    assert one.losses == pytest.approx(two.losses, rel=1e-3)
    assert mean_difference(whole, halves) < mean_difference(whole, start) / 100


def test_more_micro_batches_than_rows_still_train(fresh: Fresh, moods: Toy) -> None:
    encoder = fresh(moods)
    tiny_batches = TRAINING.model_copy(update={"batch_tokens": 8})
    assert trained(encoder, moods, tiny_batches, micro_batches=4).losses[-1] < 0.7


@pytest.mark.parametrize("name", ["tagging", "moods"])
def test_a_separable_task_is_learnt(fresh: Fresh, name: str, request: pytest.FixtureRequest) -> None:
    toy: Toy = request.getfixturevalue(name)
    encoder = fresh(toy)
    before = accuracy(encoder, toy)
    history = trained(encoder, toy, TRAINING.model_copy(update={"epochs": 12}))
    assert accuracy(encoder, toy) > 0.9 > before
    assert history.losses[-1] < history.losses[0] / 2
    assert history.tokens > 0
    assert 0 <= history.padding_share < 1


def test_random_weights_learn_too_and_differ_from_pretrained(fresh: Fresh, moods: Toy) -> None:
    encoder = fresh(moods, pretrained=False)
    assert largest_difference(encoder, fresh(moods)) > 0
    assert largest_difference(encoder, fresh(moods, pretrained=False)) == 0
    trained(encoder, moods, TRAINING.model_copy(update={"epochs": 40}))
    assert accuracy(encoder, moods) > 0.9


def test_one_hot_soft_targets_equal_hard_ones(fresh: Fresh, tagging: Toy) -> None:
    hard, soft, start = fresh(tagging), fresh(tagging), fresh(tagging)
    one, two = trained(hard, tagging), trained(soft, tagging, soft=True)
    assert one.losses == pytest.approx(two.losses, rel=1e-3)
    assert mean_difference(hard, soft) < mean_difference(hard, start) / 100


def test_the_soft_objective_is_the_expected_hard_one() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    probabilities = torch.tensor([[0.5, 0.25, 0.25]]).repeat(5, 1)
    each = torch.stack([cross_entropy(logits, torch.full((5,), c)) for c in range(3)], dim=-1)
    torch.testing.assert_close(cross_entropy(logits, probabilities), (each * probabilities).sum(-1))


def test_frozen_embeddings_stay_bitwise(fresh: Fresh, tagging: Toy) -> None:
    encoder = fresh(tagging)
    embeddings = encoder.model.get_input_embeddings().weight
    before, head = embeddings.detach().clone(), encoder.model.classifier.weight.detach().clone()  # type: ignore[union-attr]
    trained(encoder, tagging, TRAINING.model_copy(update={"freeze_embeddings": True, "weight_decay": 0.1}))
    assert torch.equal(embeddings, before)
    assert not torch.equal(encoder.model.classifier.weight, head)  # type: ignore[union-attr]


def test_a_fraction_of_an_epoch_is_a_fraction_of_its_steps(fresh: Fresh, tagging: Toy) -> None:
    whole = trained(fresh(tagging), tagging, TRAINING.model_copy(update={"epochs": 1}))
    half = trained(fresh(tagging), tagging, TRAINING.model_copy(update={"epochs": 0.5}))
    more = trained(fresh(tagging), tagging, TRAINING.model_copy(update={"epochs": 1.5}))
    assert half.steps[-1] == -(-whole.steps[-1] // 2)
    assert more.steps[-1] == whole.steps[-1] + half.steps[-1]


def test_the_learning_rate_rises_then_falls(fresh: Fresh, tagging: Toy) -> None:
    history = trained(fresh(tagging), tagging, TRAINING.model_copy(update={"epochs": 10, "warmup_share": 0.25}))
    peak = int(np.argmax(history.learning_rates))
    assert history.learning_rates[: peak + 1] == sorted(history.learning_rates[: peak + 1])
    assert history.learning_rates[peak:] == sorted(history.learning_rates[peak:], reverse=True)
    assert 0.2 <= peak / len(history.steps) <= 0.3
    assert history.learning_rates[-1] < TRAINING.learning_rate / 10


def test_predictions_keep_the_order_and_sum_to_one(fresh: Fresh, tagging: Toy) -> None:
    encoder = fresh(tagging)
    trained(encoder, tagging)
    together = list(predict(encoder, SLOTS, tagging.texts, device=CPU, total=80, batch_tokens=64))
    for text, prediction in zip(tagging.texts, together, strict=True):
        assert prediction.probabilities.shape == (1 + len(text.split()), len(SLOTS.classes))
        np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, rtol=1e-5)
        assert 0 < prediction.confidence <= 1
    (alone,) = predict(encoder, SLOTS, tagging.texts[7:8], device=CPU, total=1)
    np.testing.assert_allclose(alone.probabilities, together[7].probabilities, atol=1e-5)


def test_nothing_to_predict_is_nothing(fresh: Fresh, tagging: Toy) -> None:
    assert list(predict(fresh(tagging), SLOTS, [], device=CPU, total=0)) == []


def test_a_saved_student_predicts_the_same(fresh: Fresh, tagging: Toy, tmp_path: Path) -> None:
    encoder = fresh(tagging)
    trained(encoder, tagging)
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path, "token-classification", 32)
    for one, two in zip(
        predict(encoder, SLOTS, tagging.texts, device=CPU, total=80),
        predict(loaded, SLOTS, tagging.texts, device=CPU, total=80),
        strict=True,
    ):
        np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_positions_are_those_of_each_words_first_token(fresh: Fresh, tagging: Toy) -> None:
    (row,) = fresh(tagging).encode(SLOTS, ["play abba by cd"])
    # [CLS] play a ##b ##b ##a by c ##d [SEP]
    assert row.positions.tolist() == [0, 1, 2, 6, 7]
    assert len(row.token_ids) == 10


def test_words_beyond_the_length_are_cut_and_get_the_uniform_distribution(fresh: Fresh, tagging: Toy) -> None:
    encoder, text = fresh(tagging, max_length=8), "play abba by great film"
    (row,) = encoder.encode(SLOTS, [text])
    assert row.positions.tolist() == [0, 1, 2, 6, -1, -1]
    assert len(row.token_ids) == 8
    toy = Toy(SLOTS, tagging.kind, [text] * 3, [encode("PLAY", ["O", "B-ARTIST", "O", "B-ARTIST", "I-ARTIST"])] * 3)
    trained(encoder, toy)
    (prediction,) = predict(encoder, SLOTS, [text], device=CPU, total=1)
    np.testing.assert_allclose(prediction.probabilities[4:], 1 / len(SLOTS.classes))
    np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, rtol=1e-5)


def test_a_model_reads_no_more_than_its_positions(fresh: Fresh, tagging: Toy) -> None:
    encoder = fresh(tagging, max_length=4096)
    assert encoder.max_length == 64
    (prediction,) = predict(encoder, SLOTS, [" ".join(["play"] * 200)], device=CPU, total=1)
    assert prediction.probabilities.shape[0] == 201


def test_a_class_for_the_whole_text_is_one_unit(fresh: Fresh, moods: Toy) -> None:
    encoder = fresh(moods)
    assert [row.positions.tolist() for row in encoder.encode(MOODS, ["the film was great", "good"])] == [[0], [0]]
    (prediction,) = predict(encoder, MOODS, ["the film was great"], device=CPU, total=1)
    assert prediction.probabilities.shape == (1, 2)


@pytest.fixture(scope="module")
def sets() -> Toy:
    """Each of the first three words of the text says whether its class is there."""
    words = {"good": "great", "bad": "awful", "slow": "dull"}
    masks = [[name for bit, name in enumerate(words) if mask >> bit & 1] for mask in range(8)]
    rows = [
        (" ".join([*(words[name] for name in names), "film", letter]), names) for names in masks for letter in "abc"
    ]
    problem = MultiLabel(list(words), ",")
    texts = [text for text, _ in rows]
    return Toy(problem, "sequence-classification", texts, [json.dumps(names) for _, names in rows])


@pytest.mark.parametrize("soft", [False, True])
def test_a_head_of_sigmoids_learns_sets(fresh: Fresh, sets: Toy, soft: bool, tmp_path: Path) -> None:
    encoder = fresh(sets)
    trained(encoder, sets, TRAINING.model_copy(update={"epochs": 40}), soft=soft)
    assert accuracy(encoder, sets) > 0.9
    assert encoder.model.config.problem_type == "multi_label_classification"
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    # The same classes in another order, and one that the student has never seen.
    other = MultiLabel(["slow", "new", "good", "bad"], ",")
    loaded = load_encoder(tmp_path, sets.kind, 32, other)
    before = predict(encoder, sets.problem, sets.texts, device=CPU, total=len(sets.texts))
    after = predict(loaded, other, sets.texts, device=CPU, total=len(sets.texts))
    for one, two in zip(before, after, strict=True):
        assert one.probabilities.shape == (3, 2)
        np.testing.assert_allclose(one.probabilities.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(two.probabilities[[2, 3, 0]], one.probabilities, atol=1e-6)
        np.testing.assert_allclose(two.probabilities[1], [1, 0])


def test_the_loss_of_sigmoids_is_binary_cross_entropy(fresh: Fresh, sets: Toy) -> None:
    encoder = fresh(sets)
    encoder.model.eval()
    data, rows = UnitTrainingData(encoder, rows_of(encoder, sets)), np.arange(len(sets.texts))
    targets = torch.tensor(
        [sets.problem.targets(text, label) for text, label in zip(sets.texts, sets.labels, strict=True)]
    )
    inputs = data.inputs(rows, 1)
    logits = encoder.model(input_ids=inputs["ids"], attention_mask=inputs["mask"]).logits
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum")
    assert float(data.loss(rows).detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert data.units(rows) == 3 * len(rows)


@pytest.mark.parametrize(
    ("epochs", "least", "wanted"),
    [(2, 0, [1.0, 1.0]), (0.5, 0, [0.5]), (1.5, 0, [1.0, 0.5]), (0.5, 8, [0.5, 1.0, 1.0])],
)
def test_batches_are_those_of_one_generator_that_goes_on(
    fresh: Fresh, tagging: Toy, epochs: float, least: int, wanted: list[float]
) -> None:
    encoder = fresh(tagging)
    data, generator = UnitTrainingData(encoder, rows_of(encoder, tagging)), np.random.default_rng(7)
    whole = [data.batches(256, generator) for _ in wanted]
    expected = [one for part, share in zip(whole, wanted, strict=True) for one in part[: math.ceil(len(part) * share)]]
    expected = expected[: least or None]
    schedule = Schedule(data, TRAINING.model_copy(update={"epochs": epochs, "min_updates": least}), 7)
    assert len(schedule) == len(expected)
    for step in (0, 1, len(expected) - 1):
        found = list(schedule.after(step))
        assert [one.tolist() for one in found] == [one.tolist() for one in expected[step:]]
