"""Gathers a run's facts from its artifacts, and says in words why it ended as it did."""

import json
from collections.abc import Sequence

from retort.config import EnsembleConfig, HubConfig, MckdConfig
from retort.io.parquet import Row, read_rows
from retort.metrics.comparison import compare_systems
from retort.metrics.scores import mean_score
from retort.records.base import ArtifactRef, MckdResult, StageResult
from retort.report.mckd.artifacts import Made, data_refs, made, manifest_of, student_behind, timings
from retort.report.mckd.labels import label_change, label_failures
from retort.report.mckd.mistakes import error_tables
from retort.report.mckd.summary import (
    TITLES,
    DataSet,
    FinalGain,
    LabelStage,
    Scores,
    Summary,
    SystemRow,
    Use,
    p_text,
    percent,
    signed,
)
from retort.report.mckd.teachers import teacher_facts
from retort.steps.context import StepContext
from retort.steps.cross_label import INVALID_SHARE
from retort.steps.evaluate import PREDICTIONS, read_scores
from retort.steps.gate import read_verdict
from retort.steps.select import VERDICT


def gather(work: StepContext) -> Summary:
    """Raises DamagedArtifact where an artifact of the run has vanished."""
    config = MckdConfig.model_validate(work.stage.params["config"])
    distilled = MckdResult.model_validate(work.stage.knobs["distilled"])
    work.progress(0, 3, "times")
    parts = _with_gate(work, distilled, made(work, distilled))
    work.progress(1, 3, "labels")
    labels = tuple(_label_stage(work, config, distilled, stage) for stage in range(len(distilled.labels)))
    work.progress(2, 3, "scores")
    systems = _systems(work, config, distilled, parts)
    student = manifest_of(work, distilled.final_student)
    described = {name: student.details[name] for name in _DEVICE if name in student.details}
    return Summary(
        name=config.name,
        problem=config.problem.kind,
        metric=config.metrics[0],
        metrics=config.metrics,
        stages_asked=config.method.stages,
        kept_stage=distilled.kept_stage,
        reason=_reason(work, config, distilled, systems),
        systems=systems,
        data=tuple(_data_set(work, config, role, ref) for role, ref in data_refs(distilled.data).items()),
        labels=labels,
        failures=label_failures(work, distilled.labels[0]),
        teachers=teacher_facts(work, distilled.labels[0]),
        errors=error_tables(config.problem, work.problem, _predictions(work, distilled.final_scores)),
        timings=timings(parts),
        compute_seconds=sum(part.manifest.seconds for part in parts),
        model_uri=distilled.final_student.uri,
        model_key=distilled.final_student.key,
        made_with={**described, **student.versions},
        made_at=student.created_at,
        config=config.model_dump(mode="json", exclude={"store", "tracking", "execution"}),
        gate=read_verdict(work.store, distilled.verdict) if distilled.verdict else None,
        champion=distilled.reigning.version if distilled.reigning else None,
    )


def _with_gate(work: StepContext, distilled: MckdResult, parts: list[Made]) -> list[Made]:
    """With the champion's scores and the verdict alone: what the champion itself cost was another night's."""
    refs = {"champion": distilled.reigning_scores, "gate": distilled.verdict}
    found = [Made(group, manifest_of(work, ref)) for group, ref in refs.items() if ref is not None]
    known = {part.manifest.key for part in parts}
    return [*parts, *(part for part in found if part.manifest.key not in known)]


_DEVICE = ("device", "device_name", "precision", "threads", "parameters")


def _data_set(work: StepContext, config: MckdConfig, role: str, ref: ArtifactRef) -> DataSet:
    manifest, source = manifest_of(work, ref), getattr(config.data, role)
    place = (
        " ".join(f"{k}={v}" for k, v in source.model_dump().items() if v) if isinstance(source, HubConfig) else source
    )
    return DataSet(role=role, source=place, key=ref.key, rows=manifest.rows, gold=manifest.counts.get("gold", 0))


def _label_stage(work: StepContext, config: MckdConfig, distilled: MckdResult, stage: int) -> LabelStage:
    ref, scores = distilled.labels[stage], distilled.label_scores[stage]
    previous = distilled.labels[stage - 1] if stage else None
    return LabelStage(
        stage=stage,
        rows=ref.rows,
        used=_use(config, distilled, stage),
        quality={score.metric: score for score in read_scores(work, scores)},
        change=label_change(work, distilled.data.unlabeled, previous, ref) if previous else None,
    )


def _use(config: MckdConfig, distilled: MckdResult, stage: int) -> Use:
    """What became of the labels of a stage."""
    if stage == distilled.kept_stage - 1:
        return "final student"
    if stage < distilled.kept_stage:
        return "replaced"
    return "rejected" if config.selection.kind == "better" else "not needed"


def _systems(work: StepContext, config: MckdConfig, distilled: MckdResult, parts: list[Made]) -> tuple[SystemRow, ...]:
    """The result table's rows, in order."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.group] = seconds.get(part.group, 0.0) + part.manifest.seconds
    rows = [_teacher_row(work, config, distilled), *_asked_rows(work, config, distilled)]
    rows += [_stage_row(work, config, distilled, done) for done in distilled.rounds]
    rows.append(
        SystemRow(
            role="final",
            name="final student",
            measured_on="test",
            scores=_mean_scores(work, config, (distilled.final_scores,)),
            note=f"labels of stage {distilled.kept_stage - 1}{_invalid(work, (distilled.final_scores,))}",
        )
    )
    rows += _champion_rows(work, config, distilled)
    rows += [_baseline_row(work, config, distilled, name) for name in distilled.baselines]
    return tuple(row.model_copy(update={"seconds": seconds.get(row.name, 0.0)}) for row in rows)


def _teacher_row(work: StepContext, config: MckdConfig, distilled: MckdResult) -> SystemRow:
    """On the test rows where it can be asked; else its labels against the pool's gold, where there is some."""
    row = SystemRow(role="teacher", name="teacher", note=config.teacher.kind)
    if distilled.teacher_scores is not None:
        scores = _mean_scores(work, config, (distilled.teacher_scores,))
        return row.model_copy(update={"measured_on": "test", "scores": scores})
    quality: Scores = {score.metric: score for score in read_scores(work, distilled.label_scores[0])}
    if not quality:
        return row.model_copy(update={"note": f"{config.teacher.kind}; the pool has no gold to measure it on"})
    note = f"{config.teacher.kind}; its labels against the pool's gold"
    return row.model_copy(update={"measured_on": "pool", "scores": quality, "note": note})


def _asked_rows(work: StepContext, config: MckdConfig, distilled: MckdResult) -> list[SystemRow]:
    """The teacher on the labelled set, and each member of an ensemble."""
    rows = []
    if distilled.teacher_own_scores is not None:
        note = f"{config.teacher.kind}; each labelled row, with the others as demonstrations"
        rows.append(_labelled_row(work, config, "teacher, labelled set", distilled.teacher_own_scores, note))
    members = config.teacher.members if isinstance(config.teacher, EnsembleConfig) else []
    for (name, ref), member in zip(distilled.member_scores.items(), members, strict=True):
        rows.append(_labelled_row(work, config, name, ref, f"{member.kind}, alone"))
    return rows


def _labelled_row(work: StepContext, config: MckdConfig, name: str, ref: ArtifactRef, note: str) -> SystemRow:
    row = SystemRow(role="teacher", name=name, note=note)
    params = manifest_of(work, ref).made_of["params"]
    scores: Scores = {score.metric: score for score in read_scores(work, ref)}
    on = "labelled" if params.get("rows") == "labeled" else "pool"
    return row.model_copy(update={"measured_on": on, "scores": scores}) if scores else row


def _stage_row(work: StepContext, config: MckdConfig, distilled: MckdResult, done: StageResult) -> SystemRow:
    rejected = done.selection is not None and done.stage > distilled.kept_stage
    return SystemRow(
        role="stage",
        name=f"stage {done.stage}",
        stage=done.stage,
        num_students=len(done.students),
        measured_on="test",
        scores=_mean_scores(work, config, done.test_scores),
        judge_scores=_mean_scores(work, config, done.judge_scores),
        note=f"labels of stage {done.stage - 1}{', rejected' if rejected else ''}{_invalid(work, done.test_scores)}",
        rejected=rejected,
    )


def _champion_rows(work: StepContext, config: MckdConfig, distilled: MckdResult) -> list[SystemRow]:
    """Of the champion, where one reigns."""
    reigning, scores = distilled.reigning, distilled.reigning_scores
    if reigning is None or scores is None:
        return []
    shared = reigning.student.key == distilled.final_student.key
    return [
        SystemRow(
            role="champion",
            name="champion",
            measured_on="test",
            scores=_mean_scores(work, config, (scores,)),
            note=f"version {reigning.version}" + (", the same student as the final one" if shared else ""),
        )
    ]


def _baseline_row(work: StepContext, config: MckdConfig, distilled: MckdResult, name: str) -> SystemRow:
    scores = distilled.baselines[name]
    student = student_behind(work, scores)
    shared = student is not None and student.key == distilled.final_student.key
    return SystemRow(
        role="baseline",
        name=name,
        measured_on="test",
        scores=_mean_scores(work, config, (scores,)),
        final_gain=None if shared else _final_gain(work, config, distilled.final_scores, scores),
        note="the same student as the final one" if shared else f"baseline{_invalid(work, (scores,))}",
    )


def _invalid(work: StepContext, scores: Sequence[ArtifactRef]) -> str:
    """For the end of a note: how many of the students' outputs were no label as they stood, where some were."""
    shares = [manifest_of(work, ref).metrics.get(INVALID_SHARE, 0.0) for ref in scores]
    share = sum(shares) / len(shares)
    return f"; {share:.1%} repaired" if share >= 0.0005 else ""


def _final_gain(work: StepContext, config: MckdConfig, final: ArtifactRef, baseline: ArtifactRef) -> FinalGain:
    """The final student against a baseline, by the deciding metric on the test rows."""
    new, old = _predictions(work, final), _predictions(work, baseline)
    comparison, only = compare_systems(
        work.problem,
        config.metrics[0],
        [row["gold"] for row in new],
        [[row["predicted"] for row in old]],
        [[row["predicted"] for row in new]],
        config.evaluation.resamples,
        config.method.seed,
    )
    return FinalGain(
        value=comparison.gain,
        low=comparison.low,
        high=comparison.high,
        only_baseline=only.only_old,
        only_final=only.only_new,
        p_value=only.p_value,
    )


def _mean_scores(work: StepContext, config: MckdConfig, refs: Sequence[ArtifactRef]) -> Scores:
    """Of one student, or the mean of several on the same rows."""
    if len(refs) == 1:
        return {score.metric: score for score in read_scores(work, refs[0])}
    tables = [list(_predictions(work, ref)) for ref in refs]
    golds = [row["gold"] for row in tables[0]]
    predicted = [[row["predicted"] for row in rows] for rows in tables]
    resamples, seed = config.evaluation.resamples, config.method.seed
    return {metric: mean_score(work.problem, metric, golds, predicted, resamples, seed) for metric in config.metrics}


def _predictions(work: StepContext, scores: ArtifactRef) -> list[Row]:
    return list(read_rows(work.fetch_ref(scores) / PREDICTIONS, ["text", "gold", "predicted"]))


def _reason(work: StepContext, config: MckdConfig, distilled: MckdResult, systems: Sequence[SystemRow]) -> str:
    """One or two plain sentences."""
    stages, last = config.method.stages, distilled.kept_stage - 1
    if stages == 1:
        return (
            "One stage was asked for (vanilla distillation), so the final student is trained on the teacher's labels."
        )
    if config.selection.kind == "always":
        why = "method.selection: always" if config.has_fair_judge else "the teacher was trained on the judging rows"
        return (
            f"Labels need not prove themselves ({why}), so the final student is trained on the "
            f"labels of stage {last}, the last."
        )
    verdict, labels = distilled.rounds[-1], f"The labels of stage {distilled.rounds[-1].stage - 1}"
    compared = _compared(work, config, verdict, systems)
    if verdict.stage > distilled.kept_stage:
        which = "of stage 0, the teacher's" if last == 0 else f"of stage {last}"
        return f"{labels} were rejected: {compared}. So the final student is trained on the labels {which}."
    return f"{labels} were accepted: {compared}. So the final student is trained on them."


def _compared(work: StepContext, config: MckdConfig, challenger: StageResult, systems: Sequence[SystemRow]) -> str:
    """What the two rounds' students scored on the judging rows."""
    assert challenger.selection is not None, "only a round with a verdict is explained"
    verdict = json.loads((work.fetch_ref(challenger.selection) / VERDICT).read_text())
    metric, only = config.metrics[0], verdict["mcnemar"]
    by_stage = {row.stage: row.judge_scores[metric] for row in systems if row.role == "stage"}
    new, old = by_stage[challenger.stage], by_stage[challenger.stage - 1]
    return (
        f"students trained on them scored {percent(new.value)} {TITLES[metric]} against {percent(old.value)} of those "
        f"trained on the labels before, on the {verdict['n']} judging rows (gain {signed(verdict['gain'])}, "
        f"95 % interval {signed(verdict['low'])} to {signed(verdict['high'])}; better in "
        f"{verdict['win_share']:.0%} of resamples, {config.selection.confidence:.0%} needed; "
        f"McNemar on whole labels: {only['only_old']} answers only the old got right, {only['only_new']} only the new, "
        f"{p_text(only['p_value'])})"
    )
