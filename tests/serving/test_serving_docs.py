"""docs/serving.md says what the scorer is."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retort.cli import app
from retort.serving.metrics import PROBES, Metrics

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_metric_is_told_and_every_metric_told_is_there() -> None:
    families = {family.name: family.type for family in Metrics().registry.collect() if "process" not in family.name}
    there = {f"{name}_total" if kind == "counter" else name for name, kind in families.items()}
    assert set(re.findall(r"\bretort_serve_\w+", TEXT)) == there


def test_every_label_of_an_error_is_told() -> None:
    kinds = {sample.labels["kind"] for family in Metrics().errors.collect() for sample in family.samples}
    (row,) = re.findall(r"^\| `retort_serve_errors_total.*$", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == kinds


def test_every_path_is_told() -> None:
    assert [path for path in (*PROBES, "/predict") if f"{path}`" not in TEXT] == []


@pytest.mark.parametrize("command", ["serve", "export", "predict"])
def test_its_options_exist(command: str) -> None:
    known = CliRunner().invoke(app, [command, "--help"]).output
    told = set(re.findall(rf"retort {command} [^\n`]*", TEXT))
    assert told
    assert [option for line in told for option in re.findall(r" (--[a-z0-9-]+)", line) if option not in known] == []


def test_its_links_lead_somewhere() -> None:
    from_headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
                     for line in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)}  # fmt: skip
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, heading = target.partition("#")
        assert not file or (ROOT / "docs" / file).is_file(), target
        if not file:
            assert heading in from_headings, target
    for path in re.findall(r"`((?:infra|docker|tests|examples)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
