"""What `hygiene` finds in rows and labels, and what the gate makes of it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from any_step import AnyStep
from retort.artifacts.examples import ROWS, Examples
from retort.artifacts.hygiene import DUPLICATES, SUSPICIOUS, Duplicates, Hygiene, PoolHygiene, Suspicious
from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import ClassificationConfig, ExecutionConfig, GateConfig, MckdConfig, RegressionConfig, TextConfig
from retort.config.soft_label import SoftLabelConfig
from retort.data.near_duplicates import MOST_INDEXED
from retort.io.parquet import EXAMPLES, PSEUDOLABELS, write_rows
from retort.problems import problem_for
from retort.problems.agreement import disagreement
from retort.recipes.mckd.nights import Night, last_night
from retort.records.base import ArtifactRef
from retort.report.hygiene import hygiene_lines
from retort.steps.context import StepContext
from retort.steps.gate import _row_checks
from retort.steps.hygiene import CheckHygiene
from retort.store import StepOutput, Store
from retort.store.runs import RunRecord, keep_run

CLASSES = ClassificationConfig(kind="classification", labels=["down", "up"])
Said = list[tuple[str, float]]
Publish = Callable[..., ArtifactRef]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def rows(store: Store, tmp_path: Path) -> Publish:
    def publish(name: str, texts: list[str], first: int = 0) -> ArtifactRef:
        made = [{"example_id": f"{name[0]}{first + at}", "text": text} for at, text in enumerate(texts)]
        folder = tmp_path / name
        write_rows(folder / ROWS, EXAMPLES, made)
        step = AnyStep(name="ingest/unlabeled", values={"name": name}, made=Examples.kind)
        return store.publish(step, folder, StepOutput(rows=len(made)), 0.0, "hygiene")

    return publish


@pytest.fixture
def labels(store: Store, tmp_path: Path) -> Publish:
    def publish(name: str, said: Said, first: int = 0) -> ArtifactRef:
        made = [
            {"example_id": f"p{first + at}", "text": f"t{at}", "label": label, "confidence": sure, "labeler": name}
            for at, (label, sure) in enumerate(said)
            if label
        ]
        folder = tmp_path / name
        write_rows(folder / ROWS, PSEUDOLABELS, made)
        step = AnyStep(name="stage0/pseudolabels", values={"name": name}, made=Pseudolabels.kind)
        return store.publish(step, folder, StepOutput(rows=len(made)), 0.0, "hygiene")

    return publish


def found(store: Store, tmp_path: Path, **fields: Any) -> tuple[PoolHygiene, Path]:
    step = CheckHygiene(name="hygiene", **{"problem": CLASSES, **fields})
    folder = tmp_path / f"made-{step.key}"
    folder.mkdir()
    output = step.run(StepContext(store, folder, ExecutionConfig(), 0, lambda *_: None))
    ref = store.publish(step, folder, output, 0.0, "hygiene")
    artifact = Hygiene.open(store, ref)
    return artifact.facts(), artifact.folder


def test_confidently_contradicted_labels(store: Store, tmp_path: Path, rows: Publish, labels: Publish) -> None:
    """Sure of `up` is 0.8 on average where they agree, of `down` 0.6: p3 and p4 are surer than that, p5 is not."""
    pool, other = rows("pool", [f"text {at}" for at in range(8)]), rows("test", ["else"])
    teacher = [("up", 1.0), ("up", 1.0), ("down", 1.0), ("down", 1.0), ("up", 1.0), ("down", 1.0), ("", 0), ("up", 1.0)]
    cross = [("up", 0.9), ("up", 0.7), ("down", 0.6), ("up", 0.95), ("down", 0.7), ("up", 0.75), ("up", 1.0), ("", 0)]
    facts, folder = found(
        store,
        tmp_path,
        pool=pool,
        labeled=other,
        test=other,
        labels=labels("teacher", teacher),
        cross_labels=labels("cross", cross),
    )
    assert facts.suspicious is not None
    assert (facts.suspicious.rows, facts.suspicious.compared) == (2, 6)
    assert [(row.example_id, row.label, row.cross_label) for row in facts.suspicious.first] == [
        ("p3", "down", "up"),
        ("p4", "up", "down"),
    ]
    assert pq.read_table(folder / SUSPICIOUS).column("example_id").to_pylist() == ["p3", "p4"]


def test_leakage_and_repetition(store: Store, tmp_path: Path, rows: Publish, labels: Publish) -> None:
    text = "the film that we saw last night was {} and far too long for what it had to tell"
    pool = rows("pool", [text.format("dull"), text.format("dulL"), "something else entirely"])
    labeled, test = rows("labeled", ["not this"]), rows("test", [text.format("dull!"), "another text altogether"])
    facts, folder = found(store, tmp_path, pool=pool, labeled=labeled, test=test, labels=labels("teacher", [("up", 1)]))
    assert (facts.within.rows, facts.within.share) == (1, pytest.approx(1 / 3))
    assert (facts.leaked.rows, facts.leaked.share, facts.suspicious, facts.drift) == (1, 0.5, None, None)
    assert pq.read_table(folder / DUPLICATES).column("set").to_pylist() == ["pool", "test"]
    assert hygiene_lines(facts)[1].startswith("1 of 2 test rows (50.0%) are nearly repeated in the pool")


def texts(count: int, words: str, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(words.split(), k=8)) for _ in range(count)]


def test_drift_of_new_rows_and_their_labels(store: Store, tmp_path: Path, rows: Publish, labels: Publish) -> None:
    """The pool grew by 100 rows of other words with other labels; the 200 that were there before say nothing."""
    before = texts(200, "play song artist album by the of on", 0)
    later = [*before, *texts(100, "weather city rain sun in the of on", 1)]
    teacher = [(("up", "down")[at % 2], 1.0) for at in range(200)]
    fields = {
        "labeled": rows("labeled", ["l"]),
        "test": rows("test", ["t"]),
        "pool": rows("pool", later),
        "labels": labels("teacher", [*teacher, *[("up", 1.0)] * 100]),
        "last_pool": rows("pool-before", before),
        "last_labels": labels("teacher-before", teacher),
    }
    facts, _ = found(store, tmp_path, **fields)
    assert facts.drift is not None
    assert (facts.drift.new, facts.drift.last) == (100, 200)
    by_name = {change.what: change for change in facts.drift.changes}
    assert by_name["the texts"].surely
    assert by_name["the texts"].size > 0.9
    assert by_name["the teacher's labels"].size == pytest.approx(0.5)
    assert by_name["the teacher's labels"].details == "up 50.0 % to 100.0 %, down 50.0 % to 0.0 %"
    assert facts.drift.size == max(change.size for change in facts.drift.changes if change.surely)

    few = {**fields, "last_pool": rows("pool-few", later[:270]), "last_labels": labels("few", teacher)}
    drift = found(store, tmp_path, **few)[0].drift
    assert drift is not None
    assert (drift.new, drift.changes, drift.size) == (30, (), 0.0)


def test_the_same_rows_with_other_labels(store: Store, tmp_path: Path, rows: Publish, labels: Publish) -> None:
    pool, other = rows("pool", texts(200, "a b c d e f g h", 0)), rows("test", ["t"])
    said = labels("teacher", [("up", 1.0)] * 200)
    last = labels("teacher-before", [("up", 1.0)] * 100 + [("down", 1.0)] * 100)
    drift = found(store, tmp_path, pool=pool, labeled=other, test=other, labels=said, last_pool=pool, last_labels=last)[
        0
    ].drift
    assert drift is not None
    assert [(change.what, change.size, change.surely) for change in drift.changes] == [
        ("the teacher's labels", 0.5, True)
    ]


def test_the_last_night_is_the_last_that_was_different(store: Store, rows: Publish, labels: Publish) -> None:
    """So a night that is repeated, or has no new data, looks for the same and finds it made."""
    nights = [Night(rows(f"pool{at}", [f"text {at}"]), labels(f"labels{at}", [("up", 1.0)])) for at in range(2)]
    values = {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"}
    config = MckdConfig.model_validate(
        {
            "name": "nights",
            "problem": {"kind": "classification"},
            "data": values,
            "teacher": {"kind": "recorded", "completions": "c.jsonl"},
            "student": {"kind": "sequence-classification", "model": "org/model"},
            "store": {"root": store.root},
        }
    )
    assert last_night(config, nights[0]) is None
    for hour, night in enumerate((nights[0], nights[1], nights[1])):
        time = f"2026-01-0{hour + 1}T03:00:00+00:00"
        made = tuple(f"{ref.kind}/{ref.key}" for ref in night)
        keep_run(store, RunRecord(name="nights", run_id="r", started_at=time, ended_at=time, artifacts=made))
    found = last_night(config, nights[1])
    assert found is not None
    assert (found.pool.key, found.labels.key) == (nights[0].pool.key, nights[0].labels.key)
    store.discard("examples", nights[0].pool.key)
    assert last_night(config, nights[1]) is None


def test_limits_hold_a_promotion(store: Store) -> None:
    facts = PoolHygiene(
        within=Duplicates(rows=1, compared=10, first=()),
        leaked=Duplicates(rows=2, compared=10, first=()),
        suspicious=Suspicious(rows=3, compared=10, first=()),
        drift=None,
    )
    strict = GateConfig(max_duplicate_share=0.1, max_leaked_share=0.1, max_suspicious_share=0.3, max_drift=0.2)
    assert [check.passed for check in _row_checks(strict, facts)] == [True, False, True, True]
    assert [check.sentence for check in _row_checks(GateConfig(max_leaked_share=0), facts)] == [
        "20.0 % of the test rows are nearly repeated in the pool or the labeled set; at most 0.0 % are allowed."
    ]
    assert list(_row_checks(GateConfig(), facts)) == []


def test_limits_that_nothing_could_meet_or_miss() -> None:
    assert "max_leaked_share" not in GateConfig().model_dump()
    values: dict[str, Any] = {
        "name": "limits",
        "problem": {"kind": "classification"},
        "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"},
        "teacher": {"kind": "recorded", "completions": "c.jsonl"},
        "student": {"kind": "sequence-classification", "model": "org/model"},
        "gate": {"max_suspicious_share": 0.1},
        "method": {"stages": 1},
    }
    with pytest.raises(ValidationError, match=r"with method\.stages 1 no student labels the pool"):
        MckdConfig.model_validate(values)
    soft = {
        "kind": "soft-label",
        "name": "limits",
        "problem": {"kind": "classification"},
        "data": {"train": "a.jsonl", "dev": "d.jsonl", "tests": {"one": "b.jsonl"}},
        "teacher": {"kind": "probabilities", "probabilities": "p.jsonl"},
        "gate": {"max_drift": 0.1},
    }
    with pytest.raises(ValidationError, match=r"gate\.max_drift: only the recipe mckd"):
        SoftLabelConfig.model_validate(soft)


@pytest.mark.parametrize(
    ("problem", "one", "other", "least", "most"),
    [
        (CLASSES, "up", "up", 0, 0),
        (CLASSES, "up", "down", 1, 1),
        (RegressionConfig(kind="regression", low=0, high=10, step=1), "3", "5", 0.2, 0.2),
        (TextConfig(kind="text"), "a red house", "a red horse", 0.1, 0.6),
        (TextConfig(kind="text", json_schema={"type": "object"}), '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.6, 0.7),
    ],
)
def test_disagreement(problem: Any, one: str, other: str, least: float, most: float) -> None:
    kind = problem_for(problem)
    labels = [kind.parse("", text) for text in (one, other)]
    assert least - 1e-9 <= disagreement(kind, *labels) <= most + 1e-9  # type: ignore[arg-type]
    assert disagreement(kind, *labels) == pytest.approx(disagreement(kind, *reversed(labels)), abs=0.1)  # type: ignore[arg-type]


def test_only_a_large_pool_is_looked_at_in_another_way_than_before() -> None:
    def looking_at(rows: int) -> CheckHygiene:
        ref = ArtifactRef(uri="", kind="examples", key="0" * 64, rows=rows)
        return CheckHygiene(name="hygiene", problem=CLASSES, pool=ref, labeled=ref, test=ref, labels=ref)

    assert looking_at(MOST_INDEXED).fingerprint_version == 1
    assert looking_at(MOST_INDEXED + 1).fingerprint_version == CheckHygiene.version == 2
