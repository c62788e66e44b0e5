"""`retort serve` of an alias: the student that it moves to takes over, and one that cannot be loaded does not."""

import asyncio
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from retort.errors import StoreUnavailable, TrackingUnavailable
from retort.serving.addresses import ModelName
from retort.serving.follower import Alias, Follower
from retort.serving.metrics import Metrics
from retort.serving.scorer import scorer
from retort.serving.served import Served
from retort.students.base import Prediction


class Student:
    """Answers with its version; each batch waits for `go`."""

    def __init__(self, version: str, *, waits: bool = False) -> None:
        self.name = ModelName(name="films", version=version, key=version * 64)
        self.problem = SimpleNamespace(render=lambda text, label: label)
        self.go, self.entered = threading.Event(), threading.Event()
        if not waits:
            self.go.set()

    def label(self, texts: Sequence[str]) -> Iterator[Prediction]:
        self.entered.set()
        assert self.go.wait(20)
        return iter([Prediction(f"by {self.name.version}", 1.0, None) for _ in texts])  # type: ignore[arg-type]

    def fault(self, text: str) -> str | None:
        return None


class Registry:
    """Where the alias points; an exception is raised. Loading a version in `broken` raises what it maps to."""

    def __init__(self) -> None:
        self.version: str | Exception = "1"
        self.broken: dict[str, Exception] = {}
        self.loads: list[str] = []

    def named(self, model: str, tracking: str | None) -> Any:
        if isinstance(self.version, Exception):
            raise self.version
        return SimpleNamespace(version=self.version, key=self.version * 64)

    def load(self, model: str, version: Any) -> Any:
        self.loads.append(version.version)
        if version.version in self.broken:
            raise self.broken[version.version]
        return Student(version.version)


def followed(registry: Registry, seconds: float = 0.0) -> tuple[Served, Follower, Metrics]:
    metrics = Metrics()
    served = Served(Student("1"), metrics)  # type: ignore[arg-type]
    alias = Alias("models:/films@champion", None, seconds)
    return served, Follower(served, alias, metrics, named=registry.named, load=registry.load), metrics


def value(metrics: Metrics, sample: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"retort_serve_{sample}", labels)


async def test_the_new_champion_takes_over_and_a_rollback_takes_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry()
    served, follower, metrics = followed(registry)
    async with served.running():
        for version in ("2", "2", "1"):
            registry.version = version
            await follower.check()
            (given,) = await served.lane.batcher.ask(["a text"])
            assert given["label"] == f"by {version}"
            assert value(metrics, "student_info", name="films", version=version, key=version * 64) == 1
    assert registry.loads == ["2", "1"], "a version that serves is not loaded again"
    assert value(metrics, "reloads_total", outcome="loaded") == 2
    assert value(metrics, "student_info", name="films", version="2", key="2" * 64) is None
    first, second = capsys.readouterr().err.splitlines()
    assert first == "films 2 (222222222222) serves now, in place of films 1 (111111111111)"
    assert second.startswith("films 1 ")


async def test_requests_under_way_are_answered_by_the_student_that_took_them() -> None:
    slow = Student("1", waits=True)
    served = Served(slow, Metrics())  # type: ignore[arg-type]
    async with served.running():
        old = asyncio.create_task(served.lane.batcher.ask(["first"]))
        await asyncio.to_thread(slow.entered.wait, 20)
        queued = asyncio.create_task(served.lane.batcher.ask(["second"]))
        await asyncio.sleep(0)
        await served.replace(Student("2"))  # type: ignore[arg-type]
        (new,) = await served.lane.batcher.ask(["third"])
        assert new["label"] == "by 2"
        assert not old.done()
        assert served.batch_seconds > 0, "the old student's batch counts too"
        slow.go.set()
        assert [(await one)[0]["label"] for one in (old, queued)] == ["by 1", "by 1"]
        gone = weakref.ref(slow)
        del slow, old, queued
        end = time.monotonic() + 20
        while served.batch_seconds > 0 or gone() is not None:
            assert time.monotonic() < end, "a student that has left takes no memory"
            await asyncio.sleep(0.01)


async def test_what_is_under_way_at_the_end_is_waited_for() -> None:
    slow = Student("1", waits=True)
    served = Served(slow, Metrics())  # type: ignore[arg-type]
    async with served.running():
        asked = asyncio.create_task(served.lane.batcher.ask(["first"]))
        await asyncio.to_thread(slow.entered.wait, 20)
        await served.replace(Student("2"))  # type: ignore[arg-type]
        threading.Timer(0.1, slow.go.set).start()
    assert (await asked)[0]["label"] == "by 1"


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("the bucket refuses"),
        MemoryError("no room"),
        RuntimeError("CUDA out of memory\nTry this"),
        OSError("a file is gone"),
        KeyError("weight"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_version_that_does_not_load_leaves_the_old_one(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry()
    registry.version, registry.broken = "2", {"2": error}
    served, follower, metrics = followed(registry)
    async with served.running():
        for _ in range(2):
            await follower.check()
            (given,) = await served.lane.batcher.ask(["a text"])
            assert given["label"] == "by 1"
        failure = follower.state.failure
        assert failure is not None
        assert (failure.kind, failure.version) == ("version", "2")
        assert value(metrics, "follow_failing", kind="version") == 1
        assert value(metrics, "reloads_total", outcome="failed") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("version 2 cannot be loaded, so films 1 (111111111111) goes on: ")
        assert "\n" not in line
        assert str(error).strip("'").splitlines()[0] in line
        registry.broken = {}
        await follower.check()
        assert served.lane.student.name.version == "2"
    assert follower.state.failure is None
    assert value(metrics, "follow_failing", kind="version") == 0
    assert "can be followed again" in capsys.readouterr().err


async def test_a_registry_that_does_not_tell_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry()
    served, follower, metrics = followed(registry)
    async with served.running():
        await follower.check()
        checked_at = follower.state.checked_at
        registry.version = TrackingUnavailable("the server cannot be reached")
        await follower.check()
        await follower.check()
        state = follower.state
        assert state.failure is not None
        assert (state.failure.kind, state.failure.version, state.checked_at) == ("registry", None, checked_at)
        assert value(metrics, "follow_failing", kind="registry") == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
        registry.version = "1"
        await follower.check()
        assert follower.state.failure is None
        assert registry.loads == []


async def test_a_version_that_failed_is_tried_again_after_pauses_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("retort.serving.follower.time", SimpleNamespace(monotonic=lambda: now))
    registry = Registry()
    registry.version, registry.broken = "2", {"2": OSError("gone"), "3": OSError("gone")}
    served, follower, _ = followed(registry, seconds=30)
    tried = []
    async with served.running():
        while now < 2000:
            before = len(registry.loads)
            await follower.check()
            if len(registry.loads) > before:
                tried.append(now)
            now += 10
        assert tried[:5] == [0, 30, 90, 210, 450]
        assert max(b - a for a, b in pairwise(tried)) == 300
        registry.version = "3"
        await follower.check()
    assert registry.loads[-1] == "3", "another version does not wait"


def client(served_by: Student, **options: Any) -> TestClient:
    return TestClient(scorer(served_by, **options))  # type: ignore[arg-type]


def test_health_tells_what_is_followed_and_a_pinned_student_follows_nothing() -> None:
    with client(Student("1"), alias=Alias("models:/films@champion", None, 1000)) as asking:
        follows = asking.get("/health").json()["follows"]
        assert follows == {"model": "models:/films@champion", "checked_at": None, "failure": None}
    with client(Student("1")) as asking:
        assert asking.get("/healthz").json() == {"model": Student("1").name.model_dump(), "follows": None}


def test_a_batch_without_end_is_told_first_as_not_ready_and_then_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("retort.serving.batcher.time", SimpleNamespace(monotonic=lambda: now))
    stuck, said = Student("1", waits=True), []
    with client(stuck, seconds=2) as asking:
        assert (asking.get("/readyz").status_code, asking.get("/livez").json()) == (200, {"status": "ok"})
        assert asking.post("/predict", json={"texts": ["a"]}).status_code == 504
        for seconds in (2, 2.1, 10, 10.1):
            now = seconds
            said.append((asking.get("/readyz").status_code, asking.get("/livez").status_code))
        assert asking.get("/livez").json()["detail"] == "a batch has been under way for 10 s"
        stuck.go.set()
        for _ in range(400):
            if asking.get("/readyz").status_code == 200:
                break
            threading.Event().wait(0.05)
        assert (asking.get("/readyz").status_code, asking.get("/livez").status_code) == (200, 200)
    assert said == [(200, 200), (503, 200), (503, 200), (503, 503)]


def test_metrics_count_what_was_asked_and_need_the_token() -> None:
    metrics, token = Metrics(), "a-token-that-nobody-guesses"
    with client(Student("1"), token=token, metrics=metrics) as asking:
        assert asking.get("/metrics").status_code == 401
        asking.headers["Authorization"] = f"Bearer {token}"
        assert asking.post("/predict", json={"texts": ["a", "b", "c"]}).status_code == 200
        assert asking.post("/predict", json={"texts": []}).status_code == 422
        assert asking.post("/predict", json={"texts": ["a" * 100_001]}).status_code == 413
        assert asking.get("/predict").status_code == 405
        for path in ("/no/such/1", "/no/such/2"):
            assert asking.get(path).status_code == 404
        answer = asking.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    for line in (
        'retort_serve_requests_total{path="/predict",status="200"} 1.0',
        'retort_serve_requests_total{path="/metrics",status="401"} 1.0',
        'retort_serve_requests_total{path="other",status="404"} 2.0',
        "retort_serve_rows_total 3.0",
        'retort_serve_errors_total{kind="invalid"} 1.0',
        'retort_serve_errors_total{kind="too_large"} 1.0',
        'retort_serve_errors_total{kind="not_found"} 3.0',
        'retort_serve_errors_total{kind="busy"} 0.0',
        'retort_serve_errors_total{kind="unauthorized"} 0.0',  # of a probe
        "retort_serve_request_seconds_count 4.0",
        "retort_serve_waiting_rows 0.0",
        f'retort_serve_student_info{{key="{"1" * 64}",name="films",version="1"}} 1.0',
    ):
        assert line in lines, line
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    assert "no/such" not in answer.text


def test_an_answer_that_fails_is_counted() -> None:
    broken, metrics = Student("1"), Metrics()
    broken.label = lambda texts: 1 / 0  # type: ignore[assignment, return-value]
    with TestClient(scorer(broken, metrics=metrics), raise_server_exceptions=False) as asking:  # type: ignore[arg-type]
        assert asking.post("/predict", json={"texts": ["a"]}).status_code == 500
    assert value(metrics, "errors_total", kind="internal") == 1
