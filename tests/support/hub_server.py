"""A model hub on loopback that keeps what the hub's own client pushes: repositories, LFS objects, commits."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_" + "a" * 34
"""May write everything but what belongs to `others`."""


class Hub:
    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, dict[str, Any]] = {}
        """Settings with which each was made."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Committed content by repository and path."""
        self.objects: dict[str, bytes] = {}
        """LFS objects by sha256."""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """(HTTP status, JSON)."""
        if method == "PUT":
            digest = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == digest
            self.objects[digest] = body
            return 200, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if token != f"Bearer {TOKEN}" or "others" in path or b'"others"' in body:
            return (403 if token else 401), {"error": "no"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.repositories else 200
            self.repositories.setdefault(name, asked)
            return status, {"url": f"{self.url}/{name}"}
        return self._of_repository(path, body)

    def _of_repository(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.endswith(".git/info/lfs/objects/batch"):
            assert path[1 : -len(".git/info/lfs/objects/batch")] in self.repositories
            objects = json.loads(body)["objects"]
            uploads = [{**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}} for one in objects]
            return 200, {"transfer": "basic", "objects": uploads}
        _, _, _, organization, name, verb, *_ = path.split("/")
        repository = f"{organization}/{name}"
        if repository not in self.repositories:
            return 404, {"error": "no such repository"}
        if verb == "preupload":
            paths = [one["path"] for one in json.loads(body)["files"]]
            is_large = (".safetensors", ".onnx")
            modes = [
                {"path": path, "uploadMode": "lfs" if path.endswith(is_large) else "regular", "shouldIgnore": False}
                for path in paths
            ]
            return 200, {"files": modes}
        assert verb == "commit"
        files = self.files.setdefault(repository, {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        return 200, {"commitUrl": f"{self.url}/{repository}/commit/{'c' * 40}", "commitOid": "c" * 40}


@contextmanager
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._body()
            status, value = state.answer(
                self.command, self.path.partition("?")[0], self.headers.get("Authorization", ""), body
            )
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        do_PUT = do_POST

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join()
