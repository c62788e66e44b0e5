"""The rules that hold the floors apart, and what every step must have."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import retort.recipes  # noqa: F401 - every step that a recipe has
from retort.artifacts.base import Artifact
from retort.steps.base import Step, step_class, step_classes

ROOT = Path(__file__).parents[1]
STEPS = [step for step in step_classes() if step.__module__.startswith("retort.") and not inspect.isabstract(step)]


def test_imports_go_one_way() -> None:
    lint = str(Path(sys.executable).with_name("lint-imports"))
    checked = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_no_rule_has_an_exception() -> None:
    assert "ignore_imports" not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_step_says_what_it_is(step: type[Step]) -> None:
    assert type(step.version) is int
    assert step.kind == step.kind.lower()
    assert issubclass(step.artifact, Artifact)
    assert inspect.getdoc(step), "it describes the task in the Prefect UI"
    assert step_class(step.__name__) is step, "a work order names it"


def test_names_are_unique_for_work_orders() -> None:
    names = [step.__name__ for step in STEPS]
    assert len(set(names)) == len(names) > 20


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_name_an_address_or_a_limit_is_not_identity(step: type[Step]) -> None:
    runtime = step._runtime_names
    assert {"name", "siblings"} <= runtime
    assert {"endpoint_url", "min_success_ratio", "origin", "result", "model"} & set(step.model_fields) <= runtime
