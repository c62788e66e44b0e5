"""Benchmark `retort predict` and `retort serve`: speed, memory and latency, compared with hand-written alternatives.

    .venv/bin/python benchmarks/predict.py MODEL [--rows 10000] [--texts examples/snips/test.jsonl.gz] [--seconds 10]

MODEL is the same argument as for the command. The rows are those of --texts, repeated. Each command runs in a process
of its own, on --rows rows and on four times as many, to show that its peak memory (resident, of the process) is
bounded; rows/s is what the command reports, which excludes its startup. The alternatives label the first 700 rows with
the pipeline of transformers on the same weights, in batches of 32 and row by row; they choose neither an intent nor a
legal combination of tags. The server answers one text per request, first for one client, then for 64 at once; the
alternative is the same model, called in this process with one text at a time and one thread. In all cases threads wait
without spinning (`OMP_WAIT_POLICY=PASSIVE`, which retort.serving sets before torch is imported).
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import aiohttp

from retort.artifacts.students import TrainedStudent
from retort.serving.addresses import FoundStudent, find_student
from retort.serving.texts import Fields, TextRow, read_texts

RETORT = str(Path(sys.executable).with_name("retort"))
RIVAL_ROWS = 700
CLIENTS = 64

arguments = argparse.ArgumentParser()
arguments.add_argument("model", metavar="MODEL")
arguments.add_argument("--rows", type=int, default=10_000)
arguments.add_argument("--texts", default="examples/snips/test.jsonl.gz")
arguments.add_argument("--text", default="text", help="the field of --texts that holds the text")
arguments.add_argument("--seconds", type=float, default=10.0, help="of load on the server")
given = arguments.parse_args()


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    source = [row.text for row in read_texts(given.texts, Fields(given.text, "id")) if isinstance(row, TextRow)]
    found = find_student(given.model)
    print(f"student {found.name}, {os.cpu_count()} cores, torch {version('torch')}")
    rates = [predicted(source, count) for count in (given.rows, 4 * given.rows)]
    texts = list(itertools.islice(itertools.cycle(source), RIVAL_ROWS))
    for name, size in (("pipeline, batches of 32", 32), ("pipeline, row by row", 1)):
        rate = pipeline_rate(found, texts, size)
        print(f"{name:28} {rate:8.0f} rows/s   ours is {rates[0] / rate:.2f} times as fast")
    single = latency_in_process(found, texts[:300])
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([RETORT, "serve", given.model, "--port", "0"], stderr=log)
        try:
            url = address_of(process, log.fileno())
            asyncio.run(loaded(url, texts, single))
        finally:
            process.terminate()
            process.wait(30)


def predicted(source: list[str], count: int) -> float:
    """The rows/s that the command reports for `count` rows; also prints its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log"
        with rows.open("w") as stream:
            for number, text in enumerate(itertools.islice(itertools.cycle(source), count)):
                stream.write(json.dumps({"id": number, "text": text}) + "\n")
        command = [RETORT, "predict", given.model, str(rows), "--out", str(Path(folder) / "out.parquet")]
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        reported = re.search(r"([\d,]+) rows/s", log.read_text())
        assert reported is not None, log.read_text()
        rate = float(reported[1].replace(",", ""))
        print(f"retort predict, {count:9,} rows {rate:8.0f} rows/s   peak {usage.ru_maxrss / 1024:6.0f} MiB")
        return rate


def pipeline_rate(found: FoundStudent, texts: list[str], batch_size: int) -> float:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        pipeline,
    )

    folder = TrainedStudent.open(found.store, found.store.ref(found.manifest)).model
    kind = found.manifest.fingerprint["params"]["student"]
    model_class = AutoModelForTokenClassification if kind.startswith("token") else AutoModelForSequenceClassification
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=128)
    task = "token-classification" if kind.startswith("token") else "text-classification"
    label = pipeline(task, model=model_class.from_pretrained(folder), tokenizer=tokenizer)  # type: ignore[call-overload]
    return len(texts) / timed(lambda: label(texts, batch_size=batch_size))


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def latency_in_process(found: FoundStudent, texts: list[str]) -> float:
    """Median seconds for one text on one CPU thread, without HTTP."""
    import torch

    from retort.serving.student import load_student

    student = load_student(found, "cpu")
    torch.set_num_threads(1)
    list(student.label(texts[:5]))
    seconds = [timed(lambda text=text: list(student.label([text]))) for text in texts]  # type: ignore[misc]
    median = statistics.median(seconds)
    print(f"one text, one thread, no HTTP: median {1000 * median:.1f} ms, 95 % within {1000 * share(seconds):.1f} ms")
    return median


def share(seconds: list[float], part: float = 0.95) -> float:
    return sorted(seconds)[int(part * (len(seconds) - 1))]


def address_of(process: "subprocess.Popen[bytes]", log: int) -> str:
    while process.poll() is None:
        if found := re.search(rb"(http://\S+)/predict\n", os.pread(log, 4096, 0)):
            return found[1].decode()
        time.sleep(0.05)
    raise SystemExit(os.pread(log, 4096, 0).decode())


async def loaded(url: str, texts: list[str], single: float) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        while True:
            try:
                async with session.get(f"{url}/health"):
                    break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
        await load(session, url, texts, 1, 2.0)  # warm-up: the first requests pay for one-time work
        for clients in (1, CLIENTS):
            seconds = await load(session, url, texts, clients, given.seconds)
            rate = len(seconds) / given.seconds
            print(
                f"retort serve, {clients:2} client(s)    {rate:8.0f} texts/s   median "
                f"{1000 * statistics.median(seconds):.1f} ms, 95 % within {1000 * share(seconds):.1f} ms   "
                f"{rate * single:.2f} times one text at a time in one thread"
            )


async def load(
    session: aiohttp.ClientSession, url: str, texts: list[str], clients: int, for_seconds: float
) -> list[float]:
    """Seconds of each single-text request; a client sends its next request as soon as it has an answer."""
    end, seconds = time.perf_counter() + for_seconds, list[float]()

    async def ask(client: int) -> None:
        for text in itertools.cycle(texts[client:] + texts[:client]):
            started = time.perf_counter()
            if started > end:
                return
            async with session.post(f"{url}/predict", json={"texts": [text]}) as answer:
                answer.raise_for_status()
                await answer.read()
            seconds.append(time.perf_counter() - started)

    await asyncio.gather(*(ask(client) for client in range(clients)))
    return seconds


if __name__ == "__main__":
    main()
