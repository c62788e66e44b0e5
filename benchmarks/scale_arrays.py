"""Benchmark: what still grows with the rows of a pool, at 10,000,000 rows.

    .venv/bin/python benchmarks/scale_arrays.py [--rows 10000000] [PART ...]

Everything else of a run streams (`benchmarks/scale.py` runs all of it). `ids`: the ids that ingest and recorded
completions look up, in batches of 1,024. `training`: the rows of a training, of 12 tokens each, the batches of an epoch
counted and made again, and each row read in their order. `causal`, `seq2seq` and `distilled`: all that the training of
such a student does beside its steps, of which there is one, on texts of 8 words; the first two write a token for one of
50 classes, the third 4 words, with a teacher's 20 likeliest tokens at each. `answers`: what the causal one writes to
the texts. `scoring`: accuracy and macro F1 of 50 classes with 500 bootstrap resamples; `sets`: macro F1 of sets of up
to 2 of 20 classes. `tiny`: the rows of tiny students, of two fields with 10 words, and an epoch's batches of five seeds
side by side, of which the first thousand are read. Each part runs in a process of its own and prints seconds of all
cores and the peak memory (`VmHWM`, with interpreter and libraries).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def ids() -> None:
    from retort.data.ids import SeenIds

    seen = SeenIds()
    for start in range(0, given.rows, 1024):
        batch = [f"row-{number:010}" for number in range(start, min(start + 1024, given.rows))]
        assert not any(seen.first_places(batch))
        seen.add(batch, [f"pool.jsonl, line {start + at}" for at in range(len(batch))])
    assert seen.first_places(["row-0000000005"]) == ["pool.jsonl, line 5"]


def training() -> None:
    from retort.config import TrainingConfig
    from retort.students.encoder import EncodedRow
    from retort.students.schedule import Schedule
    from retort.students.training import TrainingRows, UnitTrainingData

    lengths = np.random.default_rng(0).integers(6, 19, size=given.rows).astype(np.int8)

    def rows() -> Iterator[EncodedRow]:
        return (EncodedRow(np.ones(length, np.int32), np.zeros(1, np.int32)) for length in lengths)

    class Nothing:
        model: Any = None

    target = np.zeros(1, dtype=np.int64)
    data = TrainingRows(rows(), (target for _ in range(given.rows)))
    batches = Schedule(UnitTrainingData(Nothing(), data), TrainingConfig(epochs=1, batch_tokens=4096), 0)  # type: ignore[arg-type]
    for batch in batches.after(0):
        for place in batch.tolist():
            assert data.token_ids[place][0]


WORDS = [f"word{number:03}" for number in range(500)]


class Texts:
    """Rows of 8 words that are made each time one goes through them, as they are read from the store each time."""

    def __init__(self, rows: int, labels: list[str], *, lists: int = 0) -> None:
        self._rows, self._labels, self._lists = rows, labels, lists

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Any]:
        from retort.students.base import TopTokens, TrainingRow

        generator = np.random.default_rng(0)
        for number in range(self._rows):
            text = " ".join(WORDS[word] for word in generator.integers(len(WORDS), size=8))
            label, top = self._labels[number % len(self._labels)], None
            if self._lists:  # the words' tokens come after the 4 special ones; the end is [SEP], token 3
                token_ids = np.array([*(4 + WORDS.index(word) for word in label.split()), 3], dtype=np.int32)
                ids = generator.integers(4, 504, size=(len(token_ids), self._lists)).astype(np.int32)
                top = TopTokens(token_ids, ids, np.full(ids.shape, -3, dtype=np.float32))
            yield TrainingRow(text, label, top=top)


def causal() -> None:
    from retort.config import CausalConfig
    from retort.problems.classification import Classification

    labels = [f"class {number}" for number in range(50)]
    generative(CausalConfig, Texts(given.rows, labels), Classification(labels), kind="causal")


def answers() -> None:
    from retort.config import CausalConfig, TrainingConfig
    from retort.models.device import choose_device
    from retort.problems.classification import Classification

    labels = [f"class {number}" for number in range(50)]
    student = untrained(CausalConfig, Classification(labels), TrainingConfig(max_length=32), kind="causal")
    texts = (row.text for row in Texts(given.rows, labels))
    outcomes = student.predict(texts, device=choose_device("cpu", "auto", 1), total=given.rows)
    assert sum(outcome.label in labels for outcome in outcomes) == given.rows


def seq2seq() -> None:
    from retort.config import Seq2SeqConfig
    from retort.problems.classification import Classification

    labels = [f"class {number}" for number in range(50)]
    rows = Texts(given.rows, labels)
    generative(Seq2SeqConfig, rows, Classification(labels), kind="seq2seq", decoder_layers=1)


def distilled() -> None:
    from retort.config import CausalConfig, DistillationConfig, TextConfig
    from retort.problems import problem_for

    rows = Texts(given.rows, [" ".join(WORDS[at : at + 4]) for at in range(0, 100, 4)], lists=20)
    text = problem_for(TextConfig(kind="text"))
    generative(CausalConfig, rows, text, distillation=DistillationConfig(), kind="causal", target="text")


def generative(new: Any, rows: Texts, problem: Any, *, distillation: Any = None, **fields: Any) -> None:
    from retort.config import TrainingConfig
    from retort.models.device import choose_device

    training = TrainingConfig(epochs=1e-9, batch_tokens=4096, max_length=32, distillation=distillation)
    student = untrained(new, problem, training, **fields)
    result = student.train(rows, training, seed=0, device=choose_device("cpu", "auto", 1))
    assert result.counts.get("distilled", given.rows) == given.rows


def untrained(new: Any, problem: Any, training: Any, **fields: Any) -> Any:
    from benchmarks.random_encoder import write_decoder, write_encoder
    from retort.models.weights import find_weights
    from retort.students.generative import new_generative_student

    with tempfile.TemporaryDirectory(prefix="retort-scale-") as name:
        (write_decoder if fields["kind"] == "causal" else write_encoder)(Path(name), WORDS, layers=1)
        config = new(model=name, max_target_length=16, training=dict(training), **fields)
        return new_generative_student(config, find_weights(config), pretrained=True, problem=problem)


def scoring() -> None:
    from retort.metrics.scores import RowStatistics, score_of
    from retort.problems.classification import Classification

    problem = Classification([f"class {number}" for number in range(50)])
    statistics = RowStatistics(problem, ["accuracy", "macro_f1"])
    generator = np.random.default_rng(0)
    for start in range(0, given.rows, 1 << 16):
        size = min(1 << 16, given.rows - start)
        gold, other = generator.integers(50, size=(2, size))
        said = np.where(generator.random(size) < 0.8, gold, other)
        for one, two in zip(gold.tolist(), said.tolist(), strict=True):
            statistics.add(problem.classes[one], problem.classes[two])
    for metric in ("accuracy", "macro_f1"):
        assert 0.7 < score_of(problem, metric, statistics.of(metric), 500, 0).value < 0.9  # type: ignore[arg-type]


def sets() -> None:
    from retort.metrics.scores import RowStatistics, score_of
    from retort.problems.multi_label import MultiLabel

    names = [f"class {number:02}" for number in range(20)]
    problem, generator = MultiLabel(names, ","), np.random.default_rng(0)
    statistics = RowStatistics(problem, ["macro_f1"])
    for start in range(0, given.rows, 1 << 16):
        size = min(1 << 16, given.rows - start)
        for one, both, other in np.minimum(generator.geometric(0.2, size=(size, 3)) - 1, 19).tolist():
            said = [names[place] for place in sorted({one, both if other else other})]
            statistics.add(json.dumps([names[place] for place in sorted({one, both})]), json.dumps(said))
    assert 0.5 < score_of(problem, "macro_f1", statistics.of("macro_f1"), 500, 0).value < 1


def tiny() -> None:
    from itertools import islice

    from retort.students.tiny.bags import EncodedRows
    from retort.students.tiny.shape import TinyRows, TinyShape, TinyTraining
    from retort.students.tiny.training import _batches, _Rows
    from retort.students.tiny.vocabulary import Vocabulary

    shape = TinyShape(fields=("answer", "reference"))
    few = [[" ".join(WORDS[at : at + 6]), " ".join(WORDS[at + 3 : at + 7])] for at in range(400)]
    vocabulary = Vocabulary.fit(few * 2, shape)
    encoded = EncodedRows((few[number % len(few)] for number in range(given.rows)), vocabulary)
    probabilities = np.full((given.rows, 3), 1 / 3, dtype=np.float32)
    rows = _Rows.of(TinyRows(encoded, np.zeros(given.rows, dtype=np.int32), probabilities), shape, 3)
    epoch = zip(*(_batches(encoded, seed, None, TinyTraining(), 0) for seed in range(5)), strict=True)
    for batches in islice(epoch, 1000):
        assert all(len(rows.bags(*batch).counts) == len(rows.targets(batch[0]).gold) for batch in batches)
    assert sum(len(batch) for ((batch, _), *_) in epoch) == given.rows - 32_000


PARTS: dict[str, Callable[[], None]] = {
    part.__name__: part for part in (ids, training, causal, seq2seq, distilled, answers, scoring, sets, tiny)
}


def main() -> None:
    for part in given.parts or PARTS:
        command = [sys.executable, __file__, "--rows", str(given.rows), "--alone", part]
        seconds, peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        print(f"{part:10}{given.rows:12,} rows{float(seconds):8.1f} s{int(peak) / 1024:7.0f} MiB", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--alone", choices=PARTS, help="do this in this process; for the benchmark itself")
    given = arguments.parse_args()
    if given.alone:
        PARTS[given.alone]()
        status = Path("/proc/self/status").read_text().splitlines()
        print(time.process_time(), next(line.split()[1] for line in status if line.startswith("VmHWM")))
    else:
        main()
