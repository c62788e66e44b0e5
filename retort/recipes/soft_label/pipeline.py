"""Distillation of a teacher's probabilities into a tiny student that scores answers (arXiv 2312.15842), on one page.

As in MCKD, the algorithm builds the steps and `do` carries them out. Every arm has the same training rows. All choices
(each student's epoch, lambda, temperature, the exported student) are made on the dev rows, and each test set is used
once, for what was chosen.
"""

from retort.config.soft_label import TINY_ARMS, Arm, CrossEncoderConfig, ProbabilitiesConfig, SoftLabelConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data.partitions import Cells, label_cells, train_cells
from retort.recipes.base import Do, beside, halved, together
from retort.recipes.checks import check_champion
from retort.recipes.soft_label.steps import (
    Encoder,
    evaluate,
    export_student,
    gather_labels,
    gather_recorded,
    ingests,
    label_by_llm,
    predict_baseline,
    predict_grid,
    score,
    time_students,
    train_grid,
)
from retort.records.base import ArtifactRef, Record
from retort.records.result import Champion
from retort.records.soft_label import SoftLabelResult
from retort.steps.gate import check_slices

Refs = dict[str, ArtifactRef]


class Answers(Record):
    """The ingested rows of every role."""

    train: ArtifactRef
    dev: ArtifactRef
    tests: Refs
    pool: ArtifactRef | None

    @property
    def judged(self) -> Refs:
        """The rows that every arm is scored on."""
        return {"dev": self.dev, **self.tests}


class TeacherProbabilities(Record):
    """The teacher's probabilities for the rows of each role. Those for the training rows are out of fold."""

    probabilities: Refs
    model: ArtifactRef | None = None
    """The fine-tuned teacher, trained on all training rows."""


class TrainedArms(Record):
    """The students that the arms trained."""

    grids: Refs
    small: tuple[ArtifactRef, ...]


async def distill(config: SoftLabelConfig, do: Do, champion: Champion | None = None) -> SoftLabelResult:
    """Distill from the data to the exported student.

    Raises ConfigError before making anything if the champion solves another problem, or if the gate has a slice for a
    class that does not exist.
    """
    check_slices(config.problem, config.gate)
    check_champion(config.name, config.problem, champion)
    data = await ingest_rows(config, do)
    teacher = await TEACHERS[config.teacher.kind](config, data, do)
    grids, small = await beside(train_grids(config, data, teacher, do), train_small_ones(config, data, do))
    student = await do(export_student(config, grids))
    scores = await score_all(config, data, teacher, TrainedArms(grids=grids, small=small), do)
    rows = next(iter(data.tests.values()))
    times = await do(time_students(config, student, teacher.model, small[0] if small else None, rows))
    return SoftLabelResult(
        train=data.train,
        dev=data.dev,
        tests=data.tests,
        pool=data.pool,
        train_probabilities=teacher.probabilities["train"],
        pool_probabilities=teacher.probabilities.get("unlabeled"),
        teacher=teacher.model,
        small=small,
        grids=grids,
        final_student=student,
        scores=scores,
        times=times,
        final_scores=await score_final(config, data, student, do),
    )


async def score_final(config: SoftLabelConfig, data: Answers, student: ArtifactRef, do: Do) -> Refs:
    """Score the exported student for the gate. Without tracking there is no registry to promote in, so no scores."""
    tests = data.tests if config.tracking else {}
    scores = await together(do(evaluate(config, f"final/{name}", student, rows)) for name, rows in tests.items())
    return dict(zip(tests, scores, strict=True))


async def ingest_rows(config: SoftLabelConfig, do: Do) -> Answers:
    roles = ["train", "dev", *config.data.tests, *(["unlabeled"] if "with-pool" in config.arms else [])]
    refs = dict(zip(roles, await together(do(step) for step in ingests(config, roles)), strict=True))
    tests = {name: refs[name] for name in config.data.tests}
    return Answers(train=refs["train"], dev=refs["dev"], tests=tests, pool=refs.get("unlabeled"))


def others(data: Answers) -> Refs:
    """The rows that no teacher is trained on."""
    return data.judged if data.pool is None else {**data.judged, "unlabeled": data.pool}


async def fine_tune(config: SoftLabelConfig, data: Answers, do: Do) -> TeacherProbabilities:
    """Fine-tune k + 1 teachers.

    Each of k labels the training rows that it was not trained on. One more is trained on all training rows, labels all
    other rows, and is the one that the students are compared with.
    """
    teacher = config.teacher
    assert isinstance(teacher, CrossEncoderConfig)
    encoder, k = Encoder.of(config, teacher.model, teacher.training), teacher.folds

    def cells(numbers: tuple[int, ...]) -> Cells:
        return Cells(of=k, seed=config.seed, only=list(numbers))

    parts = [(cells(train_cells("leave-one-out", k, i)), cells(label_cells("leave-one-out", k, i))) for i in range(k)]
    do = halved(do, config.execution)
    whole, *students = await together(
        [
            do(encoder.train("teacher/student", data.train)),
            *(do(encoder.train(f"teacher/part-{i}", data.train, cells=seen)) for i, (seen, _) in enumerate(parts)),
        ]
    )
    labels = await together(
        do(encoder.label(f"teacher/labels-{i}", students[i], data.train, unseen)) for i, (_, unseen) in enumerate(parts)
    )
    train = await do(gather_labels(config, "teacher/train", data.train, labels))

    async def labeled(role: str, rows: ArtifactRef) -> ArtifactRef:
        answers = await do(encoder.label(f"teacher/labels-{role}", whole, rows))
        return await do(gather_labels(config, f"teacher/{role}", rows, (answers,)))

    rest = await together(labeled(role, rows) for role, rows in others(data).items())
    probabilities = {"train": train, **dict(zip(others(data), rest, strict=True))}
    return TeacherProbabilities(probabilities=probabilities, model=whole)


async def label_with_llm(config: SoftLabelConfig, data: Answers, do: Do) -> TeacherProbabilities:
    """Label every role with an LLM. Demonstrations come from the dev rows, and a dev row is never its own."""
    teacher, probabilities = config.teacher, {}
    assert isinstance(teacher, LlmTeacherConfig)
    for role, rows in {"train": data.train, **others(data)}.items():
        labels = await do(label_by_llm(config, f"teacher/labels-{role}", teacher, rows, data.dev))
        probabilities[role] = await do(gather_labels(config, f"teacher/{role}", rows, (labels,)))
    return TeacherProbabilities(probabilities=probabilities)


async def gather_recorded_probabilities(config: SoftLabelConfig, data: Answers, do: Do) -> TeacherProbabilities:
    """Read probabilities that were recorded earlier."""
    teacher = config.teacher
    assert isinstance(teacher, ProbabilitiesConfig)
    steps = gather_recorded(config, teacher, {"train": data.train, **others(data)})
    return TeacherProbabilities(probabilities={role: await do(step) for role, step in steps.items()})


TEACHERS = {
    "finetuned": fine_tune,
    "probabilities": gather_recorded_probabilities,
    "vllm": label_with_llm,
    "endpoint": label_with_llm,
    "transformers": label_with_llm,
}


async def train_grids(config: SoftLabelConfig, data: Answers, teacher: TeacherProbabilities, do: Do) -> Refs:
    """Train the arms with a tiny student. They differ only in their loss, except that `with-pool` has more rows."""
    arms: list[Arm] = [arm for arm in TINY_ARMS if arm in config.arms]
    known = teacher.probabilities
    refs = await together(
        do(
            train_grid(
                config,
                arm,
                data.train,
                data.dev,
                None if arm in ("hard", "label-smoothing") else known["train"],
                (data.pool, known["unlabeled"]) if arm == "with-pool" and data.pool else None,
            )
        )
        for arm in arms
    )
    return dict(zip(arms, refs, strict=True))


async def train_small_ones(config: SoftLabelConfig, data: Answers, do: Do) -> tuple[ArtifactRef, ...]:
    do, seeds = halved(do, config.execution), config.tinybert.seeds if "tinybert" in config.arms else 0
    encoder, layers = tinybert(config), config.tinybert.layers
    return await together(
        do(encoder.train(f"tinybert/student-{i}", data.train, layers=layers, index=i)) for i in range(seeds)
    )


def tinybert(config: SoftLabelConfig) -> Encoder:
    return Encoder.of(config, config.tinybert.model, config.tinybert.training)


async def score_all(
    config: SoftLabelConfig, data: Answers, teacher: TeacherProbabilities, trained: TrainedArms, do: Do
) -> dict[str, Refs]:
    """Score the teacher and all arms, each on every role."""
    own, arms = await beside(
        score_teacher(config, data, teacher, do),
        together(score_arm(config, arm, data, trained, do) for arm in config.arms),
    )
    return {"teacher": own, **dict(zip(config.arms, arms, strict=True))}


async def score_teacher(config: SoftLabelConfig, data: Answers, teacher: TeacherProbabilities, do: Do) -> Refs:
    """Score the teacher on every role that it has probabilities for, including the training rows (out of fold)."""
    rows, known = {"train": data.train, **data.judged}, teacher.probabilities
    roles = [role for role in known if role in rows]
    scores = await together(do(score(config, f"teacher/{role}-scores", (known[role],), rows[role])) for role in roles)
    return dict(zip(roles, scores, strict=True))


async def score_arm(config: SoftLabelConfig, arm: Arm, data: Answers, trained: TrainedArms, do: Do) -> Refs:
    async def scored(role: str, rows: ArtifactRef) -> ArtifactRef:
        refs = await predictions(config, arm, role, data, trained, do)
        return await do(score(config, f"{arm}/{role}-scores", refs, rows))

    scores = await together(scored(role, rows) for role, rows in data.judged.items())
    return dict(zip(data.judged, scores, strict=True))


async def predictions(
    config: SoftLabelConfig, arm: Arm, role: str, data: Answers, trained: TrainedArms, do: Do
) -> tuple[ArtifactRef, ...]:
    """The arm's predictions for a role's rows: one artifact with all seeds, or one per seed for `tinybert`."""
    name, rows = f"{arm}/{role}", data.judged[role]
    if arm in trained.grids:
        return (await do(predict_grid(config, name, trained.grids[arm], rows)),)
    if arm != "tinybert":
        return (await do(predict_baseline(config, name, arm, data.train, rows)),)
    encoder = tinybert(config)
    labels = await together(do(encoder.label(f"{name}-labels-{i}", one, rows)) for i, one in enumerate(trained.small))
    return await together(do(gather_labels(config, f"{name}-{i}", rows, (one,))) for i, one in enumerate(labels))
