"""A store that somebody else may write to: no file outside of it is touched, nothing is run, and nothing is sent to
places that it names."""

import json
from pathlib import Path
from typing import Any

import pytest

from any_step import AnyStep
from retort.commands.maintain import _known_uri
from retort.config import MckdConfig, StoreConfig, TrackingConfig
from retort.errors import ConfigError, DamagedArtifact, TrackingUnavailable
from retort.records.base import ArtifactRef
from retort.store import StepOutput, Store
from retort.store.retention import holdings
from tasks.work_pools import read_order

KEY = "ab" * 32


def publish(store: Store, folder: Path) -> ArtifactRef:
    folder.mkdir(exist_ok=True)
    (folder / "rows.txt").write_bytes(b"rows")
    step = AnyStep(name="stage1/student-0", values={"seed": 0}, made="students")
    return store.publish(step, folder, StepOutput(rows=1), 1.0, "snips")


def manifest_file(store: Store, ref: ArtifactRef) -> Path:
    return Path(store.root) / ref.kind / ref.key[:2] / ref.key / "manifest.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.mark.parametrize(
    "path",
    ["../../outside", "/etc/passwd", "a/../../b", "", ".", "./.", "a\0b", "x" * 5000, "..", "a/../../../../etc/passwd"],
)
def test_a_file_cannot_be_named_outside_of_its_artifact(store: Store, tmp_path: Path, path: str) -> None:
    ref = publish(store, tmp_path / "made")
    file = manifest_file(store, ref)
    values = json.loads(file.read_text())
    values["files"][0]["path"] = path
    file.write_text(json.dumps(values))
    for read in (store.fetch, store.manifest_of):
        with pytest.raises(DamagedArtifact, match="names a file outside its artifact"):
            read(ref)


@pytest.mark.parametrize("folder", ["../../..", "/etc", "..", "0123456789ab/..", "", "0123456789AB"])
def test_nor_can_its_folder(store: Store, tmp_path: Path, folder: str) -> None:
    ref = publish(store, tmp_path / "made")
    file = manifest_file(store, ref)
    file.write_text(json.dumps({**json.loads(file.read_text()), "folder": folder}))
    with pytest.raises(DamagedArtifact, match="names a file outside its artifact"):
        store.fetch(ref)


@pytest.mark.parametrize(
    "data",
    [b"[" * 200_000, b'{"files":' * 100_000, b"", b"\xff\xfe", b"null", b'{"bytes": 1e999}', b"{" + b" " * 10**7],
)
def test_a_manifest_that_is_none_is_told_in_a_sentence(store: Store, tmp_path: Path, data: bytes) -> None:
    ref = publish(store, tmp_path / "made")
    manifest_file(store, ref).write_bytes(data)
    with pytest.raises(DamagedArtifact, match="is no manifest") as caught:
        store.fetch(ref)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("kind", "key"),
    [("..", KEY), ("../..", KEY), ("students", "../../etc"), ("students", KEY.upper()), ("", KEY), ("Students", KEY)],
)
def test_a_pointer_leads_to_artifacts_only(store: Store, tmp_path: Path, kind: str, key: str) -> None:
    publish(store, tmp_path / "made")
    pointer = Path(store.root) / "latest" / "snips" / "stage1" / "student-0.json"
    pointer.write_text(json.dumps({"kind": kind, "key": key}))
    with pytest.raises(DamagedArtifact, match="names no artifact"):
        store.latest("snips", "stage1/student-0")


def test_a_link_in_a_folder_reads_writes_and_deletes_nothing_elsewhere(store: Store, tmp_path: Path) -> None:
    """A file that is a link must have the content that the manifest says; one that is removed leaves its target."""
    ref = publish(store, tmp_path / "made")
    secret = tmp_path / "secret"
    secret.write_text("theirs")
    file = store.fetch(ref) / "rows.txt"
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(DamagedArtifact, match=r"rows\.txt"):
        store.fetch(ref)
    manifest = manifest_file(store, ref)
    folder = manifest.parent
    (folder / "away").symlink_to(tmp_path / "made", target_is_directory=True)
    store.place.remove_files("students", [file.relative_to(store.root).as_posix()])
    assert secret.read_text() == "theirs"
    store.discard(ref.kind, ref.key)
    assert (tmp_path / "made" / "rows.txt").read_bytes() == b"rows"
    assert secret.read_text() == "theirs"


def test_folders_with_odd_names_are_no_artifacts(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path / "made")
    for kind in ("Odd kind", "\x1b[2J", "students\n"):
        (Path(store.root) / kind / KEY[:2] / KEY).mkdir(parents=True)
        (Path(store.root) / kind / KEY[:2] / KEY / "manifest.json").write_text("{}")
    assert {holding.kind for holding in holdings(store).values()} == {"students"}


@pytest.mark.parametrize("order", ["../../../etc/passwd", "a" * 64, "", "x\0y"])
def test_an_order_is_what_its_digest_says(store: Store, order: str) -> None:
    target = Path(store.root) / "orders" / f"{'a' * 64}.json"
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps({"settings": {"name": "a"}, "step_class": "Evil", "step": {}}))
    with pytest.raises(ConfigError, match="order = "):
        read_order(StoreConfig(root=store.root), order)


EVIL = "http://evil.invalid/"


@pytest.mark.parametrize(
    "uri",
    [
        EVIL,
        EVIL + "${AWS_SECRET_ACCESS_KEY}",
        "http://${AWS_SECRET_ACCESS_KEY}@evil.invalid",
        "${AWS_SECRET_ACCESS_KEY}",
        "${NOT_SET}",
        "postgresql://evil.invalid/db",
        "sqlite:///${AWS_SECRET_ACCESS_KEY}",
        "${RETORT_TEST_OWN}x",
    ],
)
def test_maintenance_asks_no_server_that_only_the_store_names(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would send MLflow's credentials, or the variable's value, there."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
    monkeypatch.setenv("RETORT_TEST_OWN", "http://127.0.0.1:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    monkeypatch.delenv("NOT_SET", raising=False)
    config = tracked("${RETORT_TEST_OWN}")
    with pytest.raises(TrackingUnavailable, match=r"neither tracking\.uri nor MLFLOW_TRACKING_URI") as caught:
        _known_uri(uri, config)
    assert "hunter22" not in str(caught.value)


def test_maintenance_asks_those_that_the_config_and_the_environment_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_TEST_OWN", "http://127.0.0.1:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5001")
    config = tracked("${RETORT_TEST_OWN}")
    own, other = "http://127.0.0.1:5000", "http://127.0.0.1:5001"
    asked = {"${RETORT_TEST_OWN}": own, own: own, "${MLFLOW_TRACKING_URI}": other, other: other}
    assert {uri: _known_uri(uri, config) for uri in asked} == asked
    assert _known_uri("sqlite:////data/mlflow.db", config) == "sqlite:////data/mlflow.db"


def tracked(uri: str) -> MckdConfig:
    values: dict[str, Any] = {
        "name": "a",
        "problem": {"kind": "classification", "labels": ["a", "b"]},
        "data": {"labeled": "a.jsonl", "unlabeled": "b.jsonl", "test": "c.jsonl"},
        "teacher": {"kind": "recorded", "completions": "c.jsonl"},
        "student": {"kind": "sequence-classification", "model": "m"},
    }
    return MckdConfig.model_validate(values).model_copy(update={"tracking": TrackingConfig(uri=uri)})
