"""Students that write go through the whole flow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from retort.artifacts.pseudolabels import FAILED_ROWS
from retort.artifacts.students import MODEL
from retort.config import MckdConfig
from retort.errors import ConfigError
from retort.io.parquet import read_rows
from retort.recipes import parse_config
from retort.store.opening import open_store

TRAINING = {"epochs": 2, "min_updates": 0, "learning_rate": 3.0e-3, "batch_tokens": 1024, "precision": "fp32"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("t5", {"kind": "seq2seq"}),
        ("causal", {"kind": "causal", "target": "text", "max_target_length": 40, "long_targets": "cut"}),
        (
            "causal",
            {"kind": "causal", "target": "text", "max_target_length": 40, "long_targets": "cut", "lora": {"rank": 4}},
        ),
    ],
    ids=["t5", "causal", "adapters"],
)
def test_a_student_that_writes_goes_through_a_run(
    name: str,
    student: dict[str, Any],
    tiny_slots: dict[str, Any],
    configured: Callable[..., dict[str, Any]],
    run_here: Callable[[dict[str, Any]], Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = str(request.getfixturevalue(f"tiny_{name}"))
    fields = {"student": {**student, "model": model, "training": TRAINING}}
    fields["tracking"] = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}  # and with it the gate, which times the student
    values = configured(tiny_slots, tmp_path / "store", name=name, **fields)
    assert run_here(values).summary.final.scores["slot_f1"].n == 20
    config = MckdConfig.model_validate(values)
    store = open_store(config.store)
    crossed = [store.latest(name, f"stage1/cross-labels-{index}") for index in range(2)]
    assert sum(one.rows + one.counts.get("failures", 0) for one in crossed if one is not None) == 60
    failed = [
        store.fetch(store.ref(one)) / FAILED_ROWS for one in crossed if one is not None and "failures" in one.counts
    ]
    reasons = {row["reason"] for rows in failed for row in read_rows(rows)}
    assert reasons <= ({"too-long"} if name == "causal" else set()), "it may write nothing but labels, learnt or not"
    assert not list((tmp_path / "store").glob("checkpoints/*/*/*"))
    if "lora" in student:
        final = store.latest(name, "final/student")
        assert final is not None
        learnt, given = (
            load_file(folder / "model.safetensors") for folder in (store.fetch(store.ref(final)) / MODEL, Path(model))
        )
        changed = {weight for weight in learnt if (learnt[weight] != given[weight]).any()}
        assert changed == {weight for weight in given if "_proj" in weight}, "adapters of all linear layers, absorbed"


def test_adapters_cannot_learn_new_tokens(tiny_slots: dict[str, Any]) -> None:
    student = {"kind": "causal", "model": "m", "target": "classes", "lora": {}}
    with pytest.raises(ConfigError, match=r"target 'classes' needs new tokens, which adapters cannot learn; use text"):
        parse_config({**tiny_slots, "student": student}, "test")
