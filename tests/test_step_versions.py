"""The reminder that a step's meaning is part of its key: it sees all code that the step reaches."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from step_versions import RECORD, ROOT, current, reached, silent, versions

Mutated = Callable[[str, str, str], list[str]]


def test_code_changes_with_the_version_of_the_steps_that_reach_it() -> None:
    recorded = json.loads(RECORD.read_text())
    changed = "\n".join(f"  {one.step}: {', '.join(one.changed)}" for one in silent(recorded))
    assert not changed, (
        f"These steps reach code that has changed, and their version has not:\n{changed}\n"
        "If an artifact made before means something else than one made now, raise the step's `version`. Then record "
        "it: `python tests/support/step_versions.py`, with `--no-result-changed WHY` if no result changed."
    )
    assert current() == {name: recorded[name] for name in ("steps", "files")}, (
        "a version was raised, or a step is new: record it with `python tests/support/step_versions.py`"
    )


@pytest.fixture
def mutated(tmp_path: Path) -> Mutated:
    """Steps that the guard names after one text of one file was changed."""

    def change(file: str, old: str, new: str) -> list[str]:
        shutil.copytree(ROOT / "retort", tmp_path / "retort", ignore=shutil.ignore_patterns("__pycache__"))
        path = tmp_path / "retort" / file
        text = path.read_text()
        assert text.count(old) == 1, f"'{old}' is not once in {file}: give the test another text"
        path.write_text(text.replace(old, new))
        return [one.step for one in silent(current(), tmp_path)]

    return change


def test_a_changed_helper_is_seen_by_the_steps_that_reach_it(mutated: Mutated) -> None:
    named = mutated("metrics/bootstrap.py", "np.quantile(gains, (0.025, 0.975))", "np.quantile(gains, (0.05, 0.95))")
    assert {"EvaluateStudent", "Select", "Gate", "ReportMckd"} <= set(named)
    assert not {"Ingest", "TrainStudent", "CrossLabel"} & set(named)


def test_a_changed_problem_is_seen(mutated: Mutated) -> None:
    named = mutated("problems/parses.py", 'TOP = Notation("[IN:"', 'TOP = Notation("[INTENT:"')
    assert {"Ingest", "PseudolabelRecorded", "PseudolabelLlm", "CrossLabel", "EvaluateStudent"} <= set(named)


def test_a_changed_student_is_seen(mutated: Mutated) -> None:
    named = mutated("students/tiny/scorer.py", "inter_op_num_threads = 1", "inter_op_num_threads = 2")
    assert {"CrossLabel", "EvaluateStudent", "Gate", "TimeStudents"} <= set(named)
    assert not {"Ingest", "PseudolabelRecorded", "MergeLabels", "Select"} & set(named)


def test_comments_docstrings_and_what_no_step_reaches_are_not_seen(mutated: Mutated) -> None:
    head = '"""Rows on disk: zstd'
    assert mutated("io/parquet.py", head, f"# a comment\n{head}, said otherwise") == []


def test_the_command_line_is_not_reached() -> None:
    files = {name for module, _ in versions().values() for name in reached(module)}
    assert "retort.students.training" in files
    assert not [name for name in files if name.startswith(("retort.cli", "retort.commands", "retort.recipes"))]
