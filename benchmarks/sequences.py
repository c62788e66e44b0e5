"""Benchmark training and relabeling with a student that writes against transformers' own trainer and `generate`.

    .venv/bin/python benchmarks/sequences.py [--shape small|base|causal] [--rows 512] [--only train|relabel]
        [--rivals before trainer] [--profile] [--json]

A T5, or a decoder of Qwen2.5-0.5B's shape, with random weights learns to write the parses of SNIPS, stretched to 64
source tokens and 128 target tokens on average while keeping their spread; then the T5 labels texts. All run in one
process, interleaved. Training:

    retort   steps of about 32 rows by tokens, batches of rows of similar length, or rows packed for the decoder, fused
             AdamW; on a GPU as CUDA graphs, with weights in bf16 and their masters in fp32, layers without
             dropout (the decoder's) compiled
    before   on a GPU: the same with weights in fp32 under autocast, no layers compiled, all logits in fp32
    paper    Seq2SeqTrainer as in arXiv 2311.08640: 2 rows on the device, 16 accumulated, fp32, padding to the longest
             row, on a part of the rows
    trainer  Seq2SeqTrainer with good settings: 32 rows, the same precision as retort, rows grouped by length, fused
             AdamW; on a GPU with data loader workers and torch.compile for the layers (compiling the whole model took
             over 3 minutes)

The rates are those of the second half of the steps. How much longer the first half takes is printed separately, in
seconds. `--profile` prints where the time goes in retort's steps and in those of before. Relabeling:

    retort   the decoding engine, in batches as in a student
    generate `model.generate`, greedy, 32 rows in the order of the file, its default cache, the same precision
    half     the same with bf16 weights, if that is the precision

Random weights never produce an end token, so each row gets as many tokens as its parse has. Our engine is given each
row's number, as for a student that writes classes, and `generate` has to continue to the longest of its 32 rows. Prints
the median of the repeats in examples/s, ratios, the padding shares, and on a GPU the share of peak performance that
training uses.
"""

import argparse
import copy
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from retort.config import MckdConfig, TrainingConfig
from retort.data import read_examples
from retort.models.device import choose_device
from retort.problems import problem_for
from retort.recipes import load_config
from retort.students import acceleration, cpu_kernels, training
from retort.students.decoding import STEP_SCALE, Request, Vocabulary, decode
from retort.students.generative_data import CausalTrainingData, Pair, Seq2SeqTrainingData, TrainingPairs
from retort.students.optimizer import PlainAdamW

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 256, "d_kv": 32, "num_heads": 8, "d_ff": 1024, "num_layers": 4, "vocab_size": 2000},
    "base": {"d_model": 768, "d_kv": 64, "num_heads": 12, "d_ff": 3072, "num_layers": 12, "vocab_size": 32128},
    "causal": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}
"""For dense bf16, according to the manufacturer."""

arguments = argparse.ArgumentParser()
arguments.add_argument("--shape", choices=SHAPES, default="small")
arguments.add_argument("--rows", type=int, default=512)
arguments.add_argument("--repeats", type=int, default=3)
arguments.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
arguments.add_argument("--batch-rows", type=int, default=32, help="rows of a step; the paper's are always 32")
arguments.add_argument("--only", choices=["train", "relabel"])
arguments.add_argument("--rivals", nargs="*", default=["paper", "trainer"], choices=["before", "paper", "trainer"])
arguments.add_argument("--profile", action="store_true", help="where the time goes in training")
arguments.add_argument("--no-compile", action="store_true", help="the trainer without torch.compile, on a GPU")
arguments.add_argument("--json", action="store_true")
given = arguments.parse_args()
IS_CAUSAL = given.shape == "causal"
DEVICE = choose_device("auto", given.precision, 1)
ON_GPU = DEVICE.name == "cuda"
EPOCHS, PAPER_SHARE = (4, 16) if ON_GPU else (1, 4)


def main() -> None:
    tokenizer, pairs = rows_of(given.rows)
    sides = np.array([(len(pair.source), len(pair.target)) for pair in pairs])
    result: dict[str, Any] = {**DEVICE.describe(), "torch": torch.__version__, "shape": given.shape, "rows": len(pairs)}
    result["tokens"] = {"source": round(float(sides[:, 0].mean()), 1), "target": round(float(sides[:, 1].mean()), 1)}
    model = new_model()
    result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    budget = given.batch_rows * int(sides.sum(axis=1).mean())
    if given.only != "relabel":
        rivals: dict[str, Callable[[], tuple[float, float]]] = {
            "retort": lambda: ours(pairs, budget),
            "before": lambda: before(pairs, budget),
            "paper": lambda: theirs(tokenizer, pairs[: given.rows // PAPER_SHARE], paper=True),
            "trainer": lambda: theirs(tokenizer, pairs, paper=False),
        }
        result["train"] = rates({name: run for name, run in rivals.items() if name in ("retort", *given.rivals)})
        result["padding"] = padding(pairs, sides, budget)
        if ON_GPU:
            trained = result["train"].items()
            result["utilization"] = {name: utilization(model, sides, one["rate"]) for name, one in trained}
        if given.profile:
            result["profile"] = {
                name: profiled(run, pairs, budget)
                for name, run in {"retort": ours, "before": before}.items()
                if name in ("retort", *given.rivals)
            }
    if given.only != "train" and not IS_CAUSAL:
        student, some = new_model().to(DEVICE.name).eval(), pairs[: 128 if ON_GPU else None]
        half = copy.deepcopy(student).bfloat16() if DEVICE.precision == "bf16" else None
        outputs: dict[str, list[list[int]]] = {}
        result["relabel"] = rates(
            {
                "retort": lambda: (len(pairs) / write(student, pairs, outputs), 0.0),
                "generate": lambda: (len(some) / generate(student, some, outputs), 0.0),
                **({"half": lambda: (len(some) / generate(half, some, {}), 0.0)} if half else {}),
            }
        )
        same = [one == other for one, other in zip(outputs["retort"], outputs["generate"], strict=False)]
        result["same_outputs"] = sum(same) / len(same)
    show(result)


def rows_of(number: int) -> tuple[PreTrainedTokenizerFast, list[Pair]]:
    """Return (tokenizer, pairs of request and parse from the SNIPS test set, repeated)."""
    config = load_config("examples/snips.yaml")
    assert isinstance(config, MckdConfig)
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
    sources, targets = stretched(fast(texts)["input_ids"], 64), stretched(fast(parses)["input_ids"], 128)
    pairs = [Pair(source, target) for source, target in zip(sources, targets, strict=True)]
    return fast, [pairs[index % len(pairs)] for index in range(number)]


def stretched(rows: list[list[int]], mean: int) -> list[Any]:
    """Repeat each row's tokens by the same factor, so that rows with their end token have `mean` tokens on average."""
    factor = (mean - 1) * len(rows) / sum(map(len, rows))
    return [np.append(np.resize(row, round(factor * len(row))), 1) for row in rows]


def new_model() -> PreTrainedModel:
    torch.manual_seed(0)
    if IS_CAUSAL:
        return Qwen2ForCausalLM(Qwen2Config(**SHAPES["causal"], pad_token_id=0, eos_token_id=1))
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(dropout_rate=0.1, **SHAPES[given.shape], **ends))


def lessons_of(model: torch.nn.Module, pairs: list[Pair]) -> Seq2SeqTrainingData | CausalTrainingData:
    if IS_CAUSAL:
        return CausalTrainingData(model, TrainingPairs(pairs), pad=0, columns=slice(None), packs=True)
    return Seq2SeqTrainingData(model, TrainingPairs(pairs), pad=0, start=0, columns=slice(None))


def rates(rivals: dict[str, Callable[[], tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Median examples/s of each rival and its startup seconds. They run in turn, so that noise affects all."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for _ in range(given.repeats):
        for name, run in rivals.items():
            found[name].append(run())
            print(f"{name}: {found[name][-1][0]:.1f} examples/s", file=sys.stderr, flush=True)
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    return {name: {"rate": round(rate, 1), "start": round(start, 1)} for name, (rate, start) in medians.items()}


class Halves:
    """Measures both halves of a training run that processes `rows` rows in all."""

    def __init__(self, rows: float) -> None:
        self._rows, self._share = rows, 1.0
        self._started = self._half = time.monotonic()

    def look(self, done: int, total: int) -> None:
        if self._share == 1.0 and done >= total / 2 and done < total:
            synchronize()
            self._half, self._share = time.monotonic(), 1 - done / total

    def end(self) -> tuple[float, float]:
        """Return (examples/s of the second half, how many seconds longer the first half took)."""
        now = time.monotonic()
        first, second = self._half - self._started, now - self._half
        return self._rows * self._share / second, max(0.0, first - second * (1 - self._share) / self._share)


Watch = Callable[[int, int], None]
"""Told of the progress: the step and the number of steps."""


def ours(pairs: list[Pair], budget: int, watch: Watch = lambda done, total: None) -> tuple[float, float]:
    # These trainings are too short to compile for; what is measured is how a long one goes on.
    with mock.patch.object(acceleration, "WORTH_COMPILING", 0.0 if ON_GPU else math.inf):
        return fitted(pairs, budget, watch)


def before(pairs: list[Pair], budget: int, watch: Watch = lambda done, total: None) -> tuple[float, float]:
    @contextmanager
    def only_norms(model: torch.nn.Module, *_: object) -> Iterator[None]:
        acceleration.use_fused_norms(model)
        yield None

    with (
        mock.patch.object(training, "acceleration", only_norms),
        mock.patch.object(training, "FlatAdamW", lambda model, trained, settings, dtype: InPlace(trained, settings)),
    ):
        return fitted(pairs, budget, watch)


class InPlace(PlainAdamW):
    """Whose gradients stay where recorded passes add to them."""

    def clear(self) -> None:
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()


def fitted(pairs: list[Pair], budget: int, watch: Watch) -> tuple[float, float]:
    model = new_model()
    halves = Halves(EPOCHS * len(pairs))

    def look(done: int, total: int, note: str) -> None:
        halves.look(done, total)
        watch(done, total)

    settings = TrainingConfig(epochs=EPOCHS, batch_tokens=budget)
    training.fit(model, lessons_of(model, pairs), settings, seed=0, device=DEVICE, progress=look)
    return halves.end()


KINDS = {
    "attention": ("fmha", "flash", "softmax_warp", "::_softmax"),
    "loss": ("log_softmax", "nll", "cross_entropy", "SoftMax", "cunn_"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitK", "::(mm|addmm|bmm|baddbmm)$", "mkldnn"),
    "optimizer": ("[Aa]dam", "multi_tensor", "[Ll]pNorm", "NormTwo", "foreach"),
    "dropout": ("dropout", "mask_of"),
    "norms": ("rms_norm", "[Ll]ayer_?[Nn]orm", "RowwiseMoments", "GammaBeta", "triton.*rsqrt"),
    "casts, copies": (
        "copy", "_to_", "::(cat|clone|contiguous|zero_|zeros)", "Memcpy", "Memset", "[Ff]ill", "CatArray", "gather",
        "scatter", "index", "embedding",
    ),
    "fused by the compiler": ("triton",),
}  # fmt: skip
"""Patterns in the names of a GPU's kernels and of a CPU's operations, the first kind that fits; all others are
element-wise."""


def profiled(run: Callable[..., object], pairs: list[Pair], budget: int) -> dict[str, Any]:
    """Milliseconds of a step by kind of kernel, of steps after the half, and the longest kernels: those that the GPU is
    busy for, or on a CPU those of all operations, of which passes forward and backward wait for each other."""
    activity = torch.profiler.ProfilerActivity
    profiler = torch.profiler.profile(activities=[activity.CUDA if ON_GPU else activity.CPU])
    first = last = 0
    started = seconds = 0.0

    def watch(done: int, total: int) -> None:
        nonlocal first, last, started, seconds
        if not first and done >= total // 2:
            synchronize()
            profiler.start()
            first, started = done, time.monotonic()
        elif first and not last and done >= min(first + 10, total):
            synchronize()
            last, seconds = done, time.monotonic() - started
            profiler.stop()

    with mock.patch.object(cpu_kernels, "mask_of", recorded(cpu_kernels.mask_of)):
        run(pairs, budget, watch)
    spent: dict[str, float] = {}
    names: dict[str, tuple[float, int]] = {}
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if ON_GPU else event.self_cpu_time_total
        ms = microseconds / 1e3 / (last - first)
        kind = next((k for k, patterns in KINDS.items() if any(re.search(p, event.key) for p in patterns)), None)
        kind = kind or "element-wise"
        spent[kind] = spent.get(kind, 0.0) + ms
        names[event.key] = (round(ms, 3), event.count // (last - first))
    return {
        "wall_ms": round(seconds * 1e3 / (last - first), 2),
        "busy_ms": round(sum(spent.values()), 2),
        "kinds": {kind: round(ms, 2) for kind, ms in sorted(spent.items(), key=lambda item: -item[1])},
        "longest": dict(sorted(names.items(), key=lambda item: -item[1][0])[:30]),
    }


def recorded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Whose work outside of torch the profiler sees too."""

    def run(*args: Any) -> Tensor:
        with torch.profiler.record_function(function.__name__):
            return function(*args)

    return run


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


class Look(TrainerCallback):
    def __init__(self, halves: Halves) -> None:
        self._halves = halves

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._halves.look(state.global_step, state.max_steps)


def theirs(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], *, paper: bool) -> tuple[float, float]:
    model = new_model()
    model.config.use_cache = False  # so that its layers are compiled only once
    rows = [
        {"input_ids": pair.source.tolist(), "labels": pair.target.tolist()} if not IS_CAUSAL
        else {
            "input_ids": [*pair.source.tolist(), *pair.target.tolist()],
            "labels": [*[-100] * len(pair.source), *pair.target.tolist()],
        }
        for pair in pairs
    ]  # fmt: skip
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
    if ON_GPU and not paper:
        settings |= {"torch_compile": not given.no_compile, "dataloader_num_workers": 8}
        os.environ |= {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "1", "ACCELERATE_DYNAMO_USE_DYNAMIC": "1"}
    halves = Halves(EPOCHS * len(pairs))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        trainer = Seq2SeqTrainer(
            model,
            Seq2SeqTrainingArguments(
                output_dir=folder, num_train_epochs=EPOCHS, learning_rate=3e-4, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, use_cpu=DEVICE.name == "cpu", **settings,
            ),
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(
                tokenizer, model, pad_to_multiple_of=8 if ON_GPU else None
            ),
            callbacks=[Look(halves)],
        )  # fmt: skip
        trainer.train()
    synchronize()
    return halves.end()


def padding(pairs: list[Pair], sides: Any, budget: int) -> dict[str, float]:
    """Share of computed tokens that are padding: retort's, and for batches of 32 and of 2 rows in random order."""
    lessons = lessons_of(torch.nn.Identity(), pairs)
    generator = np.random.default_rng(0)
    counted = np.array([lessons.tokens(batch) for batch in lessons.batches(budget, generator)]).sum(axis=0)
    result = {"retort": 1 - counted[0] / counted[1]}
    order = generator.permutation(len(sides))
    for name, size in (("32 rows", 32), ("2 rows", 2)):
        batches = [sides[order[at : at + size]] for at in range(0, len(sides), size)]
        result[name] = 1 - sides.sum() / sum(len(batch) * batch.max(axis=0).sum() for batch in batches)
    return {name: round(float(share), 3) for name, share in result.items()}


def utilization(model: Any, sides: Any, rate: float) -> float | None:
    """Share of peak FLOPS, counting 6 x weights x tokens. Each side of a T5 has its own stack; embeddings are looked
    up, not multiplied; the output layer is counted at target tokens only. Attention's own products are not counted."""
    peak = next((value for name, value in PEAK_TFLOPS.items() if name in torch.cuda.get_device_name()), None)
    if peak is None:
        return None
    source, target = sides.mean(axis=0)
    if IS_CAUSAL:
        table = model.get_input_embeddings().weight.numel()
        flops = 6 * ((model.num_parameters() - table) * (source + target - 1) + table * target)
    else:
        encoder, decoder = (
            sum(p.numel() for p in stack.parameters()) - model.shared.weight.numel()
            for stack in (model.encoder, model.decoder)
        )
        flops = 6 * (encoder * source + (decoder + model.shared.weight.numel()) * target)
    return round(float(flops * rate / (peak * 1e12)), 3)


def write(model: Any, pairs: list[Pair], outputs: dict[str, list[list[int]]]) -> float:
    started = time.monotonic()
    requests = [Request(pair.source, len(pair.target)) for pair in pairs]
    budget = 2048 * STEP_SCALE[DEVICE.name]
    written = decode(model, requests, Vocabulary(0, None), device=DEVICE, batch_tokens=budget, start=0)
    seconds = time.monotonic() - started
    outputs["retort"] = [one.token_ids for one in written]
    return seconds


@torch.inference_mode()
def generate(model: Any, pairs: list[Pair], outputs: dict[str, list[list[int]]]) -> float:
    """Generate each batch until its longest row is done, as if the lengths were unknown."""
    started, outputs["generate"] = time.monotonic(), []
    for at in range(0, len(pairs), 32):
        batch = pairs[at : at + 32]
        length = max(len(pair.source) for pair in batch)
        ids = torch.tensor([[*pair.source, *[0] * (length - len(pair.source))] for pair in batch], device=DEVICE.name)
        most = max(len(pair.target) for pair in batch)
        with DEVICE.autocast() if model.dtype == torch.float32 else nullcontext():
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
    print(f"{given.shape}, {result['parameters'] / 1e6:.1f} M parameters, {given.rows} rows, tokens {result['tokens']}")
    for what, base in (("train", ("before", "paper", "trainer")), ("relabel", ("generate", "half"))):
        if what not in result:
            continue
        found = result[what]
        line = "   ".join(
            f"{name} {one['rate']:.1f} examples/s (start {one['start']:.1f} s)" for name, one in found.items()
        )
        ratio = "   ".join(
            f"{found['retort']['rate'] / found[name]['rate']:.2f} x {name}" for name in base if name in found
        )
        print(f"{what:8} {line}   ({ratio})")
    if "padding" in result:
        print(f"padding  {result['padding']}")
    if "same_outputs" in result:
        print(f"the same outputs: {100 * result['same_outputs']:.1f} % of rows")
    if "utilization" in result:
        print(f"share of the GPU's peak in training: {result['utilization']}")
    for name, one in result.get("profile", {}).items():
        print(f"{name}: a step takes {one['wall_ms']} ms, its kernels {one['busy_ms']}: {one['kinds']}")
        for kernel, (ms, count) in one["longest"].items():
            print(f"    {ms:8.3f} ms {count:5} x {kernel[:160]}")


if __name__ == "__main__":
    main()
