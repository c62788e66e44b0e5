"""The student that answers now. Another can take its place while requests are under way."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from retort.serving.answers import PredictionRecord, answer
from retort.serving.batcher import Batcher
from retort.serving.metrics import Metrics
from retort.serving.student import LoadedStudent


class Lane:
    """A loaded student and the texts that wait for it."""

    def __init__(self, student: LoadedStudent) -> None:
        self.student = student
        self.batcher: Batcher[PredictionRecord] = Batcher(self._answers)
        self._open = AsyncExitStack()

    async def open(self) -> None:
        await self._open.enter_async_context(self.batcher.running())

    async def close(self) -> None:
        await self._open.aclose()

    def _answers(self, texts: list[str]) -> list[PredictionRecord]:
        student = self.student
        return [answer(student.problem, text, one) for text, one in zip(texts, student.label(texts), strict=True)]


class Served:
    """Requests take `lane` once and stay with it, so one and the same student checks, answers and signs each."""

    def __init__(self, student: LoadedStudent, metrics: Metrics) -> None:
        self.lane = Lane(student)
        self._before: Lane | None = None
        self._metrics = metrics

    @property
    def batch_seconds(self) -> float:
        """How long the oldest batch has been under way; 0 if there is none."""
        lanes = [self.lane, *([self._before] if self._before else [])]
        return max(lane.batcher.batch_seconds for lane in lanes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.lane.open()
        self._metrics.serves(self.lane.student.name)
        try:
            yield
        finally:
            await self.lane.close()

    async def replace(self, student: LoadedStudent) -> None:
        """Let `student` answer from now on. Returns when all that the one before was asked is answered."""
        lane = Lane(student)
        await lane.open()
        self._before, self.lane = self.lane, lane
        self._metrics.serves(student.name)
        try:
            await self._before.batcher.drained()
        finally:
            await self._before.close()
            self._before = None
