"""Earlier nights of a config, to compare tonight with."""

from typing import NamedTuple

from retort.config import MckdConfig
from retort.records.base import ArtifactRef
from retort.store import Store
from retort.store.opening import open_store
from retort.store.runs import RunRecord, read_runs, run_paths

LOOKED_AT = 30
"""Records of runs that are read, the newest first."""
_POOL, _LABELS = ("examples", "ingest/unlabeled"), ("pseudolabels", "stage0/pseudolabels")
"""(kind, step that made it)"""


class Night(NamedTuple):
    pool: ArtifactRef
    labels: ArtifactRef
    """The teacher's."""


def last_night(config: MckdConfig, tonight: Night) -> Night | None:
    """The last finished run with another pool or other labels of the teacher; None if there is none, or if what it made
    was freed. So a run that is repeated is compared with the same night again."""
    store = open_store(config.store)
    for record in read_runs(store, run_paths(store, config.name)[:LOOKED_AT]):
        if {f"{ref.kind}/{ref.key}" for ref in tonight} <= set(record.artifacts):
            continue
        pool, labels = (_made_by(store, record, *one) for one in (_POOL, _LABELS))
        return Night(pool, labels) if pool and labels else None
    return None


def _made_by(store: Store, record: RunRecord, kind: str, step: str) -> ArtifactRef | None:
    keys = (name.rpartition("/")[2] for name in record.artifacts if name.startswith(f"{kind}/"))
    found = (store.find(kind, key) for key in keys)
    manifest = next((one for one in found if one is not None and one.name == step), None)
    return store.ref(manifest) if manifest else None
