"""Promotion and rollback in a real MLflow, a model for each test."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from any_step import AnyStep
from retort.config import MckdConfig
from retort.errors import ConfigError, GateRefused
from retort.store import StepOutput, Store
from retort.tracking import mlflow_runs as runs
from retort.tracking.champion import reigning_student
from retort.tracking.promotion import Promotion, promote, rollback
from retort.tracking.registry import CHALLENGER, CHAMPION, find_version, reigning_version

WHY = "the new gold set says so"


class Nights:
    """A model that a gate judges night after night."""

    def __init__(self, uri: str, client: Any, name: str) -> None:
        self.uri, self.client, self.name = uri, client, name

    @property
    def config(self) -> MckdConfig:
        values = {
            "name": self.name,
            "problem": {"kind": "classification"},
            "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"},
            "teacher": {"kind": "finetuned"},
            "student": {"kind": "sequence-classification", "model": "m"},
            "tracking": {"uri": self.uri},
        }
        return MckdConfig.model_validate(values)

    def judged(self, outcome: str | None, champion: str = "", reasons: str = "It is what it is.") -> str:
        """A new challenger with the gate's verdict on it: its version."""
        verdict = {"gate.outcome": outcome, "gate.champion": champion, "gate.reasons": reasons} if outcome else {}
        version = runs.register(self.client, self.name, uuid4().hex, "s3://b/s", "", verdict)
        runs.set_alias(self.client, self.name, CHALLENGER, version)
        return version

    def promoted(self, outcome: str = "passed", champion: str = "") -> str:
        version = self.judged(outcome, champion)
        assert promote(self.config).version == version
        return version

    def crown(self, version: str) -> None:
        """As a person does by hand."""
        runs.set_alias(self.client, self.name, CHAMPION, version)

    def back(self) -> Promotion:
        return rollback(self.uri, self.name, WHY)

    @property
    def champion(self) -> str | None:
        champion = reigning_version(self.uri, self.name)
        return champion and champion.version

    def tags(self, version: str) -> dict[str, str]:
        """Those that tell of promotions."""
        tags = find_version(self.uri, f"{self.name}/{version}").tags
        return {tag: value for tag, value in tags.items() if tag.startswith(("promotion.", "rollback."))}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('promotion')}/mlflow.db"
    return uri, MlflowClient(uri, registry_uri=uri)


@pytest.fixture
def nights(database: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> Nights:
    monkeypatch.setenv("RETORT_USER", "ada")
    return Nights(*database, f"model-{uuid4().hex}")


def test_the_first_student_becomes_the_champion(nights: Nights) -> None:
    version = nights.judged("first", reasons="No champion reigns.\nThe floors hold.")
    done = promote(nights.config)
    assert done == Promotion(
        model=nights.name,
        version=version,
        outcome="promoted",
        replaced=None,
        reasons=("No champion reigns.", "The floors hold."),
    )
    assert nights.champion == version
    assert set(nights.tags(version)) == {"promotion.at", "promotion.by"}


def test_a_better_one_replaces_it_and_says_whom(nights: Nights) -> None:
    first = nights.promoted("first")
    second = nights.judged("passed", champion=first)
    assert promote(nights.config).replaced == first
    assert nights.champion == second
    tags = nights.tags(second)
    assert (tags.pop("promotion.replaced"), tags.pop("promotion.by")) == (first, "ada")
    assert tags.pop("promotion.at").endswith("+00:00")
    assert not tags


def test_promoting_the_champion_again_changes_nothing(nights: Nights) -> None:
    version = nights.promoted("first")
    before = nights.tags(version)
    for reason in (None, WHY):
        again = promote(nights.config, forced_because=reason)
        assert (again.outcome, again.version, again.replaced) == ("reigns", version, None)
    assert nights.tags(version) == before


@pytest.mark.parametrize(
    ("outcome", "compared_with", "sentence"),
    [
        ("refused", "1", r"version 3 of '.*' did not pass the gate \(refused\): Worse\. Too large\."),
        ("something", "1", r"did not pass the gate \(something\)"),
        (None, "", "version 3 of '.*' has no verdict of the gate: run again"),
        ("passed", "2", "was compared with version 2, but version 1 reigns now: run again"),
        ("first", "", "was compared with no champion, but version 1 reigns now: run again"),
    ],
)
def test_refusals(nights: Nights, outcome: str | None, compared_with: str, sentence: str) -> None:
    nights.promoted("first")
    nights.judged(None)
    version = nights.judged(outcome, compared_with, reasons="Worse.\nToo large.")
    with pytest.raises(GateRefused, match=sentence) as caught:
        promote(nights.config)
    assert caught.value.exit_code == 3
    assert nights.champion == "1"
    assert not nights.tags(version)
    forced = promote(nights.config, forced_because=f"  {WHY}\n")
    assert (forced.outcome, forced.replaced, forced.reasons) == ("forced", "1", (WHY,))
    assert nights.champion == version
    assert nights.tags(version)["promotion.forced_because"] == WHY


def test_one_that_passed_against_a_champion_who_has_left(nights: Nights) -> None:
    first = nights.promoted("first")
    nights.judged("passed", champion=first)
    nights.client.delete_registered_model_alias(nights.name, CHAMPION)
    with pytest.raises(GateRefused, match="was compared with version 1, but nobody reigns now"):
        promote(nights.config)


@pytest.mark.parametrize("reason", ["", "   ", "because", "x" * 1001])
def test_force_needs_a_reason(nights: Nights, reason: str) -> None:
    nights.judged("refused")
    with pytest.raises(ConfigError, match=r"the reason has \d+ characters: say why in 10 to 1000"):
        promote(nights.config, forced_because=reason)
    assert nights.champion is None


def test_nothing_to_promote(nights: Nights, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is the challenger: `retort run CONFIG` registers one"):
        promote(nights.config)
    nights.uri = f"sqlite:///{tmp_path}/none.db"
    with pytest.raises(ConfigError, match="is the challenger"):
        promote(nights.config)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(ConfigError, match="tracking is not given"):
        promote(nights.config.model_copy(update={"tracking": None}))


def test_rollback_walks_back_and_ends_with_the_first(nights: Nights) -> None:
    first = nights.promoted("first")
    second = nights.promoted("passed", first)
    third = nights.promoted("passed", second)
    done = nights.back()
    assert (done.outcome, done.version, done.replaced, done.reasons) == ("rolled-back", second, third, (WHY,))
    assert nights.champion == second
    tags = nights.tags(third)
    assert (tags["rollback.by"], tags["rollback.because"]) == ("ada", WHY)
    assert tags["rollback.at"].endswith("+00:00")
    assert nights.back().version == first
    with pytest.raises(ConfigError, match=r"version 1 of '.*' replaced none that could reign again"):
        nights.back()
    assert nights.champion == first


def test_the_next_night_does_not_promote_what_was_rolled_back(nights: Nights) -> None:
    first = nights.promoted("first")
    second = nights.promoted("passed", first)
    nights.back()
    with pytest.raises(GateRefused, match=f"version 2 .* was rolled back at .* \\({WHY}\\); `--force --reason"):
        promote(nights.config)
    promote(nights.config, forced_because="it was the cable after all")
    assert nights.champion == second
    assert set(nights.tags(second)) == {
        "promotion.at",
        "promotion.by",
        "promotion.replaced",
        "promotion.forced_because",
    }
    assert nights.back().version == first


def test_rollback_does_not_go_in_circles(nights: Nights) -> None:
    first = nights.promoted("first")
    second = nights.promoted("passed", first)
    runs.set_alias(nights.client, nights.name, CHALLENGER, first)
    promote(nights.config, forced_because=WHY)
    assert nights.back().version == second
    with pytest.raises(ConfigError, match="replaced none that could reign again"):
        nights.back()


def test_rollback_to_what_is_deleted_or_from_nobody(nights: Nights) -> None:
    first = nights.promoted("first")
    nights.promoted("passed", first)
    nights.client.delete_model_version(nights.name, first)
    with pytest.raises(ConfigError, match="replaced none that could reign again"):
        nights.back()
    with pytest.raises(ConfigError, match=f"no version of 'nobody' is the champion; .*: .*{nights.name}"):
        rollback(nights.uri, "nobody", WHY)
    with pytest.raises(ConfigError, match="the reason has 3 characters"):
        rollback(nights.uri, nights.name, "bad")
    with pytest.raises(ConfigError, match="no address of a tracking server"):
        rollback("ftp://somewhere", nights.name, WHY)


def _meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """`act`, once, right after the named step of a promotion."""
    step, left = getattr(runs, name), [act]

    def both(*arguments: Any) -> None:
        step(*arguments)
        if left:
            left.pop()()

    monkeypatch.setattr(runs, name, both)


@pytest.mark.parametrize("step", ["tag_version", "set_alias"])
def test_a_champion_made_meanwhile_stays(nights: Nights, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    first = nights.promoted("first")
    other = nights.judged("passed", first)
    version = nights.judged("passed", first)
    _meanwhile(monkeypatch, step, lambda: nights.crown(other))
    with pytest.raises(GateRefused, match=r"version 2 of '.*' was made the champion at the same moment"):
        promote(nights.config)
    assert nights.champion == other
    assert not nights.tags(version)


def test_a_rollback_does_not_undo_a_promotion_made_meanwhile(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    first = nights.promoted("first")
    second = nights.promoted("passed", first)
    third = nights.judged("passed", second)
    _meanwhile(monkeypatch, "tag_version", lambda: nights.crown(third))
    with pytest.raises(GateRefused, match=r"version 3 of '.*' was made the champion at the same moment"):
        nights.back()
    assert nights.champion == third
    assert "rollback.at" not in nights.tags(second)


def test_promotions_at_once_leave_one_champion_that_can_be_rolled_back(nights: Nights) -> None:
    first = nights.promoted("first")
    second = nights.judged("passed", first)
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(promote(nights.config).outcome)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 6
    assert set(outcomes) <= {"promoted", "reigns"}
    assert "promoted" in outcomes
    assert (nights.champion, nights.tags(second)["promotion.replaced"]) == (second, first)
    assert nights.back().version == first


def test_who_is_user_and_host_unless_told(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETORT_USER")
    monkeypatch.setenv("LOGNAME", "grace")
    user, _, host = nights.tags(nights.promoted("first"))["promotion.by"].partition("@")
    assert user == "grace"
    assert host


def test_the_reigning_student_is_found_in_the_store(nights: Nights, tmp_path: Path) -> None:
    step = AnyStep(name="final/student", values={"seed": 1}, made="students")
    store, files = Store(str(tmp_path / "store")), tmp_path / "files"
    files.mkdir()
    (files / "weights").write_bytes(b"1")
    assert reigning_student(nights.config.model_copy(update={"tracking": None}), store) is None
    assert reigning_student(nights.config, store) is None
    address = store.publish(step, files, StepOutput(), 1.0, nights.name).uri
    tags = {"gate.outcome": "first", "retort.artifact": address}
    version = runs.register(nights.client, nights.name, step.key, address, "", tags)
    nights.crown(version)
    reigning = reigning_student(nights.config, store)
    assert reigning is not None
    assert (reigning.model, reigning.version, reigning.fingerprint) == (nights.name, version, step.fingerprint)
    assert store.fetch(reigning.student).is_dir()
    store.discard("students", step.key)
    with pytest.raises(ConfigError, match=f"version 1 of .* reigns, but its artifact students/{step.key}"):
        reigning_student(nights.config, store)
