"""Secrets of a whole run are found nowhere in what it leaves, here and on the servers that it uses."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from aiohttp import web

from canaries import found_below, found_in
from endpoint_server import Body, EndpointServer

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
USER = "nightly"


class Stack(NamedTuple):
    folder: Path
    """Home, scratch and data of everything that runs."""
    environment: dict[str, str]
    canaries: dict[str, str]
    teacher: EndpointServer

    def start(self, *command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def call(self, *command: str) -> tuple[int, str]:
        """(exit code, all that it printed)"""
        process = self.start(*command)
        out, err = process.communicate(timeout=600)
        return process.returncode, out + err

    def retort(self, *arguments: str) -> tuple[int, str]:
        return self.call(str(BIN / "retort"), *arguments)


def made_up(name: str) -> str:
    return f"canary-{name}-{secrets.token_hex(8)}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def program(name: str, url: str, folder: Path, environment: Mapping[str, str], *command: str) -> Iterator[None]:
    """A server, stopped at the end of the block. Waits until it answers at `url`."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while not answers(url):
                assert time.monotonic() < end, (folder / f"{name}.log").read_text()
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("canaries")
    names = ("api-key", "s3-key", "s3-secret", "proxy", "mlflow", "mlflow-url", "prefect", "hub", "webhook")
    canaries = {name: made_up(name) for name in names}
    canaries["api-key"] += "/+="  # what JSON and URLs write in another way
    s3, prefect, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(3))
    for name in ("tmp", "bucket/retort", "prefect", "mlflow"):
        (folder / name).mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_AUTH_STRING": f"admin:{canaries['prefect']}",
        "PREFECT_API_AUTH_STRING": f"admin:{canaries['prefect']}",
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "AWS_ACCESS_KEY_ID": canaries["s3-key"],
        "AWS_SECRET_ACCESS_KEY": canaries["s3-secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": canaries["mlflow"],
        "RETORT_TEST_MLFLOW": mlflow.replace("://", f"://{USER}:{canaries['mlflow-url']}@"),
        "RETORT_TEST_S3": s3,
        "RETORT_TEST_KEY": canaries["api-key"],
        "RETORT_WEBHOOK": f"http://127.0.0.1:9/{canaries['webhook']}",
        "HF_TOKEN": canaries["hub"],
        "HTTP_PROXY": f"http://{USER}:{canaries['proxy']}@127.0.0.1:9",
        "HTTPS_PROXY": f"http://{USER}:{canaries['proxy']}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    keys = f"{canaries['s3-key']},{canaries['s3-secret']}"
    rclone = [str(BIN / "rclone"), "serve", "s3", str(folder / "bucket"), "--addr", s3.removeprefix("http://")]
    server = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", prefect.rpartition(":")[2]]
    tracking = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", mlflow.rpartition(":")[2]]
    tracking += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow/mlflow.db"]
    tracking += ["--artifacts-destination", str(folder / "mlflow" / "artifacts")]
    quiet = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with ExitStack() as running, EndpointServer() as teacher:
        for url, name, command in (
            (s3, "rclone", [*rclone, "--auth-key", keys]),
            (f"{prefect}/api/health", "prefect-server", server),
            (f"{mlflow}/health", "mlflow-server", tracking),
        ):
            running.enter_context(program(name, url, folder, quiet, *command))
        environment["RETORT_TEST_TEACHER"] = teacher.url
        yield Stack(folder, environment, canaries, teacher)


async def repeated(server: EndpointServer, request: web.Request, body: Body) -> web.StreamResponse:
    """Refuses the row and tells every header that it was sent, as debugging proxies do."""
    told = {"error": {"message": f"you sent {dict(request.headers)}", "headers": dict(request.headers)}}
    return web.json_response(told, status=400)


async def forbidden(server: EndpointServer, request: web.Request, body: Body) -> web.StreamResponse:
    return web.Response(status=401, text=json.dumps(dict(request.headers)).replace("/", "\\/"))


def label_of(body: Body) -> str:
    item = body["messages"][-1]["content"]
    return "up" if "great" in item or "good" in item else "down"


def written(stack: Stack, values: dict[str, Any], **changes: Any) -> str:
    config = {
        **values,
        "name": "canaries",
        "store": {"root": "s3://retort/store", "endpoint_url": "${RETORT_TEST_S3}"},
        "tracking": {"uri": "${RETORT_TEST_MLFLOW}"},
        "teacher": {
            "kind": "endpoint",
            "model": "scripted",
            "url": "${RETORT_TEST_TEACHER}",
            "api_key": "${RETORT_TEST_KEY}",
            "min_success_ratio": 0.5,
            "retries": 1,
        },
        **changes,
    }
    path = stack.folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.mark.slow
def test_no_secret_is_left_anywhere(stack: Stack, tiny_classes: dict[str, Any]) -> None:
    stack.teacher.reply = label_of
    stack.teacher.fail(repeated, item="the film a")
    path = written(stack, tiny_classes)
    printed = {}
    code, printed["set-up"] = stack.call(sys.executable, str(ROOT / "infra" / "setup_server.py"))
    assert code == 0, printed["set-up"]
    code, printed["run"] = stack.retort("run", path, "--json")
    assert code == 0, printed["run"]
    assert all(f"Bearer {stack.canaries['api-key']}" == sent["Authorization"] for sent in stack.teacher.headers)
    for arguments in (("doctor", path), ("plan", path, "--json"), ("report", path), ("prompt", path)):
        code, printed[arguments[0]] = stack.retort(*arguments)
        assert code == 0, printed
    grown = stack.folder / "grown.jsonl"
    grown.write_text("".join(json.dumps({"id": f"n{n}", "text": f"new film {n} was dull"}) + "\n" for n in range(20)))
    exported = str(stack.folder / "batch.jsonl")
    code, printed["export"] = stack.retort("batch", "export", path, exported, "--set", f"data.unlabeled={grown}")
    assert code == 0, printed["export"]
    stack.teacher.heal()
    stack.teacher.fail(forbidden)
    code, printed["refused"] = stack.retort("run", path, "--set", f"data.unlabeled={grown}")
    assert code == 2, printed["refused"]
    assert "refuses the key in ${RETORT_TEST_KEY}" in printed["refused"]

    assert {name: found for name, text in printed.items() if (found := found_in(text.encode(), stack.canaries))} == {}
    left = found_below(stack.folder, stack.canaries)
    assert left == {}
    # The search does find what is there: the row that was refused, and its reason, lie in the bucket.
    assert found_below(stack.folder / "bucket", {"a refused row": "you sent"})
    assert found_below(stack.folder / "prefect", {"a run": "canaries"})
    assert found_below(stack.folder / "mlflow", {"a run": "canaries"})
