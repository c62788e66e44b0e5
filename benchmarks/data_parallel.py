"""Benchmark the training of one student by several processes, each on a GPU of its own, against one process.

    .venv/bin/python benchmarks/data_parallel.py [--processes 2] [--shape small] [--ways one joint sharded] [--json]

`small` and `base` are T5s that learn pairs of tokens drawn at random (64 and 128 on average), `tagger` an encoder of
BERT's base size, `causal-tiny`, `causal-1.5b` and `causal-7b` decoders, the larger ones of Qwen2.5's sizes. One process
alone, several that hold the whole model each (joint), and several that divide it among them (sharded) take turns, with
the same rows, steps and settings; on a machine without GPUs with the same number of threads each. Rows have one of
three lengths, so that a GPU's work is recorded in the first steps already, and no dropout, so that losses can be
compared. Prints, of those that `--ways` asks for,

    examples/s   of the second half of the steps, the median of the repeats, and how many times the first way's
    peak         the most memory that torch took on a GPU, of all processes
    apart        the largest relative difference between the losses and those of the first way
    sum          ms that summing the gradients over the processes takes (joint), in steps of how many ms
"""

import argparse
import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch.multiprocessing.spawn import spawn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from retort.config import TrainingConfig
from retort.models.device import Device, choose_device
from retort.models.gpus import visible_gpus
from retort.records.rank import ALONE, Rank
from retort.students.base import History
from retort.students.data_parallel import joined, summed
from retort.students.encoder import EncodedRow, Encoder
from retort.students.generative_data import CausalTrainingData, Pair, Seq2SeqTrainingData, TrainingPairs
from retort.students.training import TrainingRows, UnitTrainingData, fit
from retort.students.training_data import PaddedTrainingData

T5: dict[str, dict[str, Any]] = {
    "small": {"d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 1024, "num_layers": 4, "vocab_size": 2000},
    "base": {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12, "vocab_size": 32128},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "causal-tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2000,
    },
    "causal-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "causal-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
WAYS = ("one", "joint", "sharded")
LENGTHS = (48, 64, 80)
"""Tokens of a source; a target has twice as many."""
NUM_TAGS = 32


@dataclass(frozen=True, slots=True)
class Run:
    rate: float
    """Examples/s of the second half of the steps."""
    history: History
    peak_bytes: int
    """On this process's GPU; 0 without one."""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--shape", choices=[*T5, "tagger", *CAUSAL], default="small")
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=["one", "joint"])
    arguments.add_argument("--rows", type=int, default=1024)
    arguments.add_argument("--batch-rows", type=int, default=128, help="rows of a step, of all processes together")
    arguments.add_argument("--epochs", type=float, default=6)
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    if 0 < len(visible_gpus()) < given.processes:
        arguments.error(f"--processes {given.processes}: this machine has {len(visible_gpus())} GPU(s)")
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, (given, Path(folder)), nprocs=given.processes)  # type: ignore[no-untyped-call]
        result = json.loads((Path(folder) / "0.json").read_text())
        peaks = [json.loads(file.read_text())["peak_gb"] for file in Path(folder).glob("*.json")]
    result["peak_gb"] = {way: max(peak.get(way, 0.0) for peak in peaks) for way in given.ways}
    print(json.dumps(result) if given.json else told(result))


def work(number: int, given: argparse.Namespace, folder: Path) -> None:
    """What each process does: the first one trains alone, then all together."""
    if gpus := visible_gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number]
    device = choose_device("auto", "auto", given.processes)
    own = [way for way in given.ways if way != "one" or number == 0]
    runs: dict[str, list[Run]] = {way: [] for way in own}
    for repeat in range(given.repeats):
        for way in own:
            rank = ALONE if way == "one" else Rank(number, given.processes, str(folder / f"{way}-{repeat}"))
            runs[way].append(trained(given, device, rank, shards=way == "sharded"))
    result: dict[str, Any] = {"peak_gb": {way: round(runs[way][-1].peak_bytes / 1e9, 1) for way in own}}
    if "joint" in own:
        seconds = seconds_of_sum(given, device, Rank(number, given.processes, str(folder / "rendezvous")))
        result["sum_ms"] = round(1000 * seconds, 2)
    if number == 0:
        rates = {way: statistics.median(run.rate for run in runs[way]) for way in own}
        losses = {way: np.array(runs[way][-1].history.losses) for way in own}
        first = losses[own[0]]
        result |= {
            **device.describe(),
            "torch": torch.__version__,
            "shape": given.shape,
            "processes": given.processes,
            "rates": {way: round(rate, 1) for way, rate in rates.items()},
            "ratios": {way: round(rate / rates[own[0]], 2) for way, rate in rates.items()},
            "losses": [round(float(first[at]), 4) for at in (0, -1)],
            "apart": {way: float(f"{np.abs(losses[way] / first - 1).max():.1e}") for way in own[1:]},
            "step_ms": {way: round(1000 * given.batch_rows / rate, 2) for way, rate in rates.items()},
        }
    (folder / f"{number}.json").write_text(json.dumps(result))


def trained(given: argparse.Namespace, device: Device, rank: Rank, *, shards: bool) -> Run:
    """Train a new student. If it `shards`, processes divide it among them even if each has room for all of it."""
    marks: list[tuple[float, int]] = []

    def look(done: int, total: int, note: str) -> None:
        if 2 * done >= total:  # the loss was just read, which waited for the GPU
            marks.append((time.monotonic(), done))

    data = lesson(given, device)
    data.model.to("cpu")
    if device.name == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    row_tokens = int(np.mean(LENGTHS)) * (1 if given.shape == "tagger" else 3)
    training = TrainingConfig(epochs=given.epochs, batch_tokens=given.batch_rows * row_tokens, freeze_embeddings=False)
    sharding = mock.patch("retort.students.training.must_shard", return_value=True)
    with joined(rank), sharding if shards else contextlib.nullcontext():
        history = fit(data.model, data, training, seed=0, device=device, progress=look)
    (started, first), (ended, last) = marks[0], marks[-1]
    rows_per_step = given.epochs * given.rows / last
    peak = torch.cuda.max_memory_allocated() if device.name == "cuda" else 0
    return Run((last - first) * rows_per_step / (ended - started), history, peak)


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
        if given.shape in CAUSAL:
            decoder = Qwen2ForCausalLM(Qwen2Config(**CAUSAL[given.shape]))
            return CausalTrainingData(decoder, pairs_of(generator, lengths), pad=0, columns=slice(None), packs=True)
        ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        model = T5ForConditionalGeneration(T5Config(dropout_rate=0.0, **T5[given.shape], **ends))
    return Seq2SeqTrainingData(model, pairs_of(generator, lengths), pad=0, start=0, columns=slice(None))


def pairs_of(generator: np.random.Generator, lengths: NDArray[np.int64]) -> TrainingPairs:
    sources = [generator.integers(5, 2000, length) for length in lengths]
    return TrainingPairs(Pair(source, np.concatenate([source, source])) for source in sources)


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
    lines = [
        f"{where}\n{result['shape']}, {result['processes']} processes, losses from {first} to {last}",
        *(
            f"{way}: {rate} examples/s, ratio {result['ratios'][way]}, a step {result['step_ms'][way]} ms, "
            f"peak {result['peak_gb'][way]} GB, losses at most {result['apart'].get(way, 0.0):.1e} apart"
            for way, rate in result["rates"].items()
        ),
        *([f"summing the gradients: {result['sum_ms']} ms"] if "sum_ms" in result else []),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
