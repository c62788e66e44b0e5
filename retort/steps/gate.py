"""`gate`: whether the final student may become the champion, which meets it on the same test rows.

Every check is a sentence with its numbers; one that fails refuses. McNemar's p on whole labels is told and decides
nothing. Where the final student *is* the champion there is nothing to promote, which is no failure.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retort.config import GateConfig, MckdConfig, Metric, SliceConfig
from retort.errors import ConfigError
from retort.io.parquet import Row, read_rows
from retort.metrics.bootstrap import share_above
from retort.metrics.comparison import compare_systems
from retort.metrics.scores import score, statistics_of
from retort.problems.base import listed
from retort.records.base import ArtifactRef, MckdResult, Step
from retort.report.mckd.summary import (
    TITLES,
    ChampionComparison,
    Cost,
    Outcome,
    SliceScore,
    Verdict,
    p_text,
    percent,
    signed,
)
from retort.steps.context import StepContext
from retort.steps.evaluate import PREDICTIONS
from retort.steps.train_student import MODEL
from retort.store import StepOutput, Store

VERSION = 1
VERDICT = "verdict.json"
TIMED_ROWS, WARM_UP_ROWS = 100, 10


def gate(config: MckdConfig, distilled: MckdResult, reigning_scores: ArtifactRef | None) -> Step:
    """`reigning_scores`: the champion's on the test rows, None where none reigns. See `outcome_of` for the verdict."""
    return Step(
        name="gate",
        verb="gate",
        version=VERSION,
        kind="verdicts",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "metric": config.metrics[0],
            "gate": config.gate.model_dump(mode="json"),
            "student": config.student.kind,
            "max_length": config.student.training.max_length,
            "resamples": config.evaluation.resamples,
            "seed": config.method.seed,
        },
        inputs={
            "challenger": (distilled.final_scores,),
            "student": (distilled.final_student,),
            **({"reigning": (reigning_scores,)} if reigning_scores else {}),
        },
    )


def check_slices(config: MckdConfig) -> None:
    """Needs the resolved config. Raises ConfigError for a slice whose label no row can have."""
    problem = config.problem
    known = list((problem.intents if problem.kind == "slots" else getattr(problem, "labels", None)) or [])
    for place, part in enumerate(config.gate.slices):
        if part.label is not None and part.label not in known:
            what = "intent" if problem.kind == "slots" else "class"
            raise ConfigError(f"gate.slices.{place}.label = '{part.label}': no such {what}; allowed: {listed(known)}")


def outcome_of(verdict: ArtifactRef) -> Outcome:
    """What a gate's artifact says, without reading it."""
    return next(outcome for outcome in OUTCOMES if verdict.metrics.get(outcome))


OUTCOMES: tuple[Outcome, ...] = ("passed", "first", "refused", "reigns")


def read_verdict(store: Store, verdict: ArtifactRef) -> Verdict:
    """Raises DamagedArtifact where it has vanished."""
    return Verdict.model_validate_json((store.fetch(verdict) / VERDICT).read_text(encoding="utf-8"))


class Check(NamedTuple):
    passed: bool
    sentence: str


Measure = Callable[[StepContext, Sequence[str]], tuple[float, str]]
"""(median milliseconds for one of the texts, the machine)."""


def measured_latency(work: StepContext, texts: Sequence[str]) -> tuple[float, str]:
    """Of the final student in fp32 on one CPU thread, one row at a time, from text to label."""
    import torch

    from retort.models.device import Device
    from retort.students.loading import load_student

    params, device = work.stage.params, Device("cpu", "fp32", 1)
    student = load_student(work.fetch("student") / MODEL, params["student"], params["max_length"], work.problem)

    def milliseconds(text: str) -> float:
        started = time.perf_counter()
        list(student.predict([text], device=device, total=1))
        return 1000 * (time.perf_counter() - started)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for text in texts[:WARM_UP_ROWS]:
            milliseconds(text)
        return float(np.median([milliseconds(text) for text in texts])), str(device.describe()["device_name"])
    finally:
        torch.set_num_threads(threads)


def make_gate(work: StepContext, measure: Measure = measured_latency) -> StepOutput:
    gate = GateConfig.model_validate(work.stage.params["gate"])
    rows = list(read_rows(work.fetch("challenger") / PREDICTIONS))
    contest = _contest(work, gate, rows) if "reigning" in work.stage.inputs else None
    slices = tuple(_slice_score(work, part, rows) for part in gate.slices)
    cost = _cost(work, gate, [row["text"] for row in rows[:TIMED_ROWS]], measure)
    rank = _rank_check(work.stage, contest, len(rows))
    checks = [rank, *(Check(part.passed, _slice_sentence(part)) for part in slices), *_cost_checks(cost)]
    outcome = _outcome(work.stage, checks)
    verdict = Verdict(
        outcome=outcome,
        accepted=outcome in ("passed", "first"),
        metric=work.stage.params["metric"],
        n=len(rows),
        contest=contest,
        slices=slices,
        cost=cost,
        reasons=tuple(check.sentence for check in checks),
        refusals=tuple(check.sentence for check in checks if not check.passed),
    )
    (work.folder / VERDICT).write_text(verdict.model_dump_json(indent=1), encoding="utf-8")
    compared = contest.model_dump(include={"gain", "win_share", "p_value"}) if contest else {}
    return StepOutput(
        rows=len(rows),
        metrics={
            "accepted": float(verdict.accepted),
            outcome: 1.0,
            **compared,
            "latency_ms": cost.latency_ms,
            "megabytes": cost.megabytes,
        },
        details={"outcome": outcome, "reasons": list(verdict.reasons)},
    )


def _outcome(stage: Step, checks: Sequence[Check]) -> Outcome:
    if _is_champion(stage):
        return "reigns"
    if not all(check.passed for check in checks):
        return "refused"
    return "passed" if "reigning" in stage.inputs else "first"


def _is_champion(stage: Step) -> bool:
    """The same student is scored once, on the same rows: then both sides' scores are one artifact."""
    return stage.inputs.get("reigning") == stage.inputs["challenger"]


def _contest(work: StepContext, gate: GateConfig, rows: Sequence[Row]) -> ChampionComparison:
    params, problem = work.stage.params, work.problem
    metric, resamples, seed = params["metric"], params["resamples"], params["seed"]
    golds, new = [row["gold"] for row in rows], [row["predicted"] for row in rows]
    old = [row["predicted"] for row in read_rows(work.fetch("reigning") / PREDICTIONS, ["predicted"])]
    comparison, only = compare_systems(problem, metric, golds, [old], [new], resamples, seed)
    sums = [statistics_of(problem, metric, golds, labels) for labels in (old, new)]
    champion_score, own_score = (float(problem.value(metric, one.sum(axis=0))) for one in sums)
    return ChampionComparison(
        score=own_score,
        champion_score=champion_score,
        gain=comparison.gain,
        low=comparison.low,
        high=comparison.high,
        min_gain=gate.min_gain,
        win_share=share_above(
            sums[:1], sums[1:], lambda total: problem.value(metric, total), gate.min_gain, resamples, seed
        ),
        confidence=gate.confidence,
        resamples=resamples,
        only_champion=only.only_old,
        only_final=only.only_new,
        p_value=only.p_value,
    )


def _slice_score(work: StepContext, part: SliceConfig, rows: Sequence[Row]) -> SliceScore:
    params = work.stage.params
    metric: Metric = part.metric or params["metric"]
    members = [row for row in rows if _belongs(work, part, row)]
    golds, predicted = [row["gold"] for row in members], [row["predicted"] for row in members]
    scored = score(work.problem, metric, golds, predicted, params["resamples"], params["seed"]) if members else None
    return SliceScore(
        name=part.name, metric=metric, n=len(members), score=scored, floor=part.floor, min_rows=part.min_rows
    )


def _belongs(work: StepContext, part: SliceConfig, row: Row) -> bool:
    if part.label is not None and work.problem.parts(row["gold"])[0] != part.label:
        return False
    return part.pattern is None or re.search(part.pattern, row["text"]) is not None


def _cost(work: StepContext, gate: GateConfig, texts: Sequence[str], measure: Measure) -> Cost:
    latency_ms, machine = measure(work, texts)
    weights = (work.fetch("student") / MODEL).glob("*.safetensors")
    return Cost(
        latency_ms=latency_ms,
        timed_rows=len(texts),
        machine=machine,
        max_latency_ms=gate.max_latency_ms,
        megabytes=sum(file.stat().st_size for file in weights) / 1e6,
        max_megabytes=gate.max_megabytes,
    )


def _rank_check(stage: Step, contest: ChampionComparison | None, n: int) -> Check:
    if contest is None:
        return Check(True, "No champion reigns yet, so there is none to beat.")
    if _is_champion(stage):
        return Check(True, "The final student is the champion already, so there is nothing to promote.")
    better = contest.gain > contest.min_gain and contest.win_share >= contest.confidence
    title = TITLES[stage.params["metric"]]
    return Check(
        better,
        f"The final student scores {percent(contest.score)} {title} against the champion's "
        f"{percent(contest.champion_score)} on {n:,} test rows: a gain of {signed(contest.gain)} (95 % interval "
        f"{signed(contest.low)} to {signed(contest.high)}), more than {signed(contest.min_gain)} in "
        f"{percent(contest.win_share)} % of resamples, {percent(contest.confidence)} % needed; McNemar on whole "
        f"labels: {contest.only_champion} that only the champion gets right, {contest.only_final} that only the final "
        f"student does, {p_text(contest.p_value)}.",
    )


def _slice_sentence(part: SliceScore) -> str:
    if part.score is None or part.n < part.min_rows:
        return f"Slice '{part.name}' has {part.n} test rows; at least {part.min_rows} are needed to prove anything."
    return (
        f"Slice '{part.name}': {percent(part.score.value)} {TITLES[part.metric]} (95 % interval "
        f"{percent(part.score.low)} to {percent(part.score.high)}) on {part.n} test rows; at least "
        f"{percent(part.floor)} is needed."
    )


def _cost_checks(cost: Cost) -> Iterator[Check]:
    if cost.max_latency_ms is not None:
        yield Check(
            cost.latency_ms <= cost.max_latency_ms,
            f"One row takes {cost.latency_ms:.1f} ms on one CPU thread (median of {cost.timed_rows} test rows, on "
            f"{cost.machine}); at most {cost.max_latency_ms:g} ms are allowed.",
        )
    if cost.max_megabytes is not None:
        yield Check(
            cost.megabytes <= cost.max_megabytes,
            f"The weights are {cost.megabytes:.1f} MB; at most {cost.max_megabytes:g} MB are allowed.",
        )
