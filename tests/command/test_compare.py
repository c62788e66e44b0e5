"""`retort compare` with runs whose figures were worked out by hand (see support/synthetic_run.py)."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from retort.artifacts.reports import Report
from retort.cli import app
from retort.commands.compare.compare import compare
from retort.commands.compare.sides import Asked
from retort.errors import ConfigError
from retort.report.comparison import cost_table, score_table
from retort.store.runs import RunRecord, keep_run
from synthetic_run import WRONG, Run, synthetic

TRACKED = {"tracking": {"uri": "sqlite:///never-opened.db"}, "baselines": []}


class Runs(NamedTuple):
    folder: Path
    first: Run
    """Its final student errs on t1 and t3."""
    second: Run
    """Its final student errs on t3 alone."""

    @property
    def asked(self) -> Asked:
        return Asked(store=self.first.config.store.root)

    def config(self, run: Run, **changes: Any) -> str:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump({**run.config.model_dump(mode="json", exclude_none=True), **changes}))
        return str(path)


def kept(run: Run, run_id: str, ended_at: str) -> Run:
    artifacts = tuple(f"{ref.kind}/{ref.key}" for ref in (*run.distilled.refs(), run.report))
    record = RunRecord(name=run.config.name, run_id=run_id, started_at=ended_at, ended_at=ended_at, artifacts=artifacts)
    keep_run(run.store, record)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    first = synthetic(folder, method={"stages": 1}, **TRACKED)
    better = {"final/test": {"t3": WRONG["final/test"]["t3"]}}
    second = synthetic(folder, better, name="other", method={"stages": 1, "seed": 1}, **TRACKED)
    return Runs(
        folder,
        kept(first, "1234abcd-0000", "2026-11-28T00:00:00+00:00"),
        kept(second, "1234beef-0000", "2026-11-29T00:00:00+00:00"),
    )


def test_both_are_compared_on_the_same_rows(runs: Runs) -> None:
    found = compare("tiny", "other", runs.asked)
    (test,) = found.tests
    assert (test.name, test.rows, test.only_a, test.only_b, test.p_value) == ("test", 4, 0, 1, 1.0)
    gains = {one.metric: (one.a.value, one.b.value, one.gain) for one in test.differences}
    assert gains["exact_match"] == (0.5, 0.75, 0.25)
    assert gains["slot_f1"] == (pytest.approx(4 / 7), pytest.approx(6 / 7), pytest.approx(2 / 7))
    assert all(one.low <= one.gain <= one.high for one in test.differences)
    assert test.says.startswith("On 4 test rows the difference may be chance: +28.6 slot F1, 95 % interval ")
    assert (found.a.latency_ms, found.a.student) == (2.5, runs.first.distilled.final_student.key)
    assert found.a.seconds == 5, "pool, its labels, training, test rows and scores: one second each"
    assert [row[0] for row in cost_table(found).rows][:2] == ["compute for the student", "compute of the whole run"]
    assert score_table(test).columns == ("", "B over A", "A", "B")


def test_the_other_way_round_the_signs_turn(runs: Runs) -> None:
    (test,) = compare("other", "tiny", runs.asked).tests
    assert test.differences[0].gain == pytest.approx(-2 / 7)
    assert (test.only_a, test.only_b) == (1, 0)


@pytest.mark.parametrize("way", ["id", "student", "config"])
def test_a_side_may_be_named_in_other_ways(runs: Runs, way: str) -> None:
    name = {
        "id": "1234b",
        "student": runs.second.distilled.final_student.uri,
        "config": runs.config(runs.second),
    }[way]
    found = compare("tiny", name, runs.asked)
    assert found.b.run_id == "1234beef-0000"
    assert found.b.student == runs.second.distilled.final_student.key


def test_the_store_is_the_other_sides_if_none_is_named(runs: Runs) -> None:
    assert compare(runs.config(runs.second), "tiny", Asked()).b.name == "tiny"


def test_the_same_student_twice_is_told(runs: Runs) -> None:
    found = compare("tiny", "1234abcd", runs.asked)
    assert found.notes == ["A and B are the same student."]
    assert [(one.gain, one.low, one.high) for one in found.tests[0].differences] == [(0, 0, 0)] * 3
    assert found.tests[0].says.startswith("On 4 test rows A and B are equal in slot F1.")


def test_a_config_with_other_settings_names_what_differs(runs: Runs) -> None:
    other = runs.config(runs.first, method={"stages": 2, "partitions": 2})
    with pytest.raises(ConfigError, match=r"has these settings; the last one had method\.stages = 1 \(here 2\)"):
        compare(other, "tiny", runs.asked)
    with pytest.raises(ConfigError, match=r"no run of 'nobody' has finished in .*: `retort run "):
        compare(runs.config(runs.first, name="nobody"), "tiny", runs.asked)


def test_fields_of_another_version_do_not_make_a_config_another(runs: Runs) -> None:
    run = runs.first
    record = Report.open(run.store, run.report).folder / "summary.json"
    told = json.loads(record.read_text())
    assert "method" in told["config"]
    from retort.commands.compare.sides import _differences

    here = {**told["config"], "a_new_field": 1, "method": {**told["config"]["method"], "another": 2}}
    assert _differences(told["config"], here) == []
    assert _differences({"a": {"b": 1}}, {"a": {"b": 2}}) == ["a.b = 1 (here 2)"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", r"'nothing' is no file, no registered student .* which has runs of other, tiny; a run is named by"),
        ("1234", "'1234' is the beginning of the ids of 2 runs in .*: give more"),
        ("models:/tiny/1", "is in a model registry: give its address by --tracking"),
        ("missing.yaml", "missing.yaml"),
    ],
)
def test_what_is_not_known_is_told(runs: Runs, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=sentence):
        compare("tiny", name, runs.asked)


def test_a_run_without_a_store_asks_for_one(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="'tiny' is no file, so it is taken for a run, of which --store must name"):
        compare("tiny", "other", Asked())


def test_a_student_that_no_run_made_last_has_no_scores_to_compare(runs: Runs) -> None:
    from retort.records.base import ArtifactRef
    from retort.store import StepOutput

    class Odd(NamedTuple):
        name: str = "final/student"
        artifact_kind: str = "students"
        key: str = "ab" * 32
        fingerprint: dict[str, Any] = {}  # noqa: RUF012
        inputs: dict[str, tuple[ArtifactRef, ...]] = {}  # noqa: RUF012

    (runs.folder / "odd").mkdir()
    ref = runs.first.store.publish(Odd(), runs.folder / "odd", StepOutput(), 1.0, "odd")
    with pytest.raises(ConfigError, match=r"no run that .* still knows of has this student as its final one"):
        compare("tiny", ref.uri, runs.asked)


@pytest.fixture
def other_rows(tmp_path: Path, runs: Runs) -> Run:
    """A run whose test set has one row of the others'."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    store = {"store": {"root": runs.first.config.store.root}}
    run = synthetic(folder, name="elsewhere", method={"stages": 1}, **TRACKED, **store)
    test = folder / "test.jsonl"
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    rows = [rows[0], {**rows[1], "text": "play bad again"}, {**rows[2], "id": "t9"}]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import asyncio

    from retort.recipes.mckd.recipe import MckdRecipe
    from retort.recipes.mckd.steps import report

    async def do(step: Any) -> Any:
        return run.perform(step)

    distilled = asyncio.run(MckdRecipe().run(run.config, do, None))
    again = run._replace(distilled=distilled, report=run.perform(report(run.config, distilled)))
    return kept(again, "77777777-0000", "2026-11-29T01:00:00+00:00")


def test_rows_that_only_one_has_are_left_out_and_told(runs: Runs, other_rows: Run) -> None:
    (test,) = compare("tiny", "elsewhere", runs.asked).tests
    assert (test.rows, test.rows_a, test.rows_b) == (1, 4, 3)
    assert test.says.startswith("A has 4 and B 3 test rows; the 1 that both have are compared. On 1 test row ")


def test_without_a_common_row_nothing_is_compared(runs: Runs, other_rows: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.commands.compare.compare._same", lambda *_: False)
    with pytest.raises(ConfigError, match=r"no test row is in both, .*: 'tiny' 4 \(test\) and 'elsewhere' 3 \(test\)"):
        compare("tiny", "elsewhere", runs.asked)


def test_freed_scores_are_told(runs: Runs, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(runs.first.config.store.root, root)
    from retort.store import Store

    scores = runs.second.distilled.final_scores
    Store(str(root)).discard(scores.kind, scores.key)
    with pytest.raises(ConfigError, match=r"'other': .* has no scores of its final student on the rows of 'test' any"):
        compare("tiny", "other", Asked(store=str(root)))


def test_the_command_prints_tables_and_draws(runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["compare", "tiny", "other", "--store", runs.first.config.store.root, "--out", str(tmp_path / "out")]
    app(arguments, standalone_mode=False)
    told = capsys.readouterr().out
    assert "A: tiny (tiny, run 1234abcd, student " in told
    assert "On 4 test rows the difference may be chance: +28.6" in " ".join(told.split())
    drawn = (tmp_path / "out" / "compare.svg").read_text()
    assert "B is better by, percent points; a line is the 95 % interval" in drawn
    assert (tmp_path / "out" / "compare.png").exists()
    assert "test, 4 rows; in brackets 95 % intervals" in told
    app([*arguments, "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["tests"][0]["differences"][0]["metric"] == "slot_f1"
    assert set(found) == {"a", "b", "tests"}
