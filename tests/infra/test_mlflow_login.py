"""A real MLflow server as docker/compose.yaml starts it, on SQLite: whom its login lets in."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from retort.errors import ConfigError
from retort.tracking.address import check_reachable, get

pytest.importorskip("flask_wtf", reason="MLflow's login needs flask-wtf: make setup")

ROOT = Path(__file__).parents[2]
MLFLOW = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]["mlflow"]
PASSWORD = "0123abcd0123abcd"
PATHS = ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts", "/version")


def command(folder: Path, port: int) -> list[str]:
    """The service's command, but for its address, its number of processes and where its files go."""
    own = ("--host", "--port", "--artifacts-destination", "--workers")
    kept = [part for part in MLFLOW["command"] if not part.startswith(own)]
    here = ["--host=127.0.0.1", f"--port={port}", f"--artifacts-destination={folder}/files", "--workers=1"]
    return [str(Path(sys.executable).with_name(kept[0])), *kept[1:], *here]


def environment(folder: Path, **more: str) -> dict[str, str]:
    login = (ROOT / "infra" / "mlflow" / "basic_auth.ini").read_text(encoding="utf-8")
    (folder / "login.ini").write_text(re.sub(r"sqlite:///\S+/", f"sqlite:///{folder}/", login))
    return {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "login.ini"),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": MLFLOW["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"],
        **more,
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "0123abcd" * 4}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command(folder, port), cwd=folder, env=environment(folder, **secrets), stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + 120
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("login", "status"),
    [(None, 401), (("admin", "wrong"), 401), (("admin", "password1234"), 401), (("admin", PASSWORD), 200)],
)
def test_nothing_is_told_without_the_password(server: str, login: tuple[str, str] | None, status: int) -> None:
    assert {path: httpx.get(f"{server}{path}", auth=login).status_code for path in PATHS} == dict.fromkeys(
        PATHS, status
    )


@pytest.mark.slow
def test_retort_logs_in(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(ConfigError, match="refuses its login"):
        check_reachable(server)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    check_reachable(server)
    assert get(server, "experiments/search", {"max_results": "1"}).status_code == 200


@pytest.mark.slow
def test_it_does_not_start_without_a_password(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, free_port()),
        cwd=tmp_path,
        env=environment(tmp_path, MLFLOW_FLASK_SERVER_SECRET_KEY="0123abcd" * 4, MLFLOW_AUTH_ADMIN_PASSWORD=""),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode != 0
    assert "MLflow ships no default admin password" in done.stderr
