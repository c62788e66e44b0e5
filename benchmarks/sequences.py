"""Training and relabelling speed of a seq2seq student, against transformers' own trainer and `generate`.

    .venv/bin/python benchmarks/sequences.py [--shape small|base] [--rows 512] [--precision auto] [--json]

A T5 with random weights learns to write the parses of the SNIPS pool, one pass; then it labels texts. Side by side, in
one process, interleaved:

    retort   steps of about 32 rows by tokens, rows of similar length together, fused AdamW
    paper    Seq2SeqTrainer as in arXiv 2311.08640: 2 rows on the device, 16 accumulated, fp32, padding to the longest
    trainer  Seq2SeqTrainer set well: 32 rows, the same precision as retort, rows grouped by length, fused AdamW

    retort   the decoding engine
    generate `model.generate`, greedy, 32 rows in the order of the file

Both write as many tokens for each row, and every one does in either: the end is never written. Printed: the median of
the repeats in examples/s, ratios, the padding shares, and on a GPU the share of its peak that training uses.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from retort.config import TrainingConfig
from retort.configfile import load_config
from retort.data import read_examples
from retort.problems import problem_for
from retort.students.decoding import Request, Vocabulary, decode
from retort.students.device import choose_device
from retort.students.training import fit
from retort.students.writing import Pair, Seq2SeqLessons

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 1024, "num_layers": 4, "vocab_size": 2000},
    "base": {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12, "vocab_size": 32128},
}
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""bf16, dense, as the maker gives them."""

arguments = argparse.ArgumentParser()
arguments.add_argument("--shape", choices=SHAPES, default="small")
arguments.add_argument("--rows", type=int, default=512)
arguments.add_argument("--repeats", type=int, default=3)
arguments.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
arguments.add_argument("--batch-rows", type=int, default=32, help="rows of a step; the paper's are always 32")
arguments.add_argument("--decode-tokens", type=int, default=4096, help="tokens of a batch that is decoded")
arguments.add_argument("--json", action="store_true")
given = arguments.parse_args()
DEVICE = choose_device("auto", given.precision, 1)


def main() -> None:
    tokenizer, pairs = rows_of(given.rows)
    sides = np.array([(len(pair.source), len(pair.target)) for pair in pairs])
    result: dict[str, Any] = {**DEVICE.describe(), "torch": torch.__version__, "shape": given.shape, "rows": len(pairs)}
    result["tokens"] = {"source": round(float(sides[:, 0].mean()), 1), "target": round(float(sides[:, 1].mean()), 1)}
    model = new_model()
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    budget = given.batch_rows * int(sides.sum(axis=1).mean())
    result["train"] = rates(
        {
            "retort": lambda: ours(pairs, budget),
            "paper": lambda: theirs(tokenizer, pairs, paper=True),
            "trainer": lambda: theirs(tokenizer, pairs, paper=False),
        }
    )
    result["padding"] = padding(pairs, sides, budget)
    if DEVICE.name == "cuda":
        result["utilisation"] = utilisation(model, sides, result["train"]["retort"])
    student = new_model().to(DEVICE.name).eval()
    outputs: dict[str, list[list[int]]] = {}
    result["relabel"] = rates(
        {
            "retort": lambda: write(student, pairs, outputs),
            "generate": lambda: generate(student, pairs, outputs),
        }
    )
    same = [one == other for one, other in zip(outputs["retort"], outputs["generate"], strict=True)]
    result["same_outputs"] = sum(same) / len(same)
    show(result)


def rows_of(number: int) -> tuple[PreTrainedTokenizerFast, list[Pair]]:
    """Requests of the SNIPS test set, repeated, and their parses."""
    config = load_config("examples/snips.yaml", [])
    problem = problem_for(config.problem)
    examples = list(read_examples(config.data.test, config.data.columns, problem, gold="required"))
    texts = [example.text for example in examples]
    parses = [problem.render(example.text, example.label or "") for example in examples]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *parses], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    sources, targets = fast(texts)["input_ids"], fast(parses)["input_ids"]
    pairs = [Pair(np.array([*s, 1]), np.array([*t, 1])) for s, t in zip(sources, targets, strict=True)]
    return fast, [pairs[index % len(pairs)] for index in range(number)]


def new_model() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(dropout_rate=0.1, **SHAPES[given.shape], **ends))


def rates(rivals: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Median examples/s of each, interleaved so that a noisy moment hits all; each gives its seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(given.repeats):
        for name, run in rivals.items():
            seconds[name].append(run())
    return {name: round(given.rows / statistics.median(times), 1) for name, times in seconds.items()}


def ours(pairs: list[Pair], budget: int) -> float:
    model = new_model()
    training = TrainingConfig(epochs=1, batch_tokens=budget)
    started = time.monotonic()
    fit(model, Seq2SeqLessons(model, pairs, pad=0, start=0, columns=slice(None)), training, seed=0, device=DEVICE)
    return time.monotonic() - started


def theirs(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], *, paper: bool) -> float:
    model = new_model()
    rows = [{"input_ids": pair.source.tolist(), "labels": pair.target.tolist()} for pair in pairs]
    settings: dict[str, Any] = (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16}
        if paper
        else {
            "per_device_train_batch_size": given.batch_rows,
            "bf16": DEVICE.precision == "bf16",
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "group_by_length",
        }
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        trainer = Seq2SeqTrainer(
            model,
            Seq2SeqTrainingArguments(
                output_dir=folder, num_train_epochs=1, learning_rate=3e-4, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, use_cpu=DEVICE.name == "cpu", **settings,
            ),
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        )  # fmt: skip
        trainer.train()
    return time.monotonic() - started


def padding(pairs: list[Pair], sides: Any, budget: int) -> dict[str, float]:
    """Share of computed tokens that are padding: retort's, and of 32 and of 2 rows in any order."""
    lessons = Seq2SeqLessons(torch.nn.Identity(), pairs, pad=0, start=0, columns=slice(None))
    generator = np.random.default_rng(0)
    counted = np.array([lessons.tokens(batch) for batch in lessons.batches(budget, generator)]).sum(axis=0)
    result = {"retort": 1 - counted[0] / counted[1]}
    order = generator.permutation(len(sides))
    for name, size in (("32 rows", 32), ("2 rows", 2)):
        batches = [sides[order[at : at + size]] for at in range(0, len(sides), size)]
        result[name] = 1 - sides.sum() / sum(len(batch) * batch.max(axis=0).sum() for batch in batches)
    return {name: round(float(share), 3) for name, share in result.items()}


def utilisation(model: T5ForConditionalGeneration, sides: Any, rate: float) -> float | None:
    """6 x parameters x tokens: each side has its own stack, and embeddings are looked up, not multiplied."""
    peak = next((value for name, value in PEAK_TFLOPS.items() if name in torch.cuda.get_device_name()), None)
    if peak is None:
        return None
    encoder, decoder = (
        sum(p.numel() for p in stack.parameters()) - model.shared.weight.numel()
        for stack in (model.encoder, model.decoder)
    )
    source, target = sides.mean(axis=0)
    flops = 6 * (encoder * source + (decoder + model.shared.weight.numel()) * target)
    return round(float(flops * rate / (peak * 1e12)), 3)


def write(model: Any, pairs: list[Pair], outputs: dict[str, list[list[int]]]) -> float:
    started = time.monotonic()
    requests = [Request(pair.source, len(pair.target)) for pair in pairs]
    written = decode(model, requests, Vocabulary(0, -1), device=DEVICE, batch_tokens=given.decode_tokens, start=0)
    seconds = time.monotonic() - started
    outputs["retort"] = [one.token_ids for one in written]
    return seconds


@torch.inference_mode()
def generate(model: Any, pairs: list[Pair], outputs: dict[str, list[list[int]]]) -> float:
    """Each batch until its longest row is written, as without knowing the lengths."""
    started, outputs["generate"] = time.monotonic(), []
    for at in range(0, len(pairs), 32):
        batch = pairs[at : at + 32]
        length = max(len(pair.source) for pair in batch)
        ids = torch.tensor([[*pair.source, *[0] * (length - len(pair.source))] for pair in batch], device=DEVICE.name)
        most = max(len(pair.target) for pair in batch)
        with DEVICE.autocast():
            rows = model.generate(
                ids,
                attention_mask=(ids != 0).long(),
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
                eos_token_id=[],
            )
        outputs["generate"] += [row[1 : 1 + len(pair.target)].tolist() for row, pair in zip(rows, batch, strict=True)]
    return time.monotonic() - started


def show(result: dict[str, Any]) -> None:
    if given.json:
        print(json.dumps(result))
        return
    print(f"{result['device_name']}, {result['threads']} threads, {result['precision']}, torch {result['torch']}")
    print(
        f"T5 {given.shape}, {result['parameters'] / 1e6:.1f} M parameters, {given.rows} rows, tokens {result['tokens']}"
    )
    for what, base in (("train", ("paper", "trainer")), ("relabel", ("generate",))):
        line = "   ".join(f"{name} {rate:.1f} examples/s" for name, rate in result[what].items())
        ratio = "   ".join(f"{result[what]['retort'] / result[what][name]:.2f} x {name}" for name in base)
        print(f"{what:8} {line}   ({ratio})")
    print(f"padding  {result['padding']}")
    print(f"the same outputs: {100 * result['same_outputs']:.1f} % of rows")
    if "utilisation" in result:
        print(f"share of the GPU's peak in training: {result['utilisation']}")


if __name__ == "__main__":
    main()
