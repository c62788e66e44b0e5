"""A run of MCKD that makes nothing: who remembers what is asked for, a config, and data."""

from collections.abc import Iterable
from typing import Any

from retort.config import MckdConfig
from retort.records.base import ArtifactRef
from retort.records.mckd import Data
from retort.steps.base import Step


class Recorder:
    """A `do` that makes nothing and remembers everything. `verdicts` are those of the selections, in order."""

    def __init__(self, verdicts: Iterable[bool] = ()) -> None:
        self.steps: list[Step] = []
        self._verdicts = iter(verdicts)

    async def __call__(self, step: Step) -> ArtifactRef:
        self.steps.append(step)
        metrics = {"accepted": float(next(self._verdicts))} if step.kind == "select" else {}
        return ArtifactRef(uri=step.name, kind=step.artifact_kind, key=step.key, rows=60, metrics=metrics)

    def made(self, kind: str) -> list[Step]:
        """Each key once: a second step of the same key is found in the store."""
        return list({step.key: step for step in self.steps if step.kind == kind}.values())

    def of(self, ref: ArtifactRef) -> Step:
        return next(step for step in self.steps if step.key == ref.key)


def config_of(baselines: Iterable[str] = (), teacher: str = "finetuned", **method: Any) -> MckdConfig:
    selection = {"kind": method.pop("selection", "always")}
    return MckdConfig.model_validate(
        {
            "name": "order",
            "problem": {"kind": "classification", "labels": ["a", "b"]},
            "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl", "dev": "d.jsonl"},
            "teacher": {"kind": teacher},
            "student": {"kind": "sequence-classification", "model": "org/model", "training": {"epochs": 6}},
            "method": {**method, "selection": selection},
            "baselines": list(baselines),
            "evaluation": {"judge": "dev"},
        }
    )


def data_of(pool: str = "pool") -> Data:
    labeled, unlabeled, test, dev = (
        ArtifactRef(uri=name, kind="examples", key=name, rows=10) for name in ("labeled", pool, "test", "dev")
    )
    return Data(labeled=labeled, unlabeled=unlabeled, test=test, judge=dev)
