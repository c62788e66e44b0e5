"""`gate`: decides whether the final student may become the champion, comparing both on the same test rows.

Every check is reported as a sentence with its numbers, and one failed check refuses the student. McNemar's p on whole
labels is reported but decides nothing. If the final student already is the champion, there is nothing to promote, which
is not a failure.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from retort.artifacts.hygiene import Hygiene, PoolHygiene
from retort.artifacts.scores import Scores
from retort.artifacts.students import TrainedStudent
from retort.artifacts.verdicts import (
    ChampionComparison,
    Cost,
    GateVerdict,
    SliceScore,
    Verdict,
    VerdictOutcome,
    write_verdict,
)
from retort.config import ERRORS, GateConfig, Metric, Problem, SliceConfig
from retort.errors import ConfigError
from retort.io.parquet import Row
from retort.metrics.bootstrap import value_on
from retort.metrics.comparison import Systems, compare_systems, mcnemar_of, share_of_gains
from retort.metrics.format import TITLES, gain_text, p_text, percent, score_text
from retort.metrics.scores import score, value_of
from retort.problems import problem_for
from retort.problems.base import Problem as ProblemKind
from retort.problems.base import listed
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.steps.context import StepContext
from retort.store import StepOutput

TIMED_ROWS, WARM_UP_ROWS = 100, 10
MOST_SECONDS = 5.0
"""For the warm-up, and for the timed rows; a language model takes seconds a row."""


class Check(NamedTuple):
    passed: bool
    sentence: str


Measure = Callable[["Gate", StepContext, Sequence[str]], tuple[list[float], str]]
"""Returns (milliseconds of each text that was timed, machine)."""


def measured_latency(gate: "Gate", context: StepContext, texts: Sequence[str]) -> tuple[list[float], str]:
    """Measure the final student from text to label, in fp32 on one CPU thread, one row at a time."""
    import torch

    from retort.models.device import Device
    from retort.students.loading import load_student

    device = Device("cpu", "fp32", 1)
    folder = TrainedStudent.open(context.store, gate.student).model
    student = load_student(folder, gate.student_kind, gate.max_length, problem_for(gate.problem))

    def milliseconds(text: str) -> float:
        started = time.perf_counter()
        list(student.predict([text], device=device, total=1))
        return 1000 * (time.perf_counter() - started)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(within(MOST_SECONDS, map(milliseconds, texts[:WARM_UP_ROWS])))
        return list(within(MOST_SECONDS, map(milliseconds, texts))), str(device.describe()["device_name"])
    finally:
        torch.set_num_threads(threads)


def within(seconds: float, values: Iterator[float]) -> Iterator[float]:
    """Those that are there when so much time has passed, at least one."""
    ends = time.monotonic() + seconds
    for value in values:
        yield value
        if time.monotonic() > ends:
            return


class Gate(Step):
    """Decide whether the final student may become the champion."""

    kind = "gate"
    version = 2
    artifact = GateVerdict

    problem: Problem
    metric: Metric
    """The deciding metric."""
    gate: GateConfig
    student_kind: Annotated[str, Field(serialization_alias="student")]
    max_length: int
    resamples: int
    seed: int
    student: ArtifactRef
    """The final student."""
    challenger: tuple[ArtifactRef, ...]
    """The final student's scores, one per test set."""
    reigning: tuple[ArtifactRef, ...] = ()
    """The champion's scores on the same test sets; empty if there is no champion."""
    rivals: tuple[ArtifactRef, ...] = ()
    """Scores of systems on the same rows that the student must not be worse than."""
    rival_names: Annotated[tuple[str, ...], Field(exclude_if=lambda names: not names)] = ()
    hygiene: ArtifactRef | None = None
    """What was found in the rows; None if nothing of it has a limit."""

    def run(self, context: StepContext) -> StepOutput:
        return self.judge(context, measured_latency)

    def judge(self, context: StepContext, measure: Measure) -> StepOutput:
        rows = self._rows(context, self.challenger)
        new = self._system(rows)
        contest = self._contest(context, new) if self.reigning else None
        slices = tuple(self._slice_score(part, rows) for part in self.gate.slices)
        cost = self._cost(context, [row["text"] for row in rows[:TIMED_ROWS]], measure)
        rank = self._rank_check(contest, new)
        sliced = (Check(part.passed, _slice_sentence(part)) for part in slices)
        found = Hygiene.open(context.store, self.hygiene).facts() if self.hygiene else None
        of_rows = _row_checks(self.gate, found) if found else ()
        checks = [rank, *self._rival_checks(context, new), *sliced, *_cost_checks(cost), *of_rows]
        outcome = self._outcome(checks)
        verdict = Verdict(
            outcome=outcome,
            accepted=outcome in ("passed", "first"),
            metric=self.metric,
            n=len(rows),
            contest=contest,
            slices=slices,
            cost=cost,
            reasons=tuple(check.sentence for check in checks),
            refusals=tuple(check.sentence for check in checks if not check.passed),
        )
        write_verdict(context.folder, verdict)
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

    def _rows(self, context: StepContext, refs: Sequence[ArtifactRef]) -> list[Row]:
        """The predictions for all test sets, one set after another."""
        return [row for ref in refs for row in Scores.open(context.store, ref).predictions()]

    def _outcome(self, checks: Sequence[Check]) -> VerdictOutcome:
        if self._is_champion:
            return "reigns"
        if not all(check.passed for check in checks):
            return "refused"
        return "passed" if self.reigning else "first"

    @property
    def _is_champion(self) -> bool:
        """Scoring the same student on the same rows gives the same artifact, so both sides' scores are then equal."""
        return self.reigning == self.challenger

    def _contest(self, context: StepContext, new: Systems) -> ChampionComparison:
        gate, old = self.gate, self._system(self._rows(context, self.reigning))
        comparison = compare_systems(old, new, self.metric, self.resamples, self.seed)
        only = mcnemar_of(old, new)
        win_share = share_of_gains(old, new, self.metric, gate.min_gain, self.resamples, self.seed)
        return ChampionComparison(
            score=self._value(new),
            champion_score=self._value(old),
            gain=comparison.gain,
            low=comparison.low,
            high=comparison.high,
            min_gain=gate.min_gain,
            win_share=win_share,
            confidence=gate.confidence,
            resamples=self.resamples,
            only_champion=only.only_old,
            only_final=only.only_new,
            p_value=only.p_value,
        )

    def _first_check(self, new: Systems) -> Check:
        """Where rivals have learned nothing either, being no worse than they are is not enough."""
        own = self._value(new)
        if self.metric in ERRORS or own > 0:
            return Check(True, "No champion reigns yet, so there is none to beat.")
        return Check(
            False,
            f"No champion reigns yet, but the final student scores {score_text(self.metric, own)} "
            f"{TITLES[self.metric]} on {new.num_rows:,} test rows: it has learned nothing.",
        )

    def _rival_checks(self, context: StepContext, new: Systems) -> Iterator[Check]:
        """A student that is significantly worse than what costs less to make is no use, also as the first champion."""
        metric = self.metric
        for name, ref in zip(self.rival_names, self.rivals, strict=True):
            other = self._system(self._rows(context, (ref,)))
            compared = compare_systems(other, new, metric, self.resamples, self.seed)
            yield Check(
                compared.high >= 0,
                f"Against {name} the final student gains {gain_text(metric, compared.gain)} {TITLES[metric]} on "
                f"{new.num_rows:,} test rows (95 % interval {gain_text(metric, compared.low)} to "
                f"{gain_text(metric, compared.high)})"
                + (f": it is significantly worse, so use {name} instead." if compared.high < 0 else "."),
            )

    def _system(self, rows: Sequence[Row]) -> Systems:
        golds, predicted = [row["gold"] for row in rows], [row["predicted"] for row in rows]
        return Systems(problem_for(self.problem), [self.metric], golds, [predicted])

    def _value(self, system: Systems) -> float:
        """Its score in the deciding metric."""
        return value_on(system.statistics(self.metric)[0], value_of(problem_for(self.problem), self.metric))

    def _slice_score(self, part: SliceConfig, rows: Sequence[Row]) -> SliceScore:
        problem, metric = problem_for(self.problem), part.metric or self.metric
        members = [row for row in rows if _belongs(problem, part, row)]
        golds, predicted = [row["gold"] for row in members], [row["predicted"] for row in members]
        result = score(problem, metric, golds, predicted, self.resamples, self.seed) if members else None
        return SliceScore(
            name=part.name, metric=metric, n=len(members), score=result, floor=part.floor, min_rows=part.min_rows
        )

    def _cost(self, context: StepContext, texts: Sequence[str], measure: Measure) -> Cost:
        timed, machine = measure(self, context, texts)
        return Cost(
            latency_ms=float(np.median(timed)),
            timed_rows=len(timed),
            machine=machine,
            max_latency_ms=self.gate.max_latency_ms,
            megabytes=TrainedStudent.open(context.store, self.student).weights_bytes / 1e6,
            max_megabytes=self.gate.max_megabytes,
        )

    def _rank_check(self, contest: ChampionComparison | None, new: Systems) -> Check:
        if contest is None:
            return self._first_check(new)
        if self._is_champion:
            return Check(True, "The final student is the champion already, so there is nothing to promote.")
        better = contest.gain > contest.min_gain and contest.win_share >= contest.confidence
        own, champions = (score_text(self.metric, one) for one in (contest.score, contest.champion_score))
        gain, low, high, least = (
            gain_text(self.metric, one) for one in (contest.gain, contest.low, contest.high, contest.min_gain)
        )
        return Check(
            better,
            f"The final student scores {own} {TITLES[self.metric]} against the champion's {champions} on "
            f"{new.num_rows:,} test rows: a gain of {gain} (95 % interval {low} to {high}), more than {least} in "
            f"{percent(contest.win_share)} % of resamples, {percent(contest.confidence)} % needed; McNemar on whole "
            f"labels: {contest.only_champion} that only the champion gets right, {contest.only_final} that only the "
            f"final student does, {p_text(contest.p_value)}.",
        )


def check_slices(problem: Problem, gate: GateConfig) -> None:
    """Raises ConfigError for a slice whose label no row can have. Needs the resolved problem."""
    known = list((problem.intents if problem.kind == "slots" else getattr(problem, "labels", None)) or [])
    if problem.kind == "entities":
        known = []  # they are of words, not of a row
    for place, part in enumerate(gate.slices):
        if part.label is None:
            continue
        if not known:
            raise ConfigError(
                f"gate.slices.{place}.label: a {problem.kind} problem has no slices by label; allowed: pattern"
            )
        if part.label not in known:
            what = "intent" if problem.kind == "slots" else "class"
            raise ConfigError(f"gate.slices.{place}.label = '{part.label}': no such {what}; allowed: {listed(known)}")


def _belongs(problem: ProblemKind, part: SliceConfig, row: Row) -> bool:
    if part.label is not None and part.label not in problem.parts(row["gold"]):
        return False
    return part.pattern is None or re.search(part.pattern, row["text"]) is not None


def _slice_sentence(part: SliceScore) -> str:
    if part.score is None or part.n < part.min_rows:
        return f"Slice '{part.name}' has {part.n} test rows; at least {part.min_rows} are needed to prove anything."
    value, low, high, floor = (
        score_text(part.metric, one) for one in (part.score.value, part.score.low, part.score.high, part.floor)
    )
    return (
        f"Slice '{part.name}': {value} {TITLES[part.metric]} (95 % interval {low} to {high}) on {part.n} test rows; "
        + (f"at most {floor} is allowed." if part.metric in ERRORS else f"at least {floor} is needed.")
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


def _row_checks(gate: GateConfig, found: PoolHygiene) -> Iterator[Check]:
    suspicious, drift = found.suspicious, found.drift
    shares = (
        (gate.max_duplicate_share, found.within, "the pool's rows nearly repeat an earlier one"),
        (gate.max_leaked_share, found.leaked, "the test rows are nearly repeated in the pool or the labeled set"),
        (gate.max_suspicious_share, suspicious, "the teacher's labels are confidently contradicted by students"),
    )
    for limit, part, what in shares:
        if limit is not None and part is not None:
            yield Check(
                part.share <= limit, f"{percent(part.share)} % of {what}; at most {percent(limit)} % are allowed."
            )
    if gate.max_drift is not None:
        if drift is None or not drift.changes:
            yield Check(True, "There is no earlier night, or too few new rows, to tell a drift.")
            return
        sure = ", ".join(f"{one.what} {one.size:.2f}" for one in drift.changes if one.surely)
        yield Check(
            drift.size <= gate.max_drift,
            f"Drift against the last night: {sure or 'none that could not be chance'}; at most {gate.max_drift:g} is "
            "allowed.",
        )
