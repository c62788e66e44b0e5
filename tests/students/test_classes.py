"""Generative students of classification: each class a token of its own, or its name in the tokenizer's tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from generative_students import Build, builder
from retort.config import LoraConfig, TrainingConfig
from retort.errors import ConfigError
from retort.models.device import Device
from retort.problems.classification import Classification
from retort.recipes import parse_config
from retort.records.base import ParseFailure
from retort.students.base import Prediction, TrainingRow
from retort.students.generative import GenerativeStudent
from retort.students.loading import load_student

CPU = Device("cpu", "fp32", 1)
WORDS = {"weather": "Up", "play": "Up and away", "now": "down.hill"}
"""The word that decides, and its class: of two names one begins like the other, and none is in the texts."""
MOVIES = Classification(list(WORDS.values()))
TRAINING = TrainingConfig(epochs=1, learning_rate=1e-2, batch_tokens=256, precision="fp32", freeze_embeddings=False)
EPOCHS = {"t5": 25, "pair": 40, "causal": 12, "t5-text": 30, "causal-text": 12}
LEARNED = {"t5": 0.9, "pair": 0.6, "causal": 0.9, "t5-text": 0.9, "causal-text": 0.9}
"""Share of right classes, where guessing gives a third. A new decoder soon tells one of the three words from the
others, and takes long to tell these two apart."""


@pytest.fixture(scope="module")
def build(tiny_encoder: Path, tiny_t5: Path, tiny_causal: Path) -> Build:
    return builder({"t5": tiny_t5, "pair": tiny_encoder, "causal": tiny_causal}, MOVIES, TRAINING)


def texts_with(word: str, count: int, seed: int) -> list[str]:
    fillers = ["by", "the", "in", "is", "what", "today"]
    generator = np.random.default_rng(seed)
    return [" ".join(generator.permutation([word, *generator.choice(fillers, size=2)])) for _ in range(count)]


def rows_of(seed: int, count: int = 20) -> list[TrainingRow]:
    return [TrainingRow(text, label) for word, label in WORDS.items() for text in texts_with(word, count, seed)]


def learn(student: GenerativeStudent, rows: list[TrainingRow], epochs: float) -> Any:
    return student.train(rows, TRAINING.model_copy(update={"epochs": epochs}), seed=0, device=CPU)


def outcomes_of(student: Any, texts: list[str]) -> list[Any]:
    return list(student.predict(texts, device=CPU, total=len(texts)))


def share_right(student: Any, rows: list[TrainingRow]) -> float:
    outcomes = outcomes_of(student, [row.text for row in rows])
    return float(np.mean([getattr(o, "label", None) == row.label for o, row in zip(outcomes, rows, strict=True)]))


@pytest.mark.parametrize("kind", EPOCHS)
def test_classes_are_learned_from_hard_labels_and_kept(build: Build, kind: str, tmp_path: Path) -> None:
    student, unseen = build(kind), rows_of(seed=1, count=10)
    assert share_right(student, unseen) < 0.6
    history = learn(student, rows_of(seed=0), EPOCHS[kind]).history
    assert history.losses[-1] < history.losses[0] / 2
    assert share_right(student, unseen) > LEARNED[kind]
    student.save(tmp_path)
    again = load_student(tmp_path, student.notes.kind, TRAINING.max_length, MOVIES)
    texts = [row.text for row in unseen]
    assert [o.label for o in outcomes_of(again, texts)] == [o.label for o in outcomes_of(student, texts)]


@pytest.mark.parametrize("kind", ["t5", "causal", "t5-text", "causal-text"])
def test_an_untrained_student_writes_none_but_names_of_classes(build: Build, kind: str) -> None:
    texts = ["weather", "", "Up and", "down.hill ] é " * 4]
    for outcome in outcomes_of(build(kind), texts):
        assert isinstance(outcome, Prediction)
        assert outcome.label in MOVIES.classes
        assert 0 < outcome.confidence <= 1
        if kind.endswith("text"):
            assert outcome.probabilities.size == 0
        else:
            assert outcome.probabilities.shape == (1, len(MOVIES.classes))
            assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-5)
            assert outcome.confidence == pytest.approx(float(outcome.probabilities.max()), abs=1e-6)


def test_it_is_the_grammar_that_holds_written_names(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "grammar", lambda self, text: None)
    assert any(isinstance(outcome, ParseFailure) for outcome in outcomes_of(build("t5-text"), ["weather", "play"]))


def test_a_class_is_one_token_and_a_name_is_many(build: Build) -> None:
    texts, labels = ["weather", "play", "now"], list(WORDS.values())
    classes, text = build("causal").target, build("causal-text").target
    first = build("causal").notes.first
    assert classes.write(texts, labels) == [[first], [first + 1], [first + 2]]
    written = text.write(texts, labels)
    assert min(map(len, written)) > 1
    assert len({tuple(ids) for ids in written}) == 3


SOFT = {"weather": (0.9, 0.1), "play": (0.65, 0.35), "now": (0.2, 0.8)}
GRADES = Classification(["high", "low"])


def graded(*, soft: bool) -> list[TrainingRow]:
    rows = []
    for word, (high, low) in SOFT.items():
        probabilities = np.array([[high, low]], dtype=np.float32) if soft else None
        label = "high" if high > low else "low"
        rows += [TrainingRow(text, label, probabilities) for text in texts_with(word, 20, seed=0)]
    return rows


def mean_high(student: GenerativeStudent) -> NDArray[np.float64]:
    """`(words,)`: the mean probability of the class `high` over unseen texts of each word."""
    found = []
    for word in SOFT:
        outcomes = outcomes_of(student, texts_with(word, 10, seed=1))
        found.append(np.mean([outcome.probabilities[0, 0] for outcome in outcomes]))
    return np.array(found)


@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_soft_labels_teach_their_probabilities_and_not_their_best_class(build: Build, kind: str) -> None:
    of_soft, of_hard = build(kind, GRADES), build(kind, GRADES)
    learn(of_soft, graded(soft=True), EPOCHS[kind] * 1.5)
    learn(of_hard, graded(soft=False), EPOCHS[kind] * 1.5)
    wanted = np.array([high for high, _ in SOFT.values()])
    np.testing.assert_allclose(mean_high(of_soft), wanted, atol=0.1)
    assert mean_high(of_hard)[1] > 0.9, "the best class alone says nothing of the doubt"


@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_a_row_without_probabilities_counts_as_certain_among_soft_ones(build: Build, kind: str) -> None:
    (first, second, *_), hard = graded(soft=True), graded(soft=False)
    one_hot = TrainingRow(second.text, second.label, np.array([[1, 0]], dtype=np.float32))
    losses = [learn(build(kind, GRADES), [first, row], 4).history.losses for row in (hard[1], one_hot)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(learn(build(kind, GRADES), [first, second], 4).history.losses, rel=1e-3)


def test_adapters_learn_the_names(build: Build) -> None:
    student = build("causal", lora=LoraConfig(rank=8, alpha=64))
    assert student.notes.target == "text"
    learn(student, rows_of(seed=0), EPOCHS["causal-text"])
    assert share_right(student, rows_of(seed=1, count=10)) > 0.9


BASE: dict[str, Any] = {
    "name": "toy",
    "problem": {"kind": "classification", "labels": ["a", "b"]},
    "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"},
    "teacher": {"kind": "recorded", "completions": "c.jsonl"},
}
ASKED = {"kind": "transformers", "model": "m", "labels": "soft", "prompt": {"instruction": "x", "item": "{text}"}}


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
@pytest.mark.parametrize(
    ("target", "fields"),
    [
        (None, {}),
        ("classes", {"method": {"cross_labels": "soft"}}),
        ("classes", {"teacher": ASKED}),
        ("classes", {"method": {"partitions": 3, "scheme": "disjoint"}}),
        ("text", {}),
        ("text", {"teacher": {**ASKED, "labels": "hard"}}),
        ("text", {"method": {"partitions": 3, "scheme": "leave-one-out"}}),
    ],
)
def test_a_config_may_have_such_a_student(kind: str, target: str | None, fields: dict[str, Any]) -> None:
    config = parse_config({**BASE, "student": {"kind": kind, "model": "m", "target": target}, **fields}, "test")
    assert config.student.form(has_classes=True) == (target or "classes")  # type: ignore[union-attr]


MIXED = {"kind": "ensemble", "members": [ASKED, {**ASKED, "labels": "hard"}]}
SENTENCE = (
    r"teacher\.labels 'soft': stage 1 trains on probabilities of classes, and this student writes text; use "
    r"student\.target: classes \(without lora\), or teacher\.labels: hard"
)


@pytest.mark.parametrize("student", [{"target": "text"}, {"lora": {}}, {"kind": "seq2seq", "target": "text"}])
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"teacher": ASKED}, SENTENCE),
        ({"teacher": {"kind": "ensemble", "members": [ASKED, {**ASKED, "model": "n"}]}}, SENTENCE),
        ({"method": {"cross_labels": "soft"}}, r"method\.cross_labels 'soft' needs probabilities of classes; use stud"),
        (
            {"method": {"partitions": 3, "scheme": "disjoint"}},
            r"method\.partitions 3: each row gets several labels, and a vote on them needs",
        ),
    ],
)
def test_probabilities_need_a_student_of_classes(
    student: dict[str, Any], fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config({**BASE, "student": {"kind": "causal", "model": "m", **student}, **fields}, "test")
    parse_config({**BASE, "student": {"kind": "causal", "model": "m", **student}, "teacher": MIXED}, "test")


def test_other_students_are_refused_with_all_that_fit() -> None:
    sentence = (
        "student.kind 'token-classification' cannot learn 'classification'; use sequence-classification or seq2seq or "
        "causal"
    )
    with pytest.raises(ConfigError, match=sentence):
        parse_config({**BASE, "student": {"kind": "token-classification", "model": "m"}}, "test")
