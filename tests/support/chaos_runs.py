"""Tiny whole runs in child processes, which can be killed at a moment or at a write, and what they leave.

A child is forked from a server that has imported everything, so that a run takes seconds. It does what `retort run`
does, step by step and in the same store, but without Prefect; tests/flows/test_killed.py kills the command itself.
"""

import asyncio
import copy
import json
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, tzinfo
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from unittest import mock
from uuid import uuid4

import duckdb

from retort.config import MckdConfig
from retort.errors import RetortError
from retort.io import s3, scratch
from retort.recipes import recipe_of
from retort.recipes.execute import make, sweep_leftovers
from retort.recipes.mckd.checks import resolve
from retort.recipes.walk import whole_run
from retort.records.base import Progress
from retort.steps.base import Step
from retort.steps.train_student import TrainStudent
from retort.store import Store
from retort.store import store as store_module
from retort.store.folder import Folder
from retort.teachers import ledger, shards

_context = get_context("forkserver")
_context.set_forkserver_preload(["chaos_runs", "retort.students.training", "retort.store.bucket"])

WHERE = ("before", "within", "after")
"""When a process is killed that writes a file: before, when half of the draft is written, or as soon as it is there."""
FLUSH_SECONDS = 0.3
"""How long a completion waits in the child before it is written to the ledger; 4 s in a real run."""
TIMED = {"history.json"}
"""Files that tell seconds, so that no two runs have the same."""


class Ended(NamedTuple):
    exit_code: int | None
    """0: done; 1 or 2: an error of Retort's; negative: a signal; 70: an exception that is none of Retort's."""
    told: str
    """The error's sentence, or the exception."""
    writes: int
    """Files that the process wrote into a store that is a folder."""


class Kill(NamedTuple):
    """SIGKILL or SIGTERM for a run."""

    sign: signal.Signals = signal.SIGKILL
    at_write: int | None = None
    """At this write of the process, counted from 1 ..."""
    where: str = "before"
    after_seconds: float | None = None
    """... or so long after it started."""


def config_of(values: dict[str, Any], root: Path | str, url: str, **fields: Any) -> dict[str, Any]:
    """A config whose teacher is asked over HTTP. `fields` are those of the method; `store` those of the store."""
    values = copy.deepcopy(values)
    values["teacher"] = {"kind": "endpoint", "model": "scripted", "url": url, "concurrency": 4}
    values["problem"]["labels"] = ["up", "down"]
    values["student"]["training"]["epochs"] = 1
    values["store"] = {"root": str(root), **fields.pop("store", {})}
    values["method"].update(fields)
    return values


def run(values: dict[str, Any], kill: Kill | None = None, spoil: Callable[[], None] | None = None) -> Ended:
    """Run to the end, or to the death. `spoil` is called in the child before it starts."""
    ours, theirs = _context.Pipe(duplex=False)
    kill = kill or Kill()
    surroundings = {
        name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "TMPDIR", "XDG_", "HOME"))
    }
    child = _context.Process(target=_child, args=(theirs, values, kill, spoil, surroundings))
    child.start()
    theirs.close()
    if kill.after_seconds is not None:
        child.join(kill.after_seconds)
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, kill.sign)
    child.join(300)
    if child.is_alive():
        child.kill()
        raise AssertionError("the run hangs")
    try:
        told, writes = ours.recv()
    except EOFError:  # it died
        told, writes = "", 0
    ours.close()
    return Ended(child.exitcode, told, writes)


def start(values: dict[str, Any], spoil: Callable[[], None] | None = None) -> Callable[[], Ended]:
    """Start a run; the result waits for its end."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    future = pool.submit(run, values, None, spoil)
    return future.result


def _child(
    pipe: Any, values: dict[str, Any], kill: Kill, spoil: Callable[[], None] | None, surroundings: dict[str, str]
) -> None:
    os.environ.update(surroundings)
    tempfile.tempdir = None  # from TMPDIR, and not what the server had found
    ledger.LedgerWriter.__init__.__defaults__ = (FLUSH_SECONDS, ledger.SHARD_ENTRIES)  # type: ignore[misc]
    ledger.OUTAGE_SECONDS = 2.0  # a full disk stays full
    counted = _Writes(kill)
    code, told = 0, ""
    try:
        if spoil:
            spoil()
        whole(MckdConfig.model_validate(values))
    except RetortError as error:
        code, told = error.exit_code, str(error)
    except BaseException as error:
        code, told = 70, f"{type(error).__name__}: {error} {traceback.format_tb(error.__traceback__)[-3:]}"
    pipe.send((told, counted.number))
    os._exit(code)


def whole(config: MckdConfig) -> None:
    """A run as the flow does it."""
    with mock.patch.object(scratch, "_NEW_SECONDS", 0.0):  # no other process starts meanwhile
        sweep_leftovers(config)
    config = resolve(config)
    store = Store(config.store.address, config.store.server)

    async def do(step: Step) -> Any:
        step.refresh(store)
        found = store.reuse(config.name, step)
        return store.ref(found) if found else make(config, step, 0, lambda *_: None)

    asyncio.run(whole_run(recipe_of(config), config, do, None, {}))


class _Writes:
    """Counts this process's writes into a store that is a folder, and ends the process at one of them."""

    def __init__(self, kill: Kill) -> None:
        self.number = 0
        self._kill = kill
        replace, touch = Folder._replace, Folder.touch

        def counted_replace(place: Folder, path: str, stream: BinaryIO) -> None:
            if self._is_the_one():
                if kill.where == "within":
                    data, target = stream.read(), place.root / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.with_name(f".{target.name}.{uuid4().hex}").write_bytes(data[: len(data) // 2])
                elif kill.where == "after":
                    replace(place, path, stream)
                self._die()
            replace(place, path, stream)

        def counted_touch(place: Folder, path: str) -> None:
            if self._is_the_one():
                self._die()
            touch(place, path)

        Folder._replace = counted_replace  # type: ignore[method-assign]
        Folder.touch = counted_touch  # type: ignore[method-assign]

    def _is_the_one(self) -> bool:
        self.number += 1
        return self.number == self._kill.at_write

    def _die(self) -> None:
        os.kill(os.getpid(), self._kill.sign)
        time.sleep(60)


def impatient() -> None:
    """A child that waits two seconds for a server, not twenty."""
    s3.READ_SECONDS = 2


def clock_jumps() -> None:
    """The clock jumps at every look, up to a year to and fro. What counts seconds does not use it."""
    jumps, now = random.Random(0), time.time

    def jumping() -> float:
        return now() + jumps.uniform(-365, 365) * 86400

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(jumping(), tz)

    time.time = jumping
    shards.datetime = store_module.datetime = Jumping  # type: ignore[attr-defined]


def small_files() -> None:
    """The disk takes no file of more than 20 KB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def other_version() -> None:
    """A later version of Retort, whose students mean something else."""
    TrainStudent.version = 99


def too_much_for_python(progress: Progress) -> None:
    _limit_memory()
    bytearray(2**33)


def too_much_for_torch(progress: Progress) -> None:
    import torch

    _limit_memory()
    torch.zeros(2**33, dtype=torch.uint8)


def too_much_for_arrow(progress: Progress) -> None:
    import pyarrow as pa

    _limit_memory()
    pa.allocate_buffer(2**33)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def stop_itself(progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def artifacts(root: Path) -> dict[str, dict[str, Any]]:
    """The manifests of complete artifacts by `kind/key`, in a store that is a folder."""
    found = {}
    for path in root.glob("*/??/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        found[f"{manifest['kind']}/{manifest['key']}"] = manifest
    return found


def contents(root: Path) -> dict[str, Any]:
    """What a run must end with: of each artifact but the report, by `kind/key`, its name, scores and files' digests."""
    return {
        name: (
            manifest["name"],
            manifest["metrics"] if manifest["kind"] == "scores" else None,
            [(file["path"], file["sha256"]) for file in manifest["files"] if file["path"] not in TIMED],
        )
        for name, manifest in artifacts(root).items()
        if manifest["kind"] != "reports"
    }


def kept_completions(root: Path) -> int:
    """Different completions in the ledgers of a store that is a folder."""
    shards = [str(path) for path in root.glob("ledger/*/*.parquet") if not path.name.startswith(".")]
    if not shards:
        return 0
    with duckdb.connect() as database:
        (found,) = database.execute("SELECT count(DISTINCT key) FROM read_parquet($1)", [shards]).fetchall()
    return int(found[0])
