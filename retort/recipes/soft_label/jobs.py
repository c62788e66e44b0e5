"""The score flow's encoders and asked teachers as jobs of the stages that the other flow has for them."""

from retort.config import (
    DataConfig,
    FinetunedConfig,
    MckdConfig,
    MethodConfig,
    SequenceClassificationConfig,
    Teacher,
    TrainingConfig,
)
from retort.config.soft_label import CrossEncoderConfig, ProbabilitiesConfig, SoftLabelConfig


def encoder_job(config: SoftLabelConfig, model: str, training: TrainingConfig, folds: int = 2) -> MckdConfig:
    """For `train_student` and `cross_label`: an encoder over the whole text, the training rows in `folds` parts. Its
    `data` is never read: those stages are given their rows."""
    teacher = config.teacher
    finetuned = isinstance(teacher, CrossEncoderConfig) and teacher.model == model
    source = {"revision": teacher.revision, "weights": teacher.weights} if finetuned else {}  # type: ignore[union-attr]
    student = SequenceClassificationConfig.model_validate(
        {"kind": "sequence-classification", "model": model, "training": training, **source}
    )
    return _job(config, FinetunedConfig(kind="finetuned", training=training), student, folds)


def asked_job(config: SoftLabelConfig) -> MckdConfig:
    """For `pseudolabel_asked`."""
    assert not isinstance(config.teacher, CrossEncoderConfig | ProbabilitiesConfig)
    return _job(config, config.teacher, SequenceClassificationConfig(kind="sequence-classification", model="-"), 2)


def _job(config: SoftLabelConfig, teacher: Teacher, student: SequenceClassificationConfig, folds: int) -> MckdConfig:
    train = config.data.train
    return MckdConfig(
        name=config.name,
        problem=config.problem,
        data=DataConfig(labeled=train, unlabeled=train, test=train),
        teacher=teacher,
        student=student,
        method=MethodConfig(partitions=folds, scheme="leave-one-out", seed=config.seed),
        store=config.store,
        execution=config.execution,
    )
