"""Ancestry, records of runs, and taking artifacts away, on a folder and in a bucket."""

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
import pytest

from any_step import AnyStep
from retort.errors import DamagedArtifact, StoreUnavailable
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store import StepOutput, Store
from retort.store.ancestry import ancestors
from retort.store.folder import Folder
from retort.store.retention import Holding, holdings, retire
from retort.store.runs import RunRecord, keep_run, run_paths, runs


@pytest.fixture(params=["folder", "s3_moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    endpoint_url, bucket = request.getfixturevalue(request.param)
    return Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., ArtifactRef]:
    def put(store: Store, kind: str, name: str, **inputs: list[ArtifactRef]) -> ArtifactRef:
        step = step_of(kind, name, **inputs)
        folder = tmp_path / "made" / uuid4().hex
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text(name)
        return store.publish(step, folder, StepOutput(rows=1), 1.0, "tiny")

    return put


def step_of(kind: str, name: str, **inputs: list[ArtifactRef]) -> Step:
    refs = {role: tuple(of) for role, of in inputs.items()}
    return AnyStep(name=name, values={"name": name}, refs=refs, made=kind)


def names(store: Store, ref: ArtifactRef) -> list[str]:
    return [manifest.name for manifest in ancestors(store, ref.kind, ref.key)]


def holding_of(store: Store, ref: ArtifactRef) -> Holding:
    return holdings(store)[ref.key]


def make_old(store: Store, ref: ArtifactRef) -> None:
    for path in (Path(store.root) / ref.kind / ref.key[:2] / ref.key).rglob("*"):
        os.utime(path, (1, 1))


def test_ancestors_come_before_what_was_made_of_them_and_once(
    store: Store, publish: Callable[..., ArtifactRef]
) -> None:
    pool = publish(store, "examples", "pool")
    labels = publish(store, "pseudolabels", "labels", pool=[pool])
    students = [publish(store, "students", f"student-{n}", labels=[labels]) for n in range(2)]
    votes = [publish(store, "pseudolabels", f"votes-{n}", student=[s], rows=[labels]) for n, s in enumerate(students)]
    merged = publish(store, "pseudolabels", "merged", previous=[labels], cross_labels=votes)
    assert names(store, merged) == ["pool", "labels", "student-0", "votes-0", "student-1", "votes-1", "merged"]
    seen: set[str] = set()
    assert len(list(ancestors(store, "pseudolabels", votes[0].key, seen))) == 4
    assert [m.name for m in ancestors(store, "pseudolabels", merged.key, seen)] == ["student-1", "votes-1", "merged"]


def test_an_input_is_found_by_its_kind_whatever_its_role(store: Store, publish: Callable[..., ArtifactRef]) -> None:
    odd = publish(store, "verdicts", "odd")
    assert names(store, publish(store, "students", "student", unheard_of=[odd])) == ["odd", "student"]


def test_manifests_without_kinds_of_inputs_still_work(store: Store, publish: Callable[..., ArtifactRef]) -> None:
    pool = publish(store, "examples", "pool")
    labels = publish(store, "pseudolabels", "labels", pool=[pool])
    student = publish(store, "students", "student", labels=[labels])
    for ref in (labels, student):
        manifest = store.find(ref.kind, ref.key)
        assert manifest is not None
        assert manifest.input_kinds
        path = f"{ref.kind}/{ref.key[:2]}/{ref.key}/manifest.json"
        store.place.write(path, manifest.model_dump_json(by_alias=True, exclude={"input_kinds"}).encode())
    assert names(store, student) == ["pool", "labels", "student"]


def test_what_was_swept_and_what_a_warm_start_began_with_are_left_out(
    store: Store, publish: Callable[..., ArtifactRef]
) -> None:
    labels = publish(store, "pseudolabels", "labels", pool=[publish(store, "examples", "pool")])
    before = publish(store, "students", "before", labels=[labels])
    student = publish(store, "students", "student", labels=[labels], start=[before])
    assert names(store, student) == ["pool", "labels", "student"]
    store.discard("pseudolabels", labels.key)
    assert names(store, student) == ["student"]


def record(name: str, ended_at: str, run_id: str = "0123456789") -> RunRecord:
    return RunRecord(name=name, run_id=run_id, started_at=ended_at, ended_at=ended_at, artifacts=("students/ab",))


def test_runs_are_kept_by_config_newest_first(store: Store) -> None:
    old = record("b", "2026-01-01T23:30:00+00:00")
    new = record("b", "2026-01-02T01:00:00+02:00", "9876543210")  # earlier by the wall clock, half an hour before
    other = record("a", "2026-01-03T00:00:00+00:00")
    for one in (old, new, other, old):
        keep_run(store, one)
    assert runs(store) == [other, old, new]
    assert runs(store, "b") == [old, new]
    assert run_paths(store) == [
        "runs/a/20260103T000000Z-01234567.json",
        "runs/b/20260101T233000Z-01234567.json",
        "runs/b/20260101T230000Z-98765432.json",
    ]
    assert runs(store, "nobody") == []
    for content in (b"{", other.model_dump_json().replace(other.ended_at, "2026-01-01T00;00").encode()):
        store.place.write("runs/c/20260101T000000Z-x.json", content)
        with pytest.raises(DamagedArtifact, match="is no record of a run: delete it"):
            runs(store)


def test_holdings_are_artifacts_and_leftovers_only(store: Store, publish: Callable[..., ArtifactRef]) -> None:
    ref, left = publish(store, "students", "one"), "b" * 64
    for path in (f"students/bb/{left}/model/part", "ledger/aa/x.parquet", "notes/readme", f"students/cc/{left}/x"):
        store.place.write(path, b"12345")
    keep_run(store, record("a", "2026-01-01T00:00:00+00:00"))
    found = holdings(store)
    assert set(found) == {ref.key, left}
    assert (found[ref.key].is_complete, found[left].is_complete) == (True, False)
    assert (found[left].kind, found[left].bytes) == ("students", 5)
    assert abs(found[ref.key].last_used - time.time()) < 60


def test_retire_takes_what_was_not_used_since(store: Store, publish: Callable[..., ArtifactRef]) -> None:
    kept, gone = publish(store, "students", "kept"), publish(store, "students", "gone")
    holding = holding_of(store, gone)
    assert retire(store, holding, time.time() - 3600) == 0, "it was made just now"
    assert store.find("students", gone.key)
    assert retire(store, holding, time.time() + 3600) == holding.bytes
    assert set(holdings(store)) == {kept.key}
    assert (store.fetch(kept) / "model" / "config.json").read_text() == "kept"
    assert retire(store, holding, time.time() + 3600) == 0


def test_finding_an_artifact_counts_as_use(store: Store, publish: Callable[..., ArtifactRef]) -> None:
    ref = publish(store, "students", "one")
    before = holding_of(store, ref).last_used
    time.sleep(1.1)  # S3 tells whole seconds
    assert store.reuse("tiny", step_of("students", "one")) == store.find("students", ref.key)
    assert holding_of(store, ref).last_used > before
    assert store.reuse("tiny", step_of("students", "none")) is None


def test_strays_are_old_files_beside_the_artifacts_own(publish: Callable[..., ArtifactRef], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    ref = publish(store, "students", "one")
    store.point("tiny", step_of("students", "one"))
    folder = f"students/{ref.key[:2]}/{ref.key}"
    store.place.write(f"{folder}/000000000000/model/config.json", b"a later writer's")
    (tmp_path / "store" / folder / ".manifest.json.1234").write_bytes(b"a killed writer's")
    manifest = store.find("students", ref.key)
    assert manifest is not None
    holding = holding_of(store, ref)
    assert holding.strays(manifest, time.time() - 3600) == []
    strays = {file.path.removeprefix(f"{folder}/") for file in holding.strays(manifest, time.time() + 3600)}
    assert strays == {"000000000000/model/config.json", ".manifest.json.1234"}


class Interrupted(Folder):
    """Somebody else acts at one moment of a sweep: right before the manifest goes, or right after the files went."""

    def __init__(self, root: str, at: int, act: Callable[[], object]) -> None:
        super().__init__(Path(root))
        self._at, self._act, self._calls = at, act, 0

    def remove_files(self, folder: str, paths: Iterable[str]) -> None:
        if self._calls == self._at:
            self._act()
        super().remove_files(folder, paths)
        self._calls += 1


def test_what_a_run_finds_under_the_sweep_stays(publish: Callable[..., ArtifactRef], tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    ref = publish(Store(root), "students", "one")
    make_old(Store(root), ref)
    sweeper, found = Store(root), []
    run = Store(root)
    sweeper._place = Interrupted(root, 0, lambda: found.append(run.reuse("tiny", step_of("students", "one"))))
    assert retire(sweeper, holding_of(sweeper, ref), time.time() - 3600) == 0
    assert found[0] is not None
    assert (run.fetch(ref) / "model" / "config.json").read_text() == "one"


def test_a_run_that_marks_too_late_sees_a_miss(
    publish: Callable[..., ArtifactRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    ref = publish(store, "students", "one")
    make_old(store, ref)
    point = store.point

    def swept_before(run_name: str, step: Step) -> None:
        assert retire(Store(store.root), holding_of(store, ref), time.time() - 3600) > 0
        point(run_name, step)

    monkeypatch.setattr(store, "point", swept_before)
    assert store.reuse("tiny", step_of("students", "one")) is None
    monkeypatch.undo()
    publish(store, "students", "one")
    assert (store.fetch(ref) / "model" / "config.json").read_text() == "one"


class Swept:
    """Folders that a sweep removes, still empty, right after they are made: the first `times` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left, self._mkdir = times, Path.mkdir
        monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: self.make(*args, **kwargs))

    def make(self, folder: Path, *args: Any, **kwargs: Any) -> None:
        self._mkdir(folder, *args, **kwargs)
        if self.left:
            self.left -= 1
            folder.rmdir()


def test_folders_that_a_sweep_removes_before_anything_is_in_them_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Folder(tmp_path)
    swept = Swept(monkeypatch, times=3)
    place.touch("students/used")
    assert swept.left == 0
    (tmp_path / "students" / "used").unlink()
    swept.left = 3
    place.write("students/one", b"1")
    assert (swept.left, place.read("students/one")) == (0, b"1")
    assert not list(place.drafts())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "students").write_text("a file")
    with pytest.raises(StoreUnavailable, match=r"cannot write .*students/used: (File exists|Not a directory)"):
        Folder(tmp_path).touch("students/used")
    with pytest.raises(StoreUnavailable, match=r"cannot write .*students/one: (File exists|Not a directory)"):
        Folder(tmp_path).write("students/one", b"1")


def test_readers_and_a_sweep_at_the_same_time(publish: Callable[..., ArtifactRef], tmp_path: Path) -> None:
    """Whatever a run is told to be there can be read, however the two fall together."""
    store = Store(str(tmp_path / "store"))
    step, read, missed = step_of("students", "one"), 0, 0
    for number in range(60):
        ref = publish(store, "students", "one")
        make_old(store, ref)
        holding, start = holding_of(store, ref), threading.Barrier(2)

        def sweep(holding: Holding = holding, start: threading.Barrier = start, late: bool = number % 2 == 1) -> None:
            start.wait()
            time.sleep(late * 5e-3)
            retire(Store(store.root), holding, time.time() - 3600)

        thread = threading.Thread(target=sweep)
        thread.start()
        start.wait()
        time.sleep((number % 12) * 1e-3)
        if number == 0:
            thread.join()  # so that on any machine, one comes too late
        if store.reuse("tiny", step) is None:
            missed += 1
        else:
            read += (store.fetch(ref) / "model" / "config.json").read_text() == "one"
        thread.join()
    assert read > 0
    assert missed > 0
    assert read + missed == 60


def test_a_server_that_refuses_to_delete_is_told(
    s3_moto: tuple[str, str], publish: Callable[..., ArtifactRef], tmp_path: Path
) -> None:
    endpoint_url, bucket = s3_moto
    store = Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")
    ref = publish(store, "students", "one")
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    client = boto3.client("s3", endpoint_url=endpoint_url)
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    try:
        with pytest.raises(StoreUnavailable, match=r"manifest.json cannot be deleted \(AccessDenied\)"):
            retire(store, holding_of(store, ref), time.time() + 3600)
    finally:
        client.delete_bucket_policy(Bucket=bucket)
    assert store.fetch(ref)


def act_before(
    monkeypatch: pytest.MonkeyPatch, store: Store, method: str, call: int, act: Callable[[], object]
) -> None:
    """Somebody else acts right before the store's `call`th call (from 0) of a method of its place."""
    real, calls = getattr(store.place, method), itertools.count()

    def interrupted(*arguments: object) -> object:
        if next(calls) == call:
            act()
        return real(*arguments)

    monkeypatch.setattr(store.place, method, interrupted)


@pytest.fixture
def run(store: Store, tmp_path: Path) -> Store:
    """The same store, as another process sees it."""
    return Store(store.root, getattr(store.place, "_endpoint_url", None), cache=tmp_path / "cache")


@pytest.mark.parametrize("left", [True, False], ids=["leftovers", "artifact"])
def test_what_a_run_publishes_while_a_sweep_deletes_the_same_stays(
    store: Store, run: Store, publish: Callable[..., ArtifactRef], monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """The run begins after the sweep's last look and ends before it deletes what it saw."""
    ref = publish(store, "students", "one")
    if left:
        store.place.remove(f"students/{ref.key[:2]}/{ref.key}/manifest.json")
    act_before(monkeypatch, store, "remove_files", 0 if left else 1, lambda: publish(run, "students", "one"))
    assert retire(store, holding_of(store, ref), time.time() + 3600) > 0
    run.verify(run.manifest_of(ref))
    assert (run.fetch(ref) / "model" / "config.json").read_text() == "one"


def test_a_manifest_that_a_sweep_has_not_read_stays(
    publish: Callable[..., ArtifactRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run publishes after the sweep has read no manifest, and before it would remove one."""
    store, run = Store(str(tmp_path / "store")), Store(str(tmp_path / "store"))
    ref = publish(store, "students", "one")
    store.place.remove(f"students/{ref.key[:2]}/{ref.key}/manifest.json")
    make_old(store, ref)
    read = store.place.read

    def read_before(path: str) -> bytes:
        try:
            return read(path)
        finally:
            publish(run, "students", "one")

    monkeypatch.setattr(store.place, "read", read_before)
    assert retire(store, holding_of(store, ref), time.time() - 3600) == 0
    run.verify(run.manifest_of(ref))


def test_what_a_run_publishes_while_another_discards_the_same_stays(
    store: Store, run: Store, publish: Callable[..., ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish(store, "students", "one")
    remove = store.place.remove

    def remove_first(path: str) -> None:
        remove(path)
        if path.endswith("manifest.json"):
            publish(run, "students", "one")

    monkeypatch.setattr(store.place, "remove", remove_first)
    store.discard("students", ref.key)
    run.verify(run.manifest_of(ref))
