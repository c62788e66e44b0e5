"""What people who script Retort may rely on, and that the same checks run wherever they are called."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import retort

ROOT = Path(__file__).parents[2]
NAMES = {"__version__", "load_config", "RetortError"}
HEAVY = {"torch", "transformers", "numpy", "pyarrow", "prefect", "mlflow", "pydantic"}


def test_it_is_these_names() -> None:
    assert set(retort.__all__) == NAMES
    assert set(dir(retort)) >= NAMES


def test_they_are_what_they_are_called() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", retort.__version__)
    assert retort.load_config(ROOT / "examples" / "snips.yaml").name == "snips"
    with pytest.raises(retort.RetortError, match="no such file"):
        retort.load_config("absent.yaml")
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        retort.nonsense  # noqa: B018


def imported_by(code: str) -> set[str]:
    """The top-level modules that a new interpreter has after it."""
    code += "; import json, sys; print(json.dumps([*sys.modules]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(told.stdout)}


@pytest.mark.parametrize("code", ["import retort", "import retort; retort.__version__, retort.RetortError"])
def test_importing_it_costs_nothing(code: str) -> None:
    assert imported_by(code) & HEAVY == set()


def test_all_of_it_can_be_imported_at_once() -> None:
    assert "pydantic" in imported_by("from retort import *; assert load_config and RetortError and __version__")


def test_a_bare_checkout_knows_its_version(tmp_path: Path) -> None:
    """Isolated, so that no metadata of an installed Retort is found."""
    tell = "import sys; sys.path.insert(0, sys.argv[1]); import retort; print(retort.__version__)"
    copied = tmp_path / "retort"
    copied.mkdir()
    (copied / "__init__.py").write_text((ROOT / "retort" / "__init__.py").read_text())
    told = [
        subprocess.run([sys.executable, "-I", "-S", "-c", tell, root], capture_output=True, text=True, check=True)
        for root in (ROOT, tmp_path)
    ]
    assert [one.stdout.strip() for one in told] == [_pyproject_version(), "unknown"]


def _pyproject_version() -> str:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return version


def test_a_commit_is_checked_as_make_lint_checks() -> None:
    makefile = (ROOT / "Makefile").read_text()
    target = re.search(r"^lint:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE)
    assert target is not None
    (folder,) = re.findall(r"^BIN := (.+)$", makefile, re.MULTILINE)
    made = [line.strip().replace("$(BIN)", folder) for line in target[1].splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"] for hook in repository["hooks"]] == made
    for hook in repository["hooks"]:  # of the checkout's own environment, on the whole checkout as `make lint`
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)
