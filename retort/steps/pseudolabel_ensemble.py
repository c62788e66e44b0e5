"""`pseudolabel` by an ensemble: the labels of several teachers for a row become one.

The most accurate teacher alone is not always the best one (arXiv 2012.06048): members that err on different rows
mend each other, so what decides is told too: each member's accuracy on the labelled set, weight and agreement.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from retort.config import EnsembleConfig, MckdConfig
from retort.config.teachers import LlmTeacherConfig
from retort.io.parquet import PSEUDOLABELS, Row, read_rows, write_rows
from retort.records.base import ArtifactRef, Data, Example, ParseFailure, Step
from retort.steps.context import StepContext
from retort.steps.ingest import OWN_ROWS, ROWS, read_gold
from retort.steps.pseudolabel_recorded import check_success, write_failures
from retort.store import StepOutput
from retort.teachers.voting import Members, learn_weights, merge_votes

VERSION = 1


def merge_teachers(config: MckdConfig, ensemble: EnsembleConfig, members: Sequence[ArtifactRef], data: Data) -> Step:
    """`members`: each teacher's labels of the pool, in the order of the config."""
    return Step(
        name="stage0/pseudolabels",
        verb="pseudolabel",
        version=VERSION,
        kind="pseudolabels",
        params={
            "problem": config.problem.model_dump(mode="json"),
            "teacher": "ensemble",
            "merge": ensemble.merge,
            "asked": all(isinstance(member, LlmTeacherConfig) for member in ensemble.members),
            "soft": config.has_soft_teacher,
        },
        inputs={"members": tuple(members), "pool": (data.unlabeled,), "labeled": (data.labeled,)},
        knobs={
            "min_success_ratio": 0.0,  # each member's own limit has passed by now
            "kinds": [member.kind for member in ensemble.members],
        },
    )


def make_ensemble_labels(work: StepContext) -> StepOutput:
    folders = [work.fetch_ref(ref) for ref in work.stage.inputs["members"]]
    labelled = read_gold(work, "labeled")
    members = _members(work, labelled, folders) if work.stage.params["asked"] else None
    weighted = members is not None and work.stage.params["merge"] == "weighted"
    weights = members.weights.tolist() if members and weighted else [1.0] * len(folders)
    if members:
        own = _merged(work, labelled_rows(labelled), [folder / OWN_ROWS for folder in folders], weights)
        write_rows(work.folder / OWN_ROWS, PSEUDOLABELS, (row for row, _ in own))
    failures: dict[str, ParseFailure] = {}
    counts: Counter[str] = Counter()
    together = np.zeros((len(folders), len(folders)))  # rows that both labelled alike
    both = np.zeros_like(together)

    def rows() -> Iterator[Row]:
        for row, votes in _merged(work, read_rows(work.fetch("pool") / ROWS), [f / ROWS for f in folders], weights):
            counts["asked"] += 1
            given = np.array([vote is not None for vote in votes])
            codes = np.unique([vote or "" for vote in votes], return_inverse=True)[1]
            both[...] += np.outer(given, given)
            together[...] += np.outer(given, given) & (codes[:, None] == codes[None])
            if row["label"] is None:
                counts["missing"] += 1
                failures[row["example_id"]] = ParseFailure("missing", "No teacher gave a label.", "")
            else:
                yield row

    count = write_rows(work.folder / ROWS, PSEUDOLABELS, rows())
    write_failures(work, failures)
    check_success(work, count, counts)
    return StepOutput(
        rows=count,
        counts={**counts, "failures": counts["asked"] - count},
        metrics={"success_share": count / counts["asked"]},
        details={"members": _told(work, members, weights, together / np.maximum(both, 1))},
    )


def labelled_rows(labelled: list[Example]) -> Iterator[Row]:
    return ({"example_id": example.example_id, "text": example.text} for example in labelled)


def _members(work: StepContext, labelled: list[Example], folders: list[Path]) -> Members:
    """What the labelled set says of the members, each row labelled with the others as demonstrations."""
    labels = [{row["example_id"]: row["label"] for row in read_rows(folder / OWN_ROWS)} for folder in folders]
    texts, golds = [example.text for example in labelled], [str(example.label) for example in labelled]
    votes = [[member.get(example.example_id) for example in labelled] for member in labels]
    return learn_weights(work.problem, texts, golds, votes)


def _merged(
    work: StepContext, rows: Iterator[Row], paths: Sequence[Path], weights: Sequence[float]
) -> Iterator[tuple[Row, list[str | None]]]:
    """Each row with the ensemble's label, None where no member has one, and the members' labels. All files keep the
    rows' order, so one walk does."""
    readers = [read_rows(path) for path in paths]
    heads = [next(reader, None) for reader in readers]
    shape, keep = (-1, len(work.problem.classes)), work.stage.params["soft"]
    for row in rows:
        found: list[Row | None] = []
        for index, head in enumerate(heads):
            matches = head is not None and head["example_id"] == row["example_id"]
            found.append(head if matches else None)
            if matches:
                heads[index] = next(readers[index], None)
        labels = [vote["label"] if vote else None for vote in found]
        soft = [
            np.asarray(vote["probabilities"], dtype=np.float64).reshape(shape)
            if vote and vote["probabilities"] is not None
            else None
            for vote in found
        ]
        merged = merge_votes(work.problem, row["text"], labels, weights, soft)
        label, confidence = merged if merged else (None, 0.0)
        mean = np.average([p for p in soft if p is not None], axis=0) if keep and merged else None
        yield (
            {
                **row,
                "label": label,
                "confidence": confidence,
                "labeler": "teachers",
                "probabilities": None if mean is None else mean.astype(np.float16).ravel(),
            },
            labels,
        )


def _told(
    work: StepContext,
    members: Members | None,
    weights: Sequence[float],
    agreement: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> list[dict[str, object]]:
    """A line for each member: agreement is the share of rows that two members label alike, by the other's number."""
    return [
        {
            "kind": kind,
            "weight": weights[index],
            "labelled_accuracy": None if members is None else float(members.accuracies[index]),
            "agreement": agreement[index].round(4).tolist(),
        }
        for index, kind in enumerate(work.stage.knobs["kinds"])
    ]
