"""The student that answers now. Another can take its place while requests are under way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from retort.serving.answers import PredictionRecord, answer
from retort.serving.batcher import Batcher
from retort.serving.metrics import Metrics
from retort.serving.student import LoadedStudent


class Lane:
    """A loaded student and the texts that wait for it."""

    def __init__(self, student: LoadedStudent) -> None:
        self.student = student
        # Not a method of this object, which would keep itself, and so a student that has left, in memory.
        self.batcher: Batcher[PredictionRecord] = Batcher(partial(_answers, student))
        self._open = AsyncExitStack()

    async def open(self) -> None:
        await self._open.enter_async_context(self.batcher.running())

    async def close(self) -> None:
        await self._open.aclose()


def _answers(student: LoadedStudent, texts: list[str]) -> list[PredictionRecord]:
    return [answer(student.problem, text, one) for text, one in zip(texts, student.label(texts), strict=True)]


class Served:
    """Requests take `lane` once and stay with it, so one and the same student checks, answers and signs each."""

    def __init__(self, student: LoadedStudent, metrics: Metrics) -> None:
        self.lane = Lane(student)
        self._leaving: dict[Lane, asyncio.Task[None]] = {}
        self._metrics = metrics

    @property
    def batch_seconds(self) -> float:
        """How long the oldest batch has been under way, also of a student that leaves; 0 if there is none."""
        return max(lane.batcher.batch_seconds for lane in (self.lane, *self._leaving))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.lane.open()
        self._metrics.serves(self.lane.student.name)
        try:
            yield
        finally:
            await asyncio.gather(self.lane.close(), *self._leaving.values())

    async def replace(self, student: LoadedStudent) -> None:
        """Let `student` answer from now on. The one before leaves when all that it was asked is answered."""
        lane = Lane(student)
        await lane.open()
        before, self.lane = self.lane, lane
        self._leaving[before] = asyncio.create_task(self._leave(before))
        self._metrics.serves(student.name)

    async def _leave(self, lane: Lane) -> None:
        try:
            await lane.batcher.drained()
        finally:
            await lane.close()
            del self._leaving[lane]
