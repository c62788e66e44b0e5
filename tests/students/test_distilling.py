"""What a student learns from a teacher's lists: the loss is that of plain forward passes, token by token, and the
target's tokens are the teacher's own."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from retort.config import CausalConfig, DistillationConfig, StudentTrainingConfig, TextConfig
from retort.models.device import Device
from retort.models.weights import find_weights
from retort.problems import problem_for
from retort.students import generative, ragged
from retort.students.base import TopTokens, TrainingRow
from retort.students.generative import new_generative_student
from retort.students.generative_data import CausalTrainingData, Pair, Seq2SeqTrainingData, TrainingPairs
from retort.students.targets import TextTarget
from retort.students.token_distillation import Listed, distillation_target, renamed

TEXT = problem_for(TextConfig(kind="text"))
END = 1
VOCAB = 420
CPU = Device("cpu", "fp32", 1)
OBJECTIVES = ["forward_kl", "reverse_kl", "jensen_shannon"]


@pytest.fixture(scope="module")
def target(written_words: Path) -> TextTarget:
    return TextTarget(TEXT, AutoTokenizer.from_pretrained(written_words), END, max_tokens=40)


# ---- the loss


def pairs_of_a_teacher(vocab: int = VOCAB) -> tuple[list[Pair], list[torch.Tensor]]:
    """Targets with the whole distribution of a made-up teacher; the second is without, the third's last token too."""
    generator = np.random.default_rng(0)
    pairs, teachers = [], []
    for number, (s, t) in enumerate([(5, 4), (3, 7), (8, 6), (2, 1)]):
        source, target = generator.integers(2, vocab, size=s), generator.integers(2, vocab, size=t)
        logprobs = torch.from_numpy(generator.normal(0, 2, size=(t, vocab)).astype(np.float32)).log_softmax(-1)
        known = [t, 0, t - 1, t][number]
        ids = np.tile(np.arange(vocab, dtype=np.int32), (known, 1))
        listed = Listed(ids, logprobs[:known].numpy()) if known else None
        pairs.append(Pair(source, target, listed=listed))
        teachers.append(logprobs[:known])
    return pairs, teachers


def by_hand(logits: torch.Tensor, target: Any, teacher: torch.Tensor, distillation: DistillationConfig) -> torch.Tensor:
    """The loss of one row, by torch.distributions, mixing probabilities; `logits` is `(target tokens, vocab)`."""
    hard = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target), reduction="none")
    known, temperature = len(teacher), distillation.distillation_temperature
    if not known:
        return hard.sum()
    p, s = Categorical(logits=teacher / temperature), Categorical(logits=logits[:known] / temperature)
    match distillation.objective:
        case "forward_kl":
            soft = kl_divergence(p, s)
        case "reverse_kl":
            soft = kl_divergence(s, p)
        case "jensen_shannon":
            mixed = Categorical(probs=distillation.beta * p.probs + (1 - distillation.beta) * s.probs)
            soft = distillation.beta * kl_divergence(p, mixed) + (1 - distillation.beta) * kl_divergence(s, mixed)
    weight = distillation.weight
    distilled = (1 - weight) * hard[:known] + weight * temperature**2 * soft
    return distilled.sum() + hard[known:].sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("packs", [True, False])
def test_a_decoders_loss_is_that_of_plain_forward_passes(tiny_causal: Path, objective: Any, packs: bool) -> None:
    distillation = DistillationConfig(objective=objective, weight=0.7, distillation_temperature=1.5, beta=0.3)
    model = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    pairs, teachers = pairs_of_a_teacher()
    data = CausalTrainingData(
        model, TrainingPairs(pairs), pad=0, columns=slice(None), packs=packs, distillation=distillation
    )
    expected = []
    for pair, teacher in zip(pairs, teachers, strict=True):
        ids = torch.from_numpy(np.concatenate([pair.source, pair.target]))[None]
        logits = model(input_ids=ids).logits[0, len(pair.source) - 1 : -1]
        expected.append(by_hand(logits, pair.target, teacher, distillation))
    torch.testing.assert_close(data.loss(np.arange(4)), torch.stack(expected).sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_encoder_decoders_loss_and_gradient_are_those_of_plain_forward_passes(tiny_t5: Path, objective: Any) -> None:
    distillation = DistillationConfig(objective=objective, weight=1.0)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    pairs, teachers = pairs_of_a_teacher()
    data = Seq2SeqTrainingData(
        model, TrainingPairs(pairs), pad=0, start=0, columns=slice(None), distillation=distillation
    )
    expected = []
    for pair, teacher in zip(pairs, teachers, strict=True):
        given = torch.from_numpy(np.concatenate([[0], pair.target[:-1]]))[None]
        logits = model(input_ids=torch.from_numpy(pair.source)[None], decoder_input_ids=given).logits[0]
        expected.append(by_hand(logits, pair.target, teacher, distillation))
    losses = data.loss(np.arange(4)), torch.stack(expected).sum()
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-3)
    ours, theirs = (torch.autograd.grad(loss, model.shared.weight)[0] for loss in losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_lists_of_different_lengths_go_together(tiny_causal: Path) -> None:
    """One row with 3 likeliest tokens and one with 5: each as if it were alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    generator = np.random.default_rng(1)
    pairs = []
    for k in (3, 5):
        logprobs, ids = torch.from_numpy(generator.normal(size=(4, VOCAB))).log_softmax(-1).topk(k)
        listed = Listed(ids.numpy().astype(np.int32), logprobs.numpy().astype(np.float32))
        pairs.append(Pair(generator.integers(2, VOCAB, 3), generator.integers(2, VOCAB, 4), listed=listed))

    def loss(chosen: list[Pair]) -> torch.Tensor:
        distillation = DistillationConfig(weight=1.0)
        data = CausalTrainingData(
            model, TrainingPairs(chosen), pad=0, columns=slice(None), packs=False, distillation=distillation
        )
        return data.loss(np.arange(len(chosen)))

    torch.testing.assert_close(loss(pairs), loss(pairs[:1]) + loss(pairs[1:]), rtol=1e-5, atol=1e-4)


# ---- the target


def top(ids: list[int]) -> TopTokens:
    """Two likeliest tokens at each: the one that was written, and token 5."""
    alternatives = np.array([[token, 5] for token in ids], dtype=np.int32)
    return TopTokens(np.array(ids, dtype=np.int32), alternatives, np.tile(np.float32([-0.1, -3.0]), (len(ids), 1)))


def written(target: TextTarget, text: str) -> list[int]:
    ids: list[int] = target.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_the_tokens_are_the_teachers_not_the_tokenizers(target: TextTarget) -> None:
    whole = written(target, "play time")
    parted = [token for letter in "play time" for token in written(target, letter)]
    assert len(parted) == 9 > len(whole)
    found = distillation_target(target, "x", "play time", top([*parted, END]), VOCAB)
    assert found is not None
    ids, listed = found
    assert ids == [*parted, END]
    assert listed.ids[:, 0].tolist() == ids


def test_a_line_break_that_ends_becomes_the_students_end(target: TextTarget) -> None:
    (line_break,) = written(target, "\n")
    label = written(target, "play time")
    found = distillation_target(target, "x", "play time", top([*label, line_break]), VOCAB)
    assert found is not None
    ids, listed = found
    assert ids == [*label, END]
    assert listed.ids[:, 0].tolist() == ids
    assert line_break not in listed.ids


def test_a_completion_that_nothing_ended_gets_an_end_to_learn_by_itself(target: TextTarget) -> None:
    label = written(target, "play time")
    found = distillation_target(target, "x", "play time", top(label), VOCAB)
    assert found is not None
    ids, listed = found
    assert ids == [*label, END]
    assert len(listed.ids) == len(label)


def test_a_completion_that_is_not_the_label_is_not_learnt_from(target: TextTarget) -> None:
    label = written(target, "play time")
    assert distillation_target(target, "x", "play rome", top([*label, END]), VOCAB) is None
    assert distillation_target(target, "x", "play time", top([]), VOCAB) is None
    assert distillation_target(target, "x", "play time", top([*label, END]), max(label)) is None


def test_what_two_tokens_had_is_together_the_new_ones() -> None:
    logs = np.log(np.float32([[0.5, 0.3, 0.1], [0.6, 0.2, 0.1], [0.7, 0.1, 0.1]]))
    listed = renamed(Listed(np.array([[9, 1, 7], [9, 6, 7], [1, 6, 7]], dtype=np.int32), logs), 9, 1)
    given = [dict(zip(i, p, strict=True)) for i, p in zip(listed.ids.tolist(), np.exp(listed.logprobs), strict=True)]
    assert [at[1] for at in given] == pytest.approx([0.8, 0.6, 0.7])
    assert np.exp(listed.logprobs).sum(-1) == pytest.approx([0.9, 0.9, 0.9])
    assert [at.get(9, 0.0) for at in given] == [0.0, 0.0, 0.0]


# ---- a student


def test_a_student_becomes_its_teacher(tiny_causal: Path) -> None:
    """From another start, on the teacher's lists alone: at every token of every text the two come together, as the
    labels alone would not bring them."""
    teacher = AutoModelForCausalLM.from_pretrained(tiny_causal).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal)
    rows = []
    for number in range(24):
        text = f"play {chr(97 + number)} time"
        prompt = tokenizer(text + "\n", return_tensors="pt")["input_ids"]
        whole = teacher.generate(prompt, max_new_tokens=6, do_sample=False)
        ids = whole[0, prompt.shape[1] :]
        with torch.inference_mode():
            logprobs, likeliest = teacher(whole).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1).topk(VOCAB)
        label = TEXT.parse(text, tokenizer.decode(ids, skip_special_tokens=True))
        one = TopTokens(ids.numpy().astype(np.int32), likeliest.numpy().astype(np.int32), logprobs.numpy())
        rows.append(TrainingRow(text, str(label), top=one))

    def distance(**fields: Any) -> tuple[float, dict[str, int]]:
        training = StudentTrainingConfig(
            epochs=30,
            min_updates=0,
            learning_rate=1e-2,
            batch_tokens=256,
            freeze_embeddings=False,
            precision="fp32",
            **fields,
        )
        config = CausalConfig(kind="causal", model=str(tiny_causal), target="text", weights="random", training=training)
        torch.manual_seed(1)
        student = new_generative_student(config, find_weights(config), pretrained=False, problem=TEXT)
        counts = student.train(rows, training, seed=0, device=CPU).counts
        divergences = []
        for row in rows:
            assert row.top is not None
            ids = torch.from_numpy(row.top.token_ids.astype(np.int64))
            prompt = torch.from_numpy(student.requests([row.text])[0].token_ids)
            with torch.inference_mode():
                logits = [m(torch.cat([prompt, ids])[None]).logits[0] for m in (teacher, student.model.eval())]
            p, s = (Categorical(logits=one[len(prompt) - 1 : -1]) for one in logits)
            divergences.append(float(kl_divergence(p, s).mean()))
        return float(np.mean(divergences)), counts

    plain, counts = distance()
    assert "distilled" not in counts
    distilled, counts = distance(distillation=DistillationConfig(weight=1.0))
    assert counts["distilled"] == 24
    assert distilled < plain / 4


class Taught:
    """Rows with all that there can be to learn from, which are made each time one goes through them."""

    def __init__(self, target: TextTarget, count: int) -> None:
        self._ids, self._count = np.array([*written(target, "play time"), END], dtype=np.int32), count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TrainingRow]:
        for number in range(self._count):
            lists = np.full((2, len(self._ids), 20), number % VOCAB)
            top = TopTokens(self._ids, lists[0].astype(np.int32), lists[1].astype(np.float32))
            yield TrainingRow(f"{number} {'a time ' * 8}", "play time", top=top, rationale=f"{number} is a time " * 2)


def test_the_rows_of_a_training_are_not_in_memory(
    target: TextTarget, tiny_causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 2**12)
    monkeypatch.setattr(generative, "_CHUNK_ROWS", 16)
    distillation = DistillationConfig(weight=0.5)
    training = StudentTrainingConfig(epochs=1e-9, min_updates=0, distillation=distillation, rationale_weight=0.1)
    config = CausalConfig(kind="causal", model=str(tiny_causal), target="text", training=training)

    def peak(count: int) -> int:
        student = new_generative_student(config, find_weights(config), pretrained=True, problem=TEXT)
        tracemalloc.start()
        result = student.train(Taught(target, count), training, seed=0, device=CPU)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (result.counts["distilled"], result.counts["rationales"]) == (count, count)
        return most

    peak(50)  # what is made once
    assert peak(1500) - peak(500) < 1000 * 2 * 200, "two pairs of a row, each some 100 bytes with its place in an epoch"
