"""What is asked for where a champion reigns: its scores, the gate, and a start for the final student alone."""

import asyncio
from typing import Any

import pytest

from mckd_order import Recorder, config_of, crowned, data_of
from retort.config import GateConfig, MckdConfig, TextConfig
from retort.errors import ConfigError
from retort.recipes.mckd.pipeline import distill
from retort.recipes.mckd.recipe import MckdRecipe
from retort.records.mckd import MckdResult
from retort.records.result import Champion
from retort.steps.gate import check_slices


def tracked(warm: bool = False, **student: Any) -> MckdConfig:
    config: MckdConfig = config_of(stages=2)
    values = config.model_dump(mode="json")
    values["student"] |= {"warm_start": warm, **student}
    return MckdConfig.model_validate({**values, "tracking": {"uri": "sqlite:///mlflow.db"}})


def night(do: Recorder, config: MckdConfig, reigning: Champion | None = None, pool: str = "pool") -> MckdResult:
    async def run() -> MckdResult:
        distilled = await distill(config, data_of(pool), do, reigning)
        return await MckdRecipe().challenge(config, distilled, do, reigning)

    return asyncio.run(run())


def test_without_tracking_there_is_nothing_to_promote_in() -> None:
    do = Recorder()
    distilled = night(do, config_of(stages=2))
    assert distilled.verdict is None
    assert not do.made("gate")


def test_without_a_champion_the_gate_looks_at_the_final_student_and_the_teacher() -> None:
    do = Recorder()
    distilled = night(do, tracked())
    (step,) = do.made("gate")
    assert step.inputs == {
        "challenger": (distilled.final_scores,),
        "student": (distilled.final_student,),
        "rivals": (distilled.teacher_scores,),
    }
    assert step == do.steps[-1]
    assert (distilled.champion, distilled.champion_scores) == (None, ())
    assert distilled.verdict in distilled.refs()


def test_the_champion_is_scored_on_tonights_test_rows() -> None:
    before, do = Recorder(), Recorder()
    reigning = crowned(before, night(before, tracked()))
    distilled = night(do, tracked(), reigning, pool="pool-of-tomorrow")
    scored, gate = do.steps[-2:]
    assert (scored.name, scored.kind, gate.kind) == ("champion/test", "evaluate", "gate")
    assert (scored.input("student"), scored.input("gold")) == (reigning.student, distilled.data.test)
    (champion_scores,) = distilled.champion_scores
    assert gate.input("reigning") == champion_scores
    assert gate.input("challenger") == distilled.final_scores != champion_scores
    assert distilled.champion == reigning
    assert all(ref in distilled.refs() for ref in (distilled.verdict, champion_scores))


def test_the_champion_reads_rows_as_long_as_it_was_trained_for() -> None:
    before, do = Recorder(), Recorder()
    reigning = crowned(before, night(before, tracked()))
    night(do, tracked(training={"max_length": 32}), reigning)
    assert [step.params["max_length"] for step in do.steps if step.name in ("final/test", "champion/test")] == [
        32,
        128,
    ]


def test_a_night_without_news_meets_itself() -> None:
    first, second, third = Recorder(), Recorder(), Recorder()
    reigning = crowned(first, night(first, tracked()))
    distilled = night(second, tracked(), reigning)
    assert distilled.champion_scores == (distilled.final_scores.model_copy(update={"uri": "champion/test"}),)
    assert {step.key for step in second.steps} - {step.key for step in first.steps} == {second.steps[-1].key}
    night(third, tracked(), reigning)
    assert {step.key for step in third.steps} == {step.key for step in second.steps}


def starts(do: Recorder) -> dict[str, str]:
    """The students that were given a start."""
    return {step.name: step.input("start").key for step in do.steps if "start" in step.inputs}


def test_only_the_final_student_starts_warm() -> None:
    before, do = Recorder(), Recorder()
    reigning = crowned(before, night(before, tracked(warm=True)))
    night(do, tracked(warm=True), reigning, pool="pool-of-tomorrow")
    assert starts(before) == {}
    assert starts(do) == {"final/student": reigning.student.key}
    cold = Recorder()
    night(cold, tracked(), reigning, pool="pool-of-tomorrow")
    assert starts(cold) == {}
    assert len({s.key for s in cold.made("train-student")} - {s.key for s in do.made("train-student")}) == 1


@pytest.mark.parametrize("promoted", [False, True])
def test_a_warm_night_without_news_trains_nothing(promoted: bool) -> None:
    """Whether the student of the night before, itself started warm, reigns by now or was refused."""
    first, second, third = Recorder(), Recorder(), Recorder()
    config = tracked(warm=True)
    champion = crowned(first, night(first, config))
    distilled = night(second, config, champion, pool="pool-2")
    reigning = crowned(second, distilled, "2") if promoted else champion
    again = night(third, config, reigning, pool="pool-2")
    assert again.final_student == distilled.final_student
    assert starts(third) == {"final/student": champion.student.key}
    assert {s.key for s in third.made("train-student")} == {s.key for s in second.made("train-student")}


def test_the_first_champion_is_found_again_without_a_start() -> None:
    first, second = Recorder(), Recorder()
    distilled = night(first, tracked(warm=True))
    again = night(second, tracked(warm=True), crowned(first, distilled))
    assert again.final_student == distilled.final_student
    assert starts(second) == {}


@pytest.mark.parametrize("change", [{"pool": "pool-3"}, {"training": {"epochs": 7}}])
def test_news_start_from_whoever_reigns_now(change: dict[str, Any]) -> None:
    first, second, third = Recorder(), Recorder(), Recorder()
    champion = crowned(first, night(first, tracked(warm=True)))
    reigning = crowned(second, night(second, tracked(warm=True), champion, pool="pool-2"), "2")
    pool = change.pop("pool", "pool-2")
    night(third, tracked(warm=True, **change), reigning, pool=pool)
    assert starts(third) == {"final/student": reigning.student.key}


def test_a_champion_of_another_problem_is_refused_before_anything_is_made() -> None:
    before, do = Recorder(), Recorder()
    reigning = crowned(before, night(before, tracked()))
    params = {**reigning.fingerprint["params"], "problem": {"kind": "slots"}}
    fingerprint = {**reigning.fingerprint, "params": params}
    with pytest.raises(ConfigError, match="the champion of this name, version 1, solves 'slots' and not"):
        night(do, tracked(), reigning.model_copy(update={"fingerprint": fingerprint}))
    assert do.steps == []


def test_a_slice_of_a_class_that_there_is_not_is_refused_before_anything_is_made() -> None:
    do = Recorder()
    values = tracked().model_dump(mode="json")
    values["gate"]["slices"] = [{"name": "part", "label": "c", "floor": 0.5}]
    with pytest.raises(ConfigError, match=r"gate\.slices\.0\.label = 'c': no such class; allowed: a, b"):
        night(do, MckdConfig.model_validate(values))
    assert do.steps == []


def test_a_kind_of_problem_without_names_has_no_slices_by_label() -> None:
    gate = GateConfig.model_validate({"slices": [{"name": "part", "label": "art", "floor": 0.5}]})
    with pytest.raises(
        ConfigError, match=r"gate\.slices\.0\.label: a text problem has no slices by label; allowed: pattern"
    ):
        check_slices(TextConfig(kind="text"), gate)
