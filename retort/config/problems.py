"""What a label is."""

from typing import Annotated, Any, Literal

from pydantic import Field

from retort.config.base import Settings, Text


class SlotsConfig(Settings):
    """Intent and slots of a request (semantic parsing with one level)."""

    kind: Literal["slots"]
    intents: dict[Text, list[Text]] | None = None
    """Slots allowed in each intent, by name. Left out: read off the labelled set."""


class ClassificationConfig(Settings):
    """One class for each text."""

    kind: Literal["classification"]
    labels: Annotated[list[Text], Field(min_length=2)] | None = None
    """Class names; from low to high where `ordered`. Left out: read off the labelled set."""
    ordered: bool = False
    """The classes have an order, which quadratic weighted kappa counts."""


class ConstituencyConfig(Settings):
    """A constituency tree for each sentence of words separated by spaces."""

    kind: Literal["constituency"]
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """Phrase labels (NP), and unary chains that a tagging student may give (S+VP). Left out: read off the labelled set,
    whose few trees lack rare ones. Where `form` is unlabelled, it is not looked at."""
    form: Literal["labelled", "unlabelled"] = "labelled"
    """unlabelled: labels are dropped everywhere, and teachers write the brackets of the MCKD paper."""
    tags: bool = True
    """The data's trees have a part-of-speech tag on each word, (NN cat). False: words stand bare, and what is
    punctuation is told by its form."""
    max_change: Annotated[int, Field(ge=1, le=256)] = 24
    """How many constituents may begin or end between a word and the next in a tagging student's trees, unary chains
    counted once; what is more is cut. CRAFT has up to 22."""


class TextConfig(Settings):
    """Any text for each text."""

    kind: Literal["text"]
    pattern: str | None = None
    """A regular expression that a whole label must match; what does not is set aside."""
    json_schema: dict[str, Any] | None = None
    """A JSON Schema: labels are JSON that it accepts, compared by their content."""


Problem = Annotated[SlotsConfig | ClassificationConfig | ConstituencyConfig | TextConfig, Field(discriminator="kind")]
