"""Generative students: what they learn, what they refuse, and that saving and loading keeps them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generative_students import Build, builder
from retort.config import CausalConfig, LoraConfig, Seq2SeqConfig, TrainingConfig
from retort.errors import ConfigError
from retort.models.device import Device
from retort.models.weights import find_weights
from retort.problems.slots import Slots, encode
from retort.records.base import ParseFailure
from retort.students import generative
from retort.students.base import Prediction, TrainingRow
from retort.students.generative import GenerativeStudent, new_generative_student
from retort.students.loading import load_student
from separable_slots import SLOTS, separable_rows

CPU = Device("cpu", "fp32", 1)
TRAINING = TrainingConfig(epochs=12, learning_rate=1e-2, batch_tokens=256, precision="fp32")
KINDS = ("t5", "pair", "causal", "t5-text", "causal-text")


@pytest.fixture(scope="module")
def rows() -> list[TrainingRow]:
    return separable_rows(60, 7)


@pytest.fixture(scope="module")
def build(tiny_encoder: Path, tiny_t5: Path, tiny_causal: Path) -> Build:
    return builder({"t5": tiny_t5, "pair": tiny_encoder, "causal": tiny_causal}, SLOTS, TRAINING)


def said(student: GenerativeStudent, texts: list[str], **options: Any) -> list[Any]:
    return list(student.predict(texts, device=CPU, total=len(texts), **options))


def learn(student: GenerativeStudent, rows: list[TrainingRow], epochs: float = 12, **options: Any) -> Any:
    training = TRAINING.model_copy(update={"epochs": epochs})
    return student.train(rows, training, seed=0, device=CPU, **options)


def said_in_short(student: Any, texts: list[str]) -> list[str]:
    return [getattr(outcome, "label", None) or outcome.raw for outcome in said(student, texts)]


def right(student: GenerativeStudent, rows: list[TrainingRow]) -> float:
    outcomes = said(student, [row.text for row in rows])
    return float(np.mean([getattr(o, "label", None) == row.label for o, row in zip(outcomes, rows, strict=True)]))


EPOCHS = {"t5": 25, "pair": 40, "causal": 20, "t5-text": 25, "causal-text": 20}
LEARNED = {"t5": 0.15, "pair": 0.3, "causal": 0.7, "t5-text": 0.1, "causal-text": 0.9}
"""Share of right labels. Decoders learn slowly where to look for the word that they are at."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_separable_task_is_learned_and_kept(build: Build, rows: list[TrainingRow], kind: str, tmp_path: Path) -> None:
    student = build(kind)
    assert right(student, rows) < LEARNED[kind]
    history = learn(student, rows, epochs=EPOCHS[kind]).history
    assert history.losses[-1] < history.losses[0] / 4
    assert right(student, rows) > LEARNED[kind]
    student.save(tmp_path)
    again = load_student(tmp_path, student.notes.kind, TRAINING.max_length, SLOTS)
    texts = [row.text for row in rows]
    assert said_in_short(again, texts) == said_in_short(student, texts)


@pytest.mark.parametrize("kind", ["t5", "pair", "causal"])
def test_none_but_legal_classes_are_written(build: Build, kind: str) -> None:
    """Not even by an untrained student."""
    for text, outcome in zip(texts := ["play film", "by", "a " * 20], said(build(kind), texts), strict=True):
        assert isinstance(outcome, Prediction)
        assert outcome.probabilities.shape == (1 + len(text.split()), len(SLOTS.classes))
        np.testing.assert_allclose(outcome.probabilities.sum(-1), 1, atol=1e-5)
        label, confidence = SLOTS.decide(text, outcome.probabilities.astype(np.float64))
        assert (outcome.label, outcome.confidence) == (label, pytest.approx(confidence))


def test_what_is_no_label_is_a_failure_with_its_text(build: Build) -> None:
    (outcome,) = said(build("causal-text", max_target_length=5), ["play film"])
    assert isinstance(outcome, ParseFailure)
    assert outcome.reason == "too-long"
    assert outcome.raw


def test_the_confidence_is_the_length_normalized_probability(build: Build, rows: list[TrainingRow]) -> None:
    student = build("causal-text")
    learn(student, rows, epochs=8)
    text = rows[0].text
    (outcome,) = said(student, [text])
    assert isinstance(outcome, Prediction)
    target, prompt = student.target.write([text], [outcome.label])[0], student.requests([text])[0].token_ids
    with torch.inference_mode():
        logits = student.model(torch.tensor([[*prompt, *target]])).logits[0]
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(target)[:, None])
    assert outcome.confidence == pytest.approx(float(logprobs.mean().exp()), rel=1e-4)


def test_long_targets_are_an_error_with_their_share_or_cut(build: Build, rows: list[TrainingRow]) -> None:
    with pytest.raises(ConfigError, match=r"max_target_length: \d+ of 60 labels \(\d+\.\d %\) have more than 4 tokens"):
        learn(build("t5", max_target_length=4), rows, epochs=1)
    student = build("t5", max_target_length=4, long_targets="cut")
    counts = learn(student, rows, epochs=1).counts
    assert counts["long_targets"] == sum(1 + len(row.text.split()) > 4 for row in rows)
    (outcome,) = said(student, ["play film film film film"])
    np.testing.assert_allclose(outcome.probabilities[4:], 1 / len(SLOTS.classes))


def test_sources_that_are_cut_are_counted(build: Build, rows: list[TrainingRow]) -> None:
    training = TRAINING.model_copy(update={"max_length": 8})
    for kind in ("t5", "causal"):
        counts = learn(
            build(kind, training=dict(training)), [TrainingRow("play " * 30, encode("PLAY", ["O"] * 30)), rows[1]], 1
        )
        assert counts.counts["cut"] == 1


def test_a_tokenizer_that_loses_the_labels_is_refused(build: Build, rows: list[TrainingRow]) -> None:
    with pytest.raises(ConfigError, match=r"student\.target = 'text': the tokenizer of student\.model cannot write"):
        learn(build("pair-text"), rows, epochs=1)


@pytest.mark.parametrize(
    ("kind", "model", "sentence"),
    [
        ("seq2seq", "causal", "is a decoder only, not an encoder and a decoder; use kind: causal"),
        ("seq2seq", "encoder", "is an encoder only, .* use kind: token-classification, or seq2seq with decoder_layers"),
        ("causal", "t5", "is an encoder and a decoder, not a decoder only; use kind: seq2seq"),
        ("causal", "encoder", "is an encoder only, not a decoder only"),
    ],
)
def test_another_architecture_is_an_error_that_names_the_kind(
    kind: str, model: str, sentence: str, request: pytest.FixtureRequest
) -> None:
    folder = str(request.getfixturevalue(f"tiny_{model}"))
    config = (
        Seq2SeqConfig(kind="seq2seq", model=folder) if kind == "seq2seq" else CausalConfig(kind="causal", model=folder)
    )
    with pytest.raises(ConfigError, match=sentence):
        new_generative_student(config, find_weights(config), pretrained=True, problem=SLOTS)


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(tiny_t5: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_t5, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": 100}))
    config = Seq2SeqConfig(kind="seq2seq", model=str(folder), weights="random")
    with pytest.raises(ConfigError, match=r"its tokenizer has \d+ tokens and the model only 100"):
        new_generative_student(config, find_weights(config), pretrained=False, problem=SLOTS)


def test_soft_labels_that_are_one_hot_teach_what_hard_ones_do(build: Build, rows: list[TrainingRow]) -> None:
    classes = np.eye(len(SLOTS.classes), dtype=np.float32)
    soft = [TrainingRow(r.text, r.label, classes[SLOTS.targets(r.text, r.label)]) for r in rows]
    for kind in ("t5", "causal"):
        losses = [learn(build(kind), labels, epochs=2).history.losses for labels in (rows, soft)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_adapters_learn_and_are_absorbed(build: Build, rows: list[TrainingRow], tmp_path: Path) -> None:
    student = build("causal-text", target=None, lora=LoraConfig(rank=8))
    before = {name: tensor.clone() for name, tensor in student.model.state_dict().items()}
    assert student.notes.target == "text"
    history = learn(student, rows, epochs=6).history
    assert history.losses[-1] < history.losses[0]
    after = student.model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    texts = [row.text for row in rows[:10]]
    student.save(tmp_path)
    again = load_student(tmp_path, "causal", TRAINING.max_length, SLOTS)
    assert said_in_short(again, texts) == said_in_short(student, texts)


def test_classes_of_another_order_are_found_by_name(build: Build, rows: list[TrainingRow], tmp_path: Path) -> None:
    student = build("causal")
    learn(student, rows, epochs=6)
    student.save(tmp_path)
    more = Slots({"PLAY": ["ARTIST", "ALBUM"], "ASK": ["CITY"]})
    texts = [row.text for row in rows]
    one, other = (
        said(student, texts),
        list(load_student(tmp_path, "causal", 128, more).predict(texts, device=CPU, total=60)),
    )
    assert [outcome.label for outcome in one] == [outcome.label for outcome in other]
    assert {name for name in more.classes if "ALBUM" in name}
    assert all(o.probabilities[:, [i for i, c in enumerate(more.classes) if "ALBUM" in c]].max() == 0 for o in other)


def test_a_champion_of_the_same_kind_is_a_start(build: Build, rows: list[TrainingRow], tmp_path: Path) -> None:
    student = build("t5")
    learn(student, rows, epochs=5)
    student.save(tmp_path)
    fresh = build("t5")
    assert fresh.continue_from(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), student.model.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"student\.warm_start: the champion has another"):
        build("t5", problem=Slots({"PLAY": ["ARTIST"]})).continue_from(tmp_path)


@pytest.mark.parametrize("kind", ["t5-text", "causal-text"])
def test_rationales_are_learned_beside_labels_and_only_labels_are_answered(
    build: Build, rows: list[TrainingRow], kind: str
) -> None:
    reasoned = [replace(row, rationale=f"play by {row.text}" if at % 3 else None) for at, row in enumerate(rows)]
    student = build(kind)
    pairs, _ = student._pairs(reasoned, distills=False)
    extra, counts = student._rationale_pairs(reasoned, pairs, 0.2)
    assert counts == {"rationales": 40, "long_rationales": 0}
    assert len(extra) == 40
    labels, rationales = (sum(one.weight * len(one.target) for one in some) for some in (pairs, extra))
    assert rationales / (labels + rationales) == pytest.approx(0.2), "however long they are"
    first = next(row for row in reasoned if row.rationale is not None)
    assert student.tokenizer.decode(extra[0].target[:-1]) == first.rationale
    assert student.tokenizer.decode(extra[0].source, skip_special_tokens=True).strip() == f"Why? {first.text}"
    training = TRAINING.model_copy(update={"epochs": 20, "rationale_weight": 0.2})
    result = student.train(reasoned, training, seed=0, device=CPU)
    assert result.counts["rationales"] == 40
    assert right(student, rows) > 0.5


def test_without_rationales_a_weight_changes_nothing(build: Build, rows: list[TrainingRow]) -> None:
    students = build("causal-text"), build("causal-text")
    learn(students[0], rows, epochs=1)
    training = TRAINING.model_copy(update={"epochs": 1, "rationale_weight": 0.5})
    students[1].train(rows, training, seed=0, device=CPU)
    for one, other in zip(*(student.model.parameters() for student in students), strict=True):
        assert torch.equal(one, other)


def test_a_long_rationale_is_cut_and_counted(build: Build, rows: list[TrainingRow]) -> None:
    student = build("causal-text", max_target_length=60)
    pairs, _ = student._pairs(rows[:2], distills=False)
    extra, counts = student._rationale_pairs([replace(rows[0], rationale="play " * 100)], pairs, 0.5)
    assert counts == {"rationales": 1, "long_rationales": 1}
    assert len(extra[0].target) == 60


def test_texts_are_read_and_answered_a_window_at_a_time(
    build: Build, rows: list[TrainingRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generative, "WINDOW_ROWS", 8)
    student, read = build("causal"), list[str]()
    texts = (read.append(row.text) or row.text for row in rows)
    outcomes = student.predict(texts, device=CPU, total=len(rows))
    first = next(outcomes)
    assert len(read) == 8
    labels = [one.label for one in (first, *outcomes)]
    assert labels == [one.label for row in rows for one in said(student, [row.text])]
