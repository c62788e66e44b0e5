"""Which students are fine-tuned on the labeled set, in which order, and who judges it; nothing is made."""

import asyncio
from typing import Any

import pytest

from mckd_order import ASKED, Recorder, config_of, crowned, data_of
from retort.config import MckdConfig
from retort.recipes.base import IN_ORDER
from retort.recipes.mckd.pipeline import distill
from retort.records.base import ArtifactRef
from retort.records.mckd import MckdResult
from retort.records.result import Champion
from retort.steps.base import Step

JUDGE = ["fine-tuning/judge", "fine-tuning/selection"]
PROOF = ["fine-tuning/judge-0", "fine-tuning/judge-1", *JUDGE]
ALONE = ["fine-tuning/judge-0", *JUDGE]
RELABELING = [
    *(f"fine-tuning/{what}-{index}" for what in ("student", "test", "cross-labels") for index in (0, 1)),
    "fine-tuning/pseudolabels",
    "fine-tuning/label-quality",
]
TUNED = ["final/before-fine-tuning", "final/student"]


def config_with(kind: str | None = "better", baselines: tuple[str, ...] = (), **method: Any) -> MckdConfig:
    """Two students in each stage; the labeled set judges."""
    tuning = {"fine_tuning": {"kind": kind, "epochs": 7, "folds": 3, "confidence": 0.8} if kind else None}
    return config_of(baselines, **{"teacher": ASKED, "judge": "labeled", **tuning, **method})


def run(
    do: Recorder, config: MckdConfig, judge: str = "labeled", pool: str = "pool", champion: Champion | None = None
) -> MckdResult:
    async def everything() -> MckdResult:
        IN_ORDER.set(True)
        return await distill(config, data_of(pool, judge), do, champion)

    return asyncio.run(everything())


def end(do: Recorder) -> list[str]:
    """The names of the steps after the last stage, without the scores of its result."""
    names = [step.name for step in do.steps if step.name.startswith(("fine-tuning", "final"))]
    return names[: names.index("final/test")]


def named(do: Recorder, name: str) -> Step:
    (step,) = [step for step in do.steps if step.name == name]
    return step


def rows_of(do: Recorder, student: ArtifactRef | None) -> set[str]:
    """All rows that a student was trained on, also before it was fine-tuned, and those behind their labels: by the key
    of the data, `labeled` or `pool`."""
    if student is None:
        return set()
    step = do.of(student)
    rows = set().union(*(_rows_behind(do, ref) for ref in step.inputs["labels"]))
    return rows.union(*(rows_of(do, ref) for ref in step.inputs.get("start", ())))


def _rows_behind(do: Recorder, labels: ArtifactRef) -> set[str]:
    if labels.kind == "examples":
        return {labels.key}
    found = {"pool"}
    for ref in do.of(labels).inputs.get("cross_labels", ()):
        found |= rows_of(do, do.of(ref).input("student"))
    return found


@pytest.mark.parametrize(
    ("stages", "selection", "verdicts", "expected"),
    [
        (1, "better", [], ["fine-tuning/student", "fine-tuning/before", *ALONE, *TUNED]),
        (2, "always", [], [*PROOF, *RELABELING, *TUNED]),
        (2, "better", [True], [*PROOF, *RELABELING, *TUNED]),
        (2, "better", [False], [*PROOF, *TUNED]),
        (3, "better", [False], [*PROOF, *TUNED]),
        (3, "better", [True, False], [*PROOF, *RELABELING, *TUNED]),
    ],
)
def test_fine_tuned_students_relabel_the_pool_again_if_relabeling_was_kept(
    stages: int, selection: str, verdicts: list[bool], expected: list[str]
) -> None:
    do = Recorder(verdicts)
    result = run(do, config_with(stages=stages, selection=selection))
    assert end(do) == expected
    tuning = result.fine_tuning
    assert tuning is not None
    assert tuning.accepted
    relabeled = expected[-3] == RELABELING[-1]
    assert (len(tuning.students), len(tuning.test_scores)) == ((2, 2) if relabeled else (0, 0))
    final, before = named(do, "final/student"), do.of(do.of(result.final_student).input("start"))
    assert final.input("labels") == result.data.labeled
    assert before.input("labels") == (tuning.labels if relabeled else result.labels[result.kept_stage - 1])
    kept = {ref.uri for ref in result.refs()}
    assert kept >= {"fine-tuning/selection"}
    assert {name for name in RELABELING if name in kept and "cross-labels" not in name} == {
        name for name in RELABELING if relabeled and "cross-labels" not in name
    }


@pytest.mark.parametrize(
    ("stages", "selection", "verdicts", "expected"),
    [
        (1, "better", [], ["fine-tuning/student", "fine-tuning/before", *ALONE, "final/student"]),
        (2, "always", [], [*PROOF, "final/student"]),
        (3, "better", [True, False], [*PROOF, "final/student"]),
    ],
)
def test_where_it_is_rejected_the_final_student_is_the_one_without_it(
    stages: int, selection: str, verdicts: list[bool], expected: list[str]
) -> None:
    do, never = Recorder(verdicts, tuning=False), Recorder(verdicts)
    result = run(do, config_with(stages=stages, selection=selection))
    plain = run(never, config_with("never", stages=stages, selection=selection))
    assert end(do) == expected
    assert end(never) == ["final/student"]
    assert result.fine_tuning is not None
    assert not result.fine_tuning.accepted
    assert plain.fine_tuning is None
    assert result.final_student == plain.final_student
    assert {step.key for step in never.made("train-student")} == {step.key for step in do.made("train-student")}


def test_no_more_judge_side_by_side_than_there_are_folds() -> None:
    do = Recorder()
    run(do, config_with(stages=2, partitions=5))
    judges = do.made("cross-validate")
    assert [(step.name, step.params["only"]) for step in judges] == [(f"fine-tuning/judge-{n}", [n]) for n in range(3)]


def test_always_needs_no_proof() -> None:
    do = Recorder()
    result = run(do, config_with("always", stages=2))
    assert end(do) == [*RELABELING, *TUNED]
    assert result.fine_tuning is not None
    assert (result.fine_tuning.selection, result.fine_tuning.accepted) == (None, True)
    assert not do.made("select")
    assert not do.made("cross-validate")


def test_the_dev_set_judges_a_student_that_was_fine_tuned_on_the_whole_labeled_set() -> None:
    do = Recorder()
    result = run(do, config_with(stages=2, judge="dev"), judge="dev")
    assert end(do) == ["fine-tuning/judged", *JUDGE, *RELABELING, *TUNED]
    judged = named(do, "fine-tuning/judge")
    assert (judged.kind, judged.input("gold")) == ("evaluate", result.data.judge)
    assert do.of(judged.input("student")).input("labels") == result.data.labeled
    assert named(do, "fine-tuning/judged").key == named(do, "fine-tuning/student-0").key, "it is trained once"
    assert not do.made("cross-validate")


@pytest.mark.parametrize(("verdicts", "stage"), [([True, True], 3), ([True, False], 2), ([False], 1)])
def test_what_is_compared_is_a_student_of_the_kept_stage_before_and_after(verdicts: list[bool], stage: int) -> None:
    do = Recorder(verdicts)
    result = run(do, config_with(stages=3, selection="better"))
    kept = result.rounds[stage - 1]
    judges = [step for step in do.steps if step.kind == "cross-validate"]
    for judge in judges:
        assert judge.input("start") == kept.students[0]
        assert judge.input("labels") == result.data.labeled == result.data.judge
        assert (judge.params["folds"], judge.params["training"]["epochs"]) == (3, 7)
    assert [judge.params["only"] for judge in judges] == [[0, 2], [1]], "as many side by side as students"
    verdict, gathered = named(do, "fine-tuning/selection"), named(do, "fine-tuning/judge")
    assert [ref.key for ref in gathered.inputs["parts"]] == [judge.key for judge in judges]
    assert gathered.input("gold") == result.data.judge
    tuned = [*judges, named(do, "final/student")]
    assert {step.params["interpolation"] for step in tuned} == {0.75}, "what is judged is what is shipped"
    assert "interpolation" not in named(do, "final/before-fine-tuning").params
    assert verdict.inputs["reigning"] == kept.judge_scores[:1]
    assert verdict.input("challenger").uri == "fine-tuning/judge"
    assert verdict.params["selection"] == {"kind": "better", "confidence": 0.8}
    if result.fine_tuning and result.fine_tuning.students:
        assert [do.of(tuned).input("start") for tuned in result.fine_tuning.students] == list(kept.students)


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
def test_the_fine_tuned_students_label_what_they_were_not_trained_on(scheme: str) -> None:
    do = Recorder()
    run(do, config_with(stages=2, partitions=3, scheme=scheme))
    crossed = [step for step in do.made("cross-label") if step.name.startswith("fine-tuning")]
    assert len(crossed) == 3
    for step in crossed:
        before = do.of(do.of(step.input("student")).input("start"))
        seen, labeled = before.params["cells"]["only"], step.params["cells"]["only"]
        assert sorted([*seen, *labeled]) == [0, 1, 2]
    merge = named(do, "fine-tuning/pseudolabels")
    assert merge.input("pool") == named(do, "stage1/pseudolabels").input("pool")
    assert merge.input("previous").uri == "stage1/pseudolabels"


@pytest.mark.parametrize("verdicts", [[True, True], [True, False], [False]])
def test_no_student_that_judges_has_seen_the_labeled_set(verdicts: list[bool]) -> None:
    """Neither itself nor by its labels, and the pool's gold is not looked at."""
    do = Recorder(verdicts)
    result = run(do, config_with(stages=3, selection="better"))
    judged = [ref for done in result.rounds for ref in done.judge_scores]
    judged += [ref for step in do.made("select") for ref in step.inputs["reigning"]]
    assert judged
    for scores in judged:
        assert rows_of(do, do.of(scores).input("student")) == {"pool"}
    for judge in do.made("cross-validate"):
        assert rows_of(do, judge.input("start")) == {"pool"}
    assert rows_of(do, result.final_student) == {"pool", "labeled"}


def test_the_first_student_of_a_single_stage_is_trained_once() -> None:
    do = Recorder()
    result = run(do, config_with("better", ("vanilla-kd", "vanilla-fine-tuned"), stages=1))
    assert [step.name for step in do.made("train-student")] == ["vanilla-kd/student", "vanilla-fine-tuned/student"]
    assert len([step for step in do.steps if step.kind == "train-student"]) == 6
    assert named(do, "fine-tuning/before").input("gold") == result.data.judge
    assert result.baselines["vanilla-fine-tuned"].key == result.final_scores.key


def test_vanilla_fine_tuned_is_vanilla_kd_fine_tuned_whatever_the_run_does() -> None:
    do = Recorder()
    result = run(do, config_with("never", ("vanilla-fine-tuned", "supervised"), stages=2))
    tuned = do.of(do.of(result.baselines["vanilla-fine-tuned"]).input("student"))
    assert tuned.input("labels") == result.data.labeled
    assert do.of(tuned.input("start")).input("labels") == result.labels[0]
    supervised = do.of(do.of(result.baselines["supervised"]).input("student"))
    assert tuned.params["training"]["epochs"] == 7
    # Trained alone, it is trained for as long as a fine-tuned teacher: a baseline must not starve.
    training = {**tuned.params["training"], "epochs": 40}
    alone = {name: value for name, value in tuned.params.items() if name != "interpolation"}
    assert supervised.params == {**alone, "training": training}
    assert "start" not in supervised.inputs


def test_fine_tuning_has_the_settings_of_the_student_but_its_own_epochs() -> None:
    config = config_with(stages=2)
    own = {"min_updates": 50, "learning_rate": 0.002, "stopping": {"by": "labeled"}}
    values = config.model_dump(mode="json")
    values["student"]["training"] |= own
    do = Recorder()
    run(do, MckdConfig.model_validate(values))
    before, after = (named(do, name).params["training"] for name in TUNED)
    assert before["min_updates"] == 50
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"epochs", "min_updates", "stopping"}
    assert (after["epochs"], after["learning_rate"]) == (7, 0.002)
    assert not {"min_updates", "stopping"} & after.keys()


@pytest.mark.parametrize("tuning", [True, False])
@pytest.mark.parametrize("stages", [1, 2])
def test_names_are_unique_in_a_run(stages: int, tuning: bool) -> None:
    do = Recorder([True], tuning=tuning)
    baselines = ("vanilla-kd", "vanilla-fine-tuned", "same-partition", "supervised")
    run(do, config_with("better", baselines, stages=stages, selection="better"))
    by_name: dict[str, set[str]] = {}
    for step in do.steps:
        by_name.setdefault(step.name, set()).add(step.key)
    assert [name for name, keys in by_name.items() if len(keys) > 1] == []


def warm(**method: Any) -> MckdConfig:
    values = config_with(**{"stages": 2, **method}).model_dump(mode="json")
    values["student"]["warm_start"] = True
    return MckdConfig.model_validate(values)


def starts(do: Recorder) -> dict[str, str]:
    """The final student's training on pseudolabels, if it was given a start."""
    return {s.name: s.input("start").key for s in do.steps if s.name == TUNED[0] and "start" in s.inputs}


@pytest.mark.parametrize("promoted", [False, True])
def test_a_warm_night_without_news_trains_nothing(promoted: bool) -> None:
    """The champion was fine-tuned; what it was before is what a night without news finds."""
    first, second, third = Recorder(), Recorder(), Recorder()
    champion = crowned(first, run(first, warm()))
    result = run(second, warm(), pool="pool-2", champion=champion)
    assert starts(second) == {TUNED[0]: champion.student.key}
    reigning = crowned(second, result, "2") if promoted else champion
    again = run(third, warm(), pool="pool-2", champion=reigning)
    assert again.final_student == result.final_student
    assert starts(third) == {TUNED[0]: champion.student.key}
    assert {s.key for s in third.steps} == {s.key for s in second.steps}


def test_the_first_fine_tuned_champion_is_found_again_without_a_start() -> None:
    first, second, third = Recorder(), Recorder(), Recorder()
    champion = crowned(first, run(first, warm()))
    run(second, warm(), champion=champion)
    assert starts(first) == starts(second) == {}
    assert {s.key for s in second.steps} == {s.key for s in first.steps}
    run(third, warm(partitions=3), champion=champion)
    assert starts(third) == {TUNED[0]: champion.student.key}, "other labels are news"


def test_stage_1_learns_only_sure_labels_of_the_teacher() -> None:
    do = Recorder()
    baselines = ("vanilla-kd", "compute-matched-kd", "early-stopped", "self-relabelling", "supervised")
    run(do, config_with("better", baselines, stages=2, min_confidence=0.7))
    least = {step.name: step.params.get("min_confidence") for step in do.steps if step.kind == "train-student"}
    sure = {name for name, value in least.items() if value == 0.7}
    assert sure == {
        "stage1/student-0",
        "stage1/student-1",
        "vanilla-kd/student",
        "compute-matched-kd/student",
        "early-stopped/first",
        "self-relabelling/stage1/student",
    }
    assert {value for name, value in least.items() if name not in sure} == {None}
    one = Recorder()
    run(one, config_with("never", stages=1, min_confidence=0.7))
    assert named(one, "final/student").params["min_confidence"] == 0.7


def test_no_student_that_judges_fine_tuning_starts_from_the_champion() -> None:
    first, second = Recorder(), Recorder()
    champion = crowned(first, run(first, warm(stages=1)))
    run(second, warm(stages=1), pool="pool-2", champion=champion)
    assert "start" not in named(second, "fine-tuning/student").inputs, "it was fine-tuned on the rows that judge"
    assert named(second, "final/before-fine-tuning").input("start") == champion.student
