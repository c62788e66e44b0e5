"""The HTTP scorer: POST /predict, GET /health and /healthz. Errors are `{"detail": one sentence}`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from retort.errors import DataError
from retort.problems.chat import Chat, conversation_text
from retort.serving.addresses import ModelName
from retort.serving.answers import PredictionRecord, answer
from retort.serving.batcher import Batcher, Busy
from retort.serving.limits import Guard
from retort.serving.student import LoadedStudent
from retort.serving.texts import MOST_CHARACTERS, text_fault

MOST_TEXTS = 256
"""Most texts in one request."""


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


def scorer(student: LoadedStudent, *, token: str | None = None, seconds: float = 120) -> FastAPI:
    """The HTTP application that serves a loaded student.

    Args:
        token: What clients must send as a bearer token, except to ask for its health.
        seconds: How long an answer may take.
    """
    batcher: Batcher[PredictionRecord] = Batcher(lambda texts: _answers(student, texts))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    app = FastAPI(title="Retort", description=str(student.name), lifespan=lifespan)
    app.add_middleware(Guard, token=token, seconds=seconds)
    app.add_exception_handler(RequestValidationError, _one_sentence)

    @app.get("/healthz")
    @app.get("/health")
    async def health() -> Health:
        return Health(model=student.name)

    @app.post("/predict")
    async def predict(body: Texts) -> Predictions:
        _check_number(body.texts)
        texts = [_as_text(given, index, student) for index, given in enumerate(body.texts)]
        _check(texts, student)
        try:
            return Predictions(model=student.name, predictions=await batcher.ask(texts))
        except Busy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None

    return app


def _answers(student: LoadedStudent, texts: list[str]) -> list[PredictionRecord]:
    predictions = student.label(texts)
    return [answer(student.problem, text, one) for text, one in zip(texts, predictions, strict=True)]


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
