"""The result of a run of any recipe."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from retort.records.base import ArtifactRef, Record


class StudentFingerprint(NamedTuple):
    """What a student's fingerprint says about loading it."""

    fingerprint: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """`student.kind` in the config that it was trained with."""
        student = self.fingerprint["params"]["student"]
        return str(student["kind"] if isinstance(student, dict) else student)

    @property
    def max_length(self) -> int:
        """Most tokens of a row (for a tiny student: most words of a field) that it was trained on."""
        params = self.fingerprint["params"]
        return int(params["training"]["max_length"] if "training" in params else params["student"]["max_words"])

    @property
    def writes_text(self) -> bool:
        return bool(self.fingerprint["params"].get("options", {}).get("target") == "text")


class Champion(Record):
    """The registered student that a new one must beat."""

    model: str
    """The registered model's name."""
    version: str
    student: ArtifactRef
    fingerprint: dict[str, Any]
    """The student's fingerprint, from its manifest."""
    trained: dict[str, Any]
    """The fingerprint of its training on pseudolabels: its own, or that of the student which was fine-tuned."""

    @property
    def about(self) -> StudentFingerprint:
        return StudentFingerprint(self.fingerprint)


class Result(Record):
    """References to everything that a run made."""

    final_student: ArtifactRef
    champion: Champion | None = None
    """The champion that the final student was compared with; None if there was none."""
    champion_scores: tuple[ArtifactRef, ...] = ()
    """The champion's scores on the same rows as `test_scores`, in the same order."""
    verdict: ArtifactRef | None = None
    """The gate's verdict; None if the config has no registry to promote in."""

    @property
    @abstractmethod
    def test_scores(self) -> tuple[ArtifactRef, ...]:
        """The final student's scores, one per test set, which the gate compares."""

    @abstractmethod
    def refs(self) -> list[ArtifactRef]:
        """Every artifact once, in the order of execution."""

    @property
    def challenge_refs(self) -> list[ArtifactRef | None]:
        return [*self.champion_scores, self.verdict]

    @staticmethod
    def unique(refs: Iterable[ArtifactRef | None]) -> list[ArtifactRef]:
        return list({ref.key: ref for ref in refs if ref is not None}.values())
