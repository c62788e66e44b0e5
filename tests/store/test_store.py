"""The same store on a folder, on moto and on a real S3 server."""

import errno
import json
import math
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing.synchronize import Barrier
from pathlib import Path
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
import pytest
import s3fs

from any_step import AnyStep
from retort.config import StoreConfig
from retort.errors import ConfigError, DamagedArtifact, StoreUnavailable
from retort.records.base import ArtifactRef
from retort.steps.base import Step
from retort.store import StepOutput, Store
from retort.store.contents import is_intact
from retort.store.folder import Folder
from retort.store.manifest import StoredFile
from retort.store.opening import open_store

FILES = {"rows.parquet": b"rows" * 1000, "model/config.json": b"{}", "empty": b""}
Alter = Callable[[str, bytes | None], None]


def student_step(name: str = "stage1/student-0", **params: object) -> Step:
    return AnyStep(name=name, values=params or {"seed": 0}, made="students")


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def publish(store: Store, folder: Path, files: dict[str, bytes] = FILES, of: Step | None = None) -> ArtifactRef:
    product = StepOutput(rows=3, counts={"failures": 1}, metrics={"slot_f1": 0.9}, details={"device": "cpu"})
    return store.publish(of or student_step(), write_files(folder, files), product, 1.5, "snips")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["folder", "s3_moto", "s3_rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"))
    endpoint_url, bucket = request.getfixturevalue(request.param)
    return Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")


@pytest.fixture
def alter(store: Store) -> Alter:
    """Overwrite (or with None delete) a file behind the store's back; the path begins below the root."""

    def alter_object(path: str, data: bytes | None) -> None:
        if not store.root.startswith("s3://"):
            target = Path(store.root) / path
            target.unlink() if data is None else target.write_bytes(data)
            return
        bucket, prefix = store.root.removeprefix("s3://").split("/")
        client = boto3.client("s3", endpoint_url=store._place._endpoint_url)  # type: ignore[union-attr]
        if data is None:
            client.delete_object(Bucket=bucket, Key=f"{prefix}/{path}")
        else:
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=data)

    return alter_object


def below_root(store: Store, ref: ArtifactRef, path: str) -> str:
    manifest = store.find(ref.kind, ref.key)
    assert manifest is not None
    return f"{store.files_address(manifest).removeprefix(store.root + '/')}/{path}"


def manifest_path(ref: ArtifactRef) -> str:
    return f"{ref.kind}/{ref.key[:2]}/{ref.key}/manifest.json"


def test_publish_find_fetch(store: Store, tmp_path: Path) -> None:
    assert store.find("students", student_step().key) is None
    ref = publish(store, tmp_path / "made")
    key = student_step().key
    assert ref == ArtifactRef(
        uri=f"{store.root}/students/{key[:2]}/{key}", kind="students", key=key, rows=3, metrics={"slot_f1": 0.9}
    )
    manifest = store.find("students", key)
    assert manifest is not None
    assert store.ref(manifest) == ref
    assert manifest.fingerprint == student_step().fingerprint
    assert (manifest.name, manifest.seconds, manifest.details) == ("stage1/student-0", 1.5, {"device": "cpu"})
    assert {"python", "torch", "transformers", "numpy", "pyarrow"} <= manifest.versions.keys()
    assert contents(store.fetch(ref)) == FILES
    store.verify(manifest)


def test_one_file_is_read_and_verified_without_the_others(store: Store, tmp_path: Path) -> None:
    manifest = store.manifest_of(publish(store, tmp_path / "made"))
    whole, damaged, *_ = (file.path for file in manifest.files)
    store.place.write(f"{store.files_address(manifest).removeprefix(store.root + '/')}/{damaged}", b"other")
    assert store.open_file(manifest, whole).read_bytes() == FILES[whole]
    with pytest.raises(DamagedArtifact, match=f"file '{damaged}' has 5 bytes"):
        store.open_file(manifest, damaged)
    with pytest.raises(DamagedArtifact, match=r"has no file 'another\.bin'"):
        store.open_file(manifest, "another.bin")


def test_same_key_and_same_bytes_give_the_same_address_everywhere(
    tmp_path: Path, s3_moto: tuple[str, str], s3_rclone: tuple[str, str]
) -> None:
    stores = [Store(str(tmp_path / "store"))]
    stores += [Store(f"s3://{bucket}/{uuid4().hex}", url, tmp_path / url[-5:]) for url, bucket in (s3_moto, s3_rclone)]
    places = set()
    for store in stores:
        ref = publish(store, tmp_path / "made")
        places.add(below_root(store, ref, ""))
        assert contents(store.fetch(ref)) == FILES
    assert len(places) == 1


def test_vanished_manifest_is_a_miss(store: Store, tmp_path: Path, alter: Alter) -> None:
    ref = publish(store, tmp_path / "made")
    alter(manifest_path(ref), None)
    assert store.find(ref.kind, ref.key) is None
    assert store.latest("snips", "stage1/student-0") is None
    with pytest.raises(DamagedArtifact, match="no manifest"):
        store.fetch(ref)
    assert publish(store, tmp_path / "made") == ref
    assert contents(store.fetch(ref)) == FILES


@pytest.mark.parametrize(
    ("data", "fault"),
    [(b"ROWS" * 1000, "has another sha256"), (b"rows", "has 4 bytes .* says 4000"), (None, "is missing")],
)
def test_damaged_file_is_named(store: Store, tmp_path: Path, alter: Alter, data: bytes | None, fault: str) -> None:
    ref = publish(store, tmp_path / "made")
    manifest = store.find(ref.kind, ref.key)
    assert manifest is not None
    alter(below_root(store, ref, "rows.parquet"), data)
    for check in (lambda: store.verify(manifest), lambda: store.fetch(ref)):
        with pytest.raises(DamagedArtifact, match=rf"'rows.parquet' {fault}.*`retort run CONFIG --repair`") as caught:
            check()
        assert ref.uri in str(caught.value)


def test_manifest_that_cannot_be_parsed_is_named(store: Store, tmp_path: Path, alter: Alter) -> None:
    ref = publish(store, tmp_path / "made")
    alter(manifest_path(ref), b'{"kind": "students"')
    with pytest.raises(DamagedArtifact, match=r"manifest.json is no manifest .*--repair"):
        store.find(ref.kind, ref.key)


@pytest.mark.parametrize("path", ["../../../evil", "/evil"])
def test_manifest_cannot_write_outside_the_cache(store: Store, tmp_path: Path, alter: Alter, path: str) -> None:
    ref = publish(store, tmp_path / "made")
    manifest = store.find(ref.kind, ref.key)
    assert manifest is not None
    files = (manifest.files[0].model_copy(update={"path": path}),)
    alter(manifest_path(ref), manifest.model_copy(update={"files": files}).model_dump_json(by_alias=True).encode())
    with pytest.raises(DamagedArtifact, match="outside its artifact"):
        store.fetch(ref)


def test_first_writer_wins(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path / "a")
    assert publish(store, tmp_path / "b", {"rows.parquet": b"other"}) == ref
    assert contents(store.fetch(ref)) == FILES


def test_latest_follows_the_config_and_the_stage(store: Store, tmp_path: Path) -> None:
    assert store.latest("snips", "stage1/student-0") is None
    publish(store, tmp_path / "a")
    second = publish(store, tmp_path / "a", of=student_step(seed=1))
    latest = store.latest("snips", "stage1/student-0")
    assert latest is not None
    assert latest.key == second.key
    assert store.latest("snips", "stage1/student-1") is None
    store.point("snips", student_step())
    assert store.latest("snips", "stage1/student-0") == store.find("students", student_step().key)


def test_discard(store: Store, tmp_path: Path) -> None:
    kept, ref = publish(store, tmp_path / "a"), publish(store, tmp_path / "b", of=student_step(seed=1))
    store.discard(ref.kind, ref.key)
    store.discard(ref.kind, ref.key)
    assert store.find(ref.kind, ref.key) is None
    assert contents(store.fetch(kept)) == FILES
    assert publish(store, tmp_path / "b", of=student_step(seed=1)) == ref


def test_metric_that_is_not_a_number_survives(store: Store, tmp_path: Path) -> None:
    product = StepOutput(metrics={"kappa": math.nan})
    ref = store.publish(student_step(), write_files(tmp_path / "a", FILES), product, 1, "snips")
    manifest = store.find(ref.kind, ref.key)
    assert manifest is not None
    assert math.isnan(manifest.metrics["kappa"])


def _publish_in_child(root: str, endpoint_url: str | None, folder: Path, barrier: Barrier) -> None:
    store = Store(root, endpoint_url, cache=folder / "cache")
    barrier.wait()
    ref = publish(store, folder / "made", {"rows.parquet": folder.name.encode() * 50_000, "same": b"same"})
    assert store.fetch(ref)


def test_writers_in_several_processes_do_no_harm(store: Store, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    endpoint_url = getattr(store._place, "_endpoint_url", None)
    children = [
        context.Process(target=_publish_in_child, args=(store.root, endpoint_url, tmp_path / name, barrier))
        for name in ("one", "two", "two-again")
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    manifest = store.find("students", student_step().key)
    assert manifest is not None
    store.verify(manifest)


def test_writers_in_several_threads_do_no_harm(store: Store, tmp_path: Path) -> None:
    def write(index: int) -> ArtifactRef:
        ref = publish(store, tmp_path / str(index), {"rows.parquet": bytes([index % 2]) * 100_000})
        store.fetch(ref)
        return ref

    with ThreadPoolExecutor(4) as pool:
        refs = list(pool.map(write, range(8)))
    assert all(ref == refs[0] for ref in refs)


def test_forked_child_can_use_the_parents_store(store: Store, tmp_path: Path) -> None:
    ref = publish(store, tmp_path / "a")
    pid = os.fork()
    if not pid:
        os._exit(0 if contents(store.fetch(ref)) == FILES else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert contents(store.fetch(ref)) == FILES


def test_check_writable_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    store.check_writable()
    if not store.root.startswith("s3://"):
        assert contents(Path(store.root)) == {}


def test_cache_is_used_and_healed(s3_moto: tuple[str, str], tmp_path: Path) -> None:
    endpoint_url, bucket = s3_moto
    store = Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")
    ref = publish(store, tmp_path / "a")
    folder = store.fetch(ref)
    inode = folder.stat().st_ino
    assert store.fetch(ref).stat().st_ino == inode
    (folder / "rows.parquet").write_bytes(b"x" * 4000)
    assert contents(store.fetch(ref)) == FILES
    assert os.listdir(folder.parent) == [folder.name]


def test_large_file_goes_up_in_parts(s3_rclone: tuple[str, str], tmp_path: Path) -> None:
    endpoint_url, bucket = s3_rclone
    store = Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")
    data = os.urandom(2**20) * 110
    ref = publish(store, tmp_path / "a", {"model.safetensors": data})
    assert (store.fetch(ref) / "model.safetensors").read_bytes() == data


def test_local_root_that_is_a_file_or_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is not a folder"):
            Store(str(root)).check_writable()
    with pytest.raises(ConfigError, match="is not writable"):
        Store("/proc/retort").check_writable()
    with pytest.raises(ConfigError, match="use a folder or s3://"):
        Store("gs://bucket")


@pytest.mark.parametrize(
    ("root", "folder"), [("~", ""), ("~/store", "store"), ("${RETORT_TEST_ROOT}/x", "x"), ("~root/../~", None)]
)
def test_root_in_the_home_folder(
    root: str, folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RETORT_TEST_ROOT", "~")
    opened = open_store(StoreConfig(root=root))
    assert "~" not in opened.root.rpartition("/")[0]
    if folder is not None:
        assert opened.root == str(tmp_path / folder)


@pytest.mark.parametrize("root", ["~no-such-user/store", "~no-such-user"])
def test_root_in_the_home_folder_of_nobody(root: str) -> None:
    with pytest.raises(ConfigError, match="no home folder of '~no-such-user'"):
        open_store(StoreConfig(root=root))


@pytest.mark.parametrize("server", ["s3_moto", "s3_rclone"])
def test_bucket_that_does_not_exist(request: pytest.FixtureRequest, server: str) -> None:
    endpoint_url, _ = request.getfixturevalue(server)
    store = Store("s3://no-such-bucket/prefix", endpoint_url)
    uses: list[Callable[[], object]] = [store.check_writable, lambda: store.find("students", "ab")]
    for use in uses:
        with pytest.raises(StoreUnavailable, match=f"'no-such-bucket' does not exist at {endpoint_url}"):
            use()


def test_bucket_that_refuses(s3_rclone: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint_url, bucket = s3_rclone
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    try:
        with pytest.raises(StoreUnavailable, match=r"refuses \(\w+\): check AWS_ACCESS_KEY_ID"):
            Store(f"s3://{bucket}/x", endpoint_url).check_writable()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_no_credentials(s3_moto: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endpoint_url, bucket = s3_moto
    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        with pytest.raises(StoreUnavailable, match="no credentials for bucket"):
            Store(f"s3://{bucket}/x", endpoint_url).check_writable()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """An address whose connections are never made: its queue of callers is full."""
    with socket.socket() as server, ExitStack() as callers:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def check_unreachable(endpoint_url: str) -> None:
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=f"{endpoint_url} cannot be reached for bucket 'b'"):
        Store("s3://b/x", endpoint_url).check_writable()
    assert time.monotonic() - start < 60


def test_endpoint_that_refuses_connections_answers_soon(aws_environment: None) -> None:
    check_unreachable("http://127.0.0.1:9")


def test_endpoint_that_never_answers_is_given_up_soon(aws_environment: None, silent_endpoint: str) -> None:
    check_unreachable(silent_endpoint)


@pytest.fixture
def odd_server(aws_environment: None) -> Iterator[HTTPServer]:
    """Knows no key, and is no S3 server to who writes. Its `asked` lists the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_error(404)

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = asked  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_server_that_is_no_s3_server(odd_server: HTTPServer) -> None:
    with pytest.raises(StoreUnavailable, match="is this an S3 server's address"):
        Store("s3://b/x", f"http://127.0.0.1:{odd_server.server_port}").check_writable()


def test_find_is_one_get(odd_server: HTTPServer) -> None:
    assert Store("s3://b/x", f"http://127.0.0.1:{odd_server.server_port}").find("students", "abcd") is None
    assert odd_server.asked == ["GET /b/x/students/ab/abcd/manifest.json"]  # type: ignore[attr-defined]


def test_nothing_heavy_is_imported_for_a_folder() -> None:
    code = (
        "import sys; from retort.store import Store; Store('x'); print('s3fs' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_files_are_plain_json_and_bytes(tmp_path: Path) -> None:
    ref = publish(Store(str(tmp_path / "store")), tmp_path / "made")
    names = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert names == {"manifest.json", "rows.parquet", "config.json", "empty", "student-0.json"}
    pointer = json.loads((tmp_path / "store/latest/snips/stage1/student-0.json").read_text())
    assert pointer == {"kind": "students", "key": ref.key}


def test_a_spoiled_file_of_the_cache_is_replaced_while_others_read_the_rest(
    s3_moto: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_url, bucket = s3_moto
    store = Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")
    ref = publish(store, tmp_path / "a")
    folder = store.fetch(ref)
    (folder / "rows.parquet").write_bytes(b"")
    download, seen = store.place.download, []

    def watched(path: str, target: Path) -> None:
        seen.append(contents(folder))
        download(path, target)

    monkeypatch.setattr(store.place, "download", watched)
    assert contents(store.fetch(ref)) == FILES
    assert seen == [{**FILES, "rows.parquet": b""}]


def test_a_file_that_goes_while_it_is_checked_is_not_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert not is_intact(tmp_path / "gone", StoredFile(path="gone", bytes=0, sha256=""))


def test_a_file_and_its_name_are_on_disk_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, (tmp_path / "a/b").exists())))
    Folder(tmp_path).write("a/b", b"1")
    assert synced == [((tmp_path / "a" / "b").stat().st_ino, False), ((tmp_path / "a").stat().st_ino, True)]


def test_a_file_system_that_cannot_sync_folders_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refusing)
    Folder(tmp_path).write("a/b", b"1")
    assert Folder(tmp_path).read("a/b") == b"1"


def test_a_download_deletes_what_killed_ones_left(
    s3_moto: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.io.scratch._NEW_SECONDS", 0.0)
    endpoint_url, bucket = s3_moto
    store = Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")
    manifest = store.manifest_of(publish(store, tmp_path / "a"))
    left = tmp_path / "cache" / "retort-scratch-download-abcdefgh"
    for download in (lambda: store.fetch(store.ref(manifest)), lambda: store.open_file(manifest, "empty")):
        left.mkdir(parents=True)
        download()
        assert not left.exists()
