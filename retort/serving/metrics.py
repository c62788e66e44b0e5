"""What `GET /metrics` tells Prometheus. No label holds anything that a client sent, so their number is bounded."""

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retort.serving.addresses import ModelName

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing here reads
PROBES = ("/health", "/healthz", "/livez", "/readyz", "/metrics")
"""Paths that are asked by machines to watch the scorer; what they are told is no error of the service."""
_PATHS = ("/predict", *PROBES)
_KINDS = {
    401: "unauthorized",
    404: "not_found",
    405: "not_found",
    408: "slow_client",
    413: "too_large",
    500: "internal",
    503: "busy",
    504: "timeout",
}
TOO_MANY_CLIENTS = "too_many_clients"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of one scorer."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("retort_serve_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "retort_serve_request_seconds",
            "Seconds from a request's headers to its answer, of POST /predict.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.errors = Counter("retort_serve_errors", "Requests not answered, by kind.", ["kind"], registry=registry)
        self.rows = Counter("retort_serve_rows", "Texts labeled.", registry=registry)
        self.waiting = Gauge("retort_serve_waiting_rows", "Texts that wait for the next batch.", registry=registry)
        self.student = Gauge(
            "retort_serve_student_info",
            "The student that answers now: 1.",
            ["name", "version", "key"],
            registry=registry,
        )
        self.reloads = Counter(
            "retort_serve_reloads",
            "Versions that the followed alias moved to: loaded and serving, or failed.",
            ["outcome"],
            registry=registry,
        )
        self.last_reload = Gauge(
            "retort_serve_last_reload_timestamp_seconds", "When the student began to serve.", registry=registry
        )
        self.last_check = Gauge(
            "retort_serve_last_check_timestamp_seconds",
            "When the registry last told where the followed alias points; 0 if none is followed.",
            registry=registry,
        )
        self.failing = Gauge(
            "retort_serve_follow_failing",
            "1 if the alias cannot be followed: the registry does not tell (registry), or the version cannot be loaded "
            "(version).",
            ["kind"],
            registry=registry,
        )
        for kind in sorted({*_KINDS.values(), "invalid", TOO_MANY_CLIENTS}):
            self.errors.labels(kind)
        for outcome in ("loaded", "failed"):
            self.reloads.labels(outcome)
        for kind in ("registry", "version"):
            self.failing.labels(kind)

    def serves(self, name: ModelName) -> None:
        """This student answers from now on."""
        self.student.clear()
        self.student.labels(name.name or "", name.version or "", name.key).set(1)
        self.last_reload.set_to_current_time()

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request ended. Status 0: its client left before the answer."""
        self.requests.labels(path if path in _PATHS else "other", str(status)).inc()
        if path == "/predict":
            self.seconds.observe(seconds)
        if status >= 400 and path not in PROBES:
            self.errors.labels(_KINDS.get(status, "invalid")).inc()

    def page(self) -> bytes:
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts and times every request, also those that are refused."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:  # which the server answers with 500
            status = status or 500
            raise
        finally:
            self._metrics.answered(scope["path"], status, time.perf_counter() - started)
