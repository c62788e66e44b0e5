"""`ingest`: a data source becomes an artifact, with gold labels in a file of their own.

Whatever trains or predicts reads `rows.parquet`, which has no gold column: nothing can leak by mistake.
"""

import heapq
import json
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from retort.config import Config, Source
from retort.data import fingerprint, read_examples
from retort.errors import DataError
from retort.records import Example, Stage, digest
from retort.rows import EXAMPLES, GOLD, Row, read_rows, write_rows
from retort.stages.work import Work
from retort.store import Product

VERSION = 1
ROWS, GOLD_ROWS = "rows.parquet", "gold.parquet"
OWN_ROWS = "labeled.parquet"
"""Of pseudolabels: the teacher's labels of the labelled set, each made with the other rows as demonstrations."""
_SOURCE: TypeAdapter[Any] = TypeAdapter(Source)


def ingest(config: Config, role: str) -> Stage:
    """`role` is a field of `data`: labeled, unlabeled, test or dev. Reads the source once to know its content."""
    source = getattr(config.data, role)
    pool = role == "unlabeled"
    return Stage(
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


def make_examples(work: Work) -> Product:
    limit = work.stage.params["limit"]
    keep = _smallest_ids(work, limit) if limit else None
    golds: list[Row] = []

    def rows() -> Iterator[Row]:
        for example in _read(work):
            if keep is not None and example.example_id not in keep:
                continue
            row = {"example_id": example.example_id, "text": example.text}
            if example.label is not None:
                golds.append({**row, "label": example.label})
            yield row

    count = write_rows(work.folder / ROWS, EXAMPLES, rows())
    if not count:
        raise DataError(f"{_place(work)}: holds no rows; at least one is needed")
    if golds:
        write_rows(work.folder / GOLD_ROWS, GOLD, golds)
    return Product(rows=count, counts={"gold": len(golds)})


def read_gold(work: Work, role: str) -> list[Example]:
    """All gold-labelled examples of an `examples` artifact. Only scoring may call this."""
    path = work.fetch(role) / GOLD_ROWS
    if not path.exists():
        return []
    return [Example(row["example_id"], row["text"], row["label"]) for row in read_rows(path)]


def _read(work: Work) -> Iterator[Example]:
    from retort.config import ColumnsConfig

    return read_examples(
        _SOURCE.validate_python(work.stage.knobs["source"]),
        ColumnsConfig.model_validate(work.stage.params["columns"]),
        work.problem,
        gold=work.stage.params["gold"],
        endpoint_url=work.stage.knobs["endpoint_url"],
    )


def _smallest_ids(work: Work, limit: int) -> set[str]:
    """A random choice that stays the same as the pool grows, up to rows whose hash is smaller."""
    return set(heapq.nsmallest(limit, (example.example_id for example in _read(work)), key=digest))


def _place(work: Work) -> str:
    source = work.stage.knobs["source"]
    return f"data.{work.stage.name.partition('/')[2]} = {source if isinstance(source, str) else json.dumps(source)}"
