"""The teacher's part of the loss can decay, from the YAML file on (arXiv 2006.13108)."""

from typing import Any

import numpy as np
import pytest

from retort.artifacts.grids import Grid
from retort.errors import ConfigError
from retort.recipes import parse_config
from retort.recipes.execute import made_or_found
from retort.recipes.soft_label.checks import check
from retort.recipes.soft_label.steps import gather_recorded, ingest, settings_of, train_grid
from retort.store.opening import open_store


def grid_of(job: Any, end: float | None) -> Any:
    job.values["grid"] = {"lambda": [4], "distillation_temperature": [1], "seeds": 1}
    if end is not None:
        job.values["grid"]["lambda_end"] = end
    config = check(job.config())
    train, dev = (made_or_found(config, ingest(config, role)) for role in ("train", "dev"))
    known = made_or_found(config, gather_recorded(config, config.teacher, {"train": train})["train"])
    step = train_grid(config, "soft-grid", train, dev, known)
    return config, step, Grid.open(open_store(config.store), made_or_found(config, step))


def test_it_changes_what_is_learned_and_only_where_it_is_given(job: Any) -> None:
    config, step, constant = grid_of(job, None)
    assert settings_of(config, "soft-grid") == [{"soft_weight": 4, "distillation_temperature": 1}]
    _, decaying_step, decaying = grid_of(job, 0.25)
    assert decaying_step.settings == [{"soft_weight": 4, "distillation_temperature": 1, "soft_weight_end": 1.0}]
    assert decaying_step.key != step.key
    (before,), (after,) = constant.students()[1], decaying.students()[1]
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    _, same_step, same = grid_of(job, 1.0)
    assert same_step.key != step.key, "written down, it is part of the settings"
    assert all(np.allclose(before[name], same.students()[1][0][name]) for name in before)


def test_it_is_a_share(job: Any) -> None:
    job.values["grid"]["lambda_end"] = 1.5
    with pytest.raises(ConfigError, match=r"grid\.lambda_end = 1\.5: must be at most 1"):
        parse_config(job.values, "job.yaml")
