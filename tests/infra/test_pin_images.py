"""infra/pin_images.py on copies of the checkout's files, against a registry that speaks the protocol, version 2."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from infra import pin_images

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "pin_images.py"
INDEX = "application/vnd.oci.image.index.v1+json"
LOGIN = "robot:pass:word"
PINNED = re.compile(r"([\w./:-]+:[\w.-]+)@sha256:([0-9a-f]{64})")


def index_of(name: str, tag: str) -> bytes:
    return json.dumps({"mediaType": INDEX, "manifests": [], "annotations": {"of": f"{name}:{tag}"}}).encode()


class Registry(BaseHTTPRequestHandler):
    """Wants a token for every image, as the public ones do, and a login before it gives one for `team/`; images below
    `basic/` want the login itself. Has no image below `gone/`, and another than it says below `forged/`.
    """

    server: "RegistryServer"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            asked = parse_qs(url.query)
            assert asked["service"] == ["the registry"]
            (scope,) = asked["scope"]
            if scope.startswith("repository:team/") and not self._logged_in():
                return self._answer(401, b"{}")
            return self._answer(200, json.dumps({"token": f"for {scope}"}).encode())
        name, tag = re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", url.path).groups()  # type: ignore[union-attr]
        self.server.asked.append((f"{name}:{tag}", self.headers.get("Authorization", "")))
        wanted = f"Basic {self._basic()}" if name.startswith("basic/") else f"Bearer for repository:{name}:pull"
        if self.headers.get("Authorization") != wanted:
            challenge = (
                f'Bearer realm="{self.server.address}/token",service="the registry",scope="repository:{name}:pull"'
            )
            return self._answer(
                401, b"{}", WWW_Authenticate='Basic realm="here"' if name.startswith("basic/") else challenge
            )
        if name.startswith("gone/"):
            return self._answer(404, b"{}")
        assert INDEX in self.headers["Accept"], "else a registry gives the image of one platform"
        body = index_of(name, tag)
        told = hashlib.sha256(b"another" if name.startswith("forged/") else body).hexdigest()
        return self._answer(200, body, Content_Type=INDEX, Docker_Content_Digest=f"sha256:{told}")

    def _basic(self) -> str:
        return b64encode(LOGIN.encode()).decode()

    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Basic {self._basic()}"

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


class RegistryServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Registry)
        self.host = f"127.0.0.1:{self.server_port}"
        self.address = f"http://{self.host}"
        self.asked: list[tuple[str, str]] = []


@pytest.fixture(scope="module")
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def checkout(registry: RegistryServer, tmp_path: Path) -> Path:
    """The files that name images, those of others from our registry."""
    for folder in ("docker", "infra/helm", "infra/kubernetes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for file in others(tmp_path):
        text = file.read_text(encoding="utf-8")
        for pattern in (pin_images.IMAGE, pin_images.CHART_IMAGE):
            text = pattern.sub(lambda found: found[0].replace(found["name"], f"{registry.host}/{found['name']}"), text)
        file.write_text(text, encoding="utf-8")
    return tmp_path


def others(checkout: Path) -> list[Path]:
    return [file for glob in pin_images.OTHERS for file in checkout.glob(glob)]


def run(checkout: Path, *options: str, auth: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], **({"REGISTRY_AUTH": auth} if auth else {})}
    command = [sys.executable, str(SCRIPT), "--root", str(checkout), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def texts(checkout: Path) -> dict[Path, str]:
    return {file: file.read_text(encoding="utf-8") for file in checkout.rglob("*") if file.is_file()}


def without_digests(text: str) -> str:
    return re.sub(r"@sha256:[0-9a-f]{64}", "", text)


def test_every_image_of_others_gets_its_digest_and_keeps_its_tag(checkout: Path, registry: RegistryServer) -> None:
    before = texts(checkout)
    for _ in range(2):  # again, over the digests
        done = run(checkout)
        assert done.returncode == 0, done.stderr
    after = texts(checkout)
    assert {file: without_digests(text) for file, text in after.items()} == before
    named = {image: digest for text in after.values() for image, digest in PINNED.findall(text) if "/" in image}
    for image, digest in named.items():
        assert digest == hashlib.sha256(index_of(*pin_images.parts_of(image)[1:])).hexdigest()
    assert {image.removeprefix(f"{registry.host}/").split(":")[0] for image in named} == {
        "ghcr.io/astral-sh/uv", "python", "vllm/vllm-openai", "postgres", "chrislusf/seaweedfs"
    }  # fmt: skip
    dockerfile = after[checkout / "docker" / "Dockerfile"]
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", dockerfile, re.MULTILINE))
    origins = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    assert all("@sha256:" in origin for origin in origins if origin not in {*stages, "scratch"})
    for chart in ("prefect-server", "prefect-worker"):
        ((tag, digest),) = re.findall(
            r"prefectTag: (\S+)@sha256:(\S+)", after[checkout / "infra" / "helm" / f"{chart}.yaml"]
        )
        assert digest == hashlib.sha256(index_of("prefecthq/prefect", tag)).hexdigest()


def test_our_own_images_too_once_they_were_pushed(checkout: Path, registry: RegistryServer) -> None:
    before = texts(checkout)
    for _ in range(2):
        done = run(checkout, "--registry", f"{registry.host}/team/retort/", auth=LOGIN)
        assert done.returncode == 0, done.stderr
    after = texts(checkout)
    pinned = {}
    for file in (checkout / "infra" / "kubernetes").iterdir():
        found = PINNED.findall(after[file])
        pinned[file.name] = {image.rpartition("/")[2] for image, _ in found}
        for image, digest in found:
            assert digest == hashlib.sha256(index_of(*pin_images.parts_of(image)[1:])).hexdigest()
        whole = without_digests(after[file]).replace(f"{registry.host}/team/retort/", "retort/")
        assert whole == before[file], "nothing else has changed"
    (version,) = {image.partition(":")[2] for images in pinned.values() for image in images}
    assert pinned == {
        "cpu.json": {f"orchestrator:{version}"},
        "gpu-student.json": {f"student:{version}"},
        "gpu-teacher.json": {f"teacher:{version}"},
        "mlflow.yaml": {f"orchestrator:{version}"},
        "serve.yaml": {f"orchestrator:{version}"},
        "cluster.yaml": set(),
        "network.yaml": set(),
    }  # fmt: skip


def test_a_password_is_shown_to_its_registry_alone(checkout: Path, registry: RegistryServer) -> None:
    registry.asked.clear()
    assert run(checkout, "--registry", f"{registry.host}/basic/retort", auth=LOGIN).returncode == 0
    shown = {image.partition("/")[0] for image, authorization in registry.asked if authorization.startswith("Basic")}
    assert shown == {"basic"}


def test_without_its_password_nothing_is_written(checkout: Path, registry: RegistryServer) -> None:
    before = texts(checkout)
    done = run(checkout, "--registry", f"{registry.host}/team/retort")
    assert done.returncode == 1
    assert f"{registry.host}/team/retort/orchestrator:" in done.stderr
    assert "nothing was written" in done.stderr
    assert "401" in done.stderr
    assert "Traceback" not in done.stderr
    assert texts(checkout) == before


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("{host}/gone/image:1.0", "404"),
        ("{host}/forged/image:1.0", "has not the digest"),
        ("localhost:1/a:1", "Connect"),
    ],
)
def test_nothing_is_written_if_a_digest_cannot_be_had(
    registry: RegistryServer, tmp_path: Path, image: str, why: str
) -> None:
    (tmp_path / "docker").mkdir()
    file = tmp_path / "docker" / "Dockerfile"
    file.write_text(text := f"FROM {registry.host}/python:3.11 AS a\nFROM {image.format(host=registry.host)}\n")
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(image.format(host=registry.host))
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("python:3.11", ("registry-1.docker.io", "library/python", "3.11")),
        ("vllm/vllm-openai:v0.26.0", ("registry-1.docker.io", "vllm/vllm-openai", "v0.26.0")),
        ("ghcr.io/astral-sh/uv:0.13.9", ("ghcr.io", "astral-sh/uv", "0.13.9")),
        ("localhost/a/b:1", ("localhost", "a/b", "1")),
        ("mirror:5000/a:1", ("mirror:5000", "a", "1")),
    ],
)
def test_names_are_read_as_docker_reads_them(image: str, parts: tuple[str, str, str]) -> None:
    assert pin_images.parts_of(image) == parts


@pytest.mark.parametrize(
    "line", ["FROM worker AS student", "FROM scratch AS checkout", "  image: retort/student:${V:-0.1}", "COPY a:b c"]
)
def test_what_is_none_of_others_images_stays(line: str) -> None:
    assert pin_images.pinned(line) == line
