"""What goes to a work pool, and which GPU a stage gets; the runs themselves are in tests/stack."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from retort.config import MckdConfig
from retort.errors import ConfigError
from retort.recipes.execute import open_store
from retort.records.base import ArtifactRef, Step
from tasks.gpu_slots import SHARED_GPUS, gpus_for
from tasks.work_pools import check_pools, pool_of, read_order, write_order

REF = ArtifactRef(uri="", kind="students", key="0" * 64)


def stage(verb: Any, **fields: Any) -> Step:
    return Step(name=f"stage1/{verb}", verb=verb, version=1, kind="things", params={"teacher": "asked"}, **fields)


@pytest.mark.parametrize(
    ("one", "pool"),
    [
        (stage("pseudolabel", knobs={"config": {"kind": "vllm"}}), "t"),
        (stage("pseudolabel", knobs={"config": {"kind": "transformers"}}), "t"),
        (stage("pseudolabel", knobs={"config": {"kind": "endpoint"}}), None),
        (stage("pseudolabel"), None),
        (stage("train-student"), "s"),
        (stage("cross-label"), "s"),
        (stage("evaluate", inputs={"student": (REF,)}), "s"),
        (stage("evaluate", inputs={"labels": (REF,)}), None),
        (stage("merge-labels"), None),
        (stage("gate"), None),
    ],
    ids=lambda value: value.verb if isinstance(value, Step) else str(value),
)
def test_what_needs_a_gpu_goes_to_its_pool(tiny_slots: dict[str, Any], one: Step, pool: str | None) -> None:
    execution = {"teacher_pool": "t", "student_pool": "s"}
    assert pool_of(MckdConfig.model_validate({**tiny_slots, "execution": execution}).execution, one) == pool
    assert pool_of(MckdConfig.model_validate(tiny_slots).execution, one) is None


def test_an_order_is_read_as_it_was_written_and_sends_nothing_further(
    tiny_slots: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_TEST_ROOT", str(tmp_path / "store"))
    values = {**tiny_slots, "store": {"root": "${RETORT_TEST_ROOT}"}, "execution": {"student_pool": "s"}}
    config, one = MckdConfig.model_validate(values), stage("train-student", inputs={"labels": (REF,)})
    name = write_order(config, one)
    order = read_order(config.store, name)
    assert order.stage == one
    assert order.config.execution.student_pool is None
    assert order.config.store == config.store, "addresses stay as they were written, secrets are not spelt out"
    assert write_order(config, one) == name

    place = open_store(config.store).place
    place.write(f"orders/{name}.json", place.read(f"orders/{name}.json").replace(b"tiny-slots", b"other-name"))
    with pytest.raises(ConfigError, match="not the one that was written"):
        read_order(config.store, name)
    with pytest.raises(ConfigError, match="holds no such order"):
        read_order(config.store, "f" * 64)


async def test_a_pool_without_the_deployments_is_told_at_once(tiny_slots: dict[str, Any], prefect_api: str) -> None:
    execution = MckdConfig.model_validate({**tiny_slots, "execution": {"student_pool": "nowhere"}}).execution
    with pytest.raises(ConfigError, match="work pool 'nowhere' has no deployment of 'train-student'"):
        await check_pools(execution)


async def test_each_student_holds_a_gpu_and_the_teacher_all(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_GPUS, "2")
    student, teacher = stage("train-student"), stage("pseudolabel", knobs={"config": {"kind": "vllm"}})
    with pytest.raises(ConfigError, match="lacks a concurrency limit of gpu-0"):
        async with gpus_for(student):
            pass
    for gpu in range(2):
        httpx.post(f"{prefect_api}/v2/concurrency_limits/", json={"name": f"gpu-{gpu}", "limit": 1}).raise_for_status()

    held: list[str] = []
    most = 0

    async def work(one: Step) -> None:
        nonlocal most
        async with gpus_for(one) as environment:
            gpus = environment["CUDA_VISIBLE_DEVICES"].split(",")
            assert not set(gpus) & set(held), "two stages on one GPU"
            held.extend(gpus)
            most = max(most, len(held))
            await asyncio.sleep(0.5)
            for gpu in gpus:
                held.remove(gpu)

    await asyncio.wait_for(asyncio.gather(work(student), work(student), work(teacher), work(student)), 60)
    assert most == 2
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    async with gpus_for(stage("merge-labels")) as environment:
        assert environment == {}


async def test_alone_on_its_machine_a_stage_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED_GPUS, raising=False)
    async with gpus_for(stage("train-student")) as environment:
        assert environment == {}
