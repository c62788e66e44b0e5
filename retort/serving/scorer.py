"""The HTTP scorer: POST /predict; GET /health, /livez, /readyz and /metrics. Errors are `{"detail": one sentence}`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict

from retort.errors import DataError
from retort.problems.chat import Chat, conversation_text
from retort.serving.addresses import ModelName
from retort.serving.batcher import Busy
from retort.serving.follower import Alias, Follower, Following
from retort.serving.limits import Guard
from retort.serving.metrics import Measured, Metrics
from retort.serving.served import Served
from retort.serving.student import LoadedStudent
from retort.serving.texts import MOST_CHARACTERS, text_fault

MOST_TEXTS = 256
"""Most texts in one request."""
STUCK_TIMES = 5
"""A batch that has taken so many times as long as an answer may take will not end by itself."""


class Texts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str | list[dict[str, Any]]]
    """1 to 256 texts; for chat, conversations: lists of turns."""


class Predictions(BaseModel):
    model: ModelName
    predictions: list[dict[str, Any]]
    """One per text, in order, as `retort.serving.answers.answer` makes them."""


class Health(BaseModel):
    model: ModelName
    """The student that answers now."""
    follows: Following | None
    """The alias whose moves it follows; null for a MODEL that stays what it is."""


def scorer(
    student: LoadedStudent,
    *,
    token: str | None = None,
    seconds: float = 120,
    alias: Alias | None = None,
    metrics: Metrics | None = None,
    metrics_port: int | None = None,
) -> FastAPI:
    """The HTTP application that serves a loaded student.

    Args:
        token: What clients must send as a bearer token, except to ask for its health.
        seconds: How long an answer may take.
        alias: Where to look for the student's successors.
        metrics: Where to count; the caller may count in it too.
        metrics_port: The port on which it is watched without a token, and does nothing else.
    """
    metrics = metrics or Metrics()
    served = Served(student, metrics)
    metrics.waiting.set_function(lambda: served.lane.batcher.num_waiting)
    follower = Follower(served, alias, metrics) if alias else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with served.running(), _following(follower):
            yield

    app = FastAPI(title="Retort", description="Labels texts with a distilled student.", lifespan=lifespan)
    app.add_middleware(Guard, token=token, seconds=seconds, metrics_port=metrics_port)
    app.add_middleware(Measured, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _one_sentence)
    _add_probes(app, served, follower, metrics, seconds)

    @app.post("/predict")
    async def predict(body: Texts) -> Predictions:
        lane = served.lane
        _check_number(body.texts)
        texts = [_as_text(given, index, lane.student) for index, given in enumerate(body.texts)]
        _check(texts, lane.student)
        try:
            predictions = await lane.batcher.ask(texts)
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
        metrics.rows.inc(len(texts))
        return Predictions(model=lane.student.name, predictions=predictions)

    return app


@asynccontextmanager
async def _following(follower: Follower | None) -> AsyncIterator[None]:
    if follower is None:
        yield
        return
    task = asyncio.create_task(follower.follow())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _add_probes(app: FastAPI, served: Served, follower: Follower | None, metrics: Metrics, seconds: float) -> None:
    """What watches the scorer: people, an orchestrator, Prometheus."""

    @app.get("/healthz")
    @app.get("/health")
    async def health() -> Health:
        return Health(model=served.lane.student.name, follows=follower.state if follower else None)

    @app.get("/livez")
    async def lives() -> dict[str, str]:
        """503 if only a restart can help."""
        return _ok_unless_a_batch_takes(served, STUCK_TIMES * seconds)

    @app.get("/readyz")
    async def is_ready() -> dict[str, str]:
        """503 while requests would only run into their time limit."""
        return _ok_unless_a_batch_takes(served, seconds)

    @app.get("/metrics")
    async def measures() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _ok_unless_a_batch_takes(served: Served, seconds: float) -> dict[str, str]:
    if (taken := served.batch_seconds) > seconds:
        raise HTTPException(503, f"a batch has been under way for {taken:.0f} s")
    return {"status": "ok"}


def _as_text(given: str | list[dict[str, Any]], index: int, student: LoadedStudent) -> str:
    """Raises HTTPException for turns where a text is needed, or turns that are no conversation."""
    if isinstance(student.problem, Chat):
        try:
            return conversation_text(given)
        except DataError as error:
            raise HTTPException(422, f"texts[{index}]: {error}") from None
    if not isinstance(given, str):
        raise HTTPException(422, f"texts[{index}] is a list of turns, and this student reads a text")
    return given


def _check_number(texts: Sequence[object]) -> None:
    """Raises HTTPException: 422 for none, 413 for too many."""
    if not texts:
        raise HTTPException(422, "'texts' is empty; give at least one text")
    if len(texts) > MOST_TEXTS:
        raise HTTPException(413, f"'texts' holds {len(texts):,} texts; at most {MOST_TEXTS} are taken at once")


def _check(texts: list[str], student: LoadedStudent) -> None:
    """Raises HTTPException: 413 for too long texts, 422 for texts that cannot be labeled."""
    for index, text in enumerate(texts):
        if fault := text_fault(text):
            raise HTTPException(413 if len(text) > MOST_CHARACTERS else 422, f"texts[{index}] {fault[1]}")
        if told := student.fault(text):
            raise HTTPException(422, f"texts[{index}] {told}")


async def _one_sentence(_: Request, error: Exception) -> JSONResponse:
    """The first validation error and its location, without the text that was sent."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"][:2]  # what follows names a type of Python
    where = ".".join(place) or "the body"
    wanted = 'send {"texts": ["...", ...]}'
    return JSONResponse({"detail": f"{where}: {first['msg']}; {wanted}"}, 422)
