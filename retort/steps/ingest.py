"""`ingest`: a data source becomes an artifact, with gold labels in a file of their own.

Whatever trains or predicts reads `rows.parquet`, which has no gold column: nothing can leak by mistake.
"""

import heapq
import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from retort.config import ColumnsConfig, MckdConfig, Source
from retort.config.soft_label import AnswerColumnsConfig, FoldsConfig, SoftLabelConfig
from retort.data import fingerprint, read_examples
from retort.data.reading import Folds
from retort.errors import DataError
from retort.io.parquet import EXAMPLES, GOLD, GROUPS, Row, read_rows, write_rows
from retort.records.base import Example, Step, digest
from retort.steps.context import StepContext
from retort.store import StepOutput

VERSION = 1
ROWS, GOLD_ROWS = "rows.parquet", "gold.parquet"
GROUP_ROWS = "groups.parquet"
"""Only where the config names a column for groups."""
OWN_ROWS = "labeled.parquet"
"""Of pseudolabels: the teacher's labels of the labelled set, each made with the other rows as demonstrations."""
_SOURCE: TypeAdapter[Any] = TypeAdapter(Source)


def ingest(config: MckdConfig, role: str) -> Step:
    """`role` is a field of `data`: labeled, unlabeled, test or dev. Reads the source once to know its content."""
    source = getattr(config.data, role)
    pool = role == "unlabeled"
    return Step(
        name=f"ingest/{role}",
        verb="ingest",
        version=VERSION,
        kind="examples",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "columns": config.data.columns.model_dump(),
            "content": fingerprint(source, config.store.endpoint_url),
            "gold": "optional" if pool else "required",
            "limit": config.data.limit if pool else None,
        },
        knobs={"source": _SOURCE.dump_python(source, mode="json"), "endpoint_url": config.store.endpoint_url},
    )


def ingest_answers(config: SoftLabelConfig, role: str) -> Step:
    """`role` is train, dev, unlabeled, or the name of one of `data.tests`. Roles that are folds of the training file
    are read from there, and the training rows are then the others. Reads the source once to know its content."""
    data = config.data
    part = data.tests[role] if role in data.tests else getattr(data, role)
    source = data.train if isinstance(part, FoldsConfig) else part
    folds = _folds_of(config, role)
    unused = {"fold"} if folds is None else set()
    return Step(
        name=f"ingest/{role}",
        verb="ingest",
        version=VERSION,
        kind="examples",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "columns": data.columns.model_dump(exclude=unused),
            "content": fingerprint(source, config.store.endpoint_url),
            "gold": "optional" if role == "unlabeled" else "required",
            "limit": data.limit if role == "train" else None,
            **({"folds": folds} if folds else {}),
        },
        knobs={"source": _SOURCE.dump_python(source, mode="json"), "endpoint_url": config.store.endpoint_url},
    )


def _folds_of(config: SoftLabelConfig, role: str) -> dict[str, Any] | None:
    """Which of the training file's rows a role takes; None is all of its own source."""
    data = config.data
    parts = [part for part in (data.dev, data.unlabeled) if isinstance(part, FoldsConfig)]
    taken = sorted(number for part in parts for number in part.folds)
    if role == "train":
        return {"column": data.columns.fold, "numbers": taken, "inside": False} if taken else None
    part = None if role in data.tests else getattr(data, role)
    if not isinstance(part, FoldsConfig):
        return None
    return {"column": data.columns.fold, "numbers": sorted(part.folds), "inside": True}


def make_examples(work: StepContext) -> StepOutput:
    limit = work.stage.params["limit"]
    keep = _smallest_ids(work, limit) if limit else None
    golds: list[Row] = []
    groups: list[Row] = []

    def rows() -> Iterator[Row]:
        for example in _read(work):
            if keep is not None and example.example_id not in keep:
                continue
            row = {"example_id": example.example_id, "text": example.text}
            if example.label is not None:
                golds.append({**row, "label": example.label})
            if example.group is not None:
                groups.append({"example_id": example.example_id, "group": example.group})
            yield row

    count = write_rows(work.folder / ROWS, EXAMPLES, rows())
    if not count:
        raise DataError(f"{_place(work)}: holds no rows; at least one is needed")
    if golds:
        write_rows(work.folder / GOLD_ROWS, GOLD, golds)
    if groups:
        write_rows(work.folder / GROUP_ROWS, GROUPS, groups)
    return StepOutput(rows=count, counts={"gold": len(golds)})


def read_gold(work: StepContext, role: str) -> list[Example]:
    """All gold-labelled examples of an `examples` artifact. Only scoring may call this, and a
    training that ends by the labelled set."""
    path = work.fetch(role) / GOLD_ROWS
    if not path.exists():
        return []
    return [Example(row["example_id"], row["text"], row["label"]) for row in read_rows(path)]


def _read(work: StepContext) -> Iterator[Example]:
    params = work.stage.params
    several = isinstance(params["columns"]["text"], list)
    folds = params.get("folds")
    return read_examples(
        _SOURCE.validate_python(work.stage.knobs["source"]),
        (AnswerColumnsConfig if several else ColumnsConfig).model_validate(params["columns"]),
        work.problem,
        gold=params["gold"],
        endpoint_url=work.stage.knobs["endpoint_url"],
        folds=folds and Folds(folds["column"], frozenset(folds["numbers"]), folds["inside"]),
    )


def _smallest_ids(work: StepContext, limit: int) -> set[str]:
    """A random choice that stays the same as the pool grows, up to rows whose hash is smaller."""
    return set(heapq.nsmallest(limit, (example.example_id for example in _read(work)), key=digest))


def _place(work: StepContext) -> str:
    source = work.stage.knobs["source"]
    return f"data.{work.stage.name.partition('/')[2]} = {source if isinstance(source, str) else json.dumps(source)}"
