"""Multistage collaborative knowledge distillation (arXiv 2311.08640, section 3), on one page.

The algorithm builds the steps, in order; `do` carries them out (see `Recipe`).
"""

from dataclasses import replace

from retort.config import MckdConfig
from retort.recipes.base import Aside, Do, beside, halved, later, together
from retort.recipes.checks import check_champion
from retort.recipes.mckd.baselines import compare_baselines
from retort.recipes.mckd.finish import finish
from retort.recipes.mckd.rounds import Round, begin_round, relabel, train_on_partitions
from retort.recipes.mckd.steps import Role, evaluate_labels, evaluate_student, ingests, is_accepted, select
from retort.recipes.mckd.teacher import TeacherLabels, teacher_labels
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, FineTuning, MckdResult
from retort.records.result import Champion
from retort.steps.gate import check_slices


async def ingest_data(config: MckdConfig, do: Do) -> Data:
    """Ingest the rows of every role."""
    roles: list[Role] = ["labeled", "unlabeled", "test"]
    roles += ["dev"] if config.evaluation.judge == "dev" else []
    refs = dict(zip(roles, await together(do(step) for step in ingests(config, roles)), strict=True))
    return Data(
        labeled=refs["labeled"],
        unlabeled=refs["unlabeled"],
        test=refs["test"],
        judge=refs.get("dev", refs["labeled"]),
    )


async def distill(config: MckdConfig, data: Data, do: Do, champion: Champion | None = None) -> MckdResult:
    """Distill from the teacher's labels to the final student, which starts from the champion if `warm_start` is set,
    and to the baselines beside it.

    Raises ConfigError before making anything if the champion solves another problem, or if the gate has a slice for a
    class that does not exist.
    """
    check_slices(config.problem, config.gate)
    check_champion(config.name, config.problem, champion)
    teacher = await teacher_labels(config, data, do)
    do = halved(do, config.execution) if config.baselines else do
    result, baselines = await beside(
        distill_in_stages(config, data, teacher, do, champion),
        compare_baselines(config, data, teacher.labels, later(do)),
    )
    return result.model_copy(update={"baselines": baselines})


async def distill_in_stages(
    config: MckdConfig, data: Data, teacher: TeacherLabels, do: Do, champion: Champion | None
) -> MckdResult:
    """What scores a stage runs beside what makes the next labels and the next students, until a choice needs it."""
    method, selecting = config.method, config.selection.kind == "better"
    labels = [teacher.labels]
    rounds: list[Round] = []
    kept_stage = method.stages

    async with Aside() as aside:
        # The last stage trains only the final student; when selecting, a round of k students there tests its labels.
        for stage in range(1, method.stages + (selecting and method.stages > 1)):
            students = await train_on_partitions(config, data, stage, labels[-1], do)
            challenger = await begin_round(config, data, stage, students, do, aside)
            if selecting and rounds:
                challenger, accepted = await prove_better(config, rounds[-1], challenger, do)
                if not accepted:
                    kept_stage = stage - 1
                    rounds.append(challenger)
                    break
            rounds.append(challenger)
            if stage < method.stages:
                labels.append(await relabel(config, data, f"stage{stage}", students, labels[-1], do))

        async def finish_and_score() -> tuple[FineTuning | None, ArtifactRef, ArtifactRef]:
            tuning, final = await finish(config, data, rounds, kept_stage, labels[kept_stage - 1], champion, do)
            return tuning, final, await do(evaluate_student(config, "final/test", final, data.test))

        (tuning, final, final_scores), label_scores = await beside(
            finish_and_score(), score_labels(config, data, labels, later(do))
        )
        return MckdResult(
            data=data,
            labels=tuple(labels),
            label_scores=label_scores,
            teacher_scores=teacher.scores,
            teacher_own_scores=teacher.own_scores,
            member_scores=teacher.member_scores,
            rounds=tuple([await one.result() for one in rounds]),
            kept_stage=kept_stage,
            fine_tuning=tuning,
            final_student=final,
            final_scores=final_scores,
        )


async def prove_better(config: MckdConfig, reigning: Round, challenger: Round, do: Do) -> tuple[Round, bool]:
    """Test whether students trained on the same rows are better with the newer labels. Returns (challenger with its
    verdict, whether it was accepted)."""
    name = f"stage{challenger.stage}/selection"
    verdict = await do(select(config, name, await reigning.judge_scores, await challenger.judge_scores))
    return replace(challenger, selection=verdict), is_accepted(verdict)


async def score_labels(config: MckdConfig, data: Data, labels: list[ArtifactRef], do: Do) -> tuple[ArtifactRef, ...]:
    """Score every stage's labels against the pool's own gold labels, if it has any. For the report only."""
    return await together(
        do(evaluate_labels(config, f"stage{stage}/label-quality", ref, data.unlabeled))
        for stage, ref in enumerate(labels)
    )
