"""A whole stack on loopback: PostgreSQL, a Prefect server on it, an S3 server, an MLflow server, and workers as
processes of their own, set up and deployed with the commands that operators use.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SILENCE_SECONDS = 60
PATIENCE_SECONDS = 900.0
"""Until a test gives up on something: far longer than anything takes, also on a busy machine."""
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(what: str, seen: Callable[[], Any]) -> Any:
    """What `seen` gives as soon as that is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := seen()):
        if time.monotonic() > end:
            pytest.fail(f"not within {PATIENCE_SECONDS} s: {what}")
        time.sleep(0.25)
    return found


@pytest.fixture(scope="session", name="wait_until")
def waiting() -> Callable[[str, Callable[[], Any]], Any]:
    return wait_until


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def postgres() -> Iterator[int]:
    """The port of a real PostgreSQL with the databases `prefect` and `mlflow`; it refuses to run as root."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(str(shutil.which("pg_ctl"))).parent]
    folder, port = Path(tempfile.mkdtemp(prefix="retort-postgres-")), free_port()  # pytest's own are for root alone
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *arguments: str) -> None:
        command = [*as_user, str(found[-1] / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60)

    data = str(folder / "data")
    call("initdb", "-D", data, "-A", "trust", "-U", "retort", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -c unix_socket_directories={folder}"
    call("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        for database in ("prefect", "mlflow"):
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "retort", database)
        yield port
    finally:
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a server that takes notifications, and what it was told."""
    told: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", told
        server.shutdown()


class Stack:
    """The addresses of what runs, and what a person or the Prefect UI would do to it."""

    def __init__(self, folder: Path, api: str, mlflow: str, environment: dict[str, str]) -> None:
        self.folder, self.api, self.mlflow, self.environment = folder, api, mlflow, environment
        self.ui = api.removesuffix("/api")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_worker(self, name: str, pool: str) -> None:
        """As `make worker` does, one run at a time."""
        options = f"--name {name} --limit 1"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.workers[name] = subprocess.Popen(
                ["make", "--no-print-directory", "worker", f"POOL={pool}", f"WORKER_OPTIONS={options}"],
                cwd=ROOT,
                env={**self.environment, "PREFECT_WORKER_QUERY_SECONDS": "2"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ensure_worker(self, name: str, pool: str) -> None:
        if name not in self.workers:
            self.start_worker(name, pool)

    def at_work(self, worker: str) -> bool:
        """Whether a child process of ours makes something below a worker."""
        try:
            below = psutil.Process(self.workers[worker].pid).children(recursive=True)
            servers = {process.pid for process in below if "multiprocessing.forkserver" in " ".join(process.cmdline())}
            return any(process.ppid() in servers for process in below)
        except psutil.NoSuchProcess:
            return False

    def is_idle(self, worker: str) -> bool:
        """Whether it has cleaned up after the run that it had: nothing below the worker itself is left."""
        try:
            below = psutil.Process(self.workers[worker].pid).children(recursive=True)
            return all("worker start" in " ".join(process.cmdline()) for process in below)
        except psutil.NoSuchProcess:  # one ends while we look, or has ended and was not yet waited for (a zombie)
            return False

    def kill_worker(self, name: str) -> None:
        """The worker, the run that it has started and all below it, at once: as when a machine goes."""
        shell = self.workers.pop(name)
        all_of_it = [psutil.Process(shell.pid), *psutil.Process(shell.pid).children(recursive=True)]
        for process in all_of_it:  # first of all none may see another one die, and tell the server
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in all_of_it:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shell.wait(10)

    def stop(self) -> None:
        for name in list(self.workers):
            self.kill_worker(name)

    def write_config(self, values: dict[str, Any]) -> str:
        path = self.folder / f"{values['name']}.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    def ask(self, path: str, body: Any = None) -> Any:
        url = f"{self.api}/{path}"
        answer = httpx.get(url, timeout=30) if body is None else httpx.post(url, json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def start_run(self, deployment: str, **parameters: Any) -> str:
        """The id of a new run of `flow/deployment`."""
        found = self.ask(f"deployments/name/{deployment}")
        body = {"parameters": {**found["parameters"], **parameters}}
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", body)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"flow_runs/{run_id}")
        return found

    def retry(self, run_id: str) -> None:
        """What the button in the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        answer = self.ask(f"flow_runs/{run_id}/set_state", {"state": state})
        assert answer["status"] == "ACCEPT", answer

    def runs_of(self, flow: str) -> list[dict[str, Any]]:
        """Newest first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC"}
        runs: list[dict[str, Any]] = self.ask("flow_runs/filter", body)
        return runs

    def children(self, parent_id: str) -> dict[str, dict[str, Any]]:
        """Runs of stages that a run has started, by the stage's name."""
        runs = self.ask("flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [parent_id]}}})
        return {run["name"]: run for run in runs}

    def end_of(self, run_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            run = self.run(run_id)
            return run if run["state_type"] in FINAL else None

        try:
            run: dict[str, Any] = wait_until(f"the end of run {run_id}", ended)
        except pytest.fail.Exception as error:
            pytest.fail(f"{error}\n{self.told(self.run(run_id))}")
        return run

    def told(self, run: dict[str, Any]) -> str:
        """A run's state and its logs, for a failing test."""
        logs = self.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
        return json.dumps(run["state"], indent=1) + "\n" + "\n".join(log["message"] for log in logs)


@pytest.fixture(scope="session")
def stack(
    postgres: int, webhook: Any, s3_rclone: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    api_port, mlflow_port = free_port(), free_port()
    api, mlflow = f"http://127.0.0.1:{api_port}/api", f"http://127.0.0.1:{mlflow_port}"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://retort@127.0.0.1:{postgres}/prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # half of its time to start
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": s3_rclone[0],
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }
    server = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(api_port)]
    tracking = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
    tracking += ["--backend-store-uri", f"postgresql+psycopg2://retort@127.0.0.1:{postgres}/mlflow"]
    tracking += ["--artifacts-destination", f"s3://{s3_rclone[1]}/mlflow"]
    started = []
    built = Stack(folder, api, mlflow, environment)
    try:
        for name, command in (("server", server), ("mlflow", tracking)):
            with (folder / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
                )
            started.append(process)
        wait_until("the Prefect server answers", lambda: answers(f"{api}/health"))
        options = ["--silence-seconds", str(SILENCE_SECONDS), "--webhook", webhook[0]]
        built.command(sys.executable, "infra/setup_server.py", *options)
        built.command(str(BIN / "prefect"), "--no-prompt", "deploy", "--all")
        wait_until("the MLflow server answers", lambda: answers(f"{mlflow}/health"))
        yield built
    finally:
        built.stop()
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
