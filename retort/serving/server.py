"""`retort serve`: serves a student over HTTP until it is stopped."""

import ipaddress
import os
import signal
import socket
import sys

from retort.errors import ConfigError
from retort.serving.addresses import find_student

DRAIN_SECONDS = 20
"""How long running requests may take to finish after SIGTERM."""
TOKEN_VARIABLE = "RETORT_SERVE_TOKEN"
"""The environment variable that holds the token."""


def serve(model: str, *, host: str, port: int, tracking: str | None, clients: int, seconds: float) -> None:
    """Load the student and serve it until SIGTERM or Ctrl-C. Port 0 picks a free port.

    Raises ConfigError, before the student is loaded, if MODEL does not exist, the address cannot be bound, or other
    machines could reach it without a token.
    """
    # Being stopped is not a failure. The handler also matters after the shutdown: uvicorn then re-raises the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    token = _token()
    found = find_student(model, tracking)
    with _bound(host, port) as listener:
        _check_exposure(listener, host, token)
        import uvicorn

        from retort.serving.limits import limited_protocol
        from retort.serving.scorer import scorer
        from retort.serving.student import load_student

        config = uvicorn.Config(
            scorer(load_student(found), token=token, seconds=seconds),
            http=limited_protocol(clients),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        taken, number = listener.getsockname()[:2]
        place = f"[{taken}]:{number}" if ":" in taken else f"{taken}:{number}"
        print(f"{found.name} at http://{place}/predict", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listener])


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


def _bound(host: str, port: int) -> socket.socket:
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
        raise ConfigError(f"--host '{host}' --port {port}: cannot be had ({reason})") from None
    return listener
