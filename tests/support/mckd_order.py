"""A run of MCKD that makes nothing: who remembers what is asked for, a config, and data."""

from collections.abc import Iterable
from typing import Any

from paper_method import PAPER
from retort.config import MckdConfig
from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.records.result import Champion
from retort.steps.base import Step


class Recorder:
    """A `do` that makes nothing and remembers everything. `verdicts` are those of the stages, in order, and `tuning` is
    that of fine-tuning."""

    def __init__(self, verdicts: Iterable[bool] = (), *, tuning: bool = True) -> None:
        self.steps: list[Step] = []
        self._verdicts, self._tuning = iter(verdicts), tuning

    async def __call__(self, step: Step) -> ArtifactRef:
        self.steps.append(step)
        metrics = {}
        if step.kind == "select":
            accepted = self._tuning if step.name == "fine-tuning/selection" else next(self._verdicts)
            metrics = {"accepted": float(accepted)}
        return ArtifactRef(uri=step.name, kind=step.artifact_kind, key=step.key, rows=60, metrics=metrics)

    def made(self, kind: str) -> list[Step]:
        """Each key once: a second step of the same key is found in the store."""
        return list({step.key: step for step in self.steps if step.kind == kind}.values())

    def of(self, ref: ArtifactRef) -> Step:
        return next(step for step in self.steps if step.key == ref.key)


ASKED = {"kind": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1"}
"""A teacher that is not trained on the labeled set, so that the set may judge."""


def config_of(
    baselines: Iterable[str] = (), teacher: dict[str, Any] | None = None, judge: str = "dev", **method: Any
) -> MckdConfig:
    selection = {"kind": method.pop("selection", "always")}
    return MckdConfig.model_validate(
        {
            "name": "order",
            "problem": {"kind": "classification", "labels": ["a", "b"]},
            "data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl", "test": "t.jsonl", "dev": "d.jsonl"},
            "teacher": teacher or {"kind": "finetuned"},
            "student": {
                "kind": "sequence-classification",
                "model": "org/model",
                "training": {"epochs": 6, "min_updates": 0},
            },
            "method": {"stages": 3, **PAPER, **method, "selection": selection},
            "baselines": list(baselines),
            "evaluation": {"judge": judge},
        }
    )


def data_of(pool: str = "pool", judge: str = "dev") -> Data:
    labeled, unlabeled, test, dev = (
        ArtifactRef(uri=name, kind="examples", key=name, rows=10) for name in ("labeled", pool, "test", "dev")
    )
    return Data(labeled=labeled, unlabeled=unlabeled, test=test, judge={"dev": dev, "labeled": labeled}[judge])


def crowned(do: Recorder, distilled: MckdResult, version: str = "1") -> Champion:
    """The final student of a run as the champion of the next."""
    final = do.of(distilled.final_student)
    is_tuned = distilled.fine_tuning is not None and distilled.fine_tuning.accepted
    trained = do.of(final.input("start")) if is_tuned else final
    return Champion(
        model="order",
        version=version,
        student=distilled.final_student,
        fingerprint=final.fingerprint,
        trained=trained.fingerprint,
    )
