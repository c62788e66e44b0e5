"""Types shared by all parts of the YAML config."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from retort.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand(address: str) -> str:
    """Replace each `${VAR}` with its value from the environment. Raises ConfigError if one is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise ConfigError(f"'{address}' needs the environment variable {name}, which is not set")
        return os.environ[name]

    return _VARIABLE.sub(value, address)


def home_expanded(path: str) -> str:
    """Replace a leading `~` or `~user` with the home folder. Raises ConfigError if there is no such user."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ConfigError(f"'{path}': there is no home folder of '{path.partition('/')[0]}'; write ./{path} for a name")
    return found


def _no_variable(text: str) -> str:
    if _VARIABLE.search(text):
        raise ValueError("${...} is expanded in addresses and secrets only")
    return text


Text = Annotated[str, AfterValidator(_no_variable)]
_USER = re.compile(r"([A-Za-z][\w+.-]*)://([^/?#\s]*)@")


def _no_password(address: str) -> str:
    """What stands in a config ends up in artifacts, reports and tracking servers, so a password may not."""
    if match := _USER.match(address):
        user, _, password = match[2].partition(":")
        secret = password or (user if match[1].startswith("http") else "")
        if _VARIABLE.sub("", secret):
            raise ValueError(
                "holds a user's password: put it into an environment variable, and write ${NAME} in its place"
            )
    return address


Address = Annotated[str, AfterValidator(_no_password)]
"""A path, glob, bucket address or URL; may contain `${VAR}`."""
Metric = Literal[
    "slot_f1",
    "entity_f1",
    "intent_accuracy",
    "exact_match",
    "accuracy",
    "macro_f1",
    "micro_f1",
    "jaccard",
    "quadratic_weighted_kappa",
    "bracket_f1",
    "bracket_precision",
    "bracket_recall",
    "unlabeled_f1",
    "chrf",
    "bleu",
    "rouge_l",
    "field_f1",
    "rmse",
    "mae",
    "pearson",
    "spearman",
]
ERRORS: frozenset[Metric] = frozenset({"rmse", "mae"})
"""The metrics of which less is better. Their values are in the unit of the labels; those of all others are shares."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Retired(NamedTuple):
    """A field that is gone."""

    value: object
    """What it is now, always. Dumps still hold it, since they are part of artifacts' keys."""
    instead: str
    """What to do where a file says something else."""


RetiredFields = Mapping[str, Retired]
"""By name."""


class Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    retired: ClassVar[RetiredFields] = {}
    """Fields of earlier versions: a file that gives one its only value still loads."""

    @model_validator(mode="before")
    @classmethod
    def _drop_retired(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        for name, field in cls.retired.items():
            if values.get(name, field.value) != field.value:
                raise ValueError(f"{name} = {values[name]}: this field is gone; {field.instead}")
        return {name: value for name, value in values.items() if name not in cls.retired}

    @model_serializer(mode="wrap")
    def _keep_retired(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **{name: field.value for name, field in self.retired.items()}}
