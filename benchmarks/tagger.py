"""Benchmark training and prediction of the token-classification student against transformers' own Trainer.

    .venv/bin/python benchmarks/tagger.py [--rows 700] [--repeats 3] [--set student.weights=random ...]

Both run in the same process: the 700 SNIPS test rows as training rows (repeated up to --rows), the packaged 23
M-parameter encoder, batches of about 32 rows, all cores or one GPU. The Trainer is configured as well as it can be: the
same precision and optimizer, frozen embeddings, and padding to the longest row of each batch. Prints the median of the
repeats in examples/s, and the ratio to the rival.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

from retort.config import MckdConfig, TrainingConfig
from retort.data import read_examples
from retort.models.device import choose_device
from retort.models.weights import find_weights
from retort.problems import Problem, problem_for
from retort.recipes import load_config
from retort.records.base import Example
from retort.students.classifier import predict
from retort.students.encoder import Encoder, encode_all, new_encoder
from retort.students.training import TrainingRows, train

TRAINING = TrainingConfig(epochs=1)

arguments = argparse.ArgumentParser()
arguments.add_argument("--rows", type=int, default=700)
arguments.add_argument("--repeats", type=int, default=3)
arguments.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
given = arguments.parse_args()
CONFIG = cast(MckdConfig, load_config("examples/snips.yaml", given.set))


def main() -> None:
    problem = problem_for(CONFIG.problem)
    source = list(read_examples(CONFIG.data.test, CONFIG.data.columns, problem, gold="required"))
    examples = list(itertools.islice(itertools.cycle(source), given.rows))
    device = choose_device("auto", "auto", 1)
    print(f"{device.describe()}, {len(examples)} rows, torch {torch.__version__}")
    measure(
        "train",
        examples,
        given.repeats,
        {"retort": lambda: ours(problem, examples), "Trainer": lambda: theirs(problem, examples)},
    )
    measure(
        "predict",
        examples,
        given.repeats,
        {"retort": lambda: label(problem, examples), "row by row": lambda: label_singly(problem, examples)},
    )


def measure(what: str, examples: list[Example], repeats: int, rivals: dict[str, Callable[[], float]]) -> None:
    """Run the rivals, which return their seconds, in turn, so that noise affects both."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            seconds[name].append(run())
    rates = {name: len(examples) / statistics.median(times) for name, times in seconds.items()}
    (first, rate), (second, other) = rates.items()
    print(f"{what:8} {first} {rate:7.0f} examples/s   {second} {other:7.0f} examples/s   ratio {rate / other:.2f}")


def encoder_of(problem: Problem) -> Encoder:
    torch.manual_seed(0)
    return new_encoder(
        "token-classification",
        find_weights(CONFIG.student),
        pretrained=CONFIG.student.weights == "pretrained",
        problem=problem,
        max_length=128,
    )


def ours(problem: Problem, examples: list[Example]) -> float:
    encoder = encoder_of(problem)
    started = time.monotonic()
    rows = list(encode_all(encoder, problem, (example.text for example in examples)))
    targets = [np.asarray(problem.targets(example.text, example.label or "")) for example in examples]
    train(encoder, TrainingRows(rows, targets), TRAINING, seed=0, device=choose_device("auto", "auto", 1))
    return time.monotonic() - started


def theirs(problem: Problem, examples: list[Example]) -> float:
    encoder = encoder_of(problem)
    encoder.model.get_input_embeddings().weight.requires_grad_(False)
    device = choose_device("auto", "auto", 1)
    started = time.monotonic()
    features = [_feature(problem, encoder, example) for example in examples]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=32, learning_rate=3e-4,
            bf16=device.precision == "bf16", optim="adamw_torch_fused", report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=device.name == "cpu",
        )  # fmt: skip
        collate = DataCollatorForTokenClassification(encoder.tokenizer)
        Trainer(encoder.model, settings, train_dataset=features, data_collator=collate).train()  # type: ignore[arg-type]
    return time.monotonic() - started


def _feature(problem: Problem, encoder: Encoder, example: Example) -> dict[str, Any]:
    (row,) = encoder.encode(problem, [example.text])
    labels = np.full(len(row.token_ids), -100)
    labels[row.positions] = problem.targets(example.text, example.label or "")
    return {"input_ids": row.token_ids.tolist(), "labels": labels.tolist()}


def label(problem: Problem, examples: list[Example]) -> float:
    encoder, device = encoder_of(problem), choose_device("auto", "auto", 1)
    started = time.monotonic()
    list(predict(encoder, problem, (example.text for example in examples), device=device, total=len(examples)))
    return time.monotonic() - started


def label_singly(problem: Problem, examples: list[Example]) -> float:
    encoder, device = encoder_of(problem), choose_device("auto", "auto", 1)
    started = time.monotonic()
    for _ in _one_by_one(encoder, problem, examples, device):
        pass
    return time.monotonic() - started


def _one_by_one(encoder: Encoder, problem: Problem, examples: list[Example], device: Any) -> Iterator[Any]:
    for example in examples:
        yield from predict(encoder, problem, [example.text], device=device, total=1)


if __name__ == "__main__":
    main()
