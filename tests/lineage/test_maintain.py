"""What is freed, and above all what is not."""

import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3fs

from any_step import AnyStep
from fault_proxy import FaultProxy
from retort.commands.maintain import maintain
from retort.config import MckdConfig
from retort.errors import ConfigError, StoreUnavailable, TrackingUnavailable
from retort.recipes.execute import make
from retort.records.base import ArtifactRef
from retort.serving.shards import SplitTexts
from retort.serving.texts import Fields
from retort.store import StepOutput, Store
from retort.store.ancestry import ancestors
from retort.store.bucket import Bucket
from retort.store.runs import RunRecord, keep_run, runs
from retort.teachers.ledger import Ledger, entry_of
from retort.teachers.requests import Completion

Command = Callable[..., tuple[int, str, str]]
Aged = Callable[..., MckdConfig]
DAY = 86400


def store_of(config: MckdConfig) -> Store:
    return Store(config.store.root)


def listing(config: MckdConfig) -> dict[str, tuple[int, float]]:
    """Size and time of every file of a store."""
    files = [path for path in Path(config.store.root).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime) for path in files}


def artifacts(config: MckdConfig) -> set[str]:
    """Keys of what is complete in a store."""
    return {path.parent.name for path in Path(config.store.root).glob("*/??/*/manifest.json")}


def lineage_of(store: Store, ref: ArtifactRef) -> set[str]:
    return {manifest.key for manifest in ancestors(store, ref.kind, ref.key)}


def last_run(config: MckdConfig) -> set[str]:
    newest = runs(store_of(config))[0]
    return {artifact.rpartition("/")[2] for artifact in newest.artifacts}


def test_a_dry_run_changes_nothing(aged: Aged) -> None:
    config = aged()
    before = listing(config)
    done = maintain(config, nights=1)
    assert listing(config) == before
    assert (done.deleted, done.registered, done.runs) == (False, 2, 1)
    assert done.freed.keys() == {"scores", "reports", "tracking", "runs"}
    assert done.freed["scores"].count == 8


def test_a_registered_old_student_keeps_its_lineage_and_the_last_night_all(nights: Any, aged: Aged) -> None:
    config = aged()
    store, before = store_of(config), artifacts(config)
    registered = lineage_of(store, nights.old.final_student)
    assert len(registered) == 9
    told = maintain(config, nights=1)
    done = maintain(config, nights=1, delete=True)
    assert done.freed == told.freed
    assert artifacts(config) == registered | lineage_of(store, nights.new.final_student) | last_run(config)
    assert len(artifacts(config)) == len(before) - 10, "eight scores, the report, the tracking run"
    for kind, key in [
        (path.parents[2].name, path.parent.name) for path in Path(store.root).glob("*/??/*/manifest.json")
    ]:
        manifest = store.find(kind, key)
        assert manifest is not None
        store.verify(manifest)
    assert [record.run_id for record in runs(store)] == ["00000002-run"]
    again = maintain(config, nights=1, delete=True)
    assert (again.freed, again.kept) == ({}, done.kept)


def test_a_version_that_the_registry_deleted_frees_its_lineage(nights: Any, aged: Aged, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = aged()
    store, database = store_of(config), tmp_path / "mlflow.db"
    shutil.copy(nights.folder / "mlflow.db", database)
    shutil.rmtree(Path(store.root) / "tracking")  # the store was tracked in the other database
    MlflowClient(f"sqlite:///{database}").delete_model_version("tiny-classes", "1")
    only_old = lineage_of(store, nights.old.final_student) - lineage_of(store, nights.new.final_student)
    config = with_registry(config, f"sqlite:///{database}")
    assert maintain(config, nights=1, delete=True).registered == 1
    assert not artifacts(config) & only_old
    assert artifacts(config) >= lineage_of(store, nights.new.final_student)


def with_registry(config: MckdConfig, uri: str | None) -> MckdConfig:
    tracking = uri and config.tracking and config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"tracking": tracking or None})


def test_every_registry_that_the_store_was_tracked_in_counts(nights: Any, aged: Aged, tmp_path: Path) -> None:
    config = aged()
    for other in (with_registry(config, None), with_registry(config, f"sqlite:///{tmp_path}/none.db")):
        assert maintain(other, nights=0, delete=True).registered == 2
        assert artifacts(config) >= lineage_of(store_of(config), nights.old.final_student)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////nowhere/mlflow.db"])
def test_nothing_goes_while_a_registry_cannot_be_asked(aged: Aged, uri: str) -> None:
    config = aged()
    manifest = next(Path(config.store.root).glob("tracking/??/*/manifest.json"))
    values = json.loads(manifest.read_text())
    values["made_of"]["params"]["uri"] = uri
    manifest.write_text(json.dumps(values))
    before = listing(config)
    with pytest.raises(TrackingUnavailable, match=uri):
        maintain(config, nights=0, delete=True)
    assert listing(config) == before


def test_what_was_used_lately_stays_with_its_lineage(nights: Any, aged: Aged) -> None:
    config = with_registry(aged(), None)
    store = store_of(config)
    shutil.rmtree(Path(store.root) / "tracking")
    scores = nights.old.final_scores
    path = Path(store.root) / scores.kind / scores.key[:2] / scores.key / "used"
    path.touch()
    hours_ago = time.time() - 5 * 3600
    os.utime(path, (hours_ago, hours_ago))
    maintain(config, nights=0, grace_hours=6, delete=True)
    assert artifacts(config) == lineage_of(store, scores)
    maintain(config, nights=0, grace_hours=4, delete=True)
    assert artifacts(config) == set()


def test_what_a_killed_run_left_stays_for_as_many_days_as_nights(tmp_path: Path) -> None:
    config, store = bare(tmp_path)
    ref = publish(store, "pseudolabels", "stage0/pseudolabels")
    for path in Path(store.root).rglob("*"):
        os.utime(path, (time.time() - 3 * DAY,) * 2)
    assert maintain(config, nights=4, delete=True).freed == {}
    done = maintain(config, nights=2, delete=True)
    assert {what: amount.count for what, amount in done.freed.items()} == {"pointers": 1, "pseudolabels": 1}
    assert store.find(ref.kind, ref.key) is None
    assert store.pointers() == {}


def test_a_warm_start_keeps_the_weights_that_it_began_with_only(tmp_path: Path) -> None:
    config, store = bare(tmp_path)
    old_labels = publish(store, "pseudolabels", "old-labels")
    before = publish(store, "students", "before", labels=[old_labels])
    student = publish(store, "students", "student", labels=[publish(store, "pseudolabels", "labels")], start=[before])
    keep(store, student)
    age(store)
    maintain(config, nights=1, delete=True)
    assert (store.fetch(before) / "weights").read_text() == "before"
    assert store.find(old_labels.kind, old_labels.key) is None
    assert len(artifacts(config)) == 3


def test_leftovers_and_old_orders_go_and_strangers_stay(tmp_path: Path) -> None:
    config, store = bare(tmp_path)
    kept = publish(store, "students", "kept")
    keep(store, kept)
    folder, left = f"students/{kept.key[:2]}/{kept.key}", f"students/bb/{'b' * 64}"
    half = "a" * 32
    gone = [f"{folder}/000000000000/weights", f"{left}/0/weights", "orders/1.json", "latest/x/.final.json.1"]
    gone += [f"ledger/teacher/.1.parquet.{half}", f".probe-{half}", f"{folder}/.used.{half}"]
    stay = ["notes/readme.txt", "students/readme.txt", "ledger/teacher/pace.json", "readme.txt", ".probe-mine"]
    for path in (*gone, *stay):
        store.place.write(path, b"12345")
    age(store)
    store.place.write("orders/2.json", b"a run's in progress")
    done = maintain(config, delete=True)
    assert {what: (a.count, a.bytes) for what, a in done.freed.items()} == {"leftovers": (5, 30), "orders": (1, 5)}
    root = Path(store.root)
    assert [path for path in gone if (root / path).exists()] == []
    assert [path for path in (*stay, "orders/2.json") if not (root / path).exists()] == []
    assert store.fetch(kept)


def test_uploads_in_parts_that_nobody_finished_go(
    s3_moto: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3  # type: ignore[import-untyped]

    endpoint_url, bucket = s3_moto
    prefix = uuid4().hex
    config, _ = bare(tmp_path, store={"root": f"s3://{bucket}/{prefix}", "endpoint_url": endpoint_url})
    client = boto3.client("s3", endpoint_url=endpoint_url)
    begun = {}
    for key in (f"{prefix}/students/x/weights", f"{prefix}-of-others/weights"):
        begun[key] = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=begun[key], PartNumber=1, Body=b"12345")
    client.put_object(Bucket=bucket, Key=f"{prefix}/.probe-{'0' * 32}", Body=b"probe")
    uploads = Bucket.uploads
    with monkeypatch.context() as patch:  # moto says that all uploads began in 2010
        patch.setattr(Bucket, "uploads", lambda place: [u._replace(started=time.time()) for u in uploads(place)])
        assert maintain(config, delete=True).freed == {}, "they may be under way"
    time.sleep(1.1)  # S3 tells whole seconds
    told = maintain(config, grace_hours=0)
    assert {what: (a.count, a.bytes) for what, a in told.freed.items()} == {"leftovers": (1, 5), "uploads": (1, 5)}
    assert maintain(config, grace_hours=0, delete=True).freed == told.freed
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{prefix}-of-others/weights"]
    assert maintain(config, grace_hours=0, delete=True).freed == {}
    client.abort_multipart_upload(Bucket=bucket, Key=left[0]["Key"], UploadId=left[0]["UploadId"])


def test_a_server_that_does_not_list_uploads_is_no_reason_to_stop(s3_rclone: tuple[str, str], tmp_path: Path) -> None:
    endpoint_url, bucket = s3_rclone
    config, _ = bare(tmp_path, store={"root": f"s3://{bucket}/{uuid4().hex}", "endpoint_url": endpoint_url})
    assert maintain(config, delete=True).freed == {}


def test_a_manifest_without_its_files_is_told(tmp_path: Path) -> None:
    config, store = bare(tmp_path)
    whole, gone, cut = (publish(store, "students", name) for name in ("whole", "gone", "cut"))
    keep(store, whole, gone, cut)
    (store.fetch(gone) / "weights").unlink()
    (store.fetch(cut) / "weights").write_text("c")
    age(store)
    done = maintain(config, delete=True)
    told = "weights gone or of another size; `retort run CONFIG --repair` makes it again"
    assert sorted(done.broken) == sorted(
        f"students/{ref.key} of {name}: {told}" for ref, name in [(gone, "gone"), (cut, "cut")]
    )
    assert set(done.broken) <= set(done.lines())
    assert store.find(gone.kind, gone.key) is not None


def test_a_listing_that_lacks_what_is_there_deletes_nothing(
    s3_rclone: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is kept by its run's record; its labels by the student alone, which the listing lacks."""
    with FaultProxy(s3_rclone[0]) as proxy:
        root = f"s3://{s3_rclone[1]}/{uuid4().hex}"
        config, _ = bare(tmp_path, store={"root": root, "endpoint_url": proxy.url})
        store = Store(root, proxy.url, cache=tmp_path / "cache")
        labels = publish(store, "pseudolabels", "labels")
        keep(store, publish(store, "students", "kept", labels=[labels]))
        time.sleep(1.1)  # S3 tells whole seconds
        proxy.fail(FaultProxy.absent, where=lambda request: "students" in request.query.get("prefix", ""))
        with pytest.raises(StoreUnavailable, match=r"lacks students/.*, which is there: nothing was deleted"):
            maintain(config, nights=1, grace_hours=0, delete=True)
        assert maintain(config, nights=1, grace_hours=0, delete=True).freed == {}
        assert (store.fetch(labels) / "weights").read_text() == "labels"


def test_the_ledger_is_compacted_and_loses_nothing(nights: Any, aged: Aged, tmp_path: Path) -> None:
    config = aged()
    ledger_files = {path: size for path, (size, _) in listing(config).items() if "/ledger/" in path}
    assert maintain(config, nights=0, delete=True).compacted == {}
    assert {path: size for path, (size, _) in listing(config).items() if "/ledger/" in path} == ledger_files

    ledger = Ledger(store_of(config), {"kind": "endpoint", "model": "other"})
    for number in range(21):
        key = number.to_bytes(16, "big")
        ledger.add([entry_of(key, Completion(key, 0, f"text {number}", "stop", 1, 0, 1), 8)])
    assert maintain(config, nights=0).compacted == {ledger.folder: 21}
    assert len(ledger.files()) == 21
    assert maintain(config, nights=0, delete=True).compacted == {ledger.folder: 21}
    assert len(ledger.files()) == 1
    assert sorted(texts(ledger, 21, tmp_path)) == sorted(f"text {number}" for number in range(21))


def texts(ledger: Ledger, number: int, folder: Path) -> list[str]:
    from retort.io.parquet import write_rows
    from retort.teachers.labeler import ASKED

    rows = [{"position": at, "key": at.to_bytes(16, "big")} for at in range(number)]
    write_rows(folder / "asked.parquet", ASKED, rows)
    return [entry.text for entry in ledger.join(folder / "asked.parquet") if entry]


def test_a_bucket_is_listed_once_for_each_kind(
    s3_moto: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_url, bucket = s3_moto
    root = f"s3://{bucket}/{uuid4().hex}"
    config, _ = bare(tmp_path, store={"root": root, "endpoint_url": endpoint_url})
    store = Store(root, endpoint_url, cache=tmp_path / "cache")
    labels = [publish(store, "pseudolabels", "labels", number) for number in range(12)]
    kept = publish(store, "students", "kept", labels=[labels[0]])
    keep(store, kept)
    time.sleep(1.1)  # S3 tells whole seconds
    calls: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: s3fs.S3FileSystem, method: str, *arguments: Any, **options: Any) -> Any:
        calls[method] += 1
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    told = maintain(config, grace_hours=0)
    assert calls["list_objects_v2"] <= 13
    assert calls["list_multipart_uploads"] == 1
    assert calls["get_object"] == 3 + 1 + 2 * 2, "manifests, the record, the two pointers twice"
    assert calls["put_object"] + calls["delete_objects"] == 0
    done = maintain(config, grace_hours=0, delete=True)
    assert done.freed == told.freed
    assert {what: amount.count for what, amount in done.freed.items()} == {"pseudolabels": 10}
    assert {kind: amount.count for kind, amount in done.kept.items()} == {"pseudolabels": 2, "students": 1}
    assert (store.fetch(kept) / "weights").read_text() == "kept"
    assert maintain(config, grace_hours=0, delete=True).freed == {}


def bare(folder: Path, **fields: Any) -> tuple[MckdConfig, Store]:
    """A config that is only asked for its store, in which nothing was tracked."""
    values = {
        "name": "bare",
        "problem": {"kind": "classification", "labels": ["up", "down"]},
        "data": dict.fromkeys(("labeled", "unlabeled", "test"), "none.jsonl"),
        "teacher": {"kind": "recorded", "completions": "none.jsonl"},
        "student": {"kind": "sequence-classification", "model": "none"},
        "store": {"root": str(folder / "store")},
        **fields,
    }
    config = MckdConfig.model_validate(values)
    return config, Store(config.store.root)


def publish(store: Store, kind: str, name: str, number: int = 0, **inputs: list[ArtifactRef]) -> ArtifactRef:
    refs = {role: tuple(of) for role, of in inputs.items()}
    step = AnyStep(name=name, values={"name": name, "number": number}, refs=refs, made=kind)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights").write_text(name)
        return store.publish(step, Path(folder), StepOutput(rows=1), 1.0, "bare")


def keep(store: Store, *refs: ArtifactRef) -> None:
    at = "2026-01-01T00:00:00+00:00"
    names = tuple(f"{ref.kind}/{ref.key}" for ref in refs)
    keep_run(store, RunRecord(name="bare", run_id="1", started_at=at, ended_at=at, artifacts=names))


def age(store: Store) -> None:
    for path in Path(store.root).rglob("*"):
        os.utime(path, (1, 1))


def test_the_command(aged: Aged, command: Command, config_file: Callable[[MckdConfig], str]) -> None:
    config = aged()
    path = config_file(config)
    code, out, err = command("maintain", path, "--nights", "1")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "2 registered students and 1 runs keep what they rest on:"
    assert "would be freed (--delete does it):" in lines
    code, out, _ = command("maintain", path, "--nights", "1", "--delete", "--json")
    done = json.loads(out)
    assert (code, done["deleted"], done["freed"]["scores"]["count"]) == (0, True, 8)
    code, out, _ = command("maintain", path, "--nights", "1", "--delete")
    assert out.splitlines()[-2:] == ["freed:", "  nothing"]


def test_the_command_refuses(aged: Aged, command: Command, config_file: Callable[[MckdConfig], str]) -> None:
    config = aged()
    path = config_file(config)
    code, _, err = command("maintain", path, "--set", "tracking.uri=http://127.0.0.1:9", "--delete")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "cannot be reached" in err
    code, _, err = command("maintain", path, "--set", "store.root=s3://", "--delete")
    assert (code, len(err.splitlines())) == (2, 1)
    with pytest.raises(ConfigError, match="RETORT_TEST_NO_SUCH"):
        maintain(with_registry(config, "${RETORT_TEST_NO_SUCH}"))


def test_the_rows_of_a_prediction_are_freed_once_they_are_old(tmp_path: Path) -> None:
    config, store = bare(tmp_path)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"id": "1", "text": "a"}\n')
    step = SplitTexts(
        name="predict/split", content="c", fields=Fields("text", "id"), rows_of_shard=1, source=str(texts)
    )
    make(config.run_settings, step, 0, lambda *_: None)
    assert maintain(config, delete=True).freed == {}
    age(store)
    assert maintain(config, delete=True).freed.keys() == {"shard-rows", "pointers"}
    assert listing(config) == {}
