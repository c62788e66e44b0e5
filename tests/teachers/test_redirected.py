"""Where a redirect may lead: keys and rows are meant for one host only."""

import pytest
from yarl import URL

from retort.teachers.endpoint.connection import redirected

HERE = URL("https://api.example.com/v1/chat/completions")


@pytest.mark.parametrize(
    ("start", "location", "target"),
    [
        (HERE, "/v2/chat/completions", "https://api.example.com/v2/chat/completions"),
        (HERE, "https://api.example.com/v2", "https://api.example.com/v2"),
        (URL("http://api.example.com/v1"), "https://api.example.com/v1", "https://api.example.com/v1"),
    ],
)
def test_the_same_host_is_followed(start: URL, location: str, target: str) -> None:
    assert redirected(start, 307, {"Location": location}) == URL(target)


@pytest.mark.parametrize(
    "location",
    [
        "https://other.example.com/v1",
        "https://api.example.com.evil.org/v1",
        "//evil.org/v1",
        "https://api.example.com:8443/v1",
        "http://api.example.com/v1",
    ],
)
def test_another_host_or_port_or_one_without_encryption_is_not(location: str) -> None:
    told = redirected(HERE, 308, {"Location": location})
    assert isinstance(told, str)
    assert "is not sent the key and the rows" in told


def test_a_redirect_that_loses_the_request_is_told() -> None:
    told = redirected(HERE, 302, {"Location": "https://api.example.com/login"})
    assert isinstance(told, str)
    assert "without its text" in told
    assert redirected(HERE, 200, {"Location": "https://other"}) is None
