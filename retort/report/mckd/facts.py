"""Gathers the `MckdSummary` of a run from its artifacts, and explains its result in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from retort.artifacts.examples import Examples, set_aside
from retort.artifacts.hygiene import Hygiene
from retort.artifacts.scores import INVALID_SHARE, Scores
from retort.artifacts.verdicts import GateVerdict, Selection
from retort.config import ERRORS, EnsembleConfig, HubConfig, MckdConfig, Metric
from retort.io.parquet import Row
from retort.metrics.comparison import Systems, compare_systems, mcnemar_of
from retort.metrics.format import TITLES, gain_text, p_text, score_text
from retort.metrics.scores import mean_scores
from retort.problems.base import Problem
from retort.records.base import ArtifactRef, Progress
from retort.records.mckd import MckdResult, StageResult
from retort.report.course import Made, arm_costs, curves, spans
from retort.report.mckd.artifacts import data_refs, groups, made, made_in, student_behind, timings
from retort.report.mckd.labels import label_change, label_failures
from retort.report.mckd.summary import (
    DataSet,
    FinalGain,
    LabelStage,
    MckdSummary,
    ScoresByMetric,
    SystemRow,
    Use,
)
from retort.report.mckd.teachers import teacher_facts
from retort.report.mistakes import error_tables
from retort.report.quality import Reliability, Slice, reliability
from retort.report.slices import worst_slices
from retort.store import Store


@dataclass(frozen=True)
class Run:
    """A finished run."""

    config: MckdConfig
    problem: Problem
    result: MckdResult
    store: Store


def gather(run: Run, progress: Progress) -> MckdSummary:
    """Raises DamagedArtifact if an artifact of the run is gone."""
    config, result, store = run.config, run.result, run.store
    progress(0, 3, "times")
    parts = _with_gate(run, made(store, result))
    progress(1, 3, "labels")
    labels = (*(_label_stage(run, stage) for stage in range(len(result.labels))), *_fine_tuned_labels(run))
    progress(2, 3, "scores")
    systems = _systems(run, parts)
    tested = list(Scores.open(store, result.final_scores).predictions())
    student = store.manifest_of(result.final_student)
    described = {name: student.details[name] for name in _DEVICE if name in student.details}
    return MckdSummary(
        name=config.name,
        problem=config.problem.kind,
        metric=config.metrics[0],
        metrics=config.metrics,
        stages_asked=config.method.stages,
        kept_stage=result.kept_stage,
        reason=_reason(run, systems),
        systems=systems,
        data=tuple(_data_set(run, role, ref) for role, ref in data_refs(result.data).items()),
        labels=labels,
        failures=label_failures(store, result.labels[0]),
        teachers=teacher_facts(store, result.labels[0]),
        errors=error_tables(config.problem, run.problem, tested),
        timings=timings(parts),
        compute_seconds=sum(part.manifest.seconds for part in parts),
        model_uri=result.final_student.uri,
        model_key=result.final_student.key,
        made_with={**described, **student.versions},
        made_at=student.created_at,
        config=config.as_reported(),
        gate=GateVerdict.open(store, result.verdict).verdict() if result.verdict else None,
        champion=result.champion.version if result.champion else None,
        set_aside=set_aside(store, result.data.unlabeled),
        spans=spans(parts),
        curves=curves(store, parts),
        arm_costs=arm_costs(parts, {name: refs for name, refs in groups(result) if name != "data"}),
        reliability={"test": _reliability(run, tested)},
        slices={"test": _slices(run, tested)},
        hygiene=Hygiene.open(store, result.hygiene).facts() if result.hygiene else None,
    )


def _with_gate(run: Run, parts: list[Made]) -> list[Made]:
    """Add what has no lineage of its own here: the look at the rows, and the champion's scores and the verdict. The
    champion itself and the last night's rows are costs of other runs."""
    refs = [("data", run.result.hygiene)] if run.result.hygiene else []
    refs += [("champion", ref) for ref in run.result.champion_scores]
    refs += [("gate", run.result.verdict)] if run.result.verdict else []
    found = [made_in(group, run.store.manifest_of(ref)) for group, ref in refs]
    known = {part.manifest.key for part in parts}
    return [*parts, *(part for part in found if part.manifest.key not in known)]


_DEVICE = ("device", "device_name", "precision", "threads", "parameters")


def _reliability(run: Run, tested: list[Row]) -> tuple[Reliability, ...]:
    """Of the final student, and of a teacher that labeled the test rows too. Numbers have none: what is nearly right
    counts as wrong there."""
    if run.config.problem.kind == "regression":
        return ()
    systems = {"final student": tested}
    if run.result.teacher_scores is not None:
        systems["teacher"] = list(Scores.open(run.store, run.result.teacher_scores).predictions())
    found = (
        reliability(
            name,
            [row["confidence"] for row in rows],
            [run.problem.matches(row["gold"], row["predicted"]) for row in rows],
        )
        for name, rows in systems.items()
    )
    return tuple(one for one in found if one is not None)


_WITH_CLASSES = ("classification", "slots", "multi-label", "regression")
"""Problems of which the first part of a label is a class."""


def _slices(run: Run, tested: list[Row]) -> tuple[Slice, ...]:
    config = run.config
    return worst_slices(
        run.problem,
        config.metrics[0],
        tested,
        Examples.open(run.store, run.result.data.test).groups(),
        by_class=config.problem.kind in _WITH_CLASSES,
        resamples=config.evaluation.resamples,
        seed=config.method.seed,
    )


def _data_set(run: Run, role: str, ref: ArtifactRef) -> DataSet:
    manifest, source = run.store.manifest_of(ref), getattr(run.config.data, role)
    place = (
        " ".join(f"{k}={v}" for k, v in source.model_dump().items() if v) if isinstance(source, HubConfig) else source
    )
    return DataSet(role=role, source=place, key=ref.key, rows=manifest.rows, gold=manifest.counts.get("gold", 0))


def _label_stage(run: Run, stage: int) -> LabelStage:
    ref = run.result.labels[stage]
    previous = run.result.labels[stage - 1] if stage else None
    return LabelStage(
        stage=stage,
        rows=ref.rows,
        used=_use(run, stage),
        quality=_label_quality(run, stage),
        change=label_change(run.store, run.problem, run.result.data.unlabeled, previous, ref) if previous else None,
    )


def _fine_tuned_labels(run: Run) -> list[LabelStage]:
    """The labels that fine-tuned students gave, if there are any."""
    tuning = run.result.fine_tuning
    if tuning is None or tuning.labels is None or tuning.label_scores is None:
        return []
    pool, before = run.result.data.unlabeled, run.result.labels[run.result.kept_stage - 1]
    return [
        LabelStage(
            stage=tuning.stage,
            fine_tuned=True,
            rows=tuning.labels.rows,
            used="final student",
            quality=Scores.open(run.store, tuning.label_scores).scores(),
            change=label_change(run.store, run.problem, pool, before, tuning.labels),
        )
    ]


def _label_quality(run: Run, stage: int) -> ScoresByMetric:
    """Scores against the pool's own gold labels; empty if it has none or the recipe does not score labels."""
    scores = run.result.label_scores[stage : stage + 1]
    return Scores.open(run.store, scores[0]).scores() if scores else {}


def _use(run: Run, stage: int) -> Use:
    """What happened to the labels of a stage."""
    if stage == run.result.kept_stage - 1:
        return "replaced" if _has_fine_tuned_labels(run) else "final student"
    if stage < run.result.kept_stage:
        return "replaced"
    return "rejected" if run.config.selection.kind == "better" else "not needed"


def _has_fine_tuned_labels(run: Run) -> bool:
    return run.result.fine_tuning is not None and run.result.fine_tuning.labels is not None


def _systems(run: Run, parts: list[Made]) -> tuple[SystemRow, ...]:
    """The result table's rows, in order."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.group] = seconds.get(part.group, 0.0) + part.manifest.seconds
    rows = [_teacher_row(run), *_more_teacher_rows(run)]
    rows += [_stage_row(run, done) for done in run.result.rounds]
    rows += _fine_tuned_rows(run)
    rows.append(
        SystemRow(
            role="final",
            name="final student",
            measured_on="test",
            scores=_mean_scores(run, (run.result.final_scores,)),
            note=f"{_learnt_from(run)}{_invalid(run, (run.result.final_scores,))}",
        )
    )
    rows += _champion_rows(run)
    rows += [_baseline_row(run, name) for name in run.result.baselines]
    return tuple(row.model_copy(update={"seconds": seconds.get(row.name, 0.0)}) for row in rows)


def _teacher_row(run: Run) -> SystemRow:
    """The teacher's scores on the test rows if there are any, otherwise its labels against the pool's gold labels."""
    row = SystemRow(role="teacher", name="teacher", note=run.config.teacher.kind)
    if run.result.teacher_scores is not None:
        scores = _mean_scores(run, (run.result.teacher_scores,))
        return row.model_copy(update={"measured_on": "test", "scores": scores})
    quality = _label_quality(run, 0)
    if not quality:
        return row.model_copy(update={"note": f"{run.config.teacher.kind}; the pool has no gold to measure it on"})
    note = f"{run.config.teacher.kind}; its labels against the pool's gold"
    return row.model_copy(update={"measured_on": "pool", "scores": quality, "note": note})


def _more_teacher_rows(run: Run) -> list[SystemRow]:
    """The teacher on the labeled set, and each member of an ensemble."""
    rows = []
    if run.result.teacher_own_scores is not None:
        note = f"{run.config.teacher.kind}; each labeled row, with the others as demonstrations"
        rows.append(_labeled_row(run, "teacher, labeled set", run.result.teacher_own_scores, note))
    members = run.config.teacher.members if isinstance(run.config.teacher, EnsembleConfig) else []
    for (name, ref), member in zip(run.result.member_scores.items(), members, strict=True):
        rows.append(_labeled_row(run, name, ref, f"{member.kind}, alone"))
    return rows


def _labeled_row(run: Run, name: str, ref: ArtifactRef, note: str) -> SystemRow:
    row = SystemRow(role="teacher", name=name, note=note)
    params = run.store.manifest_of(ref).fingerprint["params"]
    scores = Scores.open(run.store, ref).scores()
    on = "labelled" if params.get("rows") == "labeled" else "pool"
    return row.model_copy(update={"measured_on": on, "scores": scores}) if scores else row


def _stage_row(run: Run, done: StageResult) -> SystemRow:
    rejected = done.selection is not None and done.stage > run.result.kept_stage
    return SystemRow(
        role="stage",
        name=f"stage {done.stage}",
        stage=done.stage,
        num_students=len(done.students),
        measured_on="test",
        scores=_mean_scores(run, done.test_scores),
        judge_scores=_mean_scores(run, done.judge_scores),
        note=f"labels of stage {done.stage - 1}{', rejected' if rejected else ''}{_invalid(run, done.test_scores)}",
        rejected=rejected,
    )


def _fine_tuned_rows(run: Run) -> list[SystemRow]:
    """The fine-tuned students that relabeled the pool last, if there are any."""
    tuning = run.result.fine_tuning
    if tuning is None or not tuning.students:
        return []
    return [
        SystemRow(
            role="stage",
            name="fine-tuned",
            num_students=len(tuning.students),
            measured_on="test",
            scores=_mean_scores(run, tuning.test_scores),
            note=f"those of stage {tuning.stage}, on the labeled set{_invalid(run, tuning.test_scores)}",
        )
    ]


def _learnt_from(run: Run) -> str:
    """What the final student was trained on."""
    fine_tuned = ", fine-tuned" if run.result.fine_tuning and run.result.fine_tuning.accepted else ""
    if _has_fine_tuned_labels(run):
        return f"labels of the fine-tuned students{fine_tuned}"
    return f"labels of stage {run.result.kept_stage - 1}{fine_tuned}"


def _champion_rows(run: Run) -> list[SystemRow]:
    """The champion's row, if there is a champion."""
    champion, scores = run.result.champion, run.result.champion_scores
    if champion is None:
        return []
    shared = champion.student.key == run.result.final_student.key
    return [
        SystemRow(
            role="champion",
            name="champion",
            measured_on="test",
            scores=_mean_scores(run, scores),
            note=f"version {champion.version}" + (", the same student as the final one" if shared else ""),
        )
    ]


def _baseline_row(run: Run, name: str) -> SystemRow:
    scores = run.result.baselines[name]
    student = student_behind(run.store, scores)
    shared = student is not None and student.key == run.result.final_student.key
    return SystemRow(
        role="baseline",
        name=name,
        measured_on="test",
        scores=_mean_scores(run, (scores,)),
        final_gain=None if shared else _final_gain(run, run.result.final_scores, scores),
        note="the same student as the final one" if shared else f"baseline{_invalid(run, (scores,))}",
    )


def _invalid(run: Run, scores: Sequence[ArtifactRef]) -> str:
    """The end of a note: the share of the students' outputs that were not valid labels, if there were any."""
    shares = [run.store.manifest_of(ref).metrics.get(INVALID_SHARE, 0.0) for ref in scores]
    share = sum(shares) / len(shares)
    return f"; {share:.1%} repaired" if share >= 0.0005 else ""


def _final_gain(run: Run, final: ArtifactRef, baseline: ArtifactRef) -> FinalGain:
    """Compare the final student with a baseline in the deciding metric, on the test rows."""
    tables, metric = (_predictions(run, baseline), _predictions(run, final)), run.config.metrics[0]
    golds = [row["gold"] for row in tables[1]]
    old, new = (Systems(run.problem, [metric], golds, [[row["predicted"] for row in table]]) for table in tables)
    comparison = compare_systems(old, new, metric, run.config.evaluation.resamples, run.config.method.seed)
    only = mcnemar_of(old, new)
    return FinalGain(
        value=comparison.gain,
        low=comparison.low,
        high=comparison.high,
        only_baseline=only.only_old,
        only_final=only.only_new,
        p_value=only.p_value,
    )


def _mean_scores(run: Run, refs: Sequence[ArtifactRef]) -> ScoresByMetric:
    """The scores of one student, or the mean of several on the same rows."""
    if len(refs) == 1:
        return Scores.open(run.store, refs[0]).scores()
    tables = [list(_predictions(run, ref)) for ref in refs]
    golds = [row["gold"] for row in tables[0]]
    predicted = [[row["predicted"] for row in rows] for rows in tables]
    resamples, seed = run.config.evaluation.resamples, run.config.method.seed
    scores = mean_scores(run.problem, run.config.metrics, golds, predicted, resamples, seed)
    return {str(metric): score for metric, score in scores.items()}


def _predictions(run: Run, scores: ArtifactRef) -> list[Row]:
    return list(Scores.open(run.store, scores).predictions(["text", "gold", "predicted"]))


def _reason(run: Run, systems: Sequence[SystemRow]) -> str:
    """Explains which labels the final student is trained on, and whether it was fine-tuned."""
    return f"{_labels_reason(run, systems)} {_fine_tuning_reason(run)}".strip()


def _fine_tuning_reason(run: Run) -> str:
    tuning = run.result.fine_tuning
    if tuning is None:
        return ""
    students = "the students that relabel the pool last and the final student" if tuning.labels else "the final student"
    if tuning.selection is None:
        return f"Fine-tuning on the labeled set needs no proof (method.fine_tuning: always), so {students} had it."
    verdict, needed = Selection.open(run.store, tuning.selection).verdict(), run.config.fine_tuning.confidence
    gain, low, high = (gain_text(verdict.metric, one) for one in (verdict.gain, verdict.low, verdict.high))
    compared = (
        f"it {_changed(verdict.metric)} a student's {TITLES[verdict.metric]} on {verdict.n} judging rows that it had "
        f"not seen by {gain} (95 % interval {low} to {high}; better in "
        f"{verdict.win_share:.0%} of resamples, {needed:.0%} needed)"
    )
    if tuning.accepted:
        return f"Fine-tuning on the labeled set was accepted: {compared}. So {students} had it."
    return f"Fine-tuning on the labeled set was rejected: {compared}."


def _changed(metric: Metric) -> str:
    """The verb before a gain: of an error, that is how much less it is."""
    return "lowered" if metric in ERRORS else "changed"


def _labels_reason(run: Run, systems: Sequence[SystemRow]) -> str:
    stages, last = run.config.method.stages, run.result.kept_stage - 1
    if stages == 1:
        return (
            "One stage was asked for (vanilla distillation), so the final student is trained on the teacher's labels."
        )
    if run.config.selection.kind == "always":
        why = "method.selection: always" if run.config.has_fair_judge else "the teacher was trained on the judging rows"
        return (
            f"Labels need not prove themselves ({why}), so the final student is trained on the "
            f"labels of stage {last}, the last."
        )
    verdict, labels = run.result.rounds[-1], f"The labels of stage {run.result.rounds[-1].stage - 1}"
    compared = _compared(run, verdict, systems)
    if verdict.stage > run.result.kept_stage:
        which = "of stage 0, the teacher's" if last == 0 else f"of stage {last}"
        return f"{labels} were rejected: {compared}. So the final student is trained on the labels {which}."
    return f"{labels} were accepted: {compared}. So the final student is trained on them."


def _compared(run: Run, challenger: StageResult, systems: Sequence[SystemRow]) -> str:
    """How the two rounds' students scored on the judging rows."""
    assert challenger.selection is not None, "only a round with a verdict is explained"
    verdict = Selection.open(run.store, challenger.selection).verdict()
    metric, only = run.config.metrics[0], verdict.mcnemar
    by_stage = {row.stage: row.judge_scores[metric] for row in systems if row.role == "stage"}
    new, old = by_stage[challenger.stage], by_stage[challenger.stage - 1]
    gain, low, high = (gain_text(metric, one) for one in (verdict.gain, verdict.low, verdict.high))
    return (
        f"students trained on them scored {score_text(metric, new.value)} {TITLES[metric]} against "
        f"{score_text(metric, old.value)} of those trained on the labels before, on the {verdict.n} judging rows "
        f"(gain {gain}, 95 % interval {low} to {high}; better in "
        f"{verdict.win_share:.0%} of resamples, {run.config.selection.confidence:.0%} needed; "
        f"McNemar on whole labels: {only.only_old} answers only the old got right, {only.only_new} only the new, "
        f"{p_text(only.p_value)})"
    )
