"""`merge-labels`: the students' cross-labels become the pool's labels of the next stage.

Each row got a label from every student that was not trained on it; where those are several (disjoint cells,
k > 2), the label is decided on the mean of their probabilities.
"""

from collections.abc import Iterator

import numpy as np

from retort.config import MckdConfig, MergeConfig
from retort.errors import StageFailed
from retort.io.parquet import PSEUDOLABELS, Row, read_rows, write_rows
from retort.records.base import ArtifactRef, Step
from retort.steps.context import StepContext
from retort.steps.ingest import ROWS
from retort.store import StepOutput

VERSION = 1


def merge_labels(
    config: MckdConfig, name: str, previous: ArtifactRef, cross_labels: tuple[ArtifactRef, ...], *, soft: bool = False
) -> Step:
    return Step(
        name=name,
        verb="merge-labels",
        version=VERSION,
        kind="pseudolabels",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "merge": config.method.merge.model_dump(mode="json"),
            "soft": soft,
        },
        inputs={"previous": (previous,), "cross_labels": cross_labels},
    )


def make_merged_labels(work: StepContext) -> StepOutput:
    changed = kept = 0

    def rows() -> Iterator[Row]:
        nonlocal changed, kept
        merge = MergeConfig.model_validate(work.stage.params["merge"])
        for old, votes in _aligned(work):
            new = _combined(work, old, votes)
            if merge.kind == "when-confident" and new["confidence"] < merge.threshold:
                kept += 1
                yield old
                continue
            changed += new["label"] != old["label"]
            yield new

    count = write_rows(work.folder / ROWS, PSEUDOLABELS, rows())
    metrics = {"changed_share": changed / count if count else 0.0}
    return StepOutput(rows=count, counts={"changed": changed, "kept": kept}, metrics=metrics)


def _aligned(work: StepContext) -> Iterator[tuple[Row, list[Row]]]:
    """Rows of the labels before, each with its cross-labels. All files keep the pool's order, so one walk does."""
    readers = [read_rows(work.fetch_ref(ref) / ROWS) for ref in work.stage.inputs["cross_labels"]]
    heads = [next(reader, None) for reader in readers]
    for old in read_rows(work.fetch("previous") / ROWS):
        votes = []
        for index, head in enumerate(heads):
            if head is not None and head["example_id"] == old["example_id"]:
                votes.append(head)
                heads[index] = next(readers[index], None)
        if not votes:
            raise StageFailed(f"{work.stage.name}: no student labelled '{old['example_id']}'")
        yield old, votes


def _combined(work: StepContext, old: Row, votes: list[Row]) -> Row:
    labeler = "+".join(vote["labeler"] for vote in votes)
    keep = work.stage.params["soft"]
    if len(votes) == 1:
        return {**votes[0], "probabilities": votes[0]["probabilities"] if keep else None}
    shape = (-1, len(work.problem.classes))
    mean = np.mean([np.asarray(vote["probabilities"], dtype=np.float64).reshape(shape) for vote in votes], axis=0)
    label, confidence = work.problem.decide(old["text"], mean)
    return {
        "example_id": old["example_id"],
        "text": old["text"],
        "label": label,
        "confidence": confidence,
        "labeler": labeler,
        "probabilities": mean.astype(np.float16).ravel() if keep else None,
    }
