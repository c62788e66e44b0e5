"""The gate's verdicts against figures worked out by hand; the student whose time and size it takes is a real one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from any_step import AnyStep
from retort.artifacts.scores import PREDICTED, PREDICTIONS
from retort.artifacts.students import MODEL
from retort.artifacts.verdicts import GateVerdict, Verdict
from retort.config import ExecutionConfig, GateConfig, MckdConfig
from retort.errors import ConfigError
from retort.io.parquet import write_rows
from retort.recipes.mckd.steps import gate
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.report.base import verdict_text
from retort.steps.context import StepContext
from retort.steps.gate import check_slices, within
from retort.store import StepOutput, Store

GOLD = ["up", "up", "down", "down"]
RIGHT, ONE_WRONG, WRONG = GOLD, ["down", *GOLD[1:]], ["down", "down", "up", "up"]
TEXTS = ["a great film", "good", "awful film", "dull"]
CONFIG: dict[str, Any] = {
    "name": "gated",
    "problem": {"kind": "classification", "labels": ["down", "up"]},
    "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl"},
    "teacher": {"kind": "recorded", "completions": "c.jsonl"},
    "student": {"kind": "sequence-classification", "model": "org/model"},
    "evaluation": {"resamples": 20_000},
    "tracking": {"uri": "sqlite:///mlflow.db"},
}


def configured(gate: dict[str, Any] | None = None, **changes: Any) -> MckdConfig:
    return MckdConfig.model_validate({**CONFIG, **changes, "gate": gate or {}})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("gate") / "store"))


@pytest.fixture(scope="module")
def student(store: Store, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    from retort.config import SequenceClassificationConfig
    from retort.models.weights import find_weights
    from retort.problems.classification import Classification
    from retort.students.encoder import new_encoder

    kind, problem = "sequence-classification", Classification(["down", "up"])
    weights = find_weights(SequenceClassificationConfig(kind="sequence-classification", model=str(tiny_encoder)))
    encoder = new_encoder(kind, weights, pretrained=True, problem=problem, max_length=32)
    folder = tmp_path_factory.mktemp("student")
    encoder.model.save_pretrained(folder / MODEL)
    encoder.tokenizer.save_pretrained(folder / MODEL)
    step = AnyStep(name="final/student", made="students")
    return store.publish(step, folder, StepOutput(rows=1), 1.0, "gated")


Scored = Callable[..., ArtifactRef]


@pytest.fixture
def scored(store: Store, tmp_path: Path) -> Scored:
    """The scores of a student that says this, each time as the fourfold test set repeated."""

    def publish(said: Sequence[str | None], times: int = 1) -> ArtifactRef:
        step = AnyStep(name="scores", values={"said": list(said), "times": times}, made="scores")
        rows = zip([f"t{n}" for n in range(4 * times)], TEXTS * times, GOLD * times, [*said] * times, strict=True)
        names = ("example_id", "text", "gold", "predicted")
        folder = tmp_path / step.key
        folder.mkdir(exist_ok=True)
        write_rows(
            folder / PREDICTIONS, PREDICTED, ({**dict(zip(names, row, strict=True)), "confidence": 0.9} for row in rows)
        )
        return store.publish(step, folder, StepOutput(rows=4 * times), 1.0, "gated")

    return publish


def distilled_with(student: ArtifactRef, scores: ArtifactRef, **rivals: ArtifactRef) -> MckdResult:
    """`rivals` are scores of baselines, or of the `teacher`."""
    rows = ArtifactRef(uri="", kind="examples", key="rows")
    data = Data(labeled=rows, unlabeled=rows, test=rows, judge=rows)
    return MckdResult(
        data=data,
        labels=(),
        label_scores=(),
        teacher_scores=rivals.pop("teacher", None),
        baselines={name.replace("_", "-"): ref for name, ref in rivals.items()},
        rounds=(),
        kept_stage=1,
        final_student=student,
        final_scores=scores,
    )


Judge = Callable[..., tuple[Verdict, ArtifactRef]]


@pytest.fixture
def judge(store: Store, student: ArtifactRef, tmp_path: Path) -> Judge:
    """The verdict of the real gate. Taking the time is left to the test that is about it."""

    def decide(
        config: MckdConfig, new: ArtifactRef, old: ArtifactRef | None, latency_ms: float = 3.0, **rivals: ArtifactRef
    ) -> tuple[Verdict, ArtifactRef]:
        step = gate(config, distilled_with(student, new, **rivals), (old,) if old else ())
        folder = tmp_path / f"gate-{step.key}"
        folder.mkdir()
        context = StepContext(store, folder, ExecutionConfig(), 0, lambda *_: None)
        ref = store.publish(
            step,
            folder,
            step.judge(context, lambda _gate, _context, texts: ([latency_ms] * len(texts), "a machine")),
            1.0,
            "gated",
        )
        return GateVerdict.open(store, ref).verdict(), ref

    return decide


def test_a_better_student_passes(judge: Judge, scored: Scored) -> None:
    verdict, ref = judge(configured(), scored(RIGHT, 5), scored(ONE_WRONG, 5))
    contest = verdict.contest
    assert (verdict.outcome, verdict.accepted, verdict.refusals) == ("passed", True, ())
    assert contest is not None
    assert (contest.score, contest.champion_score, contest.gain) == (1.0, 0.75, pytest.approx(0.25))
    assert (contest.only_champion, contest.only_final, contest.p_value) == (0, 5, 2 * 0.5**5)
    assert contest.win_share == pytest.approx(1 - 0.75**20, abs=0.002)
    assert 0 < contest.low < contest.gain < contest.high
    assert ref.metrics["accepted"] == 1.0
    assert (ref.metrics["gain"], ref.metrics["win_share"]) == (contest.gain, contest.win_share)
    assert ref.metrics["passed"] == 1.0
    (reason,) = verdict.reasons
    assert reason.startswith(
        "The final student scores 100.0 accuracy against the champion's 75.0 on 20 test rows: a gain"
    )
    assert reason.endswith("0 that only the champion gets right, 5 that only the final student does, p = 0.062.")


@pytest.mark.parametrize(
    ("min_gain", "share"),
    [
        (0.0, 1 - 0.75**4),  # the only row that differs is among the four drawn
        (0.3, 1 - 0.75**4 - 4 * 0.25 * 0.75**3),  # at least twice
        (-0.1, 1.0),
        (0.25, 1 - 0.75**4 - 4 * 0.25 * 0.75**3),  # a gain of just the least is not more than it
    ],
)
def test_the_share_of_resamples_is_the_binomial_one(
    judge: Judge, scored: Scored, min_gain: float, share: float
) -> None:
    config = configured({"min_gain": min_gain, "confidence": 0.6})
    verdict, _ = judge(config, scored(RIGHT), scored(ONE_WRONG))
    assert verdict.contest is not None
    assert verdict.contest.win_share == pytest.approx(share, abs=0.015)
    assert verdict.outcome == ("passed" if min_gain < 0.25 else "refused")


def test_a_better_student_is_refused_where_that_is_not_sure(judge: Judge, scored: Scored) -> None:
    verdict, ref = judge(configured(), scored(RIGHT), scored(ONE_WRONG))
    assert (verdict.outcome, verdict.accepted) == ("refused", False)
    assert verdict.refusals == verdict.reasons
    assert (ref.metrics["accepted"], ref.metrics["refused"]) == (0.0, 1.0)
    assert "95.0 % needed" in verdict.refusals[0]


def test_one_that_says_the_same_is_refused_and_one_that_is_hardly_worse_may_pass(judge: Judge, scored: Scored) -> None:
    same = [*RIGHT[:3], None]  # another artifact than the champion's, as good as it
    verdict, _ = judge(configured({"confidence": 0.0}), scored(same), scored(["down", *RIGHT[1:]]))
    assert verdict.outcome == "refused"
    assert verdict.contest is not None
    assert verdict.contest.gain == 0
    worse, _ = judge(configured({"min_gain": -0.5, "confidence": 0.9}), scored(ONE_WRONG, 5), scored(RIGHT, 5))
    assert worse.outcome == "passed"


def test_the_champion_itself_has_nothing_to_win(judge: Judge, scored: Scored) -> None:
    scores = scored(ONE_WRONG)
    verdict, ref = judge(configured({"slices": [{"name": "all", "pattern": "", "floor": 0.9}]}), scores, scores)
    assert (verdict.outcome, verdict.accepted, ref.metrics["reigns"]) == ("reigns", False, 1.0)
    assert verdict.reasons[0] == "The final student is the champion already, so there is nothing to promote."
    assert len(verdict.refusals) == 1  # that it is too weak for a floor is told all the same
    assert verdict_text(verdict, "7") == "The final student is the champion already, version 7."


def test_without_a_champion_floors_and_limits_decide(judge: Judge, scored: Scored) -> None:
    part = {"name": "films", "pattern": "film"}
    first, ref = judge(configured({"slices": [{**part, "floor": 0.5}]}), scored(ONE_WRONG), None)
    assert (first.outcome, first.accepted, first.contest) == ("first", True, None)
    assert ref.metrics["first"] == 1.0
    assert "gain" not in ref.metrics
    refused, _ = judge(configured({"slices": [{**part, "floor": 0.6}]}), scored(ONE_WRONG), None)
    assert (refused.outcome, refused.accepted) == ("refused", False)
    assert verdict_text(refused, None).endswith("become the first champion: 1 of 2 checks failed.")


@pytest.mark.parametrize(("said", "outcome"), [(WRONG, "refused"), ([None] * 4, "refused"), (RIGHT, "first")])
def test_who_is_never_right_is_no_first_champion(
    judge: Judge, scored: Scored, said: Sequence[str | None], outcome: str
) -> None:
    verdict, _ = judge(configured(), scored(said), None, vanilla_kd=scored(WRONG))
    assert verdict.outcome == outcome
    sentence = (
        "No champion reigns yet, but the final student scores 0.0 accuracy on 4 test rows: it has learned nothing."
    )
    assert verdict.refusals == ((sentence,) if outcome == "refused" else ())


@pytest.mark.parametrize("rival", ["vanilla_kd", "vanilla_fine_tuned", "supervised", "teacher"])
def test_who_is_worse_than_a_simpler_student_is_no_champion(judge: Judge, scored: Scored, rival: str) -> None:
    """Neither the first one nor the next, however much it gains over the one that reigns."""
    name, better = rival.replace("_", "-"), {rival: scored(RIGHT, 5)}
    for old in (None, scored(WRONG, 5)):
        verdict, ref = judge(configured(), scored(ONE_WRONG, 5), old, **better)
        assert (verdict.outcome, verdict.accepted, ref.metrics["accepted"]) == ("refused", False, 0.0)
        (sentence,) = verdict.refusals
        assert sentence.startswith(
            f"Against {name} the final student gains -25.0 accuracy on 20 test rows (95 % interval -"
        )
        assert sentence.endswith(f"): it is significantly worse, so use {name} instead.")
        assert verdict.reasons[1] == sentence
        assert verdict.contest is None if old is None else verdict.contest is not None


@pytest.mark.parametrize(
    ("own", "other", "gain"),
    [(ONE_WRONG, RIGHT, "-25.0"), (ONE_WRONG, [*GOLD[:3], None], "+0.0"), (RIGHT, ONE_WRONG, "+25.0")],
)
def test_who_is_not_significantly_worse_passes(
    judge: Judge, scored: Scored, own: list[str], other: list[str | None], gain: str
) -> None:
    """Of four rows, one is not enough to be sure: the other three are drawn in a third of the resamples."""
    verdict, _ = judge(configured(), scored(own), None, supervised=scored(other))
    assert verdict.outcome == "first"
    assert verdict.refusals == ()
    sentence = verdict.reasons[1]
    assert sentence.startswith(f"Against supervised the final student gains {gain} accuracy on 4 test rows (95 % ")
    assert sentence.endswith(").")


def test_every_rival_is_compared_in_order_but_not_the_student_itself(judge: Judge, scored: Scored) -> None:
    own, other = scored(RIGHT, 5), scored(ONE_WRONG, 5)
    rivals = {"teacher": other, "supervised": scored(WRONG, 5), "same_partition": other, "vanilla_kd": own}
    verdict, _ = judge(configured(), own, None, **rivals)
    assert [reason.partition(" the final")[0] for reason in verdict.reasons[1:]] == [
        "Against supervised",
        "Against teacher",
    ]
    assert verdict.outcome == "first"


def test_a_champion_reigns_although_a_rival_is_better(judge: Judge, scored: Scored) -> None:
    scores = scored(ONE_WRONG, 5)
    verdict, _ = judge(configured(), scores, scores, supervised=scored(RIGHT, 5))
    assert (verdict.outcome, len(verdict.refusals)) == ("reigns", 1)


@pytest.mark.parametrize(
    ("part", "n", "value"),
    [
        ({"pattern": "^a.*film$"}, 2, 0.5),
        ({"label": "down"}, 2, 1.0),
        ({"label": "up", "pattern": "film"}, 1, 0.0),
        ({"label": "up", "metric": "macro_f1"}, 2, 1 / 3),  # F1 of up 2/3, of down (predicted once, never gold) 0
        ({"pattern": "no such text"}, 0, None),
    ],
)
def test_slices_are_chosen_by_text_and_gold_class(
    judge: Judge, scored: Scored, part: dict[str, Any], n: int, value: float | None
) -> None:
    verdict, _ = judge(configured({"slices": [{"name": "part", "floor": 0.4, **part}]}), scored(ONE_WRONG), None)
    (found,) = verdict.slices
    assert found.n == n
    assert (found.score and found.score.value) == (None if value is None else pytest.approx(value))
    assert found.passed == (value is not None and value >= 0.4) == verdict.accepted
    if value is None:
        assert verdict.refusals == ("Slice 'part' has 0 test rows; at least 1 are needed to prove anything.",)


def test_too_few_rows_prove_nothing(judge: Judge, scored: Scored) -> None:
    part = {"name": "films", "pattern": "film", "floor": 0.0, "min_rows": 3}
    verdict, _ = judge(configured({"slices": [part]}), scored(RIGHT), None)
    assert verdict.refusals == ("Slice 'films' has 2 test rows; at least 3 are needed to prove anything.",)
    enough, _ = judge(configured({"slices": [part]}), scored(RIGHT, 2), None)
    assert enough.outcome == "first"


def test_a_slow_student_is_refused(judge: Judge, scored: Scored) -> None:
    config, scores = configured({"max_latency_ms": 5}), scored(RIGHT)
    assert judge(config, scores, None, latency_ms=5.0)[0].accepted
    slow = configured({"max_latency_ms": 4.9})
    assert judge(slow, scores, None, latency_ms=5.0)[0].refusals == (
        "One row takes 5.0 ms on one CPU thread (median of 4 test rows, on a machine); at most 4.9 ms are allowed.",
    )


def test_a_large_student_is_refused(judge: Judge, scored: Scored, store: Store, student: ArtifactRef) -> None:
    megabytes = (store.fetch(student) / MODEL / "model.safetensors").stat().st_size / 1e6
    assert judge(configured({"max_megabytes": megabytes}), scored(RIGHT), None)[0].accepted
    verdict, ref = judge(configured({"max_megabytes": 0.01}), scored(RIGHT), None)
    assert ref.metrics["megabytes"] == verdict.cost.megabytes == megabytes
    assert verdict.refusals == (f"The weights are {megabytes:.1f} MB; at most 0.01 MB are allowed.",)


def test_latency_is_taken_on_one_thread(store: Store, student: ArtifactRef, scored: Scored, tmp_path: Path) -> None:
    import torch

    step = gate(configured(), distilled_with(student, scored(RIGHT, 3)))
    threads = torch.get_num_threads()
    step.run(StepContext(store, tmp_path, ExecutionConfig(), 0, lambda *_: None))
    verdict = Verdict.model_validate_json((tmp_path / "verdict.json").read_text())
    assert torch.get_num_threads() == threads
    assert 0.1 < verdict.cost.latency_ms < 1000
    assert (verdict.cost.timed_rows, verdict.cost.machine != "") == (12, True)


def test_a_slow_student_is_timed_on_few_rows() -> None:
    assert list(within(60.0, iter([3.0, 2.0, 1.0]))) == [3.0, 2.0, 1.0]
    assert list(within(0.0, iter([3.0, 2.0, 1.0]))) == [3.0], "a language model takes seconds a row"
    assert list(within(0.0, iter([]))) == []


def test_the_key_holds_what_the_verdict_rests_on(scored: Scored, student: ArtifactRef) -> None:
    new, old = scored(RIGHT), scored(ONE_WRONG)

    def key(config: MckdConfig, reigning: ArtifactRef | None = old, scores: ArtifactRef = new) -> str:
        return gate(config, distilled_with(student, scores), (reigning,) if reigning else ()).key

    plain = key(configured())
    assert plain == key(configured(name="other", execution={"device": "cpu"}, tracking={"uri": "http://host"}))
    changed = [
        key(configured({field: value}))
        for field, value in {
            "min_gain": 0.01,
            "confidence": 0.9,
            "slices": [{"name": "a", "label": "up", "floor": 0.5}],
            "max_latency_ms": 5,
            "max_megabytes": 5,
        }.items()
    ]
    changed += [key(configured(), None), key(configured(), new), key(configured(), old, old)]
    with_rival = gate(configured(), distilled_with(student, new, supervised=old), (old,))
    changed += [with_rival.key, gate(configured(), distilled_with(student, new, teacher=old), (old,)).key]
    own = gate(configured(), distilled_with(student, new, supervised=new), (old,))
    assert own.key == plain, "no rival, no new key"
    assert not {"rivals", "rival_names"} & {*own.params, *own.inputs}
    changed.append(key(configured(evaluation={"metrics": ["macro_f1"], "resamples": 20_000})))
    assert len({plain, *changed}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("slices", "sentence"),
    [
        ([{"name": "a", "pattern": "(", "floor": 0.5}], "pattern '\\(' is no regular expression"),
        ([{"name": "a", "floor": 0.5}], "a slice needs a pattern or a label"),
        ([{"name": "a", "label": label, "floor": 0.5} for label in ("up", "down")], "the name 'a' stands for two"),
    ],
)
def test_slices_that_make_no_sense_are_refused(slices: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        GateConfig.model_validate({"slices": slices})


def test_a_slice_of_a_class_that_there_is_not_is_refused() -> None:
    config = configured({"slices": [{"name": "a", "label": "sideways", "floor": 0.5}]})
    with pytest.raises(ConfigError, match=r"gate\.slices\.0\.label = 'sideways': no such class; allowed: down, up"):
        check_slices(config.problem, config.gate)
