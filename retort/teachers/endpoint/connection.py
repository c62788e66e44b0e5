"""HTTP to an endpoint: its address, its key, and what comes of one request."""

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from retort.config import EndpointConfig, expand
from retort.errors import ConfigError
from retort.teachers.endpoint.pacing import retry_after

KEEP_ALIVE_SECONDS = 4.0
"""Less than the 5 s after which vLLM's server closes an idle connection: one closed just then is a lost try."""

OTHER_FILES = 100
"""What the process may have open beside."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came over HTTP, complete. The key does not occur in it, even if the server repeats it."""

    status: int
    raw: bytes
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Setback:
    """A try that brought nothing, while the next one may."""

    kind: Literal["failed", "nonsense", "busy", "unreachable", "foreign"]
    """busy: HTTP 429. unreachable: nothing serves there for now (nothing listens, HTTP 503, a path that was there), so
    no row can be the cause. foreign: it speaks no HTTP, or another TLS."""
    told: str
    """A clause about the server: `it answered HTTP 503`."""
    raw: str = ""
    wait_seconds: float | None = None
    """By Retry-After."""


class Connection:
    """Raises ConfigError for an address that is none, a key that the environment does not hold, or more requests at
    once than this process may have files open."""

    def __init__(self, config: EndpointConfig) -> None:
        self._url, self._hide, self._config = _address(config), _hiding(config), config
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY and config.concurrency + OTHER_FILES > most:
            raise ConfigError(
                f"teacher.concurrency = {config.concurrency} needs more than the {most} open files that this process "
                f"may have (ulimit -n); at most {max(most - OTHER_FILES, 1)}"
            )

    async def open(self) -> None:
        """Connects nothing yet: a request does, and leaves its connection to the next one."""
        key = _key(self._config)
        self._session = aiohttp.ClientSession(
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            skip_auto_headers=("Accept-Encoding",),
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout_seconds),
        )

    async def close(self) -> None:
        await self._session.close()

    async def post(self, body: bytes) -> Reply | Setback:
        """Sends one request for chat completions, once."""
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                raw = await response.read()
                return Reply(response.status, self._hide(raw), retry_after(response.headers.get("Retry-After")))
        except TimeoutError:
            within = f"within {self._config.timeout_seconds:g} s (teacher.timeout_seconds)"
            return Setback("failed", f"it did not answer {within}")
        except aiohttp.ClientSSLError as error:
            return Setback("foreign", f"its TLS is refused ({_cause(error.os_error)})")
        except aiohttp.ClientConnectorError as error:
            return Setback("unreachable", f"it cannot be reached ({_cause(error.os_error)})")
        except aiohttp.ClientResponseError:
            return Setback("foreign", "it does not speak HTTP")
        except (aiohttp.ClientError, OSError):
            return Setback("failed", "it cut the connection")


def _address(config: EndpointConfig) -> URL:
    text = expand(config.url).rstrip("/")
    try:
        parts = urlsplit(text)
        url = URL(f"{text}/chat/completions")
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        good = good and not (parts.username or parts.query or parts.fragment)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"teacher.url = '{config.url}' must be an http:// or https:// address up to and with /v1, without a user "
            "name, '?' or '#'"
        )
    return url


def _key(config: EndpointConfig) -> str | None:
    """Kept in no variable of a frame that a traceback may show with its values."""
    if config.api_key is None:
        return None
    key = expand(config.api_key).strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"teacher.api_key: {config.api_key} is empty, or holds characters that no key has")
    return key


def _hiding(config: EndpointConfig) -> Callable[[bytes], bytes]:
    """What takes the key out of what a server says."""
    key = (_key(config) or "").encode()
    return (lambda raw: raw.replace(key, b"***")) if key else (lambda raw: raw)


def _cause(error: OSError) -> str:
    """Without the address, which may be a secret."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__
