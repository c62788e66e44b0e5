"""Walks over manifests: what an artifact was made from."""

from collections.abc import Iterator, Mapping, Sequence

from retort.store.manifest import Manifest
from retort.store.store import Store

_START = "start"
"""The role of the student whose weights a training started from."""

_KINDS: Mapping[str, Sequence[str]] = {
    "student": ("students",),
    "gold": ("examples",),
    "pool": ("examples",),
    "rows": ("examples", "pseudolabels"),
    "labels": ("pseudolabels", "examples"),
    "labeled": ("examples",),
    "members": ("pseudolabels",),
    "previous": ("pseudolabels",),
    "cross_labels": ("pseudolabels",),
    "reigning": ("scores",),
    "challenger": ("scores",),
}
"""Possible kinds of a role's inputs, for older manifests without `input_kinds`."""


def ancestors(store: Store, kind: str, key: str, seen: set[str] | None = None) -> Iterator[Manifest]:
    """Yield everything that the artifact was made from, then the artifact itself. Inputs come before what was made from
    them, each once.

    Artifacts that were swept from the store are skipped, along with everything reachable only through them. Keys in
    `seen` are skipped too; the visited keys are added to it. Raises StoreUnavailable, DamagedArtifact.
    """
    yield from _walk(store, (kind,), key, set() if seen is None else seen)


def _walk(store: Store, kinds: Sequence[str], key: str, seen: set[str]) -> Iterator[Manifest]:
    if key in seen:
        return
    seen.add(key)
    manifest = next((found for kind in kinds if (found := store.find(kind, key))), None)
    if manifest is None:
        return
    for role, input_key in lineage_of(manifest):
        yield from _walk(store, kinds_of(manifest, role, input_key), input_key, seen)
    yield manifest


def lineage_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(role, key) of each input, without the student of a warm start."""
    warm = warm_start(manifest)
    return ((role, key) for role, key in inputs_of(manifest) if key != warm)


def warm_start(manifest: Manifest) -> str | None:
    """The key of the student that a training on pseudolabels started from, if it did. It has a lineage of its own: with
    a warm start every night, walks would otherwise go back to the first night. Fine-tuning on gold labels starts from a
    student of the same run instead."""
    return None if fine_tuned_from(manifest) else next(iter(input_keys(manifest, _START)), None)


def fine_tuned_from(manifest: Manifest) -> str | None:
    """The key of the student that was fine-tuned on gold labels, if the artifact is what came of it."""
    learned = [kinds_of(manifest, "labels", key) for key in input_keys(manifest, "labels")]
    return next(iter(input_keys(manifest, _START)), None) if ("examples",) in learned else None


def inputs_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(role, key) of each input."""
    inputs: dict[str, list[str]] = manifest.fingerprint["inputs"]
    return ((role, key) for role, keys in inputs.items() for key in keys)


def kinds_of(manifest: Manifest, role: str, key: str) -> Sequence[str]:
    """The possible kinds of an input: one if the manifest has it, none if the role is unknown too."""
    known = manifest.input_kinds.get(key)
    return (known,) if known else _KINDS.get(role, ())


def input_keys(manifest: Manifest, role: str) -> list[str]:
    """The keys of a role's inputs; empty if there are none."""
    keys: list[str] = manifest.fingerprint["inputs"].get(role, [])
    return keys
