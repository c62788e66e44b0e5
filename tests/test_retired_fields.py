"""Fields that are gone: old files load, or are told what to do instead; artifacts made with them keep their keys."""

from typing import Any

import pytest

from retort.config import TrainingConfig
from retort.config.base import Settings
from retort.config.soft_label import TinyConfig
from retort.errors import ConfigError
from retort.recipes import parse_config
from tiny_data import TRAINING


def config(**training: Any) -> dict[str, Any]:
    student = {"kind": "token-classification", "model": "org/model", "training": {**TRAINING, **training}}
    data = {role: f"{role}.jsonl" for role in ("labeled", "unlabeled", "test")}
    teacher = {"kind": "recorded", "completions": "c.jsonl"}
    return {"name": "old", "problem": {"kind": "slots"}, "data": data, "teacher": teacher, "student": student}


def test_an_old_file_that_gives_the_only_value_still_loads() -> None:
    assert parse_config(config(max_grad_norm=1.0), "old.yaml") == parse_config(config(), "old.yaml")


def test_any_other_value_is_answered_in_one_sentence() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(config(max_grad_norm=5.0), "old.yaml")
    assert str(refused.value) == (
        "old.yaml: max_grad_norm = 5.0: this field is gone; gradients are always clipped to a norm of 1"
    )


def test_what_is_in_keys_stays_in_them() -> None:
    assert TrainingConfig().model_dump(mode="json")["max_grad_norm"] == 1.0
    dumped = TinyConfig(kind="tiny").model_dump(mode="json")
    assert (dumped["overlap"], dumped["training"]["word_dropout"]) == (True, 0.1)
    assert TinyConfig.model_validate(dumped) == TinyConfig(kind="tiny")


def test_no_field_is_both_there_and_gone() -> None:
    waiting, classes = [Settings], []
    while waiting:
        classes.append(waiting.pop())
        waiting += classes[-1].__subclasses__()
    assert sum(len(one.retired) for one in classes) >= 6
    assert not [one for one in classes if set(one.retired) & set(one.model_fields)]
