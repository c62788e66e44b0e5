"""What the algorithm asks for, in which order and from what, without doing any of it."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from mckd_order import ASKED, Recorder, config_of, data_of
from retort.config import MckdConfig
from retort.errors import StageFailed
from retort.recipes.base import beside, together
from retort.recipes.mckd.pipeline import distill
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.steps.base import Step

BASELINES = ["vanilla-kd", "compute-matched-kd", "same-partition", "self-relabelling", "early-stopped", "supervised"]


def distilled_by(do: Recorder, config: MckdConfig, data: Data | None = None) -> MckdResult:
    async def run() -> MckdResult:
        return await distill(config, data or data_of(), do)

    return asyncio.run(run())


def students(do: Recorder) -> list[Step]:
    """All but the fine-tuned teacher."""
    return [step for step in do.made("train-student") if not step.name.startswith("teacher")]


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
@pytest.mark.parametrize(("stages", "trainings"), [(1, 1), (2, 3), (3, 5)])
def test_selection_always_trains_as_often_as_the_paper(stages: int, trainings: int, scheme: str) -> None:
    do = Recorder()
    distilled = distilled_by(do, config_of(stages=stages, scheme=scheme))
    assert len(students(do)) == trainings == 2 * (stages - 1) + 1
    assert len(distilled.labels) == stages
    assert distilled.kept_stage == stages
    assert not do.made("select")


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
@pytest.mark.parametrize("partitions", [2, 3, 5])
def test_more_partitions_are_more_students_in_each_stage(partitions: int, scheme: str) -> None:
    do = Recorder()
    distilled_by(do, config_of(stages=3, partitions=partitions, scheme=scheme))
    assert len(students(do)) == 2 * partitions + 1
    assert len(do.made("cross-label")) == 2 * partitions + 1  # and the teacher's


@pytest.mark.parametrize(
    ("stages", "verdicts", "trainings", "kept"),
    [
        (1, [], 1, 1),
        (2, [False], 5, 1),
        (2, [True], 5, 2),
        (3, [False], 5, 1),
        (3, [True, False], 7, 2),
        (3, [True, True], 7, 3),
    ],
)
def test_selection_better_proves_each_stage_and_ends_with_the_best(
    stages: int, verdicts: list[bool], trainings: int, kept: int
) -> None:
    do = Recorder(verdicts)
    distilled = distilled_by(do, config_of(stages=stages, selection="better"))
    assert len(students(do)) == trainings
    assert len(do.made("select")) == len(verdicts)
    assert distilled.kept_stage == kept
    final = do.of(distilled.final_student)
    assert final.input("labels") == distilled.labels[kept - 1]


def test_labels_of_a_rejected_stage_are_never_trained_on_again() -> None:
    do = Recorder([True, False])
    distilled = distilled_by(do, config_of(stages=4, selection="better"))
    rejected = distilled.labels[2]
    trained = [step for step in do.steps if step.kind == "train-student" and step.input("labels") == rejected]
    assert {step.name.partition("/")[0] for step in trained} == {"stage3"}
    assert do.of(distilled.final_student).input("labels") == distilled.labels[1]


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
def test_students_of_two_stages_differ_in_their_labels_alone(scheme: str) -> None:
    do = Recorder([True, True])
    distilled = distilled_by(do, config_of(stages=3, partitions=3, scheme=scheme, selection="better"))
    first, second, third = (list(map(do.of, one.students)) for one in distilled.rounds)
    for index in range(3):
        one, two, three = first[index], second[index], third[index]
        assert one.params == two.params == three.params
        assert one.siblings == two.siblings == 3
        assert len({step.input("labels").key for step in (one, two, three)}) == 3
    assert len({step.params["seed"] for step in first}) == 3


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
@pytest.mark.parametrize("partitions", [2, 3, 5])
def test_nothing_is_labeled_by_a_student_that_saw_it(partitions: int, scheme: str) -> None:
    do = Recorder()
    distilled_by(do, config_of(stages=3, partitions=partitions, scheme=scheme))
    for step in do.made("cross-label"):
        if step.name.startswith("stage0"):
            continue
        student = do.of(step.input("student"))
        seen, labeled = set(student.params["cells"]["only"]), set(step.params["cells"]["only"])
        assert not seen & labeled
        assert seen | labeled == set(range(partitions))
        assert student.params["cells"]["seed"] == step.params["cells"]["seed"]
    for merge in do.made("merge-labels"):
        cells = [cell for ref in merge.inputs["cross_labels"] for cell in do.of(ref).params["cells"]["only"]]
        times = partitions - 1 if scheme == "disjoint" else 1
        assert sorted(cells) == sorted(list(range(partitions)) * times)


def test_the_pools_gold_is_only_ever_scored() -> None:
    do = Recorder([True, True])
    distilled = distilled_by(do, config_of(BASELINES, stages=3, selection="better"))
    for step in do.steps:
        if step.kind == "train-student" and not step.name.startswith(("teacher", "supervised")):
            assert step.input("labels").kind == "pseudolabels"
        judged = [ref for role in ("reigning", "challenger") for ref in step.inputs.get(role, ())]
        assert all(do.of(ref).input("gold") == distilled.data.judge for ref in judged)
    assert not [s for s in do.steps if s.kind != "evaluate" and distilled.data.test in sum(s.inputs.values(), ())]


def test_soft_labels_begin_with_the_second_stage() -> None:
    do = Recorder()
    distilled = distilled_by(do, config_of(stages=3, partitions=4, scheme="leave-one-out", cross_labels="soft"))
    assert [do.of(r.students[0]).params["soft"] for r in distilled.rounds] == [False, True]
    assert do.of(distilled.final_student).params["soft"]
    asked = [s.params["probabilities"] for s in do.made("cross-label") if not s.name.startswith("stage0")]
    assert all(asked)


def test_several_votes_need_probabilities_even_for_hard_labels() -> None:
    for partitions, expected in ((2, False), (3, True)):
        do = Recorder()
        distilled_by(do, config_of(stages=2, partitions=partitions))
        asked = {s.params["probabilities"] for s in do.made("cross-label") if not s.name.startswith("stage0")}
        assert asked == {expected}
        assert not do.made("merge-labels")[0].params["soft"]


def test_one_stage_is_vanilla_distillation() -> None:
    do = Recorder()
    distilled = distilled_by(do, config_of(["vanilla-kd"], stages=1, selection="better"))
    assert distilled.rounds == ()
    assert len(students(do)) == 1
    assert distilled.baselines["vanilla-kd"].key == distilled.final_scores.key


def test_a_run_that_keeps_stage_1_has_the_vanilla_baseline_for_its_final_student() -> None:
    do = Recorder([False])
    distilled = distilled_by(do, config_of(["vanilla-kd"], stages=3, selection="better"))
    assert distilled.baselines["vanilla-kd"].key == distilled.final_scores.key
    do = Recorder([True, True])
    distilled = distilled_by(do, config_of(["vanilla-kd"], stages=3, selection="better"))
    assert distilled.baselines["vanilla-kd"].key != distilled.final_scores.key


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
def test_every_baseline_is_what_it_says(scheme: str) -> None:
    do = Recorder()
    distilled = distilled_by(do, config_of(BASELINES, stages=3, partitions=3, scheme=scheme))
    student = {name: do.of(do.of(ref).input("student")) for name, ref in distilled.baselines.items()}
    teacher_labels = distilled.labels[0]
    assert list(student) == BASELINES
    assert student["vanilla-kd"].input("labels") == teacher_labels
    assert student["compute-matched-kd"].params["training"]["epochs"] == 18
    assert student["compute-matched-kd"].input("labels") == teacher_labels
    assert student["supervised"].input("labels") == distilled.data.labeled
    first = do.of(do.of(student["early-stopped"].input("labels")).input("student"))
    assert first.params["training"]["epochs"] == 1
    assert first.params["cells"] is None
    chain, labels = 0, student["self-relabelling"].input("labels")
    while labels != teacher_labels:
        labels = do.of(do.of(labels).input("student")).input("labels")
        chain += 1
    assert chain == 2
    assert all(step.params["cells"] is None for name, step in student.items())


@pytest.mark.parametrize("scheme", ["disjoint", "leave-one-out"])
def test_same_partition_lets_each_row_be_labeled_by_one_student_that_saw_it(scheme: str) -> None:
    do = Recorder()
    distilled_by(do, config_of(["same-partition"], stages=2, partitions=3, scheme=scheme))
    own = [step for step in do.steps if step.name.startswith("same-partition/stage1/labels")]
    assert len(own) == 3
    for step in own:
        seen = set(do.of(step.input("student")).params["cells"]["only"])
        assert set(step.params["cells"]["only"]) <= seen
    assert sorted(cell for step in own for cell in step.params["cells"]["only"]) == [0, 1, 2]


def test_same_partition_is_soft_where_the_main_run_is() -> None:
    do = Recorder()
    distilled = distilled_by(do, config_of(["same-partition"], stages=2, cross_labels="soft"))
    student = do.of(do.of(distilled.baselines["same-partition"]).input("student"))
    merge = do.of(student.input("labels"))
    assert student.params["soft"]
    assert merge.params["soft"]
    assert all(do.of(ref).params["probabilities"] for ref in merge.inputs["cross_labels"])


def test_baselines_share_the_students_of_the_first_stage() -> None:
    alone, beside = Recorder(), Recorder()
    distilled_by(alone, config_of(stages=2))
    distilled_by(beside, config_of(["same-partition", "vanilla-kd"], stages=2))
    assert {s.key for s in alone.steps} <= {s.key for s in beside.steps}
    # vanilla-kd, and same-partition's last: its two of stage 1 are the main run's
    assert len(students(beside)) == len(students(alone)) + 2


@pytest.mark.parametrize("method", [{"scheme": "disjoint"}, {"scheme": "leave-one-out", "cross_labels": "soft"}])
def test_names_are_unique_in_a_run(method: dict[str, str]) -> None:
    do = Recorder()
    distilled_by(do, config_of(BASELINES, stages=3, partitions=3, **method))
    by_name: dict[str, set[str]] = {}
    for step in do.steps:
        by_name.setdefault(step.name, set()).add(step.key)
    assert [name for name, keys in by_name.items() if len(keys) > 1] == []


def test_a_pool_that_grew_keeps_what_does_not_depend_on_it() -> None:
    before, after = Recorder(), Recorder()
    config = config_of(["supervised"], stages=2)
    distilled_by(before, config)
    distilled_by(after, config, data_of("pool-of-tomorrow"))
    kept = {s.key for s in before.steps} & {s.key for s in after.steps}
    names = {s.name for s in after.steps if s.key in kept}
    assert names == {"teacher/student", "teacher/test", "supervised/student", "supervised/test"}
    old, new = ({s.name: s for s in do.steps} for do in (before, after))
    assert all(old[name].params == new[name].params for name in old)  # rows keep their cells, students their seeds


def test_a_student_that_is_asked_for_under_other_names_has_one_key() -> None:
    do = Recorder()
    distilled = distilled_by(do, config_of(["vanilla-kd"], stages=1))
    assert [s.name for s in do.steps if s.key == distilled.final_student.key] == [
        "final/student",
        "vanilla-kd/student",
    ]


async def test_siblings_finish_before_an_error_is_raised() -> None:
    finished = []

    async def fail() -> ArtifactRef:
        raise StageFailed("student 0 failed")

    async def succeed(number: int) -> ArtifactRef:
        await asyncio.sleep(0.01 * number)
        finished.append(number)
        return ArtifactRef(uri="", kind="students", key=str(number))

    with pytest.raises(StageFailed, match="student 0"):
        await together([fail(), succeed(1), succeed(2)])
    assert finished == [1, 2]


async def test_together_keeps_the_order() -> None:
    async def slow(number: int) -> ArtifactRef:
        await asyncio.sleep(0.01 * (3 - number))
        return ArtifactRef(uri="", kind="students", key=str(number))

    assert [ref.key for ref in await together(slow(number) for number in range(3))] == ["0", "1", "2"]


class Clock(Recorder):
    """A `do` whose steps take one second each, as many at once as there are, and those on the test rows five. Time
    jumps to the next moment at which anything is due."""

    def __init__(self, verdicts: Iterable[bool] = ()) -> None:
        super().__init__(verdicts)
        self.begun: dict[str, int] = {}

    async def __call__(self, step: Step) -> ArtifactRef:
        self.begun[step.name] = round(asyncio.get_running_loop().time())
        await asyncio.sleep(5 if "/test" in step.name else 1)
        return await super().__call__(step)

    def start(self) -> "Clock":
        loop: Any = asyncio.get_running_loop()
        now, select = 0.0, loop._selector.select

        def jump(seconds: float | None) -> Any:
            nonlocal now
            found = select(seconds and 0)
            if seconds and not found:
                now += seconds
            return found

        loop.time, loop._selector.select = lambda: now, jump
        return self


def test_baselines_halve_the_cores_with_the_run_and_come_after_it() -> None:
    do, alone = Recorder(), Recorder()
    distilled_by(do, config_of(["vanilla-kd", "supervised"], teacher=ASKED))
    distilled_by(alone, config_of([], teacher=ASKED))
    late = {step.name for step in do.steps if not step.is_urgent}
    baselines = {f"{name}/{part}" for name in ("vanilla-kd", "supervised") for part in ("student", "test")}
    tests = {f"stage{stage}/test-{index}" for stage in (1, 2) for index in (0, 1)}
    assert late == baselines | tests | {f"stage{stage}/label-quality" for stage in range(3)}
    assert {step.name: step.cpu_shares for step in do.steps if step.name.startswith("final/")} == {
        "final/student": 2,
        "final/test": 2,
    }
    assert {step.cpu_shares for step in do.made("cross-label") if step.name.startswith("stage1")} == {2}
    assert {step.cpu_shares for step in alone.steps if step.name.startswith("final/")} == {1}
    assert {step.key for step in alone.steps} < {step.key for step in do.steps}


async def test_what_does_not_depend_on_each_other_runs_at_once() -> None:
    do = Clock().start()
    config = config_of(["vanilla-kd", "supervised"], stages=3, teacher=ASKED)
    await distill(config, data_of(), do)
    begun = do.begun
    assert begun["vanilla-kd/student"] == begun["supervised/student"] == begun["stage1/student-0"]
    for stage in ("stage1", "stage2"):
        names = [f"{stage}/{name}-{n}" for name in ("judge", "test", "cross-labels") for n in (0, 1)]
        assert len({begun[name] for name in names}) == 1
    assert begun["stage0/label-quality"] == begun["final/student"]
    for stage, students in (("stage1", "stage2/student-0"), ("stage2", "final/student")):
        assert begun[students] == begun[f"{stage}/pseudolabels"] + 1, "no score is waited for"


async def test_whatever_waits_for_a_verdict_is_not_made_beside_it() -> None:
    do = Clock([False]).start()
    await distill(config_of(stages=3, selection="better"), data_of(), do)
    assert "stage2/cross-labels-0" not in do.begun
    assert do.begun["stage2/selection"] == do.begun["stage2/judge-0"] + 1, "and for no score that decides nothing"


async def test_a_score_that_fails_ends_the_run_at_last() -> None:
    class Failing(Clock):
        async def __call__(self, step: Step) -> ArtifactRef:
            if step.name == "stage1/test-0":
                raise StageFailed(step.name)
            return await super().__call__(step)

    do = Failing().start()
    with pytest.raises(StageFailed, match="stage1/test-0"):
        await distill(config_of(stages=3), data_of(), do)
    assert "final/student" in do.begun


async def test_a_run_that_fails_does_not_wait_for_its_baselines() -> None:
    ended: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise StageFailed("final")

    async def go_on(seconds: float) -> int:
        try:
            await asyncio.sleep(seconds)
            return 1
        finally:
            ended.append("other")

    with pytest.raises(StageFailed, match="final"):
        await asyncio.wait_for(beside(fail(), go_on(60)), 10)
    assert ended == ["other"]
    with pytest.raises(StageFailed, match="final"):
        await beside(go_on(0.1), fail())
    assert ended == ["other", "other"], "and the other way round, the run comes to its end first"
    assert await beside(go_on(0.0), go_on(0.01)) == (1, 1)
