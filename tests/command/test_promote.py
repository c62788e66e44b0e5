"""`retort promote` and `retort rollback` against a real MLflow database."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.tracking import mlflow_runs as runs
from retort.tracking.registry import CHALLENGER, reigning_version

Command = Callable[..., tuple[int, str, str]]
WHY = "the customer insists"


class Registry:
    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.uri, self.client = uri, MlflowClient(uri, registry_uri=uri)

    def judged(self, model: str, outcome: str, champion: str = "") -> None:
        verdict = {"gate.outcome": outcome, "gate.champion": champion, "gate.reasons": "Slot F1 fell by 2.0."}
        version = runs.register(self.client, model, f"{model}-{outcome}", "s3://b/s", "", verdict)
        runs.set_alias(self.client, model, CHALLENGER, version)

    def champion(self, model: str) -> str | None:
        champion = reigning_version(self.uri, model)
        return champion and champion.version


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('promote')}/mlflow.db")


@pytest.fixture
def config(slots: Any, registry: Registry, tmp_path: Path) -> Callable[[str], str]:
    """Of a model with this name."""

    def write(name: str) -> str:
        slots.values |= {"name": name, "tracking": {"uri": registry.uri}}
        path: str = slots.save()
        return path

    return write


def test_promote_then_refuse_then_force_then_roll_back(
    config: Callable[[str], str], registry: Registry, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config("nightly")
    registry.judged("nightly", "first")
    code, out, error = command("promote", path)
    sentence, serve = out.splitlines()
    assert (code, sentence, error) == (0, "version 1 of 'nightly' is the champion, the first", "")
    assert serve.startswith("Serve it: retort serve models:/nightly@champion --tracking sqlite:///")
    assert command("promote", path)[1].startswith("version 1 of 'nightly' is the champion already\n")

    registry.judged("nightly", "refused", champion="1")
    code, out, error = command("promote", path, "--json")
    assert (code, out) == (3, "")
    assert error == "error: version 2 of 'nightly' did not pass the gate (refused): Slot F1 fell by 2.0.\n"
    assert registry.champion("nightly") == "1"

    code, out, error = command("promote", path, "--force", "--reason", WHY, "--json")
    assert (code, error) == (0, "")
    assert json.loads(out) == {
        "model": "nightly",
        "version": "2",
        "outcome": "forced",
        "replaced": "1",
        "reasons": [WHY],
    }

    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    code, out, _ = command("rollback", "nightly", "--reason", "it answers in Latin")
    assert (code, out) == (0, "version 1 of 'nightly' reigns again, in place of version 2\n")
    assert registry.champion("nightly") == "1"
    code, _, error = command("rollback", "nightly", "--reason", "it answers in Latin")
    assert code == 2
    assert "replaced none that could reign again" in error


def test_promote_of_the_soft_label_recipe(answers: Any, registry: Registry, command: Command) -> None:
    answers.values["tracking"] = {"uri": registry.uri}
    path = answers.save()
    registry.judged("answers", "first")
    code, out, error = command("promote", path)
    sentence, serve = out.splitlines()
    assert (code, sentence, error) == (0, "version 1 of 'answers' is the champion, the first", "")
    assert serve.startswith("Serve it: retort serve models:/answers@champion --tracking sqlite:///")
    registry.judged("answers", "refused", champion="1")
    code, out, error = command("promote", path, "--json")
    assert (code, out) == (3, "")
    assert error == "error: version 2 of 'answers' did not pass the gate (refused): Slot F1 fell by 2.0.\n"
    assert registry.champion("answers") == "1"
    code, out, _ = command("promote", path, "--force", "--reason", WHY, "--json")
    assert (code, json.loads(out)["replaced"], registry.champion("answers")) == (0, "1", "2")


def test_rollback_as_json(config: Callable[[str], str], registry: Registry, command: Command) -> None:
    for outcome, champion in (("first", ""), ("passed", "1")):
        registry.judged("other", outcome, champion)
        assert command("promote", config("other"))[0] == 0
    code, out, _ = command("rollback", "other", "--reason", "too slow by far", "--tracking", registry.uri, "--json")
    told = json.loads(out)
    assert (code, told["version"], told["outcome"], told["replaced"]) == (0, "1", "rolled-back", "2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--force"], "--force needs --reason TEXT"),
        (["--reason", "because I can do it"], "--reason is for --force only"),
        (["--force", "--reason", "short"], "the reason has 5 characters: say why in 10 to 1000"),
        ([], "no version of 'unknown' is the challenger: `retort run CONFIG` registers one"),
        (["--set", "tracking=null"], "tracking is not given"),
        (["--set", "tracking.uri=nowhere://"], "no address of a tracking server"),
    ],
)
def test_mistakes_of_promote(
    config: Callable[[str], str], command: Command, arguments: list[str], sentence: str
) -> None:
    code, out, error = command("promote", config("unknown"), *arguments)
    assert (code, out) == (2, "")
    assert sentence in error
    assert error.count("\n") == 1


def test_mistakes_of_rollback(registry: Registry, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, error = command("rollback", "nobody", "--reason", WHY)
    assert (code, error) == (2, "error: no registry is named: give --tracking URI, or set MLFLOW_TRACKING_URI\n")
    code, _, error = command("rollback", "nobody", "--reason", WHY, "--tracking", registry.uri)
    assert code == 2
    assert error.startswith("error: no version of 'nobody' is the champion; registered models: ")
    code, _, error = command("rollback", "nobody", "--reason", WHY, "--tracking", "http://127.0.0.1:9")
    assert code == 1
    assert error.startswith("error: tracking.uri = 'http://127.0.0.1:9' cannot be reached")
