"""`retort serve`: serves a student over HTTP until it is stopped."""

import ipaddress
import os
import signal
import socket
import sys
from contextlib import ExitStack
from typing import NamedTuple

from retort.errors import ConfigError
from retort.io.terminal import say
from retort.serving.addresses import find_student, is_alias

DRAIN_SECONDS = 20
"""How long running requests may take to finish after SIGTERM."""
TOKEN_VARIABLE = "RETORT_SERVE_TOKEN"
"""The environment variable that holds the token."""


class Serving(NamedTuple):
    """The arguments of `retort serve`."""

    model: str
    host: str
    port: int
    tracking: str | None
    clients: int
    """Connections at once."""
    seconds: float
    """How long an answer may take."""
    poll_seconds: float
    """How often the registry is asked where the alias points, if `model` is one."""
    metrics_port: int | None
    """A second port, for metrics and health without the token; None: there is none."""


def serve(asked: Serving) -> None:
    """Load the student and serve it until SIGTERM or Ctrl-C. Port 0 picks a free port.

    Raises ConfigError, before the student is loaded, if MODEL does not exist, an address cannot be bound, or other
    machines could reach it without a token.
    """
    # Being stopped is not a failure. The handler also matters after the shutdown: uvicorn then re-raises the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    token = _token()
    found = find_student(asked.model, asked.tracking)
    with ExitStack() as open_sockets:
        listener = open_sockets.enter_context(_bound(asked.host, asked.port, "--port"))
        _check_exposure(listener, asked.host, token)
        listeners, metrics_port = [listener], None
        if asked.metrics_port is not None:
            listeners.append(open_sockets.enter_context(_bound(asked.host, asked.metrics_port, "--metrics-port")))
            metrics_port = listeners[1].getsockname()[1]
        import uvicorn

        from retort.serving.follower import Alias
        from retort.serving.limits import limited_protocol
        from retort.serving.metrics import TOO_MANY_CLIENTS, Metrics
        from retort.serving.scorer import scorer
        from retort.serving.student import load_student

        student, metrics = load_student(found), Metrics()
        student.try_out()
        alias = Alias(asked.model, asked.tracking, asked.poll_seconds) if is_alias(asked.model) else None
        app = scorer(
            student, token=token, seconds=asked.seconds, alias=alias, metrics=metrics, metrics_port=metrics_port
        )
        config = uvicorn.Config(
            app,
            http=limited_protocol(asked.clients, metrics_port, metrics.errors.labels(TOO_MANY_CLIENTS).inc),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        say(f"{found.name} at http://{_place(listener)}/predict", file=sys.stderr)
        if metrics_port is not None:
            say(f"watched at http://{_place(listeners[1])}/metrics", file=sys.stderr)
        if alias:
            say(f"follows {asked.model}: asks the registry every {asked.poll_seconds:g} s", file=sys.stderr)
        uvicorn.Server(config).run(sockets=listeners)


def _place(listener: socket.socket) -> str:
    taken, number = listener.getsockname()[:2]
    return f"[{taken}]:{number}" if ":" in taken else f"{taken}:{number}"


def _token() -> str | None:
    from retort.serving.limits import usable_token

    token = os.environ.get(TOKEN_VARIABLE)
    if token is not None and not usable_token(token):
        raise ConfigError(
            f"{TOKEN_VARIABLE}: must be 16 or more printable ASCII characters without spaces, as "
            "`openssl rand -hex 32` writes, or not set at all"
        )
    return token


def _check_exposure(listener: socket.socket, host: str, token: str | None) -> None:
    address = listener.getsockname()[0].partition("%")[0]
    if token is None and not ipaddress.ip_address(address).is_loopback:
        raise ConfigError(
            f"--host '{host}': other machines could ask the scorer, so set {TOKEN_VARIABLE} to a token that clients "
            "must send (`openssl rand -hex 32`), or leave --host out"
        )


def _bound(host: str, port: int, option: str) -> socket.socket:
    """A bound socket that does not listen yet, so that clients which connect too early are refused and do not hang."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host '{host}': no address of this machine ({error})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host '{host}' {option} {port}: cannot be had ({reason})") from None
    return listener
