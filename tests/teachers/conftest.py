"""A server to be asked."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EndpointServer = runpy.run_path(str(Path(__file__).with_name("endpoint_server.py")))["EndpointServer"]


@pytest.fixture
def endpoint_server() -> Iterator[Any]:
    """An OpenAI-compatible server on loopback that answers `food`; see endpoint_server.py for its faults."""
    with EndpointServer() as server:
        yield server
