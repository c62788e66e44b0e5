"""The kinds of problem: what a label is."""

import math
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from retort.config.base import Settings, Text


class SlotsConfig(Settings):
    """The intent and slots of a request (single-level semantic parsing)."""

    kind: Literal["slots"]
    intents: dict[Text, list[Text]] | None = None
    """Names of the slots allowed in each intent. Default: taken from the labeled set."""


class ClassificationConfig(Settings):
    """One class per text."""

    kind: Literal["classification"]
    labels: Annotated[list[Text], Field(min_length=2)] | None = None
    """Class names, from low to high if `ordered`. Default: taken from the labeled set."""
    ordered: bool = False
    """Whether the classes have an order, which quadratic weighted kappa takes into account."""


class MultiLabelConfig(Settings):
    """A set of classes per text, which may be empty."""

    kind: Literal["multi-label"]
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """Class names. Default: taken from the labeled set."""
    separator: Annotated[Text, Field(min_length=1)] = ","
    """What separates the names of a gold label that is a text and not a list."""


class EntitiesConfig(Settings):
    """The named entities of a text, whose words are separated by spaces; no two of them share a word."""

    kind: Literal["entities"]
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """Types of entities (PERSON). Default: taken from the labeled set."""


class ConstituencyConfig(Settings):
    """A constituency tree per sentence, whose words are separated by spaces."""

    kind: Literal["constituency"]
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """Phrase labels (NP) and unary chains (S+VP) that a tagging student may predict. Default: taken from the labeled
    set, whose few trees lack rare ones. Ignored if `form` is unlabelled."""
    form: Literal["labelled", "unlabelled"] = "labelled"
    """With unlabelled, labels are dropped everywhere, and teachers write brackets as in the MCKD paper."""
    tags: bool = True
    """Whether each word in the data's trees has a part-of-speech tag, (NN cat). If False, words are bare, and
    punctuation is recognized by its form."""
    function_tags: Annotated[bool, Field(exclude_if=lambda kept: not kept)] = False
    """Whether labels keep their function tags: NP-SBJ, and not NP. Indices (NP-1, NP=2) and traces are always left out,
    since the text does not hold what they point to."""
    max_change: Annotated[int, Field(ge=1, le=256)] = 24
    """Maximum number of constituents that begin or end between two adjacent words in a tagging student's trees, where a
    unary chain counts once; the excess is cut. CRAFT has up to 22."""


class TextConfig(Settings):
    """Each text's label is itself free text."""

    kind: Literal["text"]
    pattern: str | None = None
    """Regular expression that each whole label must match; labels that do not are set aside."""
    json_schema: dict[str, Any] | None = None
    """JSON Schema that labels must satisfy; labels are then JSON, compared by content."""


MOST_CLASSES = 21
"""With more steps than this, a student has no class of its own for each number."""
MOST_NUMBERS = 1001
"""Most different numbers that a teacher may write: its decoder is held to a list of them."""
_DEFAULT_NUMBERS = 501


class RegressionConfig(Settings):
    """A number for each text: an essay's mark, a rating, a similarity."""

    kind: Literal["regression"]
    low: float
    """The lowest number that a label can be."""
    high: float
    """The highest one."""
    step: Annotated[float, Field(gt=0)] | None = None
    """The distance between neighboring labels (1 for marks 0, 1, ..., 5): the labels are then ordinal, and one between
    two steps is an error. Left out, every number in the range is a label."""
    decimals: Annotated[int, Field(ge=0, le=6)] | None = None
    """Without `step`: digits after the point of the numbers that a teacher, or a student that writes text, gives; gold
    labels may have more. Default: as many as keep the numbers that can be written to 501."""
    average: Literal["mean", "median"] = "mean"
    """How several numbers for one row become one: samples of a teacher, members of an ensemble, students."""

    @model_validator(mode="after")
    def _is_a_scale(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        if self.step is None:
            if not 2 <= self.num_written <= MOST_NUMBERS:
                raise ValueError(
                    f"decimals = {self.decimals}: {self.num_written} numbers from {self.low:g} to {self.high:g} have "
                    f"so many; allowed: 2 to {MOST_NUMBERS}"
                )
            return self
        if self.decimals is not None:
            raise ValueError("decimals: with step, numbers are written with the digits of the steps; leave it out")
        span = Decimal(str(self.high)) - Decimal(str(self.low))
        if span % Decimal(str(self.step)):
            raise ValueError(f"step = {self.step:g} does not lead from low = {self.low:g} to high = {self.high:g}")
        if self.num_written > MOST_NUMBERS:
            raise ValueError(f"step = {self.step:g}: {self.num_written} labels; at most {MOST_NUMBERS} are allowed")
        return self

    @property
    def unit(self) -> Decimal:
        """The distance between two numbers that can be written."""
        if self.step is not None:
            return Decimal(str(self.step))
        return Decimal(1).scaleb(-self._digits)

    @property
    def num_written(self) -> int:
        """How many different numbers can be written."""
        low, high = Decimal(str(self.low)), Decimal(str(self.high))
        if self.step is not None:
            return int((high - low) / self.unit) + 1
        return math.floor(high / self.unit) - math.ceil(low / self.unit) + 1

    @property
    def ordered(self) -> bool:
        """Whether the labels are ordinal."""
        return self.step is not None

    @property
    def has_class_for_each(self) -> bool:
        """Whether each number is a class, of which a teacher may give the probability."""
        return self.ordered and self.num_written <= MOST_CLASSES

    @property
    def _digits(self) -> int:
        if self.decimals is not None:
            return self.decimals
        return next((n for n in range(6, 0, -1) if (self.high - self.low) * 10**n < _DEFAULT_NUMBERS), 0)


class ChatConfig(Settings):
    """A conversation, whose label is the assistant's next turn: a text, or calls of tools."""

    kind: Literal["chat"]
    tools: list[dict[str, Any]] = Field(default=[])
    """The tools that the assistant may call, as OpenAI describes functions: name, description, parameters (a JSON
    Schema). Labels that call others, or with other arguments, are set aside. Left out, any call is allowed."""


WITHOUT_CLASSES = ("text", "chat")
"""Kinds of problem whose labels only students that write can learn."""

Problem = Annotated[
    SlotsConfig
    | ClassificationConfig
    | MultiLabelConfig
    | EntitiesConfig
    | ConstituencyConfig
    | TextConfig
    | RegressionConfig
    | ChatConfig,
    Field(discriminator="kind"),
]
