"""What goes to a work pool, and which GPU a step gets; the runs themselves are in tests/stack."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed

from any_step import AnyStep
from flows import steps
from retort.config import (
    ClassificationConfig,
    EndpointConfig,
    ExecutionConfig,
    GateConfig,
    MckdConfig,
    MergeConfig,
    RunSettings,
    StoreConfig,
    TrainingConfig,
    TransformersConfig,
    VllmConfig,
)
from retort.config.soft_label import TinyConfig
from retort.config.teachers import AskAgainConfig, LlmTeacherConfig, PromptConfig, SamplingConfig
from retort.errors import ConfigError
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.cross_label import CrossLabel
from retort.steps.evaluate import EvaluateLabels, EvaluateStudent
from retort.steps.gate import Gate
from retort.steps.merge_labels import MergeLabels
from retort.steps.pseudolabel_llm import PseudolabelLlm
from retort.steps.pseudolabel_recorded import PseudolabelRecorded
from retort.steps.train_grid import TrainGrid
from retort.steps.train_student import TrainStudent
from retort.steps.train_tinybert import TrainTinyBert
from retort.store.opening import open_store
from tasks import gpu_locks, work_pools
from tasks.gpu_slots import SHARED_GPUS, gpus_for
from tasks.work_pools import check_work_pools, read_order, work_pool_of, write_order

REF = ArtifactRef(uri="", kind="students", key="0" * 64)
PROBLEM = ClassificationConfig(kind="classification", labels=["up", "down"])
SCORED: dict[str, Any] = {"problem": PROBLEM, "metrics": ("accuracy",), "resamples": 100, "seed": 0, "gold": REF}
STUDENT: dict[str, Any] = {"problem": PROBLEM, "student_kind": "tiny", "max_length": 8, "student": REF}
TRAINED: dict[str, Any] = {
    "problem": PROBLEM,
    "student": "sequence-classification",
    "weights": "",
    "pretrained": True,
    "training": TrainingConfig(epochs=1),
    "seed": 0,
    "cells": None,
    "soft": False,
    "labels": REF,
    "model": "m",
}
TRAIN_STUDENT = TrainStudent(name="stage1/student-0", **TRAINED)
TRAIN_SMALL = TrainTinyBert(name="tinybert/student-0", layers=4, **TRAINED)
TRAIN_TINY = TrainGrid(
    name="soft-grid/students",
    problem=PROBLEM,
    fields=["text"],
    student=TinyConfig(kind="tiny"),
    settings=[{}],
    label_smoothing=None,
    seeds=[0],
    train=REF,
    dev=REF,
)
CROSS_LABEL = CrossLabel(name="stage1/cross-labels-0", cells=None, probabilities=False, rows=REF, **STUDENT)
EVALUATE_STUDENT = EvaluateStudent(name="final/test", **{**STUDENT, **SCORED})
EVALUATE_LABELS = EvaluateLabels(name="stage0/label-quality", labels=REF, **SCORED)
MERGE_LABELS = MergeLabels(
    name="stage1/pseudolabels",
    problem=PROBLEM,
    merge=MergeConfig(),
    soft=False,
    pool=REF,
    previous=REF,
    cross_labels=(REF,),
)
GATE = Gate(
    name="gate",
    problem=PROBLEM,
    metric="accuracy",
    gate=GateConfig(),
    student_kind="tiny",
    max_length=8,
    resamples=100,
    seed=0,
    student=REF,
    challenger=(REF,),
)
LABEL_RECORDED = PseudolabelRecorded(
    name="stage0/pseudolabels",
    problem=PROBLEM,
    completions="",
    pool=REF,
    path="completions.jsonl",
    endpoint_url=None,
    min_success_ratio=0.9,
)


def label_by(teacher: LlmTeacherConfig) -> PseudolabelLlm:
    return PseudolabelLlm(
        name="stage0/pseudolabels",
        problem=PROBLEM,
        identity={},
        seed=0,
        metric="accuracy",
        prompt=PromptConfig(),
        sampling=SamplingConfig(),
        constrained=False,
        labels="hard",
        verbalizers={},
        ask_again=AskAgainConfig(),
        pool=REF,
        labeled=REF,
        config=teacher,
        endpoint_url=None,
    )


HERE = ExecutionConfig()
VLLM = label_by(VllmConfig(kind="vllm", model="m"))


@pytest.mark.parametrize(
    ("one", "pool"),
    [
        (VLLM, "t"),
        (label_by(TransformersConfig(kind="transformers", model="m")), "t"),
        (label_by(EndpointConfig(kind="endpoint", model="m", url="http://localhost/v1")), None),
        (LABEL_RECORDED, None),
        (TRAIN_STUDENT, "s"),
        (TRAIN_TINY, "s"),
        (TRAIN_SMALL, "s"),
        (CROSS_LABEL, "s"),
        (EVALUATE_STUDENT, "s"),
        (EVALUATE_LABELS, None),
        (MERGE_LABELS, None),
        (GATE, None),
    ],
    ids=lambda value: value.kind if isinstance(value, Step) else str(value),
)
def test_what_needs_a_gpu_goes_to_its_pool(tiny_slots: dict[str, Any], one: Step, pool: str | None) -> None:
    execution = {"teacher_pool": "t", "student_pool": "s"}
    assert work_pool_of(MckdConfig.model_validate({**tiny_slots, "execution": execution}).execution, one) == pool
    assert work_pool_of(MckdConfig.model_validate(tiny_slots).execution, one) is None


@pytest.mark.parametrize("one", [TRAIN_STUDENT, TRAIN_TINY, TRAIN_SMALL, VLLM], ids=lambda step: step.kind)
def test_an_order_is_read_as_it_was_written_and_sends_nothing_further(
    tiny_slots: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Step
) -> None:
    monkeypatch.setenv("RETORT_TEST_ROOT", str(tmp_path / "store"))
    values = {**tiny_slots, "store": {"root": "${RETORT_TEST_ROOT}"}, "execution": {"student_pool": "s"}}
    config = MckdConfig.model_validate(values)
    name = write_order(config, one)
    order = read_order(config.store, name)
    assert (order.read_step(), type(order.read_step())) == (one, type(one))
    assert order.settings.execution.student_pool is None
    assert order.settings.store == config.store, "addresses stay as they were written, secrets are not spelt out"
    assert write_order(config, one) == name

    place = open_store(config.store).place
    place.write(f"orders/{name}.json", place.read(f"orders/{name}.json").replace(b"tiny-slots", b"other-name"))
    with pytest.raises(ConfigError, match="not the one that was written"):
        read_order(config.store, name)
    with pytest.raises(ConfigError, match="holds no such order"):
        read_order(config.store, "f" * 64)


def test_a_worker_with_another_version_of_the_step_refuses_the_order(
    tiny_slots: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MckdConfig.model_validate({**tiny_slots, "store": {"root": str(tmp_path / "store")}})
    name = write_order(config, TRAIN_STUDENT)
    monkeypatch.setattr(steps, "warm_up", lambda: None)
    monkeypatch.setattr(TrainStudent, "version", 99)
    with pytest.raises(ConfigError, match="or knows another version of it: give all workers the version"):
        asyncio.run(steps.step.fn("student", name, config.store))
    assert not list((tmp_path / "store").glob("students/*"))


@pytest.fixture
def server(prefect_api: str) -> Iterator[str]:
    """The address of the one that is asked, also where Prefect was imported before it was started."""
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield prefect_api


async def test_a_pool_without_the_deployments_is_told_at_once(tiny_slots: dict[str, Any], server: str) -> None:
    execution = MckdConfig.model_validate({**tiny_slots, "execution": {"student_pool": "nowhere"}}).execution
    with pytest.raises(ConfigError, match="work pool 'nowhere' has no deployment of 'step'"):
        await check_work_pools(execution)


async def test_each_student_holds_a_gpu_and_the_teacher_all(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_locks, "FOLDER", tmp_path)
    monkeypatch.setenv(SHARED_GPUS, "2")
    with pytest.raises(ConfigError, match="lacks a concurrency limit of gpu-0"):
        async with gpus_for(TRAIN_STUDENT, HERE):
            pass
    for gpu in range(2):
        httpx.post(
            f"{server}/v2/concurrency_limits/", json={"name": f"gpu-{gpu}", "limit": 1}, timeout=60
        ).raise_for_status()

    held: list[str] = []
    most = 0

    async def work(one: Step) -> None:
        nonlocal most
        async with gpus_for(one, HERE) as place:
            gpus = place.environment["CUDA_VISIBLE_DEVICES"].split(",")
            assert len(gpus) == (2 if one is VLLM else 1)
            assert not set(gpus) & set(held), "two steps on one GPU"
            held.extend(gpus)
            most = max(most, len(held))
            await asyncio.sleep(0.5)
            for gpu in gpus:
                held.remove(gpu)

    steps = (TRAIN_STUDENT, TRAIN_STUDENT, VLLM, TRAIN_STUDENT, TRAIN_TINY, TRAIN_SMALL)
    await asyncio.wait_for(asyncio.gather(*map(work, steps)), 60)
    assert most == 2
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    async with gpus_for(MERGE_LABELS, HERE) as place:
        assert place.environment == {}


async def test_a_run_is_shared_by_the_parents_of_one_store_alone(server: str, tmp_path: Path) -> None:
    step = AnyStep(name="shared")
    here, other = (
        RunSettings(name="run", store=StoreConfig(root=str(tmp_path / name)), execution=HERE) for name in ("a", "b")
    )
    async with get_client() as client:
        pool = await client.create_work_pool(WorkPoolCreate(name=f"pool-{uuid4().hex}", type="process"))
        flow = await client.create_flow_from_name(work_pools.STEP_FLOW)
        await client.create_deployment(flow, "on-pool", work_pool_name=pool.name)

        first = await work_pools._start(client, here, step, pool.name, [])
        assert (await work_pools._start(client, here, step, pool.name, [])).id == first.id, "at the same time"
        elsewhere = await work_pools._start(client, other, step, pool.name, [])
        assert elsewhere.id != first.id
        assert elsewhere.parameters["store"]["root"] == str(tmp_path / "b")
        for settings, own in ((here, first), (other, elsewhere)):
            assert [run.id for run in await work_pools._runs_of(client, settings, step)] == [own.id]

        second = await work_pools._start(client, here, step, pool.name, [first])
        await client.set_flow_run_state(second.id, Failed(), force=True)
        await client.delete_flow_run(first.id)
        left = await work_pools._runs_of(client, here, step)
        assert [run.id for run in left] == [second.id]
        third = await work_pools._start(client, here, step, pool.name, left)
        assert third.id not in (first.id, second.id), "not the one that has failed"
