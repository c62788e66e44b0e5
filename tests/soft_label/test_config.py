"""A config of the soft-label recipe: what it says, and what is wrong with it."""

import asyncio
from typing import Any

import pytest

from flows.run import run_config
from retort.config import MckdConfig
from retort.config.soft_label import SoftLabelConfig
from retort.errors import ConfigError
from retort.recipes import load_config, parse_config
from retort.recipes.scope import Scope

Values = dict[str, Any]


@pytest.fixture
def values() -> Values:
    return {
        "kind": "soft-label",
        "name": "answers",
        "problem": {"kind": "classification", "labels": ["right", "wrong"]},
        "data": {"train": "train.jsonl", "dev": {"folds": [0]}, "tests": {"unseen": "test.jsonl"}},
        "teacher": {"kind": "finetuned", "model": "m"},
    }


def changed(values: Values, dotted: str, value: Any) -> Values:
    node = values
    *parents, last = dotted.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    return values


@pytest.mark.parametrize("kind", ["soft-label", "score"])
def test_a_config_survives_json(values: Values, kind: str) -> None:
    config = parse_config(
        {**values, "kind": kind, "grid": {"lambda": [2], "distillation_temperature": [1, 4]}}, "c.yaml"
    )
    assert isinstance(config, SoftLabelConfig)
    assert config.kind == "soft-label"
    assert config.grid.lambdas == [2.0]
    assert SoftLabelConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_single_text_column_is_a_list_of_one(values: Values) -> None:
    config = parse_config(changed(values, "data.columns.text", "answer"), "c.yaml")
    assert isinstance(config, SoftLabelConfig)
    assert config.data.columns.text == ["answer"]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("grid.lambda", [0], "grid.lambda.0 = 0: must be more than 0"),
        ("grid.lambda", [1, -2], "grid.lambda.1 = -2: must be more than 0"),
        ("grid.lambda", [5000], "grid.lambda.0 = 5000: must be at most 1000"),
        ("grid.lambda", [1, 1.0], "grid.lambda = [1, 1.0]: 1 is written twice"),
        ("grid.lambda", [], "grid.lambda = []: must have at least 1 entries"),
        ("grid.distillation_temperature", [0], "grid.distillation_temperature.0 = 0: must be more than 0"),
        ("grid.distillation_temperature", [101], "grid.distillation_temperature.0 = 101: must be at most 100"),
        ("grid.seeds", 0, "grid.seeds = 0: must be at least 1"),
        ("student", {"kind": "tiny", "pooling": "max"}, "student.pooling = 'max': allowed: 'mean' or 'mean-and-max'"),
        ("grid.temperature", [1], "grid.temperature: unknown field"),
        ("arms", ["tfidf"], "arms: none of them has a tiny student to export"),
        ("arms", ["hard", "hard"], "arms: 'hard' is written twice"),
        ("arms", ["with-pool"], "arms: 'with-pool' needs rows to label: give data.unlabeled"),
        ("arms", ["hart"], "arms.0 = 'hart': allowed: 'hard'"),
        ("data.tests", {}, "data.tests = {}: must have at least 1 entries"),
        ("data.tests", {"dev": "t.jsonl"}, "data.tests"),
        ("data.tests", {"unseen": 3}, "data.tests.unseen = 3: must be a text"),
        ("data.unlabeled", {"folds": [0, 1]}, "data.dev and data.unlabeled both take fold 0"),
        ("data.columns.text", ["a", "a"], "data.columns.text = ['a', 'a']: 'a' is written twice"),
        ("data.columns.text", ["a:b"], "'a:b' cannot be a text column"),
        ("teacher", {"kind": "recorded"}, "teacher.kind = 'recorded': allowed: 'finetuned', 'probabilities', 'vllm'"),
        (
            "teacher",
            {"kind": "transformers", "model": "m"},
            "teacher.labels = 'hard': the soft-label recipe learns from",
        ),
        ("teacher.folds", 1, "teacher.folds = 1: must be at least 2"),
        ("problem", {"kind": "slots"}, "problem.kind"),
        ("kind", "scoring", "kind = 'scoring': allowed: 'mckd', 'soft-label', 'score'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(values: Values, field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        parse_config(changed(values, field, value), "c.yaml")
    assert sentence in str(failure.value)
    assert "\n" not in str(failure.value)


def test_each_flow_says_when_a_config_is_another_flows() -> None:
    assert isinstance(load_config("examples/snips.yaml"), MckdConfig)
    for name in ("scientsbank", "beetle"):
        config = load_config(f"examples/{name}.yaml")
        assert isinstance(config, SoftLabelConfig)
        assert config.name == name
    with pytest.raises(ConfigError, match=r"beetle.yaml: kind = 'soft-label' is for another flow; .* 'mckd'"):
        asyncio.run(run_config("examples/beetle.yaml", [], "mckd", Scope()))
    with pytest.raises(ConfigError, match=r"snips.yaml: kind = 'mckd' is for another flow; .* 'soft-label'"):
        asyncio.run(run_config("examples/snips.yaml", [], "soft-label", Scope()))
