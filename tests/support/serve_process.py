"""`retort serve` as a process of its own on a free port."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

RETORT = str(Path(sys.executable).with_name("retort"))


class Server(NamedTuple):
    process: "subprocess.Popen[str]"
    url: str
    lines: list[str]
    """What it has written to standard error."""

    def ask(self, *texts: str) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", json={"texts": texts}, timeout=30)

    @property
    def metrics_url(self) -> str:
        """That of a server with `--metrics-port`."""
        (line,) = [line for line in self.lines if line.startswith("watched at ")]
        return line.removeprefix("watched at ").replace("0.0.0.0", "127.0.0.1")


@contextmanager
def serving(model: str, *options: str, token: str | None = None) -> Iterator[Server]:
    """A running server, killed at the end of the block whatever happens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"RETORT_SERVE_TOKEN": token} if token else {})
    command = [RETORT, "serve", model, "--port", "0", *options]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = [process.stderr.readline().strip()]
    reading = threading.Thread(target=lambda: lines.extend(map(str.strip, process.stderr or ())))
    reading.start()
    try:
        url = lines[0].partition(" at ")[2].removesuffix("/predict").replace("0.0.0.0", "127.0.0.1")
        end = time.monotonic() + 60
        while not is_healthy(url):
            assert process.poll() is None, lines
            assert time.monotonic() < end, lines
            time.sleep(0.05)
        yield Server(process, url, lines)
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stderr.close()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
