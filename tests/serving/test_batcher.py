"""Requests that wait while the model is busy share a batch; errors reach only the requests they concern."""

import asyncio
import threading

import pytest

from retort.serving import batcher as module
from retort.serving.batcher import Batcher, Busy


class Model:
    """Converts texts to upper case; each batch waits for `go`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, texts: list[str]) -> list[str]:
        self.batches.append(texts)
        self.entered.release()
        assert self.go.acquire(timeout=20)
        if "bad" in texts:
            raise ValueError("bad")
        return [text.upper() for text in texts]

    async def busy(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


async def asked(batcher: Batcher[str], *requests: list[str]) -> list["asyncio.Task[list[str]]"]:
    """Queue the requests in this order."""
    tasks = [asyncio.create_task(batcher.ask(texts)) for texts in requests]
    await asyncio.sleep(0)
    return tasks


async def test_requests_that_wait_share_the_next_batch() -> None:
    model = Model()
    batcher = Batcher(model)
    async with batcher.running():
        (first,) = await asked(batcher, ["a"])
        await model.busy()
        waiting = await asked(batcher, ["b", "c"], ["d"], ["e"])
        model.go.release(2)
        assert await asyncio.gather(first, *waiting) == [["A"], ["B", "C"], ["D"], ["E"]]
    assert model.batches == [["a"], ["b", "c", "d", "e"]]


async def test_a_batch_is_bounded_and_a_request_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_TEXTS", 3)
    model = Model()
    batcher = Batcher(model)
    async with batcher.running():
        (first,) = await asked(batcher, ["a"])
        await model.busy()
        waiting = await asked(batcher, ["b", "c"], ["d", "e"], list("fghij"), ["k"])
        model.go.release(5)
        answers = await asyncio.gather(first, *waiting)
    assert [len(answer) for answer in answers] == [1, 2, 2, 5, 1]
    assert model.batches == [["a"], ["b", "c"], ["d", "e"], list("fghij"), ["k"]]


async def test_a_fault_reaches_its_batch_only_and_who_has_gone_costs_nothing() -> None:
    model = Model()
    batcher = Batcher(model)
    async with batcher.running():
        (bad,) = await asked(batcher, ["bad"])
        await model.busy()
        gone, stays = await asked(batcher, ["gone"], ["stays"])
        gone.cancel()
        await asyncio.sleep(0)
        model.go.release(2)
        with pytest.raises(ValueError, match="bad"):
            await bad
        assert await stays == ["STAYS"]
    assert model.batches == [["bad"], ["stays"]]


async def test_too_much_waiting_is_refused_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_TEXTS", 2)
    model = Model()
    batcher = Batcher(model)
    async with batcher.running():
        (first,) = await asked(batcher, ["a"])
        await model.busy()
        waiting = await asked(batcher, ["b", "c"])
        with pytest.raises(Busy, match="2 texts are waiting"):
            await batcher.ask(["d"])
        model.go.release(3)
        await asyncio.gather(first, *waiting)
        assert await batcher.ask(["e"]) == ["E"]


async def test_the_event_loop_runs_while_the_model_works() -> None:
    model = Model()
    batcher = Batcher(model)
    async with batcher.running():
        (first,) = await asked(batcher, ["a"])
        await model.busy()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not first.done()
        model.go.release()
        assert await first == ["A"]
