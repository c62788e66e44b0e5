"""The HTTP connection to an endpoint: its address, its key, redirects, and the result of a single request."""

import os
import re
import resource
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from retort.config import EndpointConfig, expand
from retort.config.endpoint import is_secret_name
from retort.errors import ConfigError
from retort.teachers.endpoint.pacing import retry_after

KEEP_ALIVE_SECONDS = 4.0
"""Less than the 5 s after which vLLM's server closes an idle connection: a request sent just then would fail."""

MOST_REDIRECTS = 3
"""In a row, for one request."""
REDIRECTS = (301, 302, 303, 307, 308)

MIN_SECRET = 6
"""Characters."""

RESERVED_FILES = 100
"""Open files that the rest of the process may need."""

REAL_KEY_CHARACTERS = 16
"""A shorter key is none of a vendor's."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. Keys are redacted from it, even if the server repeats them, in whatever way JSON writes
    them. Of answers, only keys of a real key's length are: a placeholder such as EMPTY may be a label's word."""

    status: int
    raw: bytes
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """An attempt that failed but may succeed if repeated."""

    kind: Literal["failed", "malformed", "busy", "unreachable", "incompatible", "redirected"]
    """busy: HTTP 429. unreachable: nothing serves there at the moment (nothing listens, HTTP 503, or a path that
    existed is gone), so no row can be the cause. malformed: the response holds no completion. incompatible: not HTTP,
    or TLS fails. redirected: to where a request is not sent again. failed: anything else."""
    message: str
    """A clause about the server, such as `it answered HTTP 503`."""
    raw: str = ""
    wait_seconds: float | None = None
    """Seconds to wait according to Retry-After."""


class Connection:
    """Posts chat completion requests. Raises ConfigError for an invalid address, a key that is not in the environment,
    or more concurrent requests than this process may have open files."""

    def __init__(self, config: EndpointConfig) -> None:
        self._url, self._config = address(config, "chat/completions"), config
        self._redact_refusal = redactor(_secrets(config, 1, MIN_SECRET))
        self._redact_answer = redactor(_secrets(config, REAL_KEY_CHARACTERS, REAL_KEY_CHARACTERS))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY and config.concurrency + RESERVED_FILES > limit:
            raise ConfigError(
                f"teacher.concurrency = {config.concurrency} needs more than the {limit} open files that this process "
                f"may have (ulimit -n); at most {max(limit - RESERVED_FILES, 1)}"
            )

    async def open(self) -> None:
        """Create the session. Connections are opened by the first requests and reused by later ones."""
        self._session = aiohttp.ClientSession(
            headers={"Content-Type": "application/json", **headers(self._config)},
            skip_auto_headers=("Accept-Encoding",),
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self._config.timeout_seconds),
        )

    async def close(self) -> None:
        await self._session.close()

    async def post(self, body: bytes) -> Response | FailedAttempt:
        """Send one chat completion request, without retries. Redirects are followed as `redirected` says."""
        try:
            return await self._follow(body)
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

    async def _follow(self, body: bytes) -> Response | FailedAttempt:
        url = self._url
        for _ in range(1 + MOST_REDIRECTS):
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                raw = await response.read()
                target = redirected(url, response.status, response.headers)
                if target is None:
                    wait = retry_after(response.headers)
                    redact = self._redact_answer if response.status == 200 else self._redact_refusal
                    return Response(response.status, redact(raw), wait)
            if isinstance(target, str):
                return FailedAttempt("redirected", self._redact_refusal(target.encode()).decode())
            if response.status == 308:  # for good
                self._url = target
            url = target
        return FailedAttempt("redirected", f"it redirects more than {MOST_REDIRECTS} times in a row")


def redirected(url: URL, status: int, headers: Mapping[str, str]) -> URL | str | None:
    """Where a response redirects a request to; a clause about the server if it may not be followed there; None if it
    is no redirect.

    Followed are redirects that keep the request as it is (307, 308) and lead to the same host, never from https to
    http: headers hold keys, and bodies the rows, which are meant for this host only.
    """
    location = headers.get("Location")
    if status not in REDIRECTS or not location:
        return None
    try:
        target = url.join(URL(location))
        port = target.port
    except ValueError:
        port = None
    if port is None or target.scheme not in ("http", "https") or not target.host:
        return f"it redirects to what is no address (HTTP {status})"
    # Without user, query and fragment, which may hold secrets.
    answer = f"it redirects to {URL.build(scheme=target.scheme, host=target.host, port=port, path=target.path)}"
    if status not in (307, 308):
        return (
            f"{answer} (HTTP {status}), where a request would arrive without its text; give the address that it means"
        )
    encrypted = (url.scheme, target.scheme) == ("http", "https")
    if target.host == url.host and (encrypted or (target.scheme, port) == (url.scheme, url.port)):
        return target
    return (
        f"{answer} (HTTP {status}), which is another host or port, or not encrypted, so it is not sent the key and the "
        "rows; give the address that it means"
    )


def address(config: EndpointConfig, path: str) -> URL:
    """The address of `path` at the endpoint, with the query of the configured address. Raises ConfigError."""
    try:
        parts = urlsplit(expand(config.url).strip())
        url = URL(parts._replace(path=f"{parts.path.rstrip('/')}/{path}").geturl())
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        good = good and not (parts.username or parts.fragment)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"teacher.url = '{config.url}' must be an http:// or https:// address up to and with /v1, without a user "
            "name or '#'"
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ConfigError(f"teacher.url = '{config.url}': leave /chat/completions out; Retort adds it")
    return url


def headers(config: EndpointConfig) -> dict[str, str]:
    """The headers that the config asks for. Raises ConfigError for one whose value is not in the environment, or is
    none that a header can have. Callers do not keep them in local variables, whose values a traceback may show."""
    found = dict(_header_values(config))
    if config.api_key is not None:
        prefix = "Bearer " if config.api_key_header.lower() == "authorization" else ""
        found[config.api_key_header] = f"{prefix}{_key(config)}"
    return found


def _header_values(config: EndpointConfig) -> Iterator[tuple[str, str]]:
    for name, written in config.headers.items():
        value = expand(written).strip()
        if not value or not value.isascii() or not value.isprintable():
            raise ConfigError(f"teacher.headers.{name}: '{written}' is empty, or holds characters that no header has")
        yield name, value


def _key(config: EndpointConfig) -> str | None:
    """The API key. Callers do not keep it in local variables, whose values a traceback may show."""
    if config.api_key is None:
        return None
    key = expand(config.api_key).strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"teacher.api_key: {config.api_key} is empty, or holds characters that no key has")
    return key


def _secrets(config: EndpointConfig, least_of_key: int, least: int) -> set[str]:
    """The API key if it has `least_of_key` characters, and secret headers and secrets in the address that have `least`:
    what is shorter than any secret could be a part of any text."""
    secrets = [value for name, value in address(config, "").query.items() if is_secret_name(name)]
    secrets += [value for name, value in _header_values(config) if "${" in config.headers[name]]
    # A header may be more than its secret ("Bearer ..."), of which a server repeats the last part.
    parts = {part for secret in secrets for part in (secret, secret.rpartition(" ")[2]) if len(part) >= least}
    return parts | ({key} if (key := _key(config)) and len(key) >= least_of_key else set())


def redactor(secrets: Collection[str]) -> Callable[[bytes], bytes]:
    """A function that replaces secrets with *** in a server's response: as they are, with any of their characters
    escaped as JSON allows, and as in an address."""
    longest_first = sorted(secrets, key=len, reverse=True)
    plain = [written.encode() for secret in longest_first for written in (secret, quote(secret, safe=""))]
    escaped = [re.compile("".join(map(_written, secret)).encode()) for secret in longest_first]

    def redact(raw: bytes) -> bytes:
        for written in plain:
            raw = raw.replace(written, b"***")
        for pattern in escaped if b"\\" in raw else ():  # a pattern takes a hundred times as long
            raw = pattern.sub(b"***", raw)
        return raw

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
