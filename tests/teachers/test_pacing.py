"""How long a run waits for a server, and limits that several processes share."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from endpoint_server import EndpointServer, all_answered_once, config, requests, texts
from retort.errors import StoreUnavailable, TeacherUnavailable
from retort.store import Store
from retort.teachers.endpoint.client import open_endpoint
from retort.teachers.endpoint.sharing import SharedLimit
from retort.teachers.requests import Completion, CompletionRequest, Rejection


def asked(server: EndpointServer, number: int, **more: object) -> tuple[list[Completion | Rejection], dict[str, float]]:
    with open_endpoint(config(server, **more), backoff_seconds=0.001) as client:
        outcomes = list(client.ask(iter(requests(number))))
        return outcomes, client.facts


def test_a_run_waits_no_longer_than_it_may(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(429, "slow down", Retry_After="0.2"))
    start = time.monotonic()
    with pytest.raises(
        TeacherUnavailable, match=r"HTTP 429: slow down; after \d+ s of waiting in all, 0 s more would p"
    ):
        asked(endpoint_server, 5, concurrency=1, run_wait_seconds=0.7)
    assert time.monotonic() - start > 0.4


def test_waiting_counts_only_while_nothing_is_answered(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(500, "hm", Retry_After="0.5"), times=6, item="row 00000")
    endpoint_server.delay_seconds = 0.01
    outcomes, facts = asked(endpoint_server, 300, concurrency=2, run_wait_seconds=2.0)
    all_answered_once(endpoint_server, outcomes, 300)
    assert facts["retries"] == 6
    assert facts["waited_seconds"] < 2.0


def test_several_requests_that_wait_at_once_wait_once(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(429, "slow down", Retry_After="0.3"), times=8)
    outcomes, facts = asked(endpoint_server, 8, concurrency=8)
    all_answered_once(endpoint_server, outcomes, 8)
    assert facts["retries"] == 8
    assert 0.25 < facts["waited_seconds"] < 8 * 0.3


def test_a_row_waits_no_longer_than_it_may(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(500, "hm", Retry_After="0.2"), item="row 00000")
    outcomes, _ = asked(endpoint_server, 300, concurrency=2, retries=100, row_wait_seconds=0.5)
    (refusal,) = [outcome for outcome in outcomes if isinstance(outcome, Rejection)]
    assert refusal.detail == (
        "The server failed in 3 tries, and the next one would pass teacher.row_wait_seconds = 0.5: "
        "it answered HTTP 500: hm"
    )


def test_a_row_that_is_always_too_much_is_set_aside_alone(endpoint_server: EndpointServer) -> None:
    endpoint_server.fail(endpoint_server.error(429, "no", Retry_After="0.1"), item="row 00000")
    outcomes, _ = asked(endpoint_server, 40, concurrency=2, row_wait_seconds=0.35)
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Rejection)] == ["unavailable"]


# Shared limits


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def waiting(stop: threading.Event) -> Iterator[CompletionRequest]:
    """Enough requests, until told to stop."""
    for request in requests(100_000):
        if stop.is_set():
            return
        yield request


def test_two_processes_share_a_limit(
    endpoint_server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.teachers.endpoint.sharing.REFRESH_SECONDS", 0.2)
    teacher, stop = config(endpoint_server, requests_per_minute=1200, concurrency=4), threading.Event()

    def work(_: int) -> int:
        with open_endpoint(teacher, Store(str(tmp_path))) as client:
            return len(texts(list(client.ask(waiting(stop)))))

    with ThreadPoolExecutor() as pool:
        first = pool.submit(work, 0)
        time.sleep(0.5)
        second = pool.submit(work, 1)
        time.sleep(1.0)
        before, start = sum(endpoint_server.answered.values()), time.monotonic()
        time.sleep(2.0)
        rate = (sum(endpoint_server.answered.values()) - before) / (time.monotonic() - start)
        stop.set()
        assert min(first.result(), second.result()) > 0
    # A busy machine may be slower, or send in one second what two may have.
    assert 0 < rate < 38, "20 a second of both, and 40 if they did not share"
    assert not [path for path in (tmp_path / "ledger" / "limits").rglob("*") if path.is_file()]


def test_who_shares_a_limit(tmp_path: Path) -> None:
    store, counts = Store(str(tmp_path)), list[int]()
    teacher = config("http://a/v1", requests_per_minute=60)
    others = [config("http://b/v1"), config("http://a/v1", body={"top_k": 1}, api_key="${K}")]
    with (
        SharedLimit(others[0], store, lambda _: None, 1.0),
        SharedLimit(others[1], store, lambda _: None, 1.0),
        SharedLimit(teacher, store, counts.append, 1.0),
    ):
        assert counts[0] == 2, "the one with the same address and model, whatever else it sends"
    with SharedLimit(teacher, store, counts.append, 1.0):
        assert counts[-1] == 1


def test_one_that_was_killed_counts_for_a_while_only(tmp_path: Path) -> None:
    store, counts = Store(str(tmp_path)), list[int]()
    teacher = config("http://a/v1", requests_per_minute=60)
    killed = SharedLimit(teacher, store, lambda _: None, 0.2)
    store.place.write(killed._path, b"")
    with SharedLimit(teacher, store, counts.append, 0.2):
        assert counts[0] == 2
        wait_until(lambda: counts[-1] == 1)


def test_a_store_that_is_gone_for_a_moment_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, counts = Store(str(tmp_path)), list[int]()
    with SharedLimit(config("http://a/v1"), store, counts.append, 0.02) as shared:
        failures: SimpleQueue[None] = SimpleQueue()

        def gone(*_: object) -> None:
            failures.put(None)
            raise StoreUnavailable("gone")

        monkeypatch.setattr(shared._place, "write", gone)
        wait_until(lambda: failures.qsize() > 3)
        monkeypatch.undo()
        known = len(counts)
        wait_until(lambda: len(counts) > known)
