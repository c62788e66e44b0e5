"""Benchmark the training of one student by several processes, each on a GPU of its own, against one process.

    .venv/bin/python benchmarks/data_parallel.py [--processes 2] [--shape small|base|tagger] [--batch-rows 128] [--json]

`small` and `base` are T5s that learn pairs of tokens drawn at random (64 and 128 on average), `tagger` an encoder of
BERT's base size. One process and several take turns, with the same rows, steps and settings; on a machine without GPUs
with the same number of threads each. Rows have one of three lengths, so that a GPU's work is recorded in the first
steps already, and no dropout, so that losses can be compared. Prints

    one, joint   examples/s of the second half of the steps, the median of the repeats
    ratio        of the two: what further processes are worth
    apart        the largest relative difference between the losses of the two
    sum          ms that summing the gradients over the processes takes, in steps of how many ms
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn
from transformers import BertConfig, BertForTokenClassification, T5Config, T5ForConditionalGeneration

from retort.config import TrainingConfig
from retort.models.device import Device, choose_device
from retort.models.gpus import visible_gpus
from retort.records.rank import ALONE, Rank
from retort.students.base import History
from retort.students.data_parallel import joined, summed
from retort.students.encoder import EncodedRow, Encoder
from retort.students.generative_data import Pair, Seq2SeqTrainingData
from retort.students.training import TrainingRows, UnitTrainingData, fit
from retort.students.training_data import PaddedTrainingData

T5: dict[str, dict[str, Any]] = {
    "small": {"d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 1024, "num_layers": 4, "vocab_size": 2000},
    "base": {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12, "vocab_size": 32128},
}
LENGTHS = (48, 64, 80)
"""Tokens of a source; a target has twice as many."""
NUM_TAGS = 32


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--shape", choices=[*T5, "tagger"], default="small")
    arguments.add_argument("--rows", type=int, default=1024)
    arguments.add_argument("--batch-rows", type=int, default=128, help="rows of a step, of all processes together")
    arguments.add_argument("--epochs", type=int, default=6)
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    if 0 < len(visible_gpus()) < given.processes:
        arguments.error(f"--processes {given.processes}: this machine has {len(visible_gpus())} GPU(s)")
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (given, Path(folder)), nprocs=given.processes)  # type: ignore[no-untyped-call]
        result = json.loads((Path(folder) / "result.json").read_text())
    print(json.dumps(result) if given.json else told(result))


def work(number: int, given: argparse.Namespace, folder: Path) -> None:
    """What each process does: the first one trains alone, then all together."""
    if gpus := visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number]
    device = choose_device("auto", "auto", given.processes)
    one: list[tuple[float, History]] = []
    joint: list[tuple[float, History]] = []
    for repeat in range(given.repeats):
        if number == 0:
            one.append(trained(given, device, ALONE))
        rank = Rank(number, given.processes, str(folder / f"rendezvous-{repeat}"))
        joint.append(trained(given, device, rank))
    sum_seconds = seconds_of_sum(given, device, Rank(number, given.processes, str(folder / "rendezvous")))
    if number == 0:
        rates = {"one": statistics.median(rate for rate, _ in one), "joint": statistics.median(r for r, _ in joint)}
        losses = np.array([one[-1][1].losses, joint[-1][1].losses])
        result = {
            **device.describe(),
            "torch": torch.__version__,
            "shape": given.shape,
            "processes": given.processes,
            **{name: round(rate, 1) for name, rate in rates.items()},
            "ratio": round(rates["joint"] / rates["one"], 2),
            "losses": [round(float(losses[0, at]), 4) for at in (0, -1)],
            "apart": float(f"{np.abs(losses[1] / losses[0] - 1).max():.1e}"),
            "sum_ms": round(1000 * sum_seconds, 2),
            "step_ms": round(1000 * given.batch_rows / rates["joint"], 2),
        }
        (folder / "result.json").write_text(json.dumps(result))


def trained(given: argparse.Namespace, device: Device, rank: Rank) -> tuple[float, History]:
    """Train a new student. Returns (examples/s of the second half of the steps, the losses)."""
    marks: list[tuple[float, int]] = []

    def look(done: int, total: int, note: str) -> None:
        if 2 * done >= total:  # the loss was just read, which waited for the GPU
            marks.append((time.monotonic(), done))

    data = lesson(given, device)
    row_tokens = int(np.mean(LENGTHS)) * (1 if given.shape == "tagger" else 3)
    training = TrainingConfig(epochs=given.epochs, batch_tokens=given.batch_rows * row_tokens, freeze_embeddings=False)
    with joined(rank):
        history = fit(data.model, data, training, seed=0, device=device, progress=look)
    (started, first), (ended, last) = marks[0], marks[-1]
    rows_per_step = given.epochs * given.rows / last
    return (last - first) * rows_per_step / (ended - started), history


def lesson(given: argparse.Namespace, device: Device) -> PaddedTrainingData:
    """The rows, with a model of random weights, which are always the same."""
    generator = np.random.default_rng(0)
    lengths = generator.choice(LENGTHS, given.rows)
    torch.manual_seed(0)
    with torch.device(device.name):
        if given.shape == "tagger":
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            tagger = BertForTokenClassification(BertConfig(num_labels=NUM_TAGS, **no_dropout))
            ids = [generator.integers(5, 30000, length).astype(np.int32) for length in lengths]
            rows = [EncodedRow(own, np.arange(len(own), dtype=np.int32)) for own in ids]
            encoder = Encoder(tagger, cast(Any, SimpleNamespace(pad_token_id=0)), "token-classification", 512)
            return UnitTrainingData(encoder, TrainingRows(rows, [own.astype(np.int64) % NUM_TAGS for own in ids]))
        ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(dropout_rate=0.0, **T5[given.shape], **ends))
    sources = [generator.integers(5, 2000, length) for length in lengths]
    pairs = [Pair(source, np.concatenate([source, source])) for source in sources]
    return Seq2SeqTrainingData(model, pairs, pad=0, start=0, columns=slice(None))


def seconds_of_sum(given: argparse.Namespace, device: Device, rank: Rank) -> float:
    """How long it takes to sum as many numbers as the model has weights."""
    size = sum(weight.numel() for weight in lesson(given, device).model.parameters())
    numbers = torch.zeros(size, device=device.name)
    wait: Callable[[], None] = torch.cuda.synchronize if device.name == "cuda" else lambda: None
    with joined(rank):
        for repeat in range(8):
            if repeat == 3:
                wait()
                started = time.monotonic()
            summed(numbers)
        wait()
        return (time.monotonic() - started) / 5


def told(result: dict[str, Any]) -> str:
    where = f"{result['device_name']}, {result['threads']} threads each, {result['precision']}, torch {result['torch']}"
    first, last = result["losses"]
    return (
        f"{where}\n{result['shape']}: one process {result['one']} examples/s, {result['processes']} processes "
        f"{result['joint']} examples/s, ratio {result['ratio']}\n"
        f"losses from {first} to {last}, at most {result['apart']:.1e} apart\n"
        f"summing the gradients: {result['sum_ms']} ms of a step of {result['step_ms']} ms"
    )


if __name__ == "__main__":
    main()
