"""What the teacher of a config would cost: by its rows, in the store or at their source, its ledger and its prices."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retort.config import EnsembleConfig, MckdConfig, RecordedConfig
from retort.config.teachers import LlmTeacherConfig
from retort.io.parquet import read_rows
from retort.problems import problem_for
from retort.records.base import Example, Step
from retort.steps.context import StepContext
from retort.steps.ingest import GOLD_ROWS, ROWS, ingest, make_examples
from retort.steps.pseudolabel_llm import asked_config
from retort.store import Store
from retort.teachers.forecast import Forecast, forecast
from retort.teachers.identity import teacher_identity, teacher_weights
from retort.teachers.ledger import Ledger
from retort.teachers.request_builder import RequestBuilder, request_builder


def teacher_cost(config: MckdConfig, store: Store, asked: Sequence[Step]) -> dict[str, Any]:
    """`asked`: the stages not in the store in which a teacher would be asked row by row. Every other teacher is asked
    nothing that costs money."""
    forecasts = [_forecast(config, store, asked_config(stage)) for stage in asked]
    cost: dict[str, Any] = {"kind": config.teacher.kind, "requests": 0, "money": 0.0}
    if isinstance(config.teacher, RecordedConfig):
        cost["completions"] = config.teacher.completions
    if isinstance(config.teacher, EnsembleConfig):
        cost["members"] = [one.model_dump() for one in forecasts]
        cost["requests"] = sum(one.requests for one in forecasts)
        cost["money"] = sum(one.money for one in forecasts)
    elif forecasts:
        cost = forecasts[0].model_dump()
    return cost


def _forecast(config: MckdConfig, store: Store, teacher: LlmTeacherConfig) -> Forecast:
    ledger = Ledger(store, teacher_identity(teacher, config.store.server))
    with rows_of(config, store, "unlabeled") as pool, rows_of(config, store, "labeled") as labelled:
        weights = teacher_weights(teacher, config.store.server)
        return forecast(store, ledger, questions_of(config, teacher, labelled), weights, [labelled / ROWS, pool / ROWS])


def questions_of(config: MckdConfig, teacher: LlmTeacherConfig, labelled: Path) -> RequestBuilder:
    """`labelled`: the folder of the labelled set's artifact."""
    gold = [Example(row["example_id"], row["text"], row["label"]) for row in read_rows(labelled / GOLD_ROWS)]
    return request_builder(problem_for(config.problem), teacher, gold)


@contextmanager
def rows_of(config: MckdConfig, store: Store, role: str) -> Iterator[Path]:
    """The folder of a role's artifact; made aside, and gone afterwards, where the store has none: a plan writes
    nothing."""
    stage = ingest(config, role)
    manifest = store.find(stage.kind, stage.key)
    if manifest is not None:
        yield store.fetch(store.ref(manifest))
        return
    with tempfile.TemporaryDirectory(prefix="retort-rows-") as folder:
        make_examples(StepContext(stage, store, Path(folder), config.execution, 0, lambda *_: None))
        yield Path(folder)
