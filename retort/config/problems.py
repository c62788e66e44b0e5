"""The kinds of problem: what a label is."""

from typing import Annotated, Any, Literal

from pydantic import Field

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


Problem = Annotated[
    SlotsConfig | ClassificationConfig | MultiLabelConfig | EntitiesConfig | ConstituencyConfig | TextConfig,
    Field(discriminator="kind"),
]
