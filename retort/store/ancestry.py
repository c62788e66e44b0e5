"""What an artifact was made of: a walk over manifests."""

from collections.abc import Iterator, Mapping, Sequence

from retort.store.manifest import Manifest
from retort.store.store import Store

START = "start"
"""The role of the student that a warm-started one began with. It has a lineage of its own and is not walked through:
with a start every night, a walk would otherwise go back to the first night."""

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
"""Where to look for a role's inputs, for manifests from before they held the kind of each."""


def ancestors(store: Store, kind: str, key: str, seen: set[str] | None = None) -> Iterator[Manifest]:
    """All that the artifact was made of, and at last the artifact; inputs before what was made of them, each once.

    What was swept from the store is left out, with all that is known through it alone. `seen` are keys that were
    given before; it is added to. Raises StoreUnavailable, DamagedArtifact.
    """
    yield from _walk(store, (kind,), key, set() if seen is None else seen)


def _walk(store: Store, kinds: Sequence[str], key: str, seen: set[str]) -> Iterator[Manifest]:
    if key in seen:
        return
    seen.add(key)
    manifest = next((found for kind in kinds if (found := store.find(kind, key))), None)
    if manifest is None:
        return
    for role, input_key in inputs_of(manifest):
        if role != START:
            yield from _walk(store, kinds_of(manifest, role, input_key), input_key, seen)
    yield manifest


def inputs_of(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(role, key) of each artifact that went in."""
    inputs: dict[str, list[str]] = manifest.fingerprint["inputs"]
    return ((role, key) for role, keys in inputs.items() for key in keys)


def kinds_of(manifest: Manifest, role: str, key: str) -> Sequence[str]:
    """Of an input: its kind, or those that it may have; none where neither the manifest nor the role tells."""
    known = manifest.input_kinds.get(key)
    return (known,) if known else _KINDS.get(role, ())


def input_keys(manifest: Manifest, role: str) -> list[str]:
    """Of one role; empty where there is none."""
    keys: list[str] = manifest.fingerprint["inputs"].get(role, [])
    return keys
