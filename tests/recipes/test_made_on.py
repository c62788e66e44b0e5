"""What a manifest says about where its artifact was made."""

import platform

import pytest

from any_step import AnyStep
from retort.config import ExecutionConfig, RunSettings, StoreConfig
from retort.recipes import execute
from retort.records.rank import Rank
from retort.steps.base import CPU, STUDENT, TRAINING, Resources


@pytest.mark.parametrize(
    ("needs", "device", "visible", "gpu"),
    [
        (STUDENT, "auto", None, "0"),
        (STUDENT, "auto", "3,4", "3"),
        (Resources(gpu="all"), "auto", "3,4", "3,4"),
        (Resources(gpu="all"), "auto", None, "all"),
        (CPU, "auto", "3", None),
        (STUDENT, "cpu", "3", None),
        (STUDENT, "auto", "", None),
        (STUDENT, "auto", "-1", None),
    ],
)
def test_the_gpu_is_the_one_that_the_step_sees(
    needs: Resources, device: str, visible: str | None, gpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "has_gpu", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    execution = ExecutionConfig.model_validate({"device": device})
    settings = RunSettings(name="any", store=StoreConfig(root="any"), execution=execution)
    found = execute._made_on(settings, AnyStep(name="any", wants=needs))
    assert found["host"] == platform.node()
    assert found.get("gpu") == gpu


def test_a_training_on_several_gpus_names_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    settings = RunSettings(name="any", store=StoreConfig(root="any"), execution=ExecutionConfig())
    step = AnyStep(name="any", wants=TRAINING)
    assert execute._made_on(settings, step, Rank(0, 2, gpus=("3", "5")))["gpu"] == "3,5"
    assert execute._made_on(settings, step)["gpu"] == "3"


def test_without_a_gpu_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "has_gpu", lambda: False)
    settings = RunSettings(name="any", store=StoreConfig(root="any"), execution=ExecutionConfig())
    assert "gpu" not in execute._made_on(settings, AnyStep(name="any", wants=STUDENT))
