"""Where the rows are, and the names of their columns."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from retort.config.base import Address, Settings, Text


class ColumnsConfig(Settings):
    """The names of the columns that Retort reads. One that lies within another is named by its path (`answer.text`); in
    CoNLL files, text and tags are the first and the last column unless they are numbers, counted from '1'."""

    id: Text = "id"
    """A unique name of the row; without this column, the sha256 of the text is used."""
    text: Text = "text"
    """The text to label; a list of words is joined with spaces. For chat the list of turns."""
    label: Text = "label"
    """The gold label: a class name, a list of class names, a number, a text, a constituency tree, for slots the
    bracketed parse, for entities a list of spans, {"start": 0, "end": 6, "label": "PERSON"}, that count characters, or
    for chat the assistant's turn."""
    intent: Text = "intent"
    """Slots only: the intent, with `tags`."""
    tags: Text = "bio"
    """Slots and entities only: one tag per word, separated by spaces or as a list; takes precedence over `label`. Read
    are IOB1, IOB2, and IOBES with BILOU, BMES and BMEWO; tags may be numbers, see `tag_names`."""
    tag_names: Annotated[list[Text] | None, Field(exclude_if=lambda names: names is None)] = None
    """The tags that numbers stand for, from that of 0 on: [O, B-CITY, I-CITY]. Default: as the Parquet file says, or
    the data set's card (README.md, dataset_infos.json) beside the files."""
    rationale: Annotated[Text | None, Field(exclude_if=lambda name: name is None)] = None
    """Why the gold label is what it is: a text that a teacher with `rationales` is shown with the label. Rows without
    one are not shown."""


class HubConfig(Settings):
    """A data set on a Hugging Face hub, or any folder that `datasets.load_dataset` reads."""

    hub: Address
    """The data set's name."""
    subset: Text | None = None
    """The data set's configuration."""
    split: Text = "train"
    """The data set's split."""
    revision: Text = "main"
    """Branch, tag or commit; pin a commit for a repeatable run."""


def _source_tag(value: object) -> str:
    return "hub" if isinstance(value, dict | HubConfig) else "address"


Source = Annotated[Annotated[Address, Tag("address")] | Annotated[HubConfig, Tag("hub")], Discriminator(_source_tag)]


MAX_BAD_SHARE = 0.01
MaxBadShare = Annotated[float, Field(ge=0, le=1, exclude_if=lambda share: share == MAX_BAD_SHARE)]


class DataConfig(Settings):
    """Where the rows are: files (JSON Lines, Parquet, CSV; gzip), folders, globs, or hub data sets."""

    labeled: Source
    """The few gold-labeled rows: the teacher's demonstrations, and the judge of each stage. Not trained on."""
    unlabeled: Source
    """The pool. Gold labels found there are used in reports only."""
    test: Source
    """Gold-labeled rows that only the final scores may use."""
    dev: Source | None = None
    """More gold-labeled rows to judge stages by, if you have any."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names, the same in all sources."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only this many rows of the pool (the first in the order of hashed ids), to try things out."""
    max_bad_share: MaxBadShare = MAX_BAD_SHARE
    """Largest share of the pool's rows that may be unusable. They are set aside and counted; with more, the run stops
    before anything is spent. A bad row of any other source always stops it."""
