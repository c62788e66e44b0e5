"""A student's lineage, from the registry and the manifests."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retort.lineage.teacher import Prompted, prompt_of
from retort.records.base import Record
from retort.serving.addresses import TRACKING_VARIABLE, FoundStudent, find_student
from retort.store import Manifest, Store
from retort.store.ancestry import ancestors, kinds_of, lineage_of, warm_start
from retort.store.runs import runs
from retort.tracking.origin import DataInput, Origin, find_origin
from retort.tracking.registry import ModelVersion, versions


class LineageStep(Record):
    """A step behind the student, from its manifest."""

    name: str
    """The step's name in the run that made it."""
    verb: str
    """The step's kind."""
    kind: str
    key: str
    rows: int
    counts: dict[str, int]
    metrics: dict[str, float]
    params: dict[str, Any]
    """The parameters that determine the result, without the problem's schema."""
    inputs: dict[str, tuple[str, ...]]
    """Keys by role."""
    details: dict[str, Any]
    """How it was made: device, precision, costs ..."""
    prompt: Prompted | None = None
    """For an LLM teacher."""
    versions: dict[str, str]
    seconds: float
    made_at: str


class Lineage(Record):
    """Where a student came from."""

    address: str
    key: str
    registered: tuple[ModelVersion, ...]
    """The requested version; for an artifact's address, every version registered from it."""
    origin: Origin | None
    """The tracking run that registered it; None if it is unknown or gone."""
    data: tuple[DataInput, ...]
    """The run's data sets by role, including those that no student is trained on."""
    steps: tuple[LineageStep, ...]
    """Inputs before what was made from them; the student last."""
    start: str | None
    """Key of the student whose weights it started from, which has a lineage of its own."""
    swept: tuple[str, ...]
    """Artifacts that are gone from the store, as text: `labels of final/student (pseudolabels 3f2a...)`."""


class Traced:
    """A student and the manifests behind it, read once."""

    def __init__(self, model: str, tracking: str | None) -> None:
        """Raises ConfigError if `model` is not a student, StoreUnavailable, TrackingUnavailable, DamagedArtifact."""
        found = find_student(model, tracking)
        self.store: Store = found.store
        self.student: Manifest = found.manifest
        self.manifests = list(ancestors(self.store, "students", found.manifest.key))
        uri = tracking or os.environ.get(TRACKING_VARIABLE)
        self.registered = _registered(uri, found) if uri else []
        self.origin = next(filter(None, (find_origin(str(uri), v.run_id) for v in self.registered)), None)

    @property
    def data(self) -> dict[str, Manifest]:
        """The examples by role, as far as known and in the store, including those that no student is trained on."""
        mine = [manifest for manifest in self.manifests if manifest.kind == "examples"]
        keys = {manifest.key for manifest in mine}
        others = [found for key in self._data_keys() if key not in keys and (found := self.store.find("examples", key))]
        return {manifest.name.rpartition("/")[2]: manifest for manifest in (*others, *mine)}

    def _data_keys(self) -> Iterator[str]:
        """Keys of the run's data sets, from the run record or else from the tracking run."""
        artifact = f"students/{self.student.key}"
        for record in runs(self.store):
            if artifact in record.artifacts:
                yield from (key for kind, key in map(_kind_and_key, record.artifacts) if kind == "examples")
                return
        for data in self.origin.data if self.origin else ():
            folders = self.store.place.folders(f"examples/{data.key[:2]}")
            yield from (key for key in folders if key.startswith(data.key))


def trace(traced: Traced) -> Lineage:
    """Everything that is known about a student's origin."""
    store, student = traced.store, traced.student
    keys = {manifest.key for manifest in traced.manifests}
    return Lineage(
        address=store.ref(student).uri,
        key=student.key,
        registered=tuple(traced.registered),
        origin=traced.origin,
        data=traced.origin.data if traced.origin else (),
        steps=tuple(_step(store, manifest) for manifest in traced.manifests),
        start=next(filter(None, map(warm_start, reversed(traced.manifests))), None),
        swept=tuple(_swept(traced.manifests, keys)),
    )


def _registered(uri: str, found: FoundStudent) -> list[ModelVersion]:
    """The requested version, or all versions registered from the artifact."""
    known = (one for one in versions(uri, found.name.name) if one.key == found.manifest.key)
    return [one for one in known if found.name.version in (None, one.version)]


def _swept(manifests: Sequence[Manifest], keys: set[str]) -> Iterator[str]:
    for manifest in manifests:
        for role, key in lineage_of(manifest):
            if key not in keys:
                kind = " or ".join(kinds_of(manifest, role, key))
                yield f"{role} of {manifest.name} ({kind} {key[:12]})"


def _step(store: Store, manifest: Manifest) -> LineageStep:
    fingerprint: Mapping[str, Any] = manifest.fingerprint
    is_llm = fingerprint["params"].get("teacher") == "asked"
    return LineageStep(
        name=manifest.name,
        verb=fingerprint["verb"],
        kind=manifest.kind,
        key=manifest.key,
        rows=manifest.rows,
        counts=manifest.counts,
        metrics=manifest.metrics,
        params={name: value for name, value in fingerprint["params"].items() if name != "problem"},
        inputs={role: tuple(keys) for role, keys in fingerprint["inputs"].items()},
        details=manifest.details,
        prompt=prompt_of(store, manifest) if is_llm else None,
        versions=manifest.versions,
        seconds=manifest.seconds,
        made_at=manifest.created_at,
    )


def _kind_and_key(artifact: str) -> tuple[str, str]:
    kind, _, key = artifact.partition("/")
    return kind, key
