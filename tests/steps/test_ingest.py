"""`ingest`: what becomes of a source's rows."""

from pathlib import Path

import pytest

from retort.artifacts.examples import Examples
from retort.config import MckdConfig
from retort.data import fingerprint
from retort.errors import DataError
from retort.recipes.execute import made_or_found
from retort.recipes.mckd import steps
from retort.recipes.mckd.steps import ingest
from retort.records.base import Example, digest
from retort.steps.ingest import IN_LABELED, drawn
from retort.store.opening import open_store
from tiny_data import write_lines

ROLES: list[steps.Role] = ["unlabeled", "labeled", "test"]


def config_of(folder: Path, limit: int | None = None) -> MckdConfig:
    def row(number: int, text: str) -> dict[str, str]:
        return {"id": f"r{number}", "text": text, "label": "up" if number % 2 else "down"}

    labeled = ["the clocks creep", "Rome  by night"]
    pool = ["the clocks creep", " rome by NIGHT ", "the clocks", *(f"row {number}" for number in range(7))]
    for role, texts in {"labeled": labeled, "unlabeled": pool, "test": ["another"]}.items():
        write_lines(folder / f"{role}.jsonl", [row(number, text) for number, text in enumerate(texts)])
    return MckdConfig.model_validate(
        {
            "name": "ingested",
            "problem": {"kind": "classification", "labels": ["down", "up"]},
            "data": {role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")}
            | ({"limit": limit} if limit else {}),
            "teacher": {"kind": "finetuned"},
            "student": {"kind": "sequence-classification", "model": "no/model"},
            "store": {"root": str(folder / "store")},
        }
    )


def test_the_pool_is_without_the_rows_of_the_labeled_set(tmp_path: Path) -> None:
    """A teacher that was shown them repeats their labels, and students that learned those could not be judged."""
    config = config_of(tmp_path)
    ref = made_or_found(config, ingest(config, "unlabeled"))
    pool = Examples.open(open_store(config.store), ref)
    assert [row["text"] for row in pool.rows(["text"])] == ["the clocks", *(f"row {number}" for number in range(7))]
    assert pool.manifest.counts == {"gold": 8, IN_LABELED: 2}


def test_the_limit_counts_what_is_left(tmp_path: Path) -> None:
    config = config_of(tmp_path, limit=7)
    assert made_or_found(config, ingest(config, "unlabeled")).rows == 7


@pytest.mark.parametrize("limit", [1, 3, 8, 9])
def test_the_limit_takes_the_first_in_the_order_of_hashed_ids(tmp_path: Path, limit: int) -> None:
    config = config_of(tmp_path, limit=limit)
    pool = Examples.open(open_store(config.store), made_or_found(config, ingest(config, "unlabeled")))
    ids = [f"r{number}" for number in range(2, 10)]
    assert {row["example_id"] for row in pool.rows()} == set(sorted(ids, key=digest)[:limit])


def test_another_labeled_set_makes_another_pool(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    before = {role: ingest(config, role).key for role in ("unlabeled", "test")}
    write_lines(tmp_path / "labeled.jsonl", [{"id": "r0", "text": "row 1", "label": "up"}])
    after = {role: ingest(config, role).key for role in ("unlabeled", "test")}
    assert before["unlabeled"] != after["unlabeled"]
    assert before["test"] == after["test"]


def test_a_source_is_read_once_to_fingerprint_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    alone = [ingest(config, role) for role in ROLES]
    read: list[str] = []

    def counted(source: str, endpoint_url: str | None) -> str:
        read.append(source)
        return fingerprint(source, endpoint_url)

    monkeypatch.setattr(steps, "fingerprint", counted)
    assert list(steps.ingests(config, ROLES)) == alone
    assert read == [config.data.unlabeled, config.data.labeled, config.data.test]


def test_a_pool_of_nothing_else_is_told(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_lines(tmp_path / "unlabeled.jsonl", [{"id": "r0", "text": "The clocks creep"}])
    with pytest.raises(DataError, match=r"unlabeled.jsonl: all 1 rows that can be used are in data.labeled too"):
        made_or_found(config, ingest(config, "unlabeled"))


@pytest.mark.parametrize("number", [0, 1, 3, 100, 5000])
@pytest.mark.parametrize("limit", [1, 3, 700])
def test_examples_are_drawn_in_one_pass(number: int, limit: int) -> None:
    examples = [
        Example(f"id {at}", f"text {at}", *(("label", "group", "why") if at % 2 else ())) for at in range(number)
    ]
    first = set(sorted((one.example_id for one in examples), key=digest)[:limit])
    assert list(drawn(iter(examples), limit)) == [one for one in examples if one.example_id in first]
