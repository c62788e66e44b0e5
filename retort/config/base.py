"""Types shared by all parts of the YAML config."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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


def _no_variable(text: str) -> str:
    if _VARIABLE.search(text):
        raise ValueError("${...} is expanded in addresses and secrets only")
    return text


Text = Annotated[str, AfterValidator(_no_variable)]
Address = str
"""A path, glob, bucket address or URL; may contain `${VAR}`."""
Metric = Literal[
    "slot_f1",
    "intent_accuracy",
    "exact_match",
    "accuracy",
    "macro_f1",
    "quadratic_weighted_kappa",
    "bracket_f1",
    "bracket_precision",
    "bracket_recall",
    "unlabeled_f1",
    "chrf",
    "bleu",
    "rouge_l",
    "field_f1",
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class Settings(BaseModel):
    """Base of all parts of the config: immutable, and unknown fields are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
