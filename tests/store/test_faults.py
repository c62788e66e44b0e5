"""An S3 server whose answers are spoiled: one of a kind heals, and one that stays is told in a sentence."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import s3fs
from aiohttp import web

from any_step import AnyStep
from fault_proxy import Fault, FaultProxy
from retort.data.reading import read_rows_of
from retort.errors import DamagedArtifact, StoreError, StoreUnavailable
from retort.records.base import ArtifactRef
from retort.store import StepOutput, Store
from retort.store.runs import RunRecord, keep_run, runs
from retort.teachers.ledger import Ledger, entry_of
from retort.teachers.requests import Completion

STEP = AnyStep(name="stage1/student-0", values={"seed": 0}, made="students")
CONTENT = b"0123456789" * 60_000
SPOILED: list[Fault] = [
    FaultProxy.internal_error,
    FaultProxy.unavailable,
    FaultProxy.slow_down,
    FaultProxy.reset,
    FaultProxy.short,
    FaultProxy.empty,
    FaultProxy.flipped,
]


@pytest.fixture
def proxy(s3_rclone: tuple[str, str]) -> Iterator[FaultProxy]:
    with FaultProxy(s3_rclone[0]) as proxy:
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(proxy: FaultProxy, s3_rclone: tuple[str, str], tmp_path: Path) -> Store:
    return Store(f"s3://{s3_rclone[1]}/{uuid4().hex}", proxy.url, cache=tmp_path / "cache")


@pytest.fixture
def ref(store: Store, tmp_path: Path) -> ArtifactRef:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "rows.parquet").write_bytes(CONTENT)
    return store.publish(STEP, tmp_path / "made", StepOutput(rows=1), 1.0, "tiny")


def of(path: str, method: str = "GET") -> Callable[[web.Request], bool]:
    return lambda request: request.method == method and bool(re.search(path, request.path))


@pytest.mark.parametrize("path", [r"manifest\.json$", r"rows\.parquet$", r"student-0\.json$", r"/runs/"])
def test_one_spoiled_answer_is_read_again(store: Store, ref: ArtifactRef, proxy: FaultProxy, path: str) -> None:
    at = "2026-01-01T00:00:00+00:00"
    keep_run(store, RunRecord(name="tiny", run_id="1", started_at=at, ended_at=at, artifacts=()))
    for number, fault in enumerate(SPOILED if "rows" in path else SPOILED[:-1], 1):  # JSON has no digest of its own
        proxy.fail(fault, where=of(path))
        manifest = store.find(ref.kind, ref.key)
        assert manifest is not None
        assert (store.fetch(ref) / "rows.parquet").read_bytes() == CONTENT
        shutil.rmtree(store.cache)
        assert store.latest("tiny", STEP.name) == manifest
        assert len(runs(store)) == 1
        assert proxy.faults.total() == number


def test_an_answer_that_stays_spoiled_is_told(store: Store, ref: ArtifactRef, proxy: FaultProxy) -> None:
    for fault in SPOILED:
        proxy.fail(fault, times=100, where=of(r"rows\.parquet$"))
        with pytest.raises(StoreError) as caught:
            store.fetch(ref)
        assert len(str(caught.value).splitlines()) == 1
        assert isinstance(caught.value, DamagedArtifact) == (fault in SPOILED[4:])
        proxy.heal()
    assert (store.fetch(ref) / "rows.parquet").read_bytes() == CONTENT


def test_rows_in_a_bucket_do_not_end_with_a_short_answer(proxy: FaultProxy, s3_rclone: tuple[str, str]) -> None:
    """An empty answer would otherwise be the end of the file, and the rows after it would be missing."""
    address = f"s3://{s3_rclone[1]}/{uuid4().hex}.csv"
    system = s3fs.S3FileSystem(endpoint_url=s3_rclone[0], use_listings_cache=False)
    system.pipe_file(address, b"id,text\n" + b"".join(b"%d,some text\n" % number for number in range(1000)))
    for number, fault in enumerate(SPOILED[:-1], 1):
        proxy.fail(fault, where=of(r"\.csv$"))
        assert len(list(read_rows_of(address, proxy.url))) == 1000
        assert proxy.faults.total() == number
    proxy.fail(FaultProxy.empty, times=100, where=of(r"\.csv$"))
    with pytest.raises(StoreUnavailable, match="0 bytes came where"):
        list(read_rows_of(address, proxy.url))


@pytest.mark.parametrize("fault", [FaultProxy.short, FaultProxy.flipped], ids=lambda fault: fault.__name__)
def test_a_shard_that_came_spoiled_once_is_not_paid_for_again(store: Store, proxy: FaultProxy, fault: Fault) -> None:
    ledger = Ledger(store, {"kind": "any"})
    key = bytes(16)
    ledger.add([entry_of(key, Completion(key, 0, "up", "stop", 1, 0, 1), 8)])
    proxy.fail(fault, where=of(r"/ledger/.*parquet$"))
    other = Ledger(store, {"kind": "any"})
    assert len(other.files()) == 1
    assert len(other._shards.intact()) == 1
    assert other.damaged == []


@pytest.mark.parametrize("fault", [FaultProxy.absent, FaultProxy.stale], ids=lambda fault: fault.__name__)
def test_one_listing_that_lacks_shards_is_not_believed(store: Store, proxy: FaultProxy, fault: Fault) -> None:
    ledger = Ledger(store, {"kind": "any"})
    assert ledger.files() == []
    key = bytes(16)
    ledger.add([entry_of(key, Completion(key, 0, "up", "stop", 1, 0, 1), 8)])
    proxy.fail(fault)
    assert len(ledger.files()) == 1
    assert sum(proxy.faults.values()) == 1


def test_a_write_whose_answer_is_lost_is_done_once_more(store: Store, proxy: FaultProxy, tmp_path: Path) -> None:
    proxy.fail(FaultProxy.reset, where=of(".", "PUT"), times=1)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "rows.parquet").write_bytes(CONTENT)
    ref = store.publish(STEP, tmp_path / "made", StepOutput(rows=1), 1.0, "tiny")
    assert (store.fetch(ref) / "rows.parquet").read_bytes() == CONTENT
