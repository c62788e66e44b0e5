"""One registered champion answers alike by every way that leads to it, after a promotion that restarts nothing."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from retort.models.device import Device
from retort.serving.addresses import TRACKING_VARIABLE, find_student
from retort.serving.answers import answer
from retort.serving.student import load_student
from retort.students.classifier import Classifier
from retort.students.onnx_encoder import with_onnx
from retort.tracking import mlflow_runs as runs
from serve_process import Server, serving
from trained_student import train

Trained = Any
Command = Callable[..., tuple[int, str, str]]
MODEL = "models:/requests@champion"
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # importing mlflow


class Registry(NamedTuple):
    """MLflow, where `requests` has two students, 1 the champion, and a third whose weights are damaged."""

    uri: str
    file: Path
    students: tuple[Trained, Trained]

    def promote(self, version: str) -> None:
        with runs.connected(self.uri) as client:
            runs.set_alias(client, "requests", "champion", version)

    def expected(self, version: str) -> tuple[list[str], list[dict[str, Any]]]:
        """The test rows' texts, and what `retort predict` says of them."""
        student = self.students[int(version) - 1]
        loaded = load_student(find_student(student.student.uri), "cpu")
        texts = [row["text"] for row in student.evaluated()]
        return texts, [answer(loaded.problem, text, one) for text, one in zip(texts, loaded.label(texts), strict=True)]


@pytest.fixture(scope="module")
def registry(
    slots_student: Trained, tiny_slots: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("champion")
    method = {**tiny_slots["method"], "seed": 7}
    second = train({**tiny_slots, "method": method, "store": {"root": str(folder / "store")}})
    address = Path(second.student.uri)
    damaged = folder / "damaged" / Path(*address.parts[-3:])
    shutil.copytree(address, damaged)
    (weights,) = damaged.rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    uri = f"sqlite:///{folder}/mlflow.db"
    with runs.connected(uri) as client:
        experiment = runs.open_experiment(client, "requests", uri)
        for number, (where, key) in enumerate(
            [slots_student.student_address, second.student_address, (str(damaged), second.student.key)], 1
        ):
            run_id = runs.open_run(client, experiment, str(number), f"night {number}", runs.now_ms(), {})
            source = runs.log_model(client, run_id, where, ["text"], uri)
            runs.register(client, "requests", key, source, run_id, {"retort.artifact": where})
    made = Registry(uri, folder / "mlflow.db", (slots_student, second))
    made.promote("1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TRACKING_VARIABLE, uri)
        yield made


@pytest.fixture(scope="module")
def server(registry: Registry) -> Iterator[Server]:
    with serving(MODEL, "--poll", "0.2") as started:
        yield started


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def version_of(server: Server) -> str:
    return str(httpx.get(f"{server.url}/health", timeout=60).json()["model"]["version"])


def test_a_promotion_reaches_clients_without_a_restart_or_a_lost_request(server: Server, registry: Registry) -> None:
    registry.promote("1")
    wait_until(lambda: version_of(server) == "1")
    said = {version: registry.expected(version)[1] for version in ("1", "2")}
    texts = registry.expected("1")[0]
    assert said["1"] != said["2"]
    answers: list[httpx.Response] = []
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            answers.append(server.ask(*texts))

    asking = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in asking:
        thread.start()
    wait_until(lambda: len(answers) > 3)
    registry.promote("2")
    wait_until(lambda: answers[-1].json()["model"]["version"] == "2")
    time.sleep(0.2)
    is_over.set()
    for thread in asking:
        thread.join()
    assert {one.status_code for one in answers} == {200}
    for one in answers:
        assert_same(one.json()["predictions"], said[one.json()["model"]["version"]])
    assert {one.json()["model"]["version"] for one in answers} == {"1", "2"}
    wait_until(lambda: " serves now, in place of requests 1 (" in server.lines[-1])  # which another thread reads
    assert "requests 2 (" in server.lines[-1]


def assert_same(given: list[dict[str, Any]], expected: list[dict[str, Any]], *, within: float = 1e-5) -> None:
    """Equal labels; confidences differ by rounding, since batches differ."""
    assert [{**one, "confidence": 0} for one in given] == [{**one, "confidence": 0} for one in expected]
    for one, other in zip(given, expected, strict=True):
        assert one["confidence"] == pytest.approx(other["confidence"], abs=within)


@pytest.mark.slow
def test_all_ways_to_the_champion_answer_alike(
    server: Server, registry: Registry, command: Command, tmp_path: Path
) -> None:
    registry.promote("2")
    wait_until(lambda: version_of(server) == "2")
    texts, expected = registry.expected("2")
    assert_same(server.ask(*texts).json()["predictions"], expected)
    # A graph computes in fp32, a student in bf16 where the processor has it.
    assert_same(by_onnx(registry, texts, command, tmp_path / "exported"), expected, within=0.02)
    with mlflow_serving(registry.uri, tmp_path / "log") as url:
        body = {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}}
        assert_same(httpx.post(f"{url}/invocations", json=body, timeout=60).json()["predictions"], expected)
        refused = httpx.post(f"{url}/invocations", json={"dataframe_split": {"columns": ["text"], "data": [[""]]}})
        assert (refused.status_code, "is empty" in refused.text) == (400, True)


def by_onnx(registry: Registry, texts: list[str], command: Command, folder: Path) -> list[dict[str, Any]]:
    """The answers of the exported champion's graph in ONNX Runtime."""
    code, _, err = command("export", MODEL, str(folder), "--onnx")
    assert code == 0, err
    loaded = load_student(find_student(MODEL), "cpu")
    assert isinstance(loaded.student, Classifier)
    graph = Classifier(with_onnx(loaded.student.encoder, folder / "model.onnx"), loaded.problem)
    outcomes = graph.predict(texts, device=Device("cpu", "fp32", 1), total=len(texts))
    return [answer(loaded.problem, text, one) for text, one in zip(texts, outcomes, strict=True)]


@contextmanager
def mlflow_serving(uri: str, log: Path) -> Iterator[str]:
    """`mlflow models serve` of the champion."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = str(Path(sys.executable).parent)  # MLflow starts uvicorn by its name, as in an activated environment
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    options = ["-m", MODEL, "--env-manager", "local", "--port", str(port), "--workers", "1"]
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *options],
            env=environment,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    try:
        wait_until(lambda: is_up(f"http://127.0.0.1:{port}/ping"), 180)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_damaged_weights_and_a_registry_that_is_gone_leave_the_champion_serving(
    server: Server, registry: Registry
) -> None:
    """Must be the last test here."""

    def failure() -> dict[str, Any]:
        return httpx.get(f"{server.url}/health", timeout=60).json()["follows"]["failure"] or {}

    def metrics() -> list[str]:
        return httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()

    registry.promote("2")
    wait_until(lambda: version_of(server) == "2")
    registry.promote("3")
    wait_until(lambda: failure().get("version") == "3")
    assert failure()["kind"] == "version"
    assert version_of(server) == "2"
    assert server.ask("play the great film").status_code == 200
    assert 'retort_serve_follow_failing{kind="version"} 1.0' in metrics()
    start = "version 3 cannot be loaded, so requests 2 ("
    wait_until(lambda: any(line.startswith(start) for line in server.lines))
    (line,) = [line for line in server.lines if line.startswith(start)]
    assert "model.safetensors" in line
    registry.promote("2")
    wait_until(lambda: failure() == {})
    assert 'retort_serve_follow_failing{kind="version"} 0.0' in metrics()
    registry.file.rename(registry.file.with_suffix(".away"))
    wait_until(lambda: failure().get("kind") == "registry")
    assert version_of(server) == "2"
    registry.file.with_suffix(".away").rename(registry.file)
    wait_until(lambda: failure() == {})
    wait_until(lambda: server.lines[-1] == f"{MODEL} can be followed again")  # which another thread reads
