"""Shares an endpoint's limits per minute among all processes that ask it, on any machine, through their common store.

Each of them keeps a file in `ledger/limits/<digest of address and model>/`, rewrites it every few seconds, and takes an
equal part of the limits. Ages are compared by the storage's clock. One that joins others sends nothing before they have
had time to notice; the file of one that was killed counts for STALE_SECONDS. Prefect's rate limits would do the same,
but labeling runs in processes that know no Prefect, and each request would wait for its server.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self
from uuid import uuid4

from retort.config import EndpointConfig
from retort.errors import StoreError
from retort.records.base import digest
from retort.store import Store

LOGGER = logging.getLogger(__name__)
REFRESH_SECONDS = 10.0
STALE_SECONDS = 6 * REFRESH_SECONDS


class SharedLimit:
    """A context manager: within it, this process is one of those that share a limit."""

    def __init__(
        self,
        config: EndpointConfig,
        store: Store,
        on_change: Callable[[int], None],
        refresh_seconds: float | None = None,
    ) -> None:
        """`on_change` is told, from any thread, among how many processes the limit is shared."""
        self._folder = f"ledger/limits/{digest({'url': config.url, 'model': config.model})[:16]}"
        self._path, self._place = f"{self._folder}/{uuid4().hex}", store.place
        self._on_change, self._refresh_seconds = on_change, refresh_seconds or REFRESH_SECONDS
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._stay, name="shared-limit", daemon=True)

    def __enter__(self) -> Self:
        """Raises StoreUnavailable."""
        self._place.write(self._path, b"")
        others = self._count() - 1
        self._on_change(1 + others)
        if others:
            time.sleep(2 * self._refresh_seconds)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        try:
            self._place.remove(self._path)
        except StoreError as failure:
            LOGGER.warning("The part of a rate limit becomes free in %.0f s only: %s", STALE_SECONDS, failure)

    def _stay(self) -> None:
        while not self._left.wait(self._refresh_seconds):
            try:
                self._place.write(self._path, b"")
                self._on_change(self._count())
            except StoreError as failure:  # the last count stays good for a while
                LOGGER.warning("Who else asks the teacher is not known for the moment: %s", failure)

    def _count(self) -> int:
        """How many processes are alive, this one included."""
        files = {PurePosixPath(file.path).name: file.modified for file in self._place.walk(self._folder)}
        now = files.get(PurePosixPath(self._path).name, max(files.values(), default=0.0))
        stale = 6 * self._refresh_seconds
        return max(1, sum(now - modified < stale for modified in files.values()))
