"""Whole runs with real vLLM on the CPU: constrained decoding, soft labels, a real OpenAI server, and deaths."""

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from vllm_teacher import PYTHON, ROOT

pytestmark = pytest.mark.teacher

RETORT = str(Path(sys.executable).with_name("retort"))
Start = Callable[[dict[str, Any]], subprocess.Popen[str]]


@pytest.fixture
def start(prefect_api: str, tmp_path: Path) -> Iterator[Start]:
    """`retort run CONFIG --json` in a process group of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def go(values: dict[str, Any]) -> subprocess.Popen[str]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        process = subprocess.Popen(
            [RETORT, "run", str(path), "--json"],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": prefect_api},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def manifest_of(store: Path, name: str) -> tuple[dict[str, Any], Path]:
    """The manifest of a stage's artifact, with the folder of its files."""
    found = [path for path in store.glob("*/??/*/manifest.json") if json.loads(path.read_text())["name"] == name]
    (path,) = found
    manifest = json.loads(path.read_text())
    return manifest, path.parent / manifest["folder"]


def in_ledger(store: Path) -> int:
    return sum(pq.read_metadata(shard).num_rows for shard in store.glob("ledger/*/*.parquet"))


def with_teacher(values: dict[str, Any], store: Path, model: Path, **teacher: Any) -> dict[str, Any]:
    asked = {"kind": "vllm", "model": str(model), "dtype": "float32", "python": str(PYTHON), **teacher}
    return {**values, "store": {"root": str(store)}, "teacher": asked}


def test_a_run_survives_the_deaths_of_engine_worker_and_itself(
    tiny_slots: dict[str, Any], tiny_causal: Path, start: Start, tmp_path: Path
) -> None:
    """The run ends with a student trained in stages on legal labels; nothing in the ledger is requested again."""
    store, pool = tmp_path / "store", tmp_path / "pool.jsonl"
    rows = [json.loads(line) for line in Path(tiny_slots["data"]["unlabeled"]).read_text().splitlines()]
    texts = [{"id": f"{row['id']}-{n}", "text": f"{row['text']} {n}"} for n in range(5) for row in rows]
    pool.write_text("".join(json.dumps(row) + "\n" for row in texts))
    values = with_teacher(
        {**tiny_slots, "data": {**tiny_slots["data"], "unlabeled": str(pool)}},
        store,
        tiny_causal,
        max_sequences=2,
        sampling={"max_tokens": 96},
        min_success_ratio=0.1,  # random weights seldom close their brackets in time, and what they close is legal
    )
    process = start(values)
    kept = kill(process, store, "engine", 0)
    kept = kill(process, store, "worker", kept)
    kept = kill(process, store, "run", kept)
    process.communicate(timeout=20)

    resumed = finished(start(values))
    assert resumed["final"]["scores"]["slot_f1"]["n"] == 20
    manifest, folder = manifest_of(store, "stage0/pseudolabels")
    tables = [pq.read_table(shard, columns=["key"]) for shard in store.glob("ledger/*/*.parquet")]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert len(set(keys)) == len(keys), "a completion was paid for twice"
    assert manifest["details"]["spent"]["completions"] == len(keys) - kept
    num_rows = len(texts) + 12
    assert num_rows <= len(keys) <= 2 * num_rows, "one try for each row, and one more where it gave no label"
    labels = pq.read_table(folder / "rows.parquet")["label"].to_pylist()
    assert len(labels) == manifest["rows"] > 30
    assert {json.loads(label)["intent"] for label in labels} <= {"PLAY_MUSIC", "GET_WEATHER"}


def kill(process: subprocess.Popen[str], store: Path, what: str, before: int) -> int:
    """SIGKILL in the middle of labeling; returns how many completions the ledger has after it. The last ones were
    stored at most 5 s before, plus a second for a busy machine."""
    end = time.monotonic() + 400
    while in_ledger(store) < before + 30 or not engines_of(process):
        assert time.monotonic() < end, f"before {what}: {in_ledger(store)} completions"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    time.sleep(1.5)  # somewhere between two writes
    engines = engines_of(process)
    victims = {
        "engine": lambda: engines,
        "worker": lambda: [psutil.Process(engine.ppid()) for engine in engines],
        "run": lambda: [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)],
    }[what]()
    assert victims
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    psutil.wait_procs(engines, timeout=60)
    return in_ledger(store)


def engines_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if str(PYTHON.parent) in " ".join(child.cmdline()[:1]):
                found.append(child)
    return found


@pytest.fixture
def beetle(tiny_classes: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """80 answers of Beetle to label, 24 labeled ones, 40 of the test."""
    rows, test = (
        [json.loads(line) for line in gzip.decompress((ROOT / "examples/beetle" / name).read_bytes()).splitlines()]
        for name in ("train.jsonl.gz", "test_unseen_answers.jsonl.gz")
    )
    parts = {"labeled": rows[::160][:24], "unlabeled": rows[7::40][:80], "test": test[::10][:40]}
    for role, part in parts.items():
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        **tiny_classes,
        "name": "beetle",
        "problem": {"kind": "classification", "labels": ["contradictory", "correct", "incorrect"]},
        "data": {
            **{role: str(tmp_path / f"{role}.jsonl") for role in parts},
            "columns": {"text": "answer", "label": "label"},
        },
    }


def test_soft_labels_of_beetle_are_those_that_transformers_computes(
    beetle: dict[str, Any], tiny_causal: Path, start: Start, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    values = with_teacher(beetle, store, tiny_causal, labels="soft", prompt={"demonstrations": 6})
    result = finished(start({**values, "method": {"stages": 1}}))
    assert result["final"]["scores"]["accuracy"]["n"] == 40
    manifest, folder = manifest_of(store, "stage0/pseudolabels")
    metrics = manifest["metrics"]
    assert metrics["calibration_temperature"] > 0
    assert 0 <= metrics["calibration_error_after"] <= 1
    assert 0 < metrics["outside_mass"] < 1
    print({name: round(value, 4) for name, value in metrics.items()})

    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert len(rows) == 80
    given = np.array([row["probabilities"] for row in rows], dtype=np.float64)
    assert given.sum(axis=1) == pytest.approx(np.ones(80), abs=2e-3), "half floats"
    expected = by_hand(values, tiny_causal, [row["text"] for row in rows[:12]], metrics["calibration_temperature"])
    assert np.abs(given[:12] - expected).max() < 1e-2


def by_hand(values: dict[str, Any], model_folder: Path, texts: list[str], temperature: float) -> np.ndarray[Any, Any]:
    """Probabilities of the classes: the product of the probabilities of a name's tokens after the written-out prompt,
    over all names, each raised to 1 / temperature and scaled to sum 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    begins, ends = prompt_of(values)
    prompts = [begins + text + ends for text in texts]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    names = values["problem"]["labels"]
    scores = np.zeros((len(texts), len(names)))
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            before = tokenizer.encode(prompt, add_special_tokens=False)
            for column, name in enumerate(names):
                tokens = tokenizer.encode(name, add_special_tokens=False)
                logits = model(torch.tensor([before + tokens])).logits[0].log_softmax(-1)
                scores[row, column] = sum(float(logits[len(before) + n - 1, t]) for n, t in enumerate(tokens))
    powered = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
    return powered / powered.sum(axis=1, keepdims=True)


def prompt_of(values: dict[str, Any]) -> tuple[str, str]:
    """The prompt before and after the row, as `retort prompt` prints it."""
    path = Path(values["store"]["root"]).parent / "config.yaml"
    shown = subprocess.run(
        [RETORT, "prompt", str(path), "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = json.loads(shown.stdout)
    pool = [json.loads(line) for line in Path(values["data"]["unlabeled"]).read_text().splitlines()]
    (row,) = [row for row in pool if row["id"] == told["example_id"]]
    before, _, after = str(told["text"]).rpartition(row["answer"])
    return before, after


TEMPLATE = (
    "{% for message in messages %}{{ message.content }}{{ '\n' if message.role == 'user' else '\n\n' }}{% endfor %}"
)


@pytest.fixture
def openai_server(tiny_causal: Path, tmp_path: Path) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with the tiny model; the address up to /v1."""
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_causal)]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--chat-template", str(template), "--enforce-eager", "--max-num-seqs", "32"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while True:
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, (tmp_path / "server.log").read_text()[-3000:]
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)
        log.close()


def test_a_run_with_vllms_own_server_as_the_endpoint(
    tiny_classes: dict[str, Any], openai_server: str, start: Start, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    teacher = {"kind": "endpoint", "url": openai_server, "model": "tiny", "constraint_style": "vllm"}
    values = {**tiny_classes, "store": {"root": str(store)}, "teacher": teacher}
    result = finished(start(values))
    assert result["final"]["scores"]["accuracy"]["n"] == 20
    manifest, folder = manifest_of(store, "stage0/pseudolabels")
    labels = pq.read_table(folder / "rows.parquet")["label"].to_pylist()
    assert len(labels) == 60, "every completion is held to a class"
    assert set(labels) <= {"up", "down"}
    spent = manifest["details"]["spent"]
    assert spent["completions"] == in_ledger(store) == 52 + 12
    assert spent["prompt_tokens"] > 0
    again = finished(start({**values, "teacher": {**teacher, "concurrency": 2, "sampling": {"max_tokens": 300}}}))
    assert again["final"]["scores"] == result["final"]["scores"]
    assert in_ledger(store) == 52 + 12, "nothing was asked again"
