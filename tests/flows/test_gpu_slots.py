"""Which step gets which GPU, on a machine that only seems to have some."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from any_step import AnyStep
from flows import run as flow
from retort.artifacts.students import HISTORY, TrainedStudent
from retort.config import ExecutionConfig, MckdConfig, StoreConfig
from retort.errors import ConfigError, StageFailed
from retort.models import gpus
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.checks import resolve
from retort.recipes.mckd.steps import ingest, train_student
from retort.records.base import ArtifactRef
from retort.steps.base import STUDENT, TRAINING, Resources, Step
from retort.store.opening import open_store
from tasks import gpu_locks, steps
from tasks.gpu_locks import Place, give_back, holder, lock_of, take
from tasks.gpu_slots import SHARED_GPUS, gpus_for, num_places, num_wanted

AUTO = ExecutionConfig()
UUIDS = ["GPU-aa11", "GPU-bb22", "GPU-cc33"]
HOLDER = """
import sys, time
from pathlib import Path
from tasks import gpu_locks
gpu_locks.FOLDER = Path(sys.argv[1])
print(gpu_locks.take(gpu_locks.lock_of(sys.argv[2]), 1), flush=True)
time.sleep(60)
"""


ENGINE = AnyStep(name="engine", made="pseudolabels", wants=Resources(gpu="all", work_pool="teacher"))


def student(number: int = 0, wants: Resources = STUDENT) -> Step:
    return AnyStep(name=f"student-{number}", made="students", wants=wants, values={"seed": number})


def several(number: int, **fields: int) -> ExecutionConfig:
    return ExecutionConfig(gpus_per_student=number, **fields)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_locks, "FOLDER", tmp_path / "locks")
    monkeypatch.delenv(SHARED_GPUS, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_installed", lambda: UUIDS[:2])


@pytest.mark.parametrize(
    ("chosen", "visible", "uuids"),
    [
        (None, ["0", "1", "2"], UUIDS),
        ("", [], []),
        ("1", ["1"], ["GPU-bb22"]),
        ("2, 0", ["2", "0"], ["GPU-cc33", "GPU-aa11"]),
        ("GPU-cc33,GPU-aa", ["GPU-cc33", "GPU-aa"], ["GPU-cc33", "GPU-aa11"]),
        ("1,GPU-bb22,1,0", ["1", "0"], ["GPU-bb22", "GPU-aa11"]),
        ("0,-1,1", ["0"], ["GPU-aa11"]),
        ("0,3,1", ["0"], ["GPU-aa11"]),
        ("MIG-4f", ["MIG-4f"], ["MIG-4f"]),
    ],
)
def test_the_users_choice_of_gpus_is_respected(
    chosen: str | None, visible: list[str], uuids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "_installed", lambda: UUIDS)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpus.visible_gpus() == visible
    assert list(map(gpus.identity, visible)) == uuids


class Watch:
    """Steps that hold their GPUs for a moment, and how many there were at once."""

    def __init__(self, execution: ExecutionConfig = AUTO, shares: int = 1) -> None:
        self.execution, self.shares = execution, shares
        self.held: list[str] = []
        self.most, self.begun = 0, list[str]()

    async def work(self, step: Step) -> None:
        async with gpus_for(step, self.execution) as place:
            mine = place.environment["CUDA_VISIBLE_DEVICES"].split(",")
            self.begun.append(step.name)
            self.held += mine
            self.most = max(self.most, len(self.held))
            assert all(self.held.count(gpu) <= (1 if step is ENGINE else self.shares) for gpu in mine), "double booking"
            await asyncio.sleep(0.1)
            for gpu in mine:
                self.held.remove(gpu)


async def test_each_student_gets_a_gpu_of_its_own_and_an_engine_all() -> None:
    watch = Watch()
    wanted = [student(0), student(1), ENGINE, student(2), student(3)]
    await asyncio.wait_for(asyncio.gather(*map(watch.work, wanted)), 30)
    assert watch.most == 2
    assert sorted(watch.begun) == sorted(step.name for step in wanted)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(("parallel", "most"), [(1, 2), (2, 2), (3, 4), (4, 4), (6, 6)])
async def test_more_students_than_gpus_share_them_evenly(parallel: int, most: int) -> None:
    watch = Watch(ExecutionConfig(parallel_students=parallel), shares=-(-parallel // 2))
    await asyncio.wait_for(asyncio.gather(*(watch.work(student(n)) for n in range(8)), watch.work(ENGINE)), 30)
    assert watch.most == most


@pytest.mark.parametrize(("count", "machine"), [(2, 2), (2, 4), (2, 5), (3, 4), (4, 4)])
async def test_a_training_gets_all_its_gpus_at_once(count: int, machine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_installed", lambda: [f"GPU-{number}" for number in range(machine)])
    watch = Watch(several(count))
    wanted = [*(student(number, TRAINING) for number in range(4)), ENGINE, *map(student, range(4, 8))]
    await asyncio.wait_for(asyncio.gather(*map(watch.work, wanted)), 30)
    assert sorted(watch.begun) == sorted(step.name for step in wanted)
    assert watch.most >= count


@pytest.mark.parametrize(
    ("siblings", "execution", "wanted"),
    [
        (1, {}, 2),
        (2, {}, 1),
        (3, {}, 1),
        (2, {"parallel_students": 1}, 2),
        (2, {"parallel_students": 2}, 1),
        (2, {"student_pool": "far"}, 2),
    ],
)
async def test_students_side_by_side_share_the_gpus_first(
    siblings: int, execution: dict[str, Any], wanted: int
) -> None:
    two = ExecutionConfig.model_validate({"gpus_per_student": 2, **execution})
    step = student(0, TRAINING).model_copy(update={"siblings": siblings})
    async with gpus_for(step, two) as place:
        assert len(place.each()) == num_wanted(step, two) == wanted


async def test_trainings_on_several_gpus_share_them_if_asked_to() -> None:
    watch = Watch(several(2, parallel_students=3), shares=3)
    await asyncio.wait_for(asyncio.gather(*(watch.work(student(n, TRAINING)) for n in range(3))), 30)
    assert watch.most == 6


@pytest.mark.parametrize(("execution", "reason"), [({}, "has 2 GPUs to"), ({"device": "cpu"}, "leave out either")])
async def test_more_gpus_than_there_are_is_an_error(execution: dict[str, Any], reason: str) -> None:
    few = ExecutionConfig.model_validate({**execution, "gpus_per_student": 3})
    with pytest.raises(ConfigError, match=rf"^execution\.gpus_per_student = 3: .*{reason}"):
        async with gpus_for(student(0, TRAINING), few):
            pass
    async with gpus_for(student(), few) as place:
        assert len(place.locks) == (0 if execution else 1), "only trainings want several"


@pytest.mark.parametrize("chosen", ["GPU-bb22", "1"])
async def test_two_names_of_a_gpu_are_one_gpu(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    async with gpus_for(student(), AUTO) as place:
        assert place.environment == {"CUDA_VISIBLE_DEVICES": chosen}
        assert holder(lock_of("GPU-bb22")) == os.getpid()
    assert holder(lock_of("GPU-bb22")) is None


async def test_indices_mean_what_the_driver_lists() -> None:
    async with gpus_for(student(), AUTO) as place:
        assert place.environment == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


async def test_without_gpus_or_without_need_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = AnyStep(name="merge", made="pseudolabels")
    cpu = ExecutionConfig(device="cpu")
    async with gpus_for(ENGINE, AUTO), gpus_for(at_work, AUTO) as first, gpus_for(student(), cpu) as second:
        assert (first.locks, first.environment, second.locks) == ((), {}, ())
    assert (num_places(AUTO), num_places(cpu)) == (2, 0)
    assert num_places(ExecutionConfig(parallel_students=5)) == 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert num_places(AUTO) == 0
    async with gpus_for(ENGINE, AUTO) as place:
        assert place.environment == {}


@pytest.fixture
def other_run(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the first GPU."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "locks"), UUIDS[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


async def test_two_runs_on_a_machine_share_no_gpu_and_a_killed_one_gives_it_back(
    other_run: subprocess.Popen[str],
) -> None:
    assert holder(lock_of(UUIDS[0])) == other_run.pid
    async with gpus_for(student(), AUTO) as place:
        assert place.environment["CUDA_VISIBLE_DEVICES"] == "1"
        waiting = asyncio.create_task(Watch().work(ENGINE))
        await asyncio.sleep(0.2)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    other_run.send_signal(signal.SIGKILL)
    await asyncio.wait_for(waiting, 10)
    assert holder(lock_of(UUIDS[0])) is None


async def test_whoever_waits_long_is_told_for_whom(
    other_run: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.gpu_slots._SILENT_SECONDS", 0.1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    waiting = asyncio.create_task(Watch().work(student()))
    await asyncio.sleep(0.5)
    waiting.cancel()
    assert f"waiting for GPU 0 (process {other_run.pid})" in caplog.text
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_canceled_or_failed_wait_leaves_nothing_held(other_run: subprocess.Popen[str]) -> None:
    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Watch().work(ENGINE), 0.2)

    asyncio.run(give_up())
    assert [holder(lock_of(uuid)) for uuid in UUIDS[:2]] == [other_run.pid, None]


def test_no_file_of_somebody_else_is_written_to(tmp_path: Path) -> None:
    mine, lock = tmp_path / "mine.txt", lock_of(UUIDS[0])
    lock.parent.mkdir()
    mine.write_text("precious")
    for link in (os.link, os.symlink):
        link(mine, lock)
        with pytest.raises(StageFailed, match=r"GPU-aa11\.lock: "):
            take(lock, 1)
        lock.unlink()
    assert mine.read_text() == "precious"
    assert take(lock, 1)
    give_back(lock)


@pytest.mark.parametrize(
    ("execution", "students", "others"),
    [
        ({}, 2, os.cpu_count() or 1),
        ({"parallel_students": 1}, 1, os.cpu_count() or 1),
        ({"parallel_students": 4}, 4, os.cpu_count() or 1),
        ({"gpus_per_student": 2}, 1, os.cpu_count() or 1),
        ({"gpus_per_student": 2, "parallel_students": 3}, 3, os.cpu_count() or 1),
    ],
)
def test_a_run_fills_the_gpus_and_the_cores(
    tiny_slots: dict[str, Any],
    execution: dict[str, Any],
    students: int,
    others: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = MckdConfig.model_validate({**tiny_slots, "execution": execution})
    assert most_at_once(config, monkeypatch, [student(number, TRAINING) for number in range(6)]) == students
    merges = [
        AnyStep(name=f"merge-{number}", made="pseudolabels", values={"of": number}) for number in range(others + 3)
    ]
    assert most_at_once(config, monkeypatch, merges) == others


@pytest.mark.parametrize(
    ("parallel", "siblings", "most"), [(None, 1, 1), (None, 2, 2), (None, 4, 4), (None, 8, 4), (3, 1, 3)]
)
def test_without_gpus_students_share_the_cores_by_their_threads(
    tiny_slots: dict[str, Any], parallel: int | None, siblings: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    config = MckdConfig.model_validate({**tiny_slots, "execution": {"parallel_students": parallel, "device": "cpu"}})
    students = [student(number).model_copy(update={"siblings": siblings}) for number in range(6)]
    assert most_at_once(config, monkeypatch, students) == most


async def test_an_engine_starts_on_gpus_that_no_waiting_child_keeps(
    tiny_slots: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Place | None]] = []

    async def end(place: Place) -> None:
        assert holder(place.locks[0]) == os.getpid(), "nobody else gets it meanwhile"
        done.append(("end", place))

    async def make(*_: Any, place: Place, **__: Any) -> None:
        done.append(("make", place))

    monkeypatch.setattr(steps, "end_waiting", end)
    monkeypatch.setattr(steps, "in_child", make)
    settings = MckdConfig.model_validate({**tiny_slots, "execution": {}}).run_settings
    for step in (student(), ENGINE, AnyStep(name="merge", made="pseudolabels")):
        await steps._here(settings, step)
    gpus = [place and place.environment.get("CUDA_VISIBLE_DEVICES") for _, place in done]
    assert [name for name, _ in done] == ["make", "end", "make", "make"]
    assert gpus == ["0", "0,1", "0,1", None]


async def test_each_gpu_of_a_training_has_a_process(
    tiny_slots: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[Any, Place]] = []

    async def in_child(function: Any, *_: Any, place: Place, **options: Any) -> None:
        done.append((function, place))
        assert ("on_progress" in options) == function.keywords["rank"].is_first

    monkeypatch.setattr(steps, "in_child", in_child)
    settings = MckdConfig.model_validate({**tiny_slots, "execution": {"gpus_per_student": 2}}).run_settings
    await steps._here(settings, student(0, TRAINING))
    assert [function.func for function, _ in done] == [steps.make, steps.assist]
    ranks = [function.keywords["rank"] for function, _ in done]
    assert [(rank.number, rank.size, rank.gpus) for rank in ranks] == [(0, 2, ("0", "1")), (1, 2, ("0", "1"))]
    assert [(place.locks, place.environment["CUDA_VISIBLE_DEVICES"]) for _, place in done] == [
        ((lock_of(uuid),), number) for uuid, number in zip(UUIDS, "01", strict=False)
    ]


async def test_two_processes_make_one_student(
    tiny_slots: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, where there is no GPU behind the two numbers."""
    monkeypatch.setattr(steps, "progress_of", lambda _: contextlib.nullcontext(lambda *_: None))
    values = {**tiny_slots, "store": {"root": str(tmp_path / "store")}, "execution": {"gpus_per_student": 2}}
    config = resolve(MckdConfig.model_validate(values))
    labeled = made_or_found(config, ingest(config, "labeled"))
    step = train_student(config, "final/student", labeled)
    alone = config.model_copy(update={"store": StoreConfig(root=str(tmp_path / "other"))})
    made_or_found(alone, ingest(config, "labeled"))
    histories = []
    for own, ref in ((config, await steps._here(config.run_settings, step)), (alone, made_or_found(alone, step))):
        store = open_store(own.store)
        trained = TrainedStudent.open(store, ref)
        assert (trained.model / "model.safetensors").is_file()
        histories.append(json.loads(store.open_file(trained.manifest, HISTORY).read_bytes()))
        assert trained.manifest.details.get("processes", 1) == (2 if own is config else 1)
    together, by_one = histories
    assert together["steps"] == by_one["steps"]
    assert together["tokens"] == by_one["tokens"]
    assert together["losses"] == pytest.approx(by_one["losses"], rel=0.1), "but for dropout"
    assert not list((tmp_path / "store" / "checkpoints").rglob("*.safetensors"))


def test_equal_steps_of_a_run_are_made_once(tiny_slots: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = MckdConfig.model_validate(tiny_slots)
    same = [student(7).model_copy(update={"name": name}) for name in ("final/student", "vanilla-kd/student")]
    assert same[0].key == same[1].key
    assert most_at_once(config, monkeypatch, same) == 1


def most_at_once(config: MckdConfig, monkeypatch: pytest.MonkeyPatch, wanted: list[Step]) -> int:
    at_work, most = 0, 0

    class Done:
        name = "Completed"

        def __init__(self, ref: ArtifactRef) -> None:
            self._ref = ref

        async def aresult(self) -> ArtifactRef:
            return self._ref

    def task_of(step: Step) -> Any:
        async def perform(*_: Any, **__: Any) -> Done:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            await asyncio.sleep(0.05)
            at_work -= 1
            return Done(ArtifactRef(uri="", kind=step.artifact_kind, key=step.key))

        return perform

    async def all_of_them() -> None:
        do = flow.task_runner(config, [], lambda part: do(part))
        await asyncio.gather(*map(do, wanted))

    monkeypatch.setattr(flow, "task_of", task_of)
    asyncio.run(all_of_them())
    return most


def test_a_task_has_no_tags() -> None:
    """For each tag, Prefect asks its server for a limit before the task starts: two seconds of a step."""
    assert not steps.task_of(student()).tags
