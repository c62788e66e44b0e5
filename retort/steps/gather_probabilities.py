"""`gather-probabilities`: what a teacher says of each row, joined by `example_id`, its classes by their names.

One file, whoever the teacher was: the parts of a fine-tuned one (each labelled what it was not trained on), one that
was asked row by row, or a recorded one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from retort.config.soft_label import ProbabilitiesConfig, SoftLabelConfig
from retort.data import fingerprint
from retort.data.probabilities import by_name, read_probabilities
from retort.errors import DataError, StageFailed
from retort.io.parquet import PROBABILITIES, Row, read_rows, write_rows
from retort.problems.base import Floats
from retort.records.base import ArtifactRef, Step
from retort.steps.context import StepContext
from retort.steps.ingest import ROWS
from retort.store import StepOutput

VERSION = 1
PREDICTIONS = "predictions.parquet"
"""Of every artifact of the kind `predictions`: a row for each example and seed, in the order of the examples."""


def gather_labels(config: SoftLabelConfig, name: str, rows: ArtifactRef, labels: tuple[ArtifactRef, ...]) -> Step:
    """From pseudolabels, each with its probabilities."""
    params = {"problem": config.problem.model_dump(mode="json"), "from": "labels"}
    return _stage(name, params, {"rows": (rows,), "labels": labels}, {})


def gather_recorded(
    config: SoftLabelConfig, name: str, rows: ArtifactRef, teacher: ProbabilitiesConfig, *, needed: bool
) -> Step:
    """From a file that was made before; where it is not `needed`, it may know none of the rows."""
    endpoint_url = config.store.endpoint_url
    params = {
        "problem": config.problem.model_dump(mode="json"),
        "from": "file",
        "content": fingerprint(teacher.probabilities, endpoint_url),
    }
    return _stage(
        name, params, {"rows": (rows,)}, {"file": teacher.probabilities, "endpoint_url": endpoint_url, "needed": needed}
    )


def _stage(
    name: str, params: dict[str, Any], inputs: dict[str, tuple[ArtifactRef, ...]], knobs: dict[str, Any]
) -> Step:
    return Step(
        name=name,
        verb="gather-probabilities",
        version=VERSION,
        kind="predictions",
        params=params,
        inputs=inputs,
        knobs=knobs,
    )


def make_probabilities(work: StepContext) -> StepOutput:
    """Rows that the teacher says nothing of are left out and counted."""
    found = dict(_from_labels(work) if work.stage.params["from"] == "labels" else _from_file(work))
    ids = [row["example_id"] for row in read_rows(work.fetch("rows") / ROWS, ["example_id"])]
    rows = ({"example_id": one, "seed": 0, "probabilities": found[one]} for one in ids if one in found)
    count = write_rows(work.folder / PREDICTIONS, PROBABILITIES, rows)
    if not count and work.stage.knobs.get("needed", True):
        raise StageFailed(f"{work.stage.name}: the teacher has no probabilities for any of the {len(ids)} rows")
    return StepOutput(rows=count, counts={"missing": len(ids) - count}, metrics={"known_share": count / len(ids)})


def _from_labels(work: StepContext) -> Iterator[tuple[str, Floats]]:
    """Raises StageFailed where two labelers both have a row: one of them was trained on it."""
    seen: set[str] = set()
    for ref in work.stage.inputs["labels"]:
        manifest = work.store.find(ref.kind, ref.key)
        classes = tuple(manifest.made_of["params"]["problem"]["labels"]) if manifest else ()
        for row in read_rows(work.fetch_ref(ref) / ROWS, ["example_id", "probabilities"]):
            if row["example_id"] in seen:
                raise StageFailed(f"{work.stage.name}: two teachers have probabilities for '{row['example_id']}'")
            seen.add(row["example_id"])
            if row["probabilities"] is not None:
                values = np.asarray(row["probabilities"], dtype=np.float64)
                yield row["example_id"], by_name(values, classes, work.problem.classes)


def _from_file(work: StepContext) -> Iterator[tuple[str, Floats]]:
    yield from read_probabilities(work.stage.knobs["file"], work.problem.classes, work.stage.knobs["endpoint_url"])


def aligned(work: StepContext, ref: ArtifactRef, ids: list[str]) -> Floats:
    """`(seeds, rows, classes)`: the predictions of the examples with these ids, in their order, whatever the file's;
    NaN where there are none. Columns are in the order of this stage's problem. Raises DataError where there are
    predictions and all are of other ids.
    """
    manifest = work.store.find(ref.kind, ref.key)
    classes = tuple(manifest.made_of["params"]["problem"]["labels"]) if manifest else work.problem.classes
    rows = list(read_rows(work.fetch_ref(ref) / PREDICTIONS))
    seeds = {seed: at for at, seed in enumerate(sorted({row["seed"] for row in rows}))}
    places = {example_id: at for at, example_id in enumerate(ids)}
    found = np.full((len(seeds), len(ids), len(work.problem.classes)), np.nan)
    wanted = [row for row in rows if row["example_id"] in places]
    if not rows:
        return np.full((1, *found.shape[1:]), np.nan)
    if not wanted:
        raise DataError(f"{work.stage.name}: no id of {len(ids)} rows is among those of {len(rows)} predictions")
    at = ([seeds[row["seed"]] for row in wanted], [places[row["example_id"]] for row in wanted])
    found[at] = by_name(np.array([row["probabilities"] for row in wanted]), classes, work.problem.classes)
    return found


def prediction_rows(ids: list[str], seeds: list[int], probabilities: Floats) -> Iterator[Row]:
    """`(seeds, rows, classes)` as rows of `PREDICTIONS`."""
    for seed, of_seed in zip(seeds, probabilities, strict=True):
        for example_id, values in zip(ids, of_seed, strict=True):
            yield {"example_id": example_id, "seed": seed, "probabilities": values}
