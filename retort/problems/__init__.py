"""Problems define what a label is: how it is rendered, parsed, checked and scored."""

from collections.abc import Iterable, Mapping
from typing import Any

from retort.config import (
    ChatConfig,
    ClassificationConfig,
    ColumnsConfig,
    ConstituencyConfig,
    EntitiesConfig,
    MultiLabelConfig,
    RegressionConfig,
    SlotsConfig,
    TextConfig,
)
from retort.config import Problem as ProblemConfig
from retort.errors import ConfigError
from retort.problems import classification, constituency, entities, multi_label, slots
from retort.problems.base import Constraint, Problem
from retort.problems.chat import Chat
from retort.problems.classification import Classification
from retort.problems.constituency import Constituency
from retort.problems.entities import Entities
from retort.problems.multi_label import MultiLabel
from retort.problems.regression import Regression
from retort.problems.slots import Slots
from retort.problems.text import FreeText

__all__ = ["Constraint", "Problem", "infer_schema", "problem_for"]


def problem_for(config: ProblemConfig) -> Problem:
    """The problem that a complete config describes.

    Raises ConfigError if the schema is missing (call `infer_schema` first) or inconsistent.
    """
    match config:
        case SlotsConfig(intents=None):
            raise ConfigError("problem.intents is not given; list the slots of each intent")
        case SlotsConfig(intents=dict(intents)):
            return Slots(intents)
        case ClassificationConfig(labels=None):
            raise ConfigError("problem.labels is not given; list the class names")
        case ClassificationConfig(labels=list(labels)):
            return Classification(labels)
        case MultiLabelConfig(labels=None):
            raise ConfigError("problem.labels is not given; list the class names")
        case MultiLabelConfig(labels=list(labels), separator=separator):
            return MultiLabel(labels, separator)
        case EntitiesConfig(labels=None):
            raise ConfigError("problem.labels is not given; list the types of entities")
        case EntitiesConfig(labels=list(labels)):
            return Entities(labels)
        case ConstituencyConfig(labels=None, form="labelled"):
            raise ConfigError("problem.labels is not given; list the phrase labels")
        case ConstituencyConfig():
            return Constituency(config)
        case TextConfig():
            return FreeText(config)
        case RegressionConfig():
            return Regression(config)
        case ChatConfig():
            return Chat(config)
    raise ConfigError(
        f"problem.kind '{config.kind}' is not known; use slots, entities, classification, multi-label, constituency, "
        "text, regression or chat"
    )


def infer_schema(config: ProblemConfig, rows: Iterable[Mapping[str, Any]], columns: ColumnsConfig) -> ProblemConfig:
    """The config with its schema inferred from raw labeled rows, sorted; unchanged if the schema is given.

    Raises DataError if a label cannot be read or there are too few, ConfigError if the schema cannot be inferred
    (the order of `ordered` classes that are not numbers).
    """
    match config:
        case SlotsConfig(intents=None):
            return config.model_copy(update={"intents": slots.infer_intents(rows, columns)})
        case ClassificationConfig(labels=None):
            labels = classification.infer_labels(rows, columns, ordered=config.ordered)
            return config.model_copy(update={"labels": labels})
        case MultiLabelConfig(labels=None, separator=separator):
            return config.model_copy(update={"labels": multi_label.infer_labels(rows, columns, separator)})
        case EntitiesConfig(labels=None):
            return config.model_copy(update={"labels": entities.infer_labels(rows, columns)})
        case ConstituencyConfig(labels=None, form="labelled"):
            return config.model_copy(update={"labels": constituency.infer_labels(rows, columns, config)})
    return config
