"""infra/pin_images.py with a `docker` that knows some digests."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra import pin_images

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "pin_images.py"
DOCKER = f"""#!{sys.executable}
import hashlib, json, sys
buildx, imagetools, inspect, image, *format = sys.argv[1:]
assert (buildx, imagetools, inspect) == ("buildx", "imagetools", "inspect")
assert format == ["--format", "{{{{json .Manifest}}}}"]
if image.startswith("gone/"):
    sys.exit("ERROR: gone/image: not found")
print(json.dumps({{"digest": "sha256:" + hashlib.sha256(image.encode()).hexdigest(), "size": 1}}))
"""


def run(tmp_path: Path, *files: Path) -> "subprocess.CompletedProcess[str]":
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    command = [sys.executable, str(SCRIPT), *map(str, files)]
    return subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)


def test_every_image_of_others_gets_its_digest_and_keeps_its_tag(tmp_path: Path) -> None:
    files = []
    for name in ("Dockerfile", "compose.yaml"):
        files.append(tmp_path / name)
        files[-1].write_text((ROOT / "docker" / name).read_text())
    for _ in range(2):  # again, over the digests
        done = run(tmp_path, *files)
        assert done.returncode == 0, done.stderr
    for file in files:
        before, after = (ROOT / "docker" / file.name).read_text(), file.read_text()
        assert re.sub(r"@sha256:[0-9a-f]{64}", "", after) == re.sub(r"@sha256:[0-9a-f]{64}", "", before)
        for image, digest in re.findall(r"([\w./-]+:[\w.-]+)@sha256:([0-9a-f]{64})", after):
            assert digest == hashlib.sha256(image.encode()).hexdigest()
            assert not image.startswith("retort/")
    named = {image for file in files for image in re.findall(r"([\w./-]+:[\w.-]+)@sha256", file.read_text())}
    assert {name.split(":")[0] for name in named} == {
        "ghcr.io/astral-sh/uv", "python", "vllm/vllm-openai", "postgres", "chrislusf/seaweedfs"
    }  # fmt: skip
    origins = re.findall(r"^FROM (\S+)", files[0].read_text(), re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", files[0].read_text(), re.MULTILINE))
    assert all("@sha256:" in origin for origin in origins if origin not in {*stages, "scratch"})


def test_nothing_is_written_if_a_digest_cannot_be_had(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python:3.11 AS a\nFROM gone/image:1.0\n")
    done = run(tmp_path, file)
    assert (done.returncode, done.stderr) == (
        1, "gone/image:1.0: no registry tells its digest, so nothing was written: ERROR: gone/image: not found\n"
    )  # fmt: skip
    assert "sha256" not in file.read_text()


@pytest.mark.parametrize(
    "line", ["FROM worker AS student", "FROM scratch AS checkout", "  image: retort/student:${V:-0.1}", "COPY a:b c"]
)
def test_what_is_none_of_others_images_stays(line: str) -> None:
    assert pin_images.pinned(line) == line
