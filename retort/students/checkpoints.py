"""Training checkpoints in the store, so that an evicted worker loses at most a minute, wherever it is restarted.

A checkpoint is one safetensors file with JSON in its header, replaced as a whole. It is stored like an incomplete
artifact, so that a sweep removes what an abandoned run has left.
"""

import logging
import time
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retort.errors import DamagedArtifact
from retort.io.scratch import scratch
from retort.records.base import digest
from retort.store import Store
from retort.store.store import read_again

if TYPE_CHECKING:
    from retort.store.bucket import Bucket
    from retort.store.folder import Folder

SECONDS_BETWEEN = 45.0
"""Seconds from the end of one save to the next, if a save takes few; less than a minute including a step and the save
itself."""
SHARE_OF_TIME = 0.1
"""The most of a training's time that saving takes: a large student's state of 90 GB takes minutes."""
_FILE = "state.safetensors"
_log = logging.getLogger(__name__)


class StoredCheckpoint:
    """The checkpoint of the training that produces the artifact `key`."""

    def __init__(self, store: Store, key: str, seconds_between: float = SECONDS_BETWEEN) -> None:
        self._place: Folder | Bucket = store.place
        self._path = f"{checkpoint_folder(key)}/{_FILE}"
        self._least_between = self._seconds_between = seconds_between
        self._saved_at = self._asked_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether to save now: what is saved is gathered after that, which counts as saving too."""
        self._asked_at = time.monotonic()
        return self._asked_at - self._saved_at >= self._seconds_between

    def save(self, tensors: dict[str, Tensor], state: str) -> None:
        with scratch("checkpoint") as folder:
            file = folder / _FILE
            save_file(tensors, file, metadata={"state": state})
            self._place.upload(file, self._path)
        self._saved_at = time.monotonic()
        seconds = self._saved_at - self._asked_at
        if self._seconds_between:  # else every step is to be saved, whatever it costs
            self._seconds_between = max(self._least_between, seconds / SHARE_OF_TIME - seconds)

    def load(self) -> tuple[dict[str, Tensor], str] | None:
        try:
            return read_again(self._load)
        except FileNotFoundError:
            return None
        except DamagedArtifact as error:
            _log.warning("%s: training begins anew", error)
            return None

    def _load(self) -> tuple[dict[str, Tensor], str]:
        with scratch("checkpoint") as folder:
            file = folder / _FILE
            self._place.download(self._path, file)
            try:
                with safe_open(file, framework="pt") as opened:
                    state = opened.metadata()["state"]
                    return {name: opened.get_tensor(name) for name in opened.keys()}, state  # noqa: SIM118
            except (SafetensorError, KeyError, TypeError) as error:
                raise DamagedArtifact(f"{self._path} cannot be read ({error})") from error


def checkpoint_folder(key: str) -> str:
    """Folder below the store's root. Not the artifact's own key, which a sweep would take for the artifact."""
    own = digest(["checkpoint", key])
    return f"checkpoints/{own[:2]}/{own}"


def discard_checkpoint(store: Store, key: str) -> None:
    store.place.remove(checkpoint_folder(key))
