"""Steps done in shards: the same artifacts, byte for byte, as without; shards of new rows alone; one that fails is done
again alone."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from any_step import AnyStep
from retort.artifacts.examples import GOLD_ROWS, ROWS, Examples
from retort.artifacts.shards import ShardRows
from retort.artifacts.students import MODEL, TrainedStudent
from retort.config import (
    ClassificationConfig,
    ExecutionConfig,
    Problem,
    RunSettings,
    Seq2SeqConfig,
    SequenceClassificationConfig,
    SlotsConfig,
    StoreConfig,
    TokenClassificationConfig,
)
from retort.config.teachers import EndpointConfig, VllmConfig
from retort.data.partitions import Cells
from retort.errors import StageFailed, TeacherUnavailable
from retort.io.parquet import EXAMPLES, GOLD, write_rows
from retort.models.weights import find_weights
from retort.problems import problem_for
from retort.recipes.base import Do, together
from retort.recipes.execute import make
from retort.recipes.sharding import in_shards
from retort.records.base import ArtifactRef
from retort.steps import pseudolabel_llm
from retort.steps.base import Step
from retort.steps.cross_label import CrossLabel, LabelShard
from retort.steps.evaluate import EvaluateStudent
from retort.steps.pseudolabel_llm import AskShard, PseudolabelLlm
from retort.steps.split_rows import Shard, SplitRows, rows_of_shard
from retort.store import Manifest, StepOutput, Store
from retort.students.loading import new_student
from retort.teachers.ledger import Ledger
from retort.teachers.requests import Completion, CompletionRequest, Rejection

PROBLEM = ClassificationConfig(kind="classification", labels=["down", "up"])
SLOTS = SlotsConfig(kind="slots", intents={"GetWeather": ["city"]})
LABELED = [f"the film number {n} was {word}" for n, word in enumerate(["great", "dull", "good", "awful"] * 2)]


ONE_AT_A_TIME = threading.Lock()
"""Two threads that load models with transformers leave it in a state in which later models have no weights. In a run
each step has a process of its own."""


class Workplace:
    """A store, and what a run would do in it, without Prefect."""

    def __init__(self, root: Path, shard_rows: int | None, **execution: Any) -> None:
        self.settings = RunSettings(
            name="sharded",
            store=StoreConfig(root=str(root)),
            execution=ExecutionConfig(device="cpu", shard_rows=shard_rows, **execution),
        )
        self.store, self.folder = Store(str(root)), root.with_name(f"{root.name}-files")
        self.made: list[Step] = []
        self.broken: set[str] = set()
        """Names of shards that fail."""

    def examples(self, name: str, rows: Sequence[tuple[str, str]], golds: Sequence[str] = ()) -> ArtifactRef:
        folder = self.folder / name
        written = [{"example_id": example_id, "text": text} for example_id, text in rows]
        write_rows(folder / ROWS, EXAMPLES, written)
        labels = [{**row, "label": gold} for row, gold in zip(written, golds, strict=False)]
        write_rows(folder / GOLD_ROWS, GOLD, labels)
        return self.keep(AnyStep(name=name, values={"rows": written}, made=Examples.kind), folder, len(rows))

    def keep(self, step: Step, folder: Path, rows: int = 0) -> ArtifactRef:
        return self.store.publish(step, folder, StepOutput(rows=rows), 0.0, "sharded")

    async def _alone(self, step: Step) -> ArtifactRef:
        found = self.store.reuse("sharded", step)
        if found is not None:
            return self.store.ref(found)
        if step.name in self.broken:
            raise TeacherUnavailable(f"{step.name}: the worker is gone")
        self.made.append(step)
        return await asyncio.to_thread(self._make, step)

    def _make(self, step: Step) -> ArtifactRef:
        with ONE_AT_A_TIME:
            return make(self.settings, step, 0, lambda *_: None)

    def do(self, step: Step) -> Manifest:
        """Make or find a step."""

        async def shards(_: Step, shards: Sequence[Shard]) -> tuple[ArtifactRef, ...]:
            return await together(self._alone(shard) for shard in shards)

        alone: Do = self._alone
        ref = asyncio.run(in_shards(self.settings.execution, self.store, step, alone, alone, shards))
        return self.store.manifest_of(ref)

    def shards(self, kind: type[Step]) -> list[Step]:
        found = [step for step in self.made if isinstance(step, kind)]
        self.made.clear()
        return found

    def holds(self, kind: str) -> bool:
        return any((Path(self.store.root) / kind).rglob("manifest.json"))


def files(manifest: Manifest) -> dict[str, str]:
    return {file.path: file.sha256 for file in manifest.files}


def spent(manifest: Manifest) -> dict[str, float]:
    return {name: value for name, value in manifest.details["spent"].items() if not name.endswith("seconds")}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Workplace, Workplace]:
    """One without shards, one with."""
    return Workplace(tmp_path / "whole", None), Workplace(tmp_path / "sharded", 10)


class Scripted:
    """A teacher that says what it is told to, and counts."""

    facts: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.log: list[str] = []

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        for request in requests:
            text = request.prompt.item.removeprefix("Input: ").removesuffix("\nOutput:")
            self.log.append(text)
            for sample in request.samples:
                self.asked[text] += 1
                if "refused" in text:
                    yield Rejection(request.key, "http-400", "The server refuses it.", "no")
                    break
                said = "up" if "good" in text or "great" in text else "down"
                if "odd" in text or ("second" in text and self.asked[text] == 1):
                    said = "sideways"
                yield Completion(request.key, sample, f"Label: {said}" if "wordy" in text else said, "stop", 9, 0, 2)


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Workplace], Scripted]:
    """The teacher that is asked in a workplace."""
    known: dict[str, Scripted] = {}

    @contextmanager
    def opened(teacher: Any, attempt: int, execution: Any, store: Store, url: Any) -> Iterator[Scripted]:
        yield known.setdefault(store.root, Scripted())

    monkeypatch.setattr(pseudolabel_llm, "open_client", opened)
    return lambda place: known.setdefault(place.store.root, Scripted())


def labeling(place: Workplace, pool: Sequence[tuple[str, str]], **teacher: Any) -> PseudolabelLlm:
    config = {"kind": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1", "min_success_ratio": 0.1, **teacher}
    golds = ["up", "down"] * 4
    return PseudolabelLlm.by(
        EndpointConfig.model_validate(config),
        name="stage0/pseudolabels",
        problem=PROBLEM,
        metric="accuracy",
        pool=place.examples(f"pool-{len(pool)}", pool),
        labeled=place.examples("labeled", [(f"l{n}", text) for n, text in enumerate(LABELED)], golds),
        store=place.settings.store,
    )


def pool_of(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Rows of all sorts: sound ones, twins, one that gives a label when it is asked again, and ones that give none."""
    sorts = ["good", "dull", "wordy good", "second good", "odd", "refused", "dull", "great", "good", "twin"]
    return [
        (f"u{n}", "the twin was dull" if sort == "twin" else f"film {n} was {sort}")
        for n in range(start, start + count)
        for sort in [sorts[n % len(sorts)]]
    ]


@pytest.mark.parametrize(
    "teacher", [{}, {"ask_again": {"times": 0}}, {"sampling": {"samples": 3, "sampling_temperature": 0.7}}]
)
def test_labels_asked_for_in_shards_are_the_same_over_nights(
    places: tuple[Workplace, Workplace], teachers: Callable[[Workplace], Scripted], teacher: dict[str, Any]
) -> None:
    whole, sharded = places
    known: set[str] = set()
    for night, pool in enumerate((pool_of(43), pool_of(60))):
        one, other = (place.do(labeling(place, pool, **teacher)) for place in places)
        assert one.key == other.key
        assert files(one) == files(other)
        assert (one.rows, one.counts, one.metrics) == (other.rows, other.counts, other.metrics)
        assert spent(one) == spent(other)
        assert teachers(whole).asked == teachers(sharded).asked, "nothing is asked about more often"
        shards = sharded.shards(AskShard)
        new = {text for _, text in pool} - known
        again = {text for text in known if "odd" in text or "refused" in text}
        about = len(new | again | (set(LABELED) if night == 0 else set()))
        assert len(shards) == -(-about // 10), "shards hold what is new or was set aside"
        known |= new
        assert not whole.shards(AskShard)
        assert not any(map(sharded.holds, ("shard-rows", "shard-failures"))), "they are of no further use"


def test_a_shard_that_fails_is_done_again_alone(
    places: tuple[Workplace, Workplace], teachers: Callable[[Workplace], Scripted]
) -> None:
    whole, sharded = places
    pool = pool_of(43)
    sharded.broken = {"stage0/pseudolabels/shard-2"}
    with pytest.raises(TeacherUnavailable, match="shard-2"):
        sharded.do(labeling(sharded, pool))
    assert len(sharded.shards(AskShard)) == 4, "the others were done"
    sharded.broken = set()
    again = sharded.do(labeling(sharded, pool))
    assert [step.name for step in sharded.shards(AskShard)] == ["stage0/pseudolabels/shard-2"]
    assert files(again) == files(whole.do(labeling(whole, pool)))
    assert teachers(sharded).asked == teachers(whole).asked


def test_too_few_labels_are_asked_for_again_by_the_next_run(
    places: tuple[Workplace, Workplace], teachers: Callable[[Workplace], Scripted]
) -> None:
    _, sharded = places
    pool = [(f"u{n}", f"film {n} was refused") for n in range(30)]
    for times in (1, 2):
        with pytest.raises(StageFailed, match="only 0 of 30 rows got a label"):
            sharded.do(labeling(sharded, pool))
        assert {count for text, count in teachers(sharded).asked.items() if "refused" in text} == {times}


def test_a_budget_is_shared_by_the_shards(
    places: tuple[Workplace, Workplace], teachers: Callable[[Workplace], Scripted]
) -> None:
    _, sharded = places
    pool = [(f"u{n}", f"film {n} was good") for n in range(92)]
    sharded.do(labeling(sharded, pool, budget={"tokens": 100_000, "money": 5.0}))
    budgets = [step.of.config.budget for step in sharded.shards(AskShard) if isinstance(step, AskShard)]
    assert len(budgets) == 10
    assert {budget.tokens for budget in budgets} == {10_000}
    assert sum(budget.money or 0 for budget in budgets) == pytest.approx(5.0)


def test_what_the_ledger_lost_meanwhile_is_told_and_asked_for_by_the_next_run(
    places: tuple[Workplace, Workplace],
    teachers: Callable[[Workplace], Scripted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, sharded = places
    step = labeling(sharded, pool_of(43))
    ledger = Ledger(sharded.store, step.identity)
    run = AskShard.run

    def losing(shard: AskShard, context: Any) -> StepOutput:
        output = run(shard, context)
        if shard.name.endswith("-0"):
            sharded.store.place.remove(f"{ledger.folder}/{ledger.files()[0]}")
        return output

    with monkeypatch.context() as patch:
        patch.setattr(AskShard, "run", losing)
        with pytest.raises(StageFailed, match="the ledger lacks completions that came in its shards"):
            sharded.do(step)
    assert sharded.do(step).rows > 30


def test_nothing_known_is_nothing_split(
    places: tuple[Workplace, Workplace], teachers: Callable[[Workplace], Scripted]
) -> None:
    _, sharded = places
    pool = [(f"u{n}", f"film {n} was good") for n in range(30)]
    first = sharded.do(labeling(sharded, pool))
    asked = teachers(sharded).asked.total()
    sharded.store.discard(first.kind, first.key)
    sharded.made.clear()
    assert files(sharded.do(labeling(sharded, pool))) == files(first)
    assert [type(step) for step in sharded.made] == [SplitRows, PseudolabelLlm]
    assert teachers(sharded).asked.total() == asked


def test_an_engine_is_split_over_machines_alone(tmp_path: Path) -> None:
    here, pool = Workplace(tmp_path / "a", 10), Workplace(tmp_path / "b", 10, teacher_pool="gpu-teacher")
    teacher = VllmConfig(kind="vllm", model="m")
    for place, size in ((here, None), (pool, 10)):
        step = labeling(place, pool_of(43)).model_copy(update={"config": teacher})
        assert rows_of_shard(place.settings.execution, step) == size
        few = labeling(place, pool_of(2)).model_copy(update={"config": teacher})
        assert rows_of_shard(place.settings.execution, few) is None
    assert step.resources == ("all", "teacher")
    assert step.model_copy(update={"shards": (step.pool,)}).resources == ("none", None)
    asked = labeling(pool, pool_of(43))
    shard = asked.shard("s", "c", ShardRows(split=asked.pool, file="0"), 1.0)
    assert shard.resources == ("none", "teacher"), "an endpoint's shards go to the teacher's pool, too"


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("batching", "classifier", "generative"):
        monkeypatch.setattr(f"retort.students.{module}.WINDOW_ROWS", 16)


Kind = SequenceClassificationConfig | TokenClassificationConfig | Seq2SeqConfig


@pytest.fixture
def students(tiny_encoder: Path, tiny_t5: Path) -> dict[str, tuple[Kind, Problem]]:
    """Students of random weights, and what they solve. The one that writes text writes nothing legal."""
    encoder, t5 = str(tiny_encoder), str(tiny_t5)
    return {
        "classes": (SequenceClassificationConfig(kind="sequence-classification", model=encoder), PROBLEM),
        "slots": (TokenClassificationConfig(kind="token-classification", model=encoder), SLOTS),
        "text": (Seq2SeqConfig(kind="seq2seq", model=t5, target="text"), SLOTS),
    }


def untrained(place: Workplace, config: Kind, problem: Problem) -> ArtifactRef:
    folder = place.folder / config.kind
    if not folder.exists():
        torch.manual_seed(0)
        weights = find_weights(config)
        new_student(config, weights, pretrained=False, problem=problem_for(problem)).save(folder / MODEL)
    return place.keep(AnyStep(name="student", values={"kind": config.kind}, made=TrainedStudent.kind), folder)


def weather(count: int) -> list[tuple[str, str]]:
    return [(f"u{n}", " ".join(["what is the weather in", *["new"] * (n % 7), "york"])) for n in range(count)]


def step_of(place: Workplace, kind: str, known: tuple[Kind, Problem], count: int) -> CrossLabel | EvaluateStudent:
    config, problem = known
    rows = weather(count)
    common: dict[str, Any] = {
        "problem": problem,
        "student_kind": config.kind,
        "max_length": 32,
        "writes_text": config.kind == "seq2seq",
        "student": untrained(place, config, problem),
    }
    if kind == "evaluate":
        gold = "up" if problem == PROBLEM else '{"intent": "GetWeather", "tags": []}'
        examples = place.examples(f"test-{count}", rows, [gold] * count if problem == PROBLEM else ())
        metrics = ("accuracy",) if problem == PROBLEM else ("exact_match",)
        return EvaluateStudent(name="final/test", metrics=metrics, resamples=50, seed=0, gold=examples, **common)
    cells = Cells(of=3, seed=0, only=[0, 2]) if kind == "cells" else None
    soft = config.kind != "seq2seq"
    pool = place.examples(f"pool-{count}", rows)
    return CrossLabel(name="stage1/cross-labels-0", cells=cells, probabilities=soft, rows=pool, **common)


@pytest.mark.parametrize(
    ("student", "kind"),
    [("classes", "all"), ("classes", "evaluate"), ("slots", "cells"), ("slots", "evaluate"), ("text", "all")],
)
def test_a_students_labels_are_the_same_and_only_new_rows_are_labeled(
    places: tuple[Workplace, Workplace],
    students: dict[str, tuple[Kind, Problem]],
    small_windows: None,
    student: str,
    kind: str,
) -> None:
    _, sharded = places
    new = []
    for count in (40, 52):
        one, other = (place.do(step_of(place, kind, students[student], count)) for place in places)
        assert one.key == other.key
        assert files(one) == files(other)
        assert (one.rows, one.counts, one.metrics) == (other.rows, other.counts, other.metrics)
        assert one.details.keys() == other.details.keys() == {"host", "started_at"}
        new.append(len(sharded.shards(LabelShard)))
    assert new == ([2, 1] if kind == "cells" else [3, 2]), "whole windows of 16 rows; those of rows known are found"
    assert not sharded.holds("shard-rows")
    assert sharded.holds("shard-outcomes")


def test_cross_labels_and_scores_of_the_same_rows_share_shards(
    places: tuple[Workplace, Workplace], students: dict[str, tuple[Kind, Problem]], small_windows: None
) -> None:
    _, sharded = places
    label = step_of(sharded, "all", students["classes"], 40).model_copy(update={"probabilities": False})
    sharded.do(label)
    assert len(sharded.shards(LabelShard)) == 3
    sharded.do(step_of(sharded, "evaluate", students["classes"], 40))
    assert not sharded.shards(LabelShard)


def test_a_students_shard_that_fails_is_done_again_alone(
    places: tuple[Workplace, Workplace], students: dict[str, tuple[Kind, Problem]], small_windows: None
) -> None:
    _, sharded = places
    step = step_of(sharded, "all", students["classes"], 60)
    sharded.broken = {"stage1/cross-labels-0/shard-1"}
    with pytest.raises(TeacherUnavailable):
        sharded.do(step)
    sharded.made.clear()
    sharded.broken = set()
    sharded.do(step)
    assert [one.name for one in sharded.made] == ["stage1/cross-labels-0/shard-1", "stage1/cross-labels-0"]


def test_few_rows_are_not_split(
    places: tuple[Workplace, Workplace], students: dict[str, tuple[Kind, Problem]], small_windows: None
) -> None:
    _, sharded = places
    sharded.do(step_of(sharded, "all", students["classes"], 16))
    assert [type(step) for step in sharded.made] == [CrossLabel]


def test_what_another_run_has_made_meanwhile_is_found(
    places: tuple[Workplace, Workplace], teachers: Callable[[Workplace], Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It clears the shards away that this run wants to gather."""
    _, sharded = places
    step, alone = labeling(sharded, pool_of(43)), sharded._alone

    async def disturbed(one: Step) -> ArtifactRef:
        if one.name == step.name and not disturbances:
            disturbances.append(one)
            monkeypatch.setattr(sharded, "_alone", alone)
            await asyncio.to_thread(sharded.do, step)
        return await alone(one)

    disturbances: list[Step] = []
    monkeypatch.setattr(sharded, "_alone", disturbed)
    assert sharded.do(step).rows > 30
    assert len(disturbances) == 1
