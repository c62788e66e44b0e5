"""Passwords in addresses and proxies are in no error, and not in what the log shows of its causes."""

import traceback
from collections.abc import Callable

import httpx
import pytest

from retort.config.teachers import EndpointConfig
from retort.errors import RetortError
from retort.io import http
from retort.store import Store
from retort.teachers.checks import check_endpoint
from retort.tracking.address import check_reachable, get, without_secrets
from retort.tracking.mlflow_runs import connected

SECRET = "hunter22"
PROXIES = (
    f"http://me:{SECRET}@127.0.0.1:9",
    f"http://me:{SECRET}#x@127.0.0.1:9",
    f"http://me:{SECRET}/x@127.0.0.1:9",
    f"me:{SECRET}@127.0.0.1:9",
    f"ftp://me:{SECRET}@127.0.0.1:9",
    f"socks5://me:{SECRET}@127.0.0.1:9",
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter22@host:5000/x", "http://host:5000/x"),
        ("http://hunter22@host", "http://host"),
        ("http://me:hun/ter22@host/x", "http://host/x"),
        ("http://me:hun@ter22@host/x", "http://host/x"),
        (
            "postgresql://me:hunter22@db/mlflow is down; so is 'http://me:hunter22@b'",
            "postgresql://db/mlflow is down; so is 'http://b'",
        ),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("write to me@example.com", "write to me@example.com"),
    ],
)
def test_users_and_passwords_are_left_out_of_addresses(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def open_mlflow(address: str) -> None:
    with connected(address) as client:
        client.search_experiments()


def asks() -> dict[str, Callable[[], object]]:
    """What speaks to a server; nothing answers at any of these."""
    teacher = EndpointConfig(kind="endpoint", url="http://host.invalid/v1", model="m", api_key="${RETORT_TEST_KEY}")
    address = f"http://me:{SECRET}@host.invalid"
    return {
        "endpoint": lambda: check_endpoint(teacher),
        "reachable": lambda: check_reachable(address),
        "tracking server": lambda: open_mlflow(address),
        "tracking database": lambda: open_mlflow(address.replace("http", "postgresql+nothing")),
        "bucket": lambda: Store("s3://bucket/x", address).find("students", "a" * 64),
    }


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", asks())
def test_no_error_tells_a_password(
    name: str, proxy: str, monkeypatch: pytest.MonkeyPatch, aws_environment: None, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(variable, proxy)
        monkeypatch.setenv(variable.lower(), proxy)
    monkeypatch.setenv("RETORT_TEST_KEY", SECRET)
    with pytest.raises(RetortError) as caught:
        asks()[name]()
    causes = traceback.format_exception(caught.value)
    quoted = [line for part in causes for line in part.splitlines() if SECRET in line]
    assert quoted == []
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("proxy", PROXIES)
def test_http_errors_are_those_of_httpx(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    for ask in (lambda: http.get("http://host.invalid"), lambda: get("http://[", "runs/get", {})):
        with pytest.raises(httpx.HTTPError):
            ask()
