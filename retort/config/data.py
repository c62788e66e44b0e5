"""Where rows are, and what their columns are called."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from retort.config.base import Address, Settings, Text


class ColumnsConfig(Settings):
    """What the data calls the fields that Retort reads."""

    id: Text = "id"
    """A unique name of the row; without this column, the sha256 of the text serves."""
    text: Text = "text"
    """The text to label."""
    label: Text = "label"
    """The gold label: a class name, a text, a constituency tree, or for slots the bracketed parse."""
    intent: Text = "intent"
    """Slots only: the intent, with `tags`."""
    tags: Text = "bio"
    """Slots only: one BIO tag for each word, separated by spaces or as a list; wins over `label`."""


class HubConfig(Settings):
    """A data set on a Hugging Face hub, or any folder that `datasets.load_dataset` reads."""

    hub: Address
    """The data set's name."""
    subset: Text | None = None
    """The data set's configuration."""
    split: Text = "train"
    """Its split."""
    revision: Text = "main"
    """Branch, tag or commit; pin a commit for a repeatable run."""


def _source_tag(value: object) -> str:
    return "hub" if isinstance(value, dict | HubConfig) else "address"


Source = Annotated[Annotated[Address, Tag("address")] | Annotated[HubConfig, Tag("hub")], Discriminator(_source_tag)]


class DataConfig(Settings):
    """Where the rows are: a file (JSON lines, Parquet, CSV; gzip), a folder or glob, or a hub data set."""

    labeled: Source
    """The few gold-labelled rows: demonstrations of the teacher, and the judge of each stage. Not trained on."""
    unlabeled: Source
    """The pool. Gold labels found there are used in reports only."""
    test: Source
    """Gold-labelled rows that nothing but the final scores may see."""
    dev: Source | None = None
    """More gold-labelled rows to judge stages by, where you have them."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names, the same in all sources."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only this many rows of the pool (the first in the order of hashed ids): for trying things out."""
