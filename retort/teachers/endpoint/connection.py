"""The HTTP connection to an endpoint: its address, its key, and the result of a single request."""

import os
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from retort.config import EndpointConfig, expand
from retort.errors import ConfigError
from retort.teachers.endpoint.pacing import retry_after

KEEP_ALIVE_SECONDS = 4.0
"""Less than the 5 s after which vLLM's server closes an idle connection: a request sent just then would fail."""

RESERVED_FILES = 100
"""Open files that the rest of the process may need."""

REAL_KEY_CHARACTERS = 16
"""A shorter key is none of a vendor's."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. The API key is redacted from it, even if the server repeats it, in whatever way JSON
    writes it. Of answers, only a key of a real key's length is: a placeholder such as EMPTY may be a label's word."""

    status: int
    raw: bytes
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that failed but may succeed if repeated."""

    kind: Literal["failed", "malformed", "busy", "unreachable", "incompatible"]
    """busy: HTTP 429. unreachable: nothing serves there at the moment (nothing listens, HTTP 503, or a path that
    existed is gone), so no row can be the cause. malformed: the response holds no completion. incompatible: not HTTP,
    or TLS fails. failed: anything else."""
    message: str
    """A clause about the server, such as `it answered HTTP 503`."""
    raw: str = ""
    wait_seconds: float | None = None
    """Seconds to wait according to Retry-After."""


class Connection:
    """Posts chat completion requests. Raises ConfigError for an invalid address, a key that is not in the environment,
    or more concurrent requests than this process may have open files."""

    def __init__(self, config: EndpointConfig) -> None:
        self._url, self._config = _address(config), config
        key = _key(config)
        self._redact_refusal = redactor(key)
        self._redact_answer = redactor(key if key and len(key) >= REAL_KEY_CHARACTERS else None)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY and config.concurrency + RESERVED_FILES > limit:
            raise ConfigError(
                f"teacher.concurrency = {config.concurrency} needs more than the {limit} open files that this process "
                f"may have (ulimit -n); at most {max(limit - RESERVED_FILES, 1)}"
            )

    async def open(self) -> None:
        """Create the session. Connections are opened by the first requests and reused by later ones."""
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

    async def post(self, body: bytes) -> Response | FailedAttempt:
        """Send one chat completion request, without retries."""
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                raw = await response.read()
                redacted = (self._redact_answer if response.status == 200 else self._redact_refusal)(raw)
                return Response(response.status, redacted, retry_after(response.headers.get("Retry-After")))
        except TimeoutError:
            within = f"within {self._config.timeout_seconds:g} s (teacher.timeout_seconds)"
            return FailedAttempt("failed", f"it did not answer {within}")
        except aiohttp.ClientSSLError as error:
            return FailedAttempt("incompatible", f"its TLS is refused ({_cause(error.os_error)})")
        except aiohttp.ClientConnectorError as error:
            return FailedAttempt("unreachable", f"it cannot be reached ({_cause(error.os_error)})")
        except aiohttp.ClientResponseError:
            return FailedAttempt("incompatible", "it does not speak HTTP")
        except (aiohttp.ClientError, OSError):
            return FailedAttempt("failed", "it cut the connection")


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
    """The API key. Callers do not keep it in local variables, whose values a traceback may show."""
    if config.api_key is None:
        return None
    key = expand(config.api_key).strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"teacher.api_key: {config.api_key} is empty, or holds characters that no key has")
    return key


def redactor(secret: str | None) -> Callable[[bytes], bytes]:
    """A function that replaces a secret with *** in a server's response: as it is, with any of its characters escaped
    as JSON allows, and as in an address."""
    if not secret:
        return lambda raw: raw
    plain, quoted = secret.encode(), quote(secret, safe="").encode()
    escaped = re.compile("".join(map(_written, secret)).encode())

    def redact(raw: bytes) -> bytes:
        raw = raw.replace(plain, b"***").replace(quoted, b"***")
        return escaped.sub(b"***", raw) if b"\\" in raw else raw  # the pattern takes a hundred times as long

    return redact


def _written(sign: str) -> str:
    r"""A pattern of the ways in which JSON may write an ASCII character: itself, `\/`, `\u002f`."""
    digits = "".join(f"[{digit}{digit.upper()}]" for digit in f"{ord(sign):04x}")
    return rf"(?:\\?{re.escape(sign)}|\\u{digits})"


def _cause(error: OSError) -> str:
    """The reason for a connection error, without the address, which may be a secret."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or type(error).__name__
