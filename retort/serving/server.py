"""`retort serve`: a student behind HTTP, until it is told to stop."""

import signal
import socket
import sys

from retort.errors import ConfigError
from retort.serving.addresses import find_student

DRAIN_SECONDS = 20
"""What requests under way have to end after SIGTERM."""


def serve(model: str, *, host: str, port: int, tracking: str | None) -> None:
    """Load the student, then answer until SIGTERM or Ctrl-C; port 0 takes a free one.

    Raises ConfigError for a MODEL that is not there or an address that cannot be had, before the student is loaded.
    """
    # Also when all is shut down, for uvicorn raises the signal again then: to be told to stop is no failure.
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
    """Not listening yet: who asks too early is refused, and does not wait."""
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
