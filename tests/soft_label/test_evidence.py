"""The tables of docs/evidence-scoring.md are made of configs that exist."""

from pathlib import Path

import pytest
import yaml

from benchmarks.reproduce.ensemble import write_halves
from benchmarks.reproduce.scoring import BASELINES, HERE, TEACHER, config_of, markdown
from retort.data import read_rows_of

TABLES = yaml.safe_load((HERE / "scoring.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_config_of_one_arm(name: str, tmp_path: Path) -> None:
    table = TABLES[name]
    own = write_halves(config_of(table, []), table["pool"], tmp_path) if "ensemble" in table else []
    arms = {row: config_of(table, [*changes, *own]).arms for row, changes in table["arms"].items()}
    assert all(len(found) == 1 for row, found in arms.items() if row != TEACHER)
    assert all(arms[row] == [row] for row in BASELINES)


def test_the_pool_and_the_tests_are_halves_of_the_same_rows(tmp_path: Path) -> None:
    table = TABLES["beetle-ensemble"]
    config = config_of(table, [])
    halved = config_of(table, write_halves(config, table["pool"], tmp_path))
    pool, tested = (
        [row for _, row in read_rows_of(source)]
        for source in (halved.data.unlabeled, halved.data.tests["unseen-questions"])
    )
    whole = {row["id"] for _, row in read_rows_of(config.data.tests["unseen-questions"])}
    assert {row["id"] for row in pool} | {row["id"] for row in tested} == whole
    assert len(pool) + len(tested) == len(whole)
    assert not any("label" in row for row in pool)
    assert halved.data.tests["unseen-answers"] == config.data.tests["unseen-answers"]


def test_differences_are_paired_by_seed() -> None:
    def of(*accuracies: float) -> dict[str, dict[str, list[float]]]:
        return {"unseen": {"accuracy": list(accuracies), "macro_f1": [0.5, 0.5], "nll": [1.0, 1.0]}}

    lines = list(markdown("t", {"hard": of(0.4, 0.6), "soft-grid": of(0.5, 0.7)}))
    assert lines[-2] == "| hard | 50.0 ± 127.1 | 50.0 ± 0.0 | 1.00 |  |  |"
    assert lines[-1] == "| soft-grid | 60.0 ± 127.1 | 50.0 ± 0.0 | 1.00 | +10.0 ± 0.0 | +0.0 ± 0.0 |"
