"""`retort schema` and `retort report`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from any_step import AnyStep
from retort.artifacts.reports import PAGES, SUMMARY
from retort.config import MckdConfig
from retort.recipes import load_config
from retort.store import StepOutput
from retort.store.opening import open_store

EXAMPLES = sorted(Path("examples").glob("*.yaml"))


@pytest.fixture
def schema(command: Any) -> dict[str, Any]:
    code, out, err = command("schema")
    assert (code, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    return told


def test_schema_is_a_json_schema(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema == MckdConfig.model_json_schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=str)
def test_schema_accepts_the_examples(command: Any, path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    _, out, _ = command("schema", "--kind", values.get("kind", "mckd"))
    Draft202012Validator(json.loads(out)).validate(values)
    assert load_config(path).name == path.stem


def test_schema_refuses_what_the_config_refuses(schema: dict[str, Any]) -> None:
    values = yaml.safe_load(Path("examples/snips.yaml").read_text())
    validator = Draft202012Validator(schema)
    for wrong in ({"method": {"stages": 0}}, {"epochs": 2}, {"teacher": {"kind": "oracle"}}, {"name": "My Job"}):
        assert not validator.is_valid({**values, **wrong})


def described(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, part in {"MckdConfig": schema, **schema["$defs"]}.items():
        for field, inner in part.get("properties", {}).items():
            # Pydantic leaves out a field's description that is word for word that of the fields below it.
            yield f"{name}.{field}", {**schema["$defs"].get(inner.get("$ref", "").rpartition("/")[2], {}), **inner}


def test_every_field_has_a_description(schema: dict[str, Any]) -> None:
    silent = [name for name, field in described(schema) if not field.get("description") and "const" not in field]
    assert silent == []


def test_report_before_any_run(slots: Any, command: Any) -> None:
    code, out, err = command("report", slots.save(), "--out", str(slots.file("report")))
    assert (code, out) == (1, "")
    assert err == f"error: 'desk' has no report in {slots.store} yet: retort run makes one\n"
    assert not slots.file("report").exists()
    assert not slots.store.exists()


@pytest.fixture
def reported(slots: Any) -> Any:
    """A desk whose last run left a report."""
    config = load_config(slots.save())
    folder: Path = slots.file("pages")
    folder.mkdir()
    for name in (*PAGES, SUMMARY):
        (folder / name).write_text(name)
    step = AnyStep(name="report", made="reports")
    open_store(config.store).publish(step, folder, StepOutput(), 0.1, config.name)
    return slots


def test_report_of_the_last_run(reported: Any, command: Any) -> None:
    out_folder = reported.file("out")
    code, out, err = command("report", str(reported.path), "--out", str(out_folder))
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(out_folder / name) for name in PAGES]
    assert all((out_folder / name).read_text() == name for name in PAGES)


def test_report_into_a_file(reported: Any, command: Any) -> None:
    place = reported.file("test.jsonl")
    code, out, err = command("report", str(reported.path), "--out", str(place))
    assert (code, out) == (2, "")
    assert err == f"error: --out '{place}': cannot be written as a folder (File exists)\n"


def test_report_that_is_damaged(reported: Any, command: Any) -> None:
    (page,) = reported.store.rglob("report.html")
    page.write_text("x")
    code, out, err = command("report", str(reported.path), "--out", str(reported.file("out")))
    assert (code, out) == (1, "")
    assert "file 'report.html' has 1 bytes where its manifest says 11; `retort run CONFIG --repair` makes" in err
