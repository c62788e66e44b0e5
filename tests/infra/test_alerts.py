"""infra/prometheus/alerts.yaml: rules on metrics that exist, each of which says what to do."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from retort.cli import app
from retort.config import MckdConfig
from retort.serving.metrics import TOO_MANY_CLIENTS, Metrics

FILE = Path(__file__).parents[2] / "infra" / "prometheus" / "alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(FILE.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def exposed() -> dict[str, set[str]]:
    """The labels of each sample that a scorer exposes, which has answered."""
    metrics = Metrics()
    metrics.answered("/predict", 200, 0.1)
    metrics.student.labels("films", "1", "k").set(1)
    found: dict[str, set[str]] = {"up": set()}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@every_rule
def test_it_is_about_metrics_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    known = exposed()
    names = set(re.findall(r"\b(?:retort_serve_\w+|up)\b", rule["expr"]))
    assert names
    assert names <= set(known)
    of_prometheus = {"job", "le"}
    labels = of_prometheus.union(*(known[name] for name in names))
    for given in re.findall(r"by \((.*?)\)", rule["expr"]):
        assert set(given.replace(" ", "").split(",")) <= labels
    for given in re.findall(r"\{(\w+)=", rule["expr"]):
        assert given in labels


@every_rule
def test_it_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    told = rule["annotations"]
    assert len(told["summary"]) < 100
    assert re.search(r"`.*?`|Check|Delet", told["description"]), "a command, or what to look at"
    commands = re.findall(r"`retort (\w+)", told["description"])
    known = CliRunner().invoke(app, ["--help"]).output
    assert all(command == "serve" or re.search(rf"^  {command} ", known, re.MULTILINE) for command in commands)
    for field in re.findall(r"`gate\.(\w+)`", told["description"]):
        assert field in MckdConfig.model_fields["gate"].annotation.model_fields
    for metric in re.findall(r"\b(retort_serve_\w+)", told["description"]):
        assert metric in exposed()


def test_kinds_of_errors_are_those_that_are_counted() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "RetortServeErrors"]
    (kinds,) = re.findall(r'kind=~"(.*?)"', rule["expr"])
    counted = {sample.labels["kind"] for family in Metrics().errors.collect() for sample in family.samples}
    assert set(kinds.split("|")) <= counted
    assert TOO_MANY_CLIENTS in kinds


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
@pytest.mark.parametrize(("verb", "file"), [("check", FILE), ("test", Path(__file__).with_name("alerts_test.yaml"))])
def test_prometheus_takes_them_and_they_fire(verb: str, file: Path) -> None:
    checked = subprocess.run(["promtool", verb, "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
