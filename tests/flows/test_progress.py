"""Progress is shown while a stage is made, and never in its way."""

import asyncio
import io
import re
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from any_step import AnyStep
from tasks import progress

STEP = AnyStep(name="stage1/student-0", made="students")


async def test_progress_is_published_with_its_last_value(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[float] = []

    async def create(percent: float, **_: Any) -> Any:
        published.append(percent)
        return uuid4()

    async def update(_: Any, progress: float) -> None:
        published.append(progress)

    monkeypatch.setattr(progress, "acreate_progress_artifact", create)
    monkeypatch.setattr(progress, "aupdate_progress_artifact", update)
    monkeypatch.setattr(progress, "_PUBLISH_SECONDS", 0.01)
    async with progress.progress_of(STEP) as on_progress:
        on_progress(1, 4, "loss 1.0")
        await asyncio.sleep(0.1)
        on_progress(4, 4, "loss 0.5")
    assert published[0] == 25.0
    assert published[-1] == 100.0


async def test_a_server_that_is_away_costs_no_stage_its_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr(progress, "acreate_progress_artifact", refuse)
    monkeypatch.setattr(progress, "_PUBLISH_SECONDS", 0.01)
    async with progress.progress_of(STEP) as on_progress:
        on_progress(0, 0, "rows")
        await asyncio.sleep(0.1)
    assert "no server" in caplog.text


async def test_a_stage_that_is_over_in_a_moment_publishes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[object] = []

    async def publish(*args: object, **kwargs: object) -> None:
        published.append(args)

    monkeypatch.setattr(progress, "acreate_progress_artifact", publish)
    async with progress.progress_of(STEP) as on_progress:
        on_progress(1, 1, "rows")
    assert published == []


async def test_without_a_terminal_a_long_stage_tells_how_far_it_is_and_then_that_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = Console(file=io.StringIO(), width=80)
    token = progress.TERMINAL.set(Bars(console=console))
    monkeypatch.setattr(progress, "_TELL_SECONDS", 0.2)
    try:
        async with progress.progress_of(STEP) as on_progress:
            on_progress(0, 1, "starting the teacher")
            await asyncio.sleep(0.3)
            on_progress(1, 4, "12 completions/s")
            await asyncio.sleep(0.2)
    finally:
        progress.TERMINAL.reset(token)
    first, *_, last = lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert re.fullmatch(r"stage1/student-0: 0% after \d s, starting the teacher", first)
    assert re.search(r"stage1/student-0: 25% after \d s, 12 completions/s", "\n".join(lines))
    assert re.fullmatch(r"stage1/student-0: made in \d s", last)
