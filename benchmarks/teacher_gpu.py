"""The vLLM teacher's rows/s compared with vLLM's own `LLM.generate`, in one run on one GPU.

    python benchmarks/teacher_gpu.py [--python PYTHON] [--rows 8192] [--json FILE]
    python benchmarks/teacher_gpu.py --model FOLDER [--python PYTHON] [--rows 4096] [--sets snips craft]
        [--completions FOLDER] [--set tensor_parallel=2 preparation=graphs] [--log FILE] [--json FILE]

The second command runs in Retort's environment; `teacher_labels.py` says what it measures: the cost of holding a real
model's labels to a grammar, and how long its engine takes to start. `--log` keeps the engine's own words, with times.

The first one uses a model of Qwen3-8B's shape with dummy weights. Each prompt has 50 demonstrations from examples/snips
(about 2,000 tokens) and one row, no two rows alike; both sides generate exactly 32 tokens per completion. Each part is
a process with its own engine, whose start is reported separately; each measurement follows a warm-up on 64 other rows:

    bare           LLM.generate over all prompts as texts, in one call
    one by one     the same LLM, one call per row
    bare, tokens   the same LLM, all prompts in one call as token ids, tokenized beforehand, untimed
    retort         the teacher: requests in, each completion in the ledger, the last shard written
    no caching     the same with prefix caching off

The interpreter must have vLLM and what `retort.teachers.vllm` imports (pydantic, numpy). Without duckdb and pyarrow,
which the ledger needs, completions go to plain files every 5 s, and the table says so. On a machine without a GPU,
`--shape tiny --rows 64` runs the same code.
"""

import argparse
import gzip
import itertools
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SNIPS = ROOT / "examples" / "snips"
sys.path.insert(0, str(ROOT))

COMPLETION_TOKENS, PREFIX_TOKENS, WARM_UP_ROWS = 32, 2000, 64
CONTEXT_TOKENS, MEMORY_SHARE, FLUSH_SECONDS, SINGLE_SECONDS = 4096, 0.9, 5.0, 15.0
PARTS = {"model": 30.0, "bare": 320.0, "retort": 120.0, "uncached": 60.0}
"""Seconds reserved for each part; a part may also use whatever earlier parts left over."""
NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {**dict(zip(NAMES, (151936, 4096, 12288, 36, 32), strict=True)), "head_dim": 128},
    "tiny": {**dict(zip(NAMES, (8192, 64, 128, 2, 8), strict=True)), "head_dim": 32},
}

arguments = argparse.ArgumentParser()
arguments.add_argument("--python", default=sys.executable, help="the interpreter that has vLLM")
arguments.add_argument("--rows", type=int, help="default 8192; with --model 4096 short labels and half as many trees")
arguments.add_argument("--model", type=Path, help="a folder with a real model, whose labels are measured instead")
arguments.add_argument("--sets", nargs="+", choices=("snips", "craft"), default=["snips", "craft"])
arguments.add_argument("--single-rows", type=int, default=256, help="at most, and for 15 s at most")
arguments.add_argument("--uncached-rows", type=int, default=512)
arguments.add_argument("--shape", choices=SHAPES, default="qwen3-8b")
arguments.add_argument("--minutes", type=float, default=9.0, help="for all of it")
arguments.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="with --model: of the teacher")
arguments.add_argument("--completions", type=Path, help="with --model: where completions and log-probabilities go")
arguments.add_argument("--log", type=Path, help="with --model: where the engine's log goes")
arguments.add_argument("--json", type=Path)
arguments.add_argument("--part", choices=PARTS, help="what a process of the benchmark itself is to do")
arguments.add_argument("--folder", type=Path, help="the model, of that process")
given = arguments.parse_args()
given.rows = given.rows or (4096 if given.model else 8192)


def main() -> None:
    deadline = time.monotonic() + 60 * given.minutes
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as folder:
        for place, part in enumerate(PARTS):
            kept = sum(list(PARTS.values())[place + 1 :])
            results += run(part, folder, deadline - time.monotonic() - kept)
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


def run(part: str, folder: str, seconds: float) -> list[dict[str, Any]]:
    """The results that a part printed as JSON lines, even if it failed or ran out of time."""
    command = [given.python, __file__, *sys.argv[1:], "--part", part, "--folder", folder]
    log = Path(folder) / f"{part}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
    assert process.stdout
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True)
    reader.start()
    try:
        code: int | str = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        code = f"its time was up after {seconds:.0f} s"
    with suppress(ProcessLookupError):  # leftover engines would hold the GPU's memory
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(10)
    if code:
        print(f"{part} failed: {code}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr, flush=True)
    results = [json.loads(lines.get()) for _ in range(lines.qsize())]
    for result in results:
        print(json.dumps(result), file=sys.stderr, flush=True)
    return results


def show(results: list[dict[str, Any]]) -> None:
    bare = next((result for result in results if result["what"] == "bare"), None)
    print(f"{'':13} {'rows':>6} {'seconds':>8} {'rows/s':>8} {'of bare':>8} {'cached':>7} {'start':>7}")
    for result in results:
        share = f"{result['rows_per_second'] / bare['rows_per_second']:8.3f}" if bare else " " * 8
        print(
            f"{result['what']:13} {result['rows']:6} {result['seconds']:8.1f} {result['rows_per_second']:8.1f} {share} "
            f"{result['cached_share']:7.1%} {result['start_seconds']:5.0f} s {result.get('kept_in', '')}"
        )
    for result in results[:1]:
        print(f"{result['version']}, {result['device_name']}, prompts of about {result['prompt_tokens']} tokens")


def perform(part: str) -> None:
    {"model": make_model, "bare": bare, "retort": retort, "uncached": uncached}[part]()


def report(what: str, rows: int, seconds: float, prompt_tokens: int, cached_tokens: int, **more: Any) -> None:
    result = {"what": what, "rows": rows, "seconds": round(seconds, 3), "rows_per_second": round(rows / seconds, 2)}
    share = round(cached_tokens / max(prompt_tokens, 1), 4)
    print(json.dumps({**result, "prompt_tokens": prompt_tokens // rows, "cached_share": share, **more}), flush=True)


def bare() -> None:
    out = sys.stdout
    sys.stdout = sys.stderr  # vLLM's prints
    started = time.perf_counter()
    on_gpu = has_gpu()
    if not on_gpu:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    alone = {} if on_gpu else {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30}
    llm = LLM(
        model=str(given.folder),
        load_format="dummy",
        max_model_len=CONTEXT_TOKENS,
        gpu_memory_utilization=MEMORY_SHARE,
        enable_prefix_caching=True,
        **alone,
    )
    facts = {
        "start_seconds": round(time.perf_counter() - started, 1),
        "version": f"vllm {vllm.__version__}",
        "device_name": current_platform.get_device_name() if on_gpu else "cpu",
    }
    sys.stdout = out
    sampling = SamplingParams(temperature=0.0, max_tokens=COMPLETION_TOKENS, ignore_eos=True)
    tokenizer = llm.get_tokenizer()
    prefix, before, after = rendered(tokenizer)

    def generate(what: str, prompts: list[Any], seconds: float = float("inf"), at_once: bool = True) -> None:
        begun, outputs = time.perf_counter(), []
        for some in [prompts] if at_once else [[prompt] for prompt in prompts]:
            outputs += llm.generate(some, sampling, use_tqdm=False)
            if time.perf_counter() - begun > seconds:
                break
        taken = time.perf_counter() - begun
        assert all(len(output.outputs[0].token_ids) == COMPLETION_TOKENS for output in outputs)
        total = sum(len(output.prompt_token_ids or ()) for output in outputs)
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        if what:
            report(what, len(outputs), taken, total, cached, **facts)

    prompts = (f"{prefix}{before}{item}{after}" for item in items())
    generate("", list(itertools.islice(prompts, WARM_UP_ROWS)))
    generate("bare", list(itertools.islice(prompts, given.rows)))
    generate("one by one", list(itertools.islice(prompts, given.single_rows)), SINGLE_SECONDS, at_once=False)
    others = [{"prompt_token_ids": tokenizer.encode(prompt)} for prompt in itertools.islice(prompts, given.rows)]
    generate("bare, tokens", others)


def retort() -> None:
    ask("retort", given.rows, prefix_caching=True)


def uncached() -> None:
    ask("no caching", given.uncached_rows, prefix_caching=False)


def ask(what: str, rows: int, prefix_caching: bool) -> None:
    from retort.config import VllmConfig
    from retort.teachers.requests import Completion, CompletionRequest, Prompt
    from retort.teachers.vllm.client import open_vllm

    settings = {"model": str(given.folder), "python": sys.executable, "max_length": CONTEXT_TOKENS}
    measured = {"weights": "random", "memory_share": MEMORY_SHARE}
    config = VllmConfig.model_validate({"kind": "vllm", **settings, **measured})
    shared, numbers = turns(), itertools.count()
    requests = (
        CompletionRequest(next(numbers).to_bytes(16, "big"), Prompt(shared, item), max_tokens=COMPLETION_TOKENS)
        for item in items()
    )
    with open_vllm(config, 0, str(given.folder), None, ignore_end=True, prefix_caching=prefix_caching) as client:
        for _ in client.ask(itertools.islice(requests, WARM_UP_ROWS)):
            pass
        done = total = cached = 0
        begun = time.perf_counter()
        with keeping() as (keep, kept_in):
            for completion in client.ask(itertools.islice(requests, rows)):
                assert isinstance(completion, Completion), completion
                assert completion.completion_tokens == COMPLETION_TOKENS
                keep(completion)
                done, total, cached = done + 1, total + completion.prompt_tokens, cached + completion.cached_tokens
        taken = time.perf_counter() - begun
        assert done == rows
        facts = {name: client.facts[name] for name in ("start_seconds", "version", "device_name")}
        report(what, done, taken, total, cached, kept_in=kept_in, **facts)


@contextmanager
def keeping() -> Iterator[tuple[Callable[[Any], None], str]]:
    """A function that makes a completion durable within 5 s, and the name of where it goes."""
    with tempfile.TemporaryDirectory(prefix="retort-ledger-") as folder:
        try:
            from retort.store import Store
            from retort.teachers.ledger import Entry, Ledger, LedgerWriter
        except ImportError as error:
            with plain_files(Path(folder)) as keep:
                yield keep, f"plain files, as {error.name} is missing"
            return
        ledger = Ledger(Store(folder), {"kind": "vllm", "model": "benchmark"})
        with LedgerWriter(ledger) as writer:
            yield lambda completion: writer.add(Entry(max_tokens=COMPLETION_TOKENS, **entry(completion))), "the ledger"


def entry(completion: Any) -> dict[str, Any]:
    names = ("key", "text", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "scores")
    return {**{name: getattr(completion, name) for name in names}, "asked_at": time.time()}


@contextmanager
def plain_files(folder: Path) -> Iterator[Callable[[Any], None]]:
    waiting: list[dict[str, Any]] = []
    due = time.monotonic() + FLUSH_SECONDS

    def flush() -> None:
        with (folder / f"{time.time_ns()}.jsonl").open("w") as file:
            file.writelines(json.dumps({**row, "key": row["key"].hex()}) + "\n" for row in waiting)
            file.flush()
            os.fsync(file.fileno())
        waiting.clear()

    def keep(completion: Any) -> None:
        nonlocal due
        waiting.append(entry(completion))
        if time.monotonic() > due:
            flush()
            due = time.monotonic() + FLUSH_SECONDS

    yield keep
    flush()


def measure_labels() -> None:
    import yaml

    from benchmarks.teacher_labels import measure, show

    if given.log:
        logging.getLogger("retort.teachers.vllm").setLevel(logging.INFO)
        logging.basicConfig(filename=given.log, format="%(asctime)s %(message)s")
    results = []
    own = {"model": str(given.model.resolve()), "python": given.python}
    own |= {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in given.set)}
    for result in measure(own, given.sets, given.rows, given.completions, on_gpu=has_gpu()):
        results.append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


def has_gpu() -> bool:
    from retort.config import VllmConfig
    from retort.teachers.vllm.machine import find_interpreter

    return find_interpreter(VllmConfig(kind="vllm", model="any", python=given.python))[1] == "cuda"


def items() -> Iterator[str]:
    """An endless sequence that is the same for every part: the example's rows, each with a number."""
    from retort.config.teachers import PromptConfig
    from retort.teachers.prompts import item_text

    texts = [row["text"] for name in ("unlabeled", "test") for row in read(f"{name}.jsonl.gz")]
    for number in itertools.count():
        yield item_text(PromptConfig(), f"{texts[number % len(texts)]} number {number}")


def turns() -> tuple[Any, ...]:
    from retort.config import ColumnsConfig, SlotsConfig
    from retort.config.teachers import PromptConfig
    from retort.problems import infer_schema, problem_for
    from retort.records.base import Example
    from retort.teachers.prompts import shared_turns

    rows, columns = read("labeled.jsonl"), ColumnsConfig()
    problem = problem_for(infer_schema(SlotsConfig(kind="slots"), rows, columns))
    examples = [Example(row["id"], row["text"], problem.gold(row, columns)) for row in rows]
    return shared_turns(problem, PromptConfig(), examples)


def rendered(tokenizer: Any) -> tuple[str, str, str]:
    from retort.teachers.vllm.engine.rendering import render

    return render(tokenizer, [{"role": turn.role, "content": turn.content} for turn in turns()])


def read(name: str) -> list[dict[str, str]]:
    data = (SNIPS / name).read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if name.endswith(".gz") else data).splitlines()]


def make_model() -> None:
    shape = SHAPES[given.shape]
    tokenizer = train_tokenizer(shape["vocab_size"])
    tokenizer.save(str(given.folder / "tokenizer.json"))
    more = {"num_key_value_heads": 8, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
    ends = {"eos_token_id": 0, "bos_token_id": None, "tie_word_embeddings": False, "attention_bias": False}
    kind = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16"}
    write = {
        "config.json": {**kind, **shape, **more, **ends, "hidden_act": "silu"},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"},
    }
    for name, content in write.items():
        (given.folder / name).write_text(json.dumps(content, indent=1))


def train_tokenizer(vocab_size: int) -> Any:
    """A byte-level BPE with as many merges as give the prefix about 2,000 tokens, padded to the vocabulary's size with
    tokens that no text contains, so that anything a model with dummy weights generates can be decoded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    prefix, _, _ = rendered(None)
    texts = [*(row["text"] for row in read("unlabeled.jsonl.gz")), *prefix.splitlines()]
    found = []
    for size in (400, 600, 800, 1000, 1300, 1700, 2200, 3000, 4000):
        tokenizer = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(r" ?\S+|\s"), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        found.append((abs(len(tokenizer.encode(prefix).ids) - PREFIX_TOKENS), tokenizer))
    best = json.loads(min(found, key=lambda pair: pair[0])[1].to_str())
    vocabulary = best["model"]["vocab"]
    vocabulary |= {f"Ġfill{number}": number for number in range(len(vocabulary), vocab_size)}
    return Tokenizer.from_str(json.dumps(best))


if __name__ == "__main__":
    if given.model:
        measure_labels()
    elif given.part:
        perform(given.part)
    else:
        main()
