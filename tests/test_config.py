"""What a config means beyond its fields."""

import subprocess
import sys
from typing import Any

import pytest

from retort.config import MckdConfig, expand
from retort.errors import ConfigError
from retort.recipes import parse_config

BASE: dict[str, Any] = {
    "name": "toy",
    "problem": {"kind": "classification", "labels": ["a", "b"]},
    "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"},
    "teacher": {"kind": "recorded", "completions": "c.jsonl"},
    "student": {"kind": "sequence-classification", "model": "some/encoder"},
}
FINETUNED = {"teacher": {"kind": "finetuned"}}
DEV = {"data": {**BASE["data"], "dev": "d.jsonl"}, "evaluation": {"judge": "dev"}}


def config(**changes: Any) -> MckdConfig:
    parsed = parse_config({**BASE, **changes}, "test")
    assert isinstance(parsed, MckdConfig)
    return parsed


def test_labels_must_prove_themselves_where_the_judge_is_fair() -> None:
    assert config().selection.kind == "better"
    assert config(**FINETUNED, **DEV).selection.kind == "better"


def test_a_teacher_is_not_judged_by_the_rows_it_was_trained_on() -> None:
    assert config(**FINETUNED).selection.kind == "always"
    with pytest.raises(ConfigError, match=r"data\.dev and evaluation\.judge: dev, or kind: always"):
        config(**FINETUNED, method={"selection": {"kind": "better"}})


def test_fine_tuning_must_prove_itself_where_the_judge_is_fair() -> None:
    assert config().fine_tuning.kind == "better"
    assert config(**FINETUNED).fine_tuning.kind == "never"
    assert config(**FINETUNED, **DEV).fine_tuning.kind == "better"
    asked = config(**FINETUNED, method={"fine_tuning": {"kind": "always", "epochs": 3}}).fine_tuning
    assert (asked.kind, asked.epochs, asked.folds) == ("always", 3, 10)


def test_the_method_without_a_word_about_it() -> None:
    found = config()
    assert (found.method.stages, found.method.partitions, found.method.scheme) == (2, 4, "leave-one-out")
    assert found.baselines == ["vanilla-kd", "supervised"]
    assert (found.student.training.epochs, found.student.training.min_updates) == (4, 500)


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ({"kind": "sequence-classification"}, "soft"),
        ({"kind": "seq2seq", "target": "classes"}, "soft"),
        ({"kind": "causal", "target": "text"}, "hard"),
    ],
)
def test_cross_labels_are_soft_if_the_student_has_probabilities_of_classes(
    student: dict[str, Any], expected: str
) -> None:
    named = {**student, "model": "some/model"}
    assert config(student=named).cross_labels == expected
    assert config(student=named, method={"cross_labels": "hard"}).cross_labels == "hard"
    if expected == "hard":
        with pytest.raises(ConfigError, match=r"method\.cross_labels 'soft' needs probabilities of classes"):
            config(student=named, method={"cross_labels": "soft"})


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ({"kind": "recorded", "completions": "c.jsonl"}, 1.0),
        ({}, 1.0),
        ({"sampling": {"samples": 5, "sampling_temperature": 0.7}}, 0.0),
        ({"labels": "soft"}, 0.0),
        ({"kind": "finetuned"}, 0.0),
    ],
)
def test_a_label_whose_end_was_made_up_trains_no_student(teacher: dict[str, Any], expected: float) -> None:
    named = teacher if "kind" in teacher else {"kind": "endpoint", "model": "m", "url": "http://host/v1", **teacher}
    assert config(teacher=named).min_confidence == expected
    assert config(teacher=named, method={"min_confidence": 0.5}).min_confidence == 0.5
    assert config(teacher=named, method={"min_confidence": 0}).min_confidence == 0


def test_only_students_have_a_minimum_of_updates() -> None:
    assert config(**FINETUNED).teacher.training.min_updates == 0  # type: ignore[union-attr]
    given = {"epochs": 2, "min_updates": 3}
    assert config(teacher={"kind": "finetuned", "training": given}).teacher.training.min_updates == 3  # type: ignore[union-attr]
    assert "min_updates" not in config(**FINETUNED).model_dump(mode="json")["teacher"]["training"], "old keys stay"


def test_kappa_is_measured_only_where_labels_have_an_order() -> None:
    assert config().metrics == ("accuracy", "macro_f1")
    ordered = {"kind": "classification", "labels": ["a", "b"], "ordered": True}
    assert config(problem=ordered).metrics == ("accuracy", "macro_f1", "quadratic_weighted_kappa")


def test_variables_are_expanded_in_addresses_when_used_and_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET_PASSWORD", "hunter2")
    with_secret = config(store={"root": "s3://${BUCKET_PASSWORD}/x"})
    assert "hunter2" not in with_secret.model_dump_json()
    assert expand(with_secret.store.root) == "s3://hunter2/x"
    with pytest.raises(ConfigError, match="NOT_THERE, which is not set"):
        expand("s3://${NOT_THERE}")


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys, retort.config.loading, retort.records, retort.errors;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', 'prefect', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["snips", "beetle"])
def test_reading_a_config_by_its_recipe_imports_no_framework(name: str) -> None:
    code = (
        f"import sys; from retort.recipes import load_config; load_config('examples/{name}.yaml');"
        "print([m for m in ('torch', 'transformers', 'prefect', 'mlflow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
