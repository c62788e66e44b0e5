"""`retort serve`: serves a student over HTTP until it is stopped."""

import signal
import socket
import sys

from retort.errors import ConfigError
from retort.serving.addresses import find_student

DRAIN_SECONDS = 20
"""How long running requests may take to finish after SIGTERM."""


def serve(model: str, *, host: str, port: int, tracking: str | None) -> None:
    """Load the student and serve it until SIGTERM or Ctrl-C. Port 0 picks a free port.

    Raises ConfigError, before the student is loaded, if MODEL does not exist or the address cannot be bound.
    """
    # Being stopped is not a failure. The handler also matters after the shutdown: uvicorn then re-raises the signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    found = find_student(model, tracking)
    with _bound(host, port) as listener:
        import uvicorn

        from retort.serving.scorer import scorer
        from retort.serving.student import load_student

        app = scorer(load_student(found))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=DRAIN_SECONDS
        )
        taken, number = listener.getsockname()[:2]
        place = f"[{taken}]:{number}" if ":" in taken else f"{taken}:{number}"
        print(f"{found.name} at http://{place}/predict", file=sys.stderr, flush=True)
        uvicorn.Server(config).run(sockets=[listener])


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
