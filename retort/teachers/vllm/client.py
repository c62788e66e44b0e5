"""Completion client for local vLLM engines, one or a few per GPU or group of GPUs, in vLLM's own environment.

This is Retort's side. `engine/` is the other side, which runs in another interpreter; its `__main__` documents the
protocol between them.
"""

import json
import os
import queue
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from retort.config import VllmConfig
from retort.errors import TeacherUnavailable
from retort.problems import Constraint
from retort.teachers.requests import Completion, CompletionRequest, Rejection, Turn
from retort.teachers.top_logprobs import TopLogprobs
from retort.teachers.vllm.machine import Place, find_interpreter, places
from retort.teachers.vllm.process import EngineProcess, Message

ENGINE = Path(__file__).parent / "engine"
_MEMORY_FACTOR = 0.9
"""Factor applied to memory_share for each previous out-of-memory error."""
_DISPATCH_BATCH = 64
"""Most requests taken from the caller before received messages are handled again."""
_MAX_PREFIXES = 32
_POLL_SECONDS = 0.25

Events = queue.SimpleQueue[tuple[EngineProcess, Message | None]]


@contextmanager
def open_vllm(
    config: VllmConfig,
    attempt: int,
    address: str,
    revision: str | None,
    *,
    ignore_end: bool = False,
    prefix_caching: bool = True,
) -> Iterator["VllmClient"]:
    """Start the engines for the model at `address` (a folder, or a hub name with its revision); leaving stops them.

    `attempt` n > 0 is a retry after an out-of-memory error and uses less memory and fewer sequences. `ignore_end`
    (each completion uses all of max_tokens) and no `prefix_caching` are for measuring speed. Raises ConfigError if the
    environment, the GPUs, the model or an option is to blame, ChildOutOfMemory, or TeacherUnavailable if an engine does
    not start.
    """
    wanted = Wanted(config, attempt, address, revision, ignore_end, prefix_caching)
    ahead, _ahead[:] = _ahead[:], []
    with ExitStack() as stack:
        engines = next((one for one in ahead if one.wanted == wanted), None) or _start(wanted)
        for other in ahead:
            if other is not engines:
                other.kill()
        for engine in engines.processes:
            stack.callback(engine.close)
        client = VllmClient(config, engines.processes, engines.events)
        try:
            client.wait_until_ready()
            yield client
        except BaseException:
            engines.kill()
            raise


class Wanted(NamedTuple):
    """What engines are started for: the arguments of `open_vllm`."""

    config: VllmConfig
    attempt: int
    address: str
    revision: str | None
    ignore_end: bool = False
    prefix_caching: bool = True


class Engines(NamedTuple):
    """Engines that were started; they may not be ready yet."""

    wanted: Wanted
    processes: "list[EngineProcess]"
    events: Events

    def kill(self) -> None:
        for engine in self.processes:
            engine.kill()


_ahead: list[Engines] = []
"""Those that the next `open_vllm` takes if they are what it is asked for, and ends otherwise."""


def start_ahead(config: VllmConfig, address: str, revision: str | None) -> None:
    """Start the engines that the next `open_vllm` of this process will want, and do not wait until they are ready."""
    _ahead.append(_start(Wanted(config, 0, address, revision)))


def _start(wanted: Wanted) -> Engines:
    python, built_for = find_interpreter(wanted.config)
    options = engine_options(wanted)
    engines = Engines(wanted, [], queue.SimpleQueue())
    try:
        following = None
        for place in reversed(places(wanted.config, built_for)):
            own = {"device": place.device, "waits": place.copy > 0}
            command = [python, str(ENGINE), json.dumps({**options, **own})]
            engine = EngineProcess(command, _environment(wanted.config, place), engines.events, place, following)
            engines.processes.insert(0, engine)
            following = engine if place.copy else None
    except BaseException:
        engines.kill()
        raise
    return engines


def engine_options(wanted: Wanted) -> dict[str, Any]:
    """What an engine is told, except for its place."""
    config, attempt = wanted.config, wanted.attempt
    sequences = config.max_sequences
    sizes = {"tensor_parallel", "pipeline_parallel", "max_length"}
    return {
        **{name: getattr(config, name) for name in {"weights", "dtype", "quantization", "seed", "preparation"} | sizes},
        "parent": os.getpid(),
        "model": wanted.address,
        "revision": wanted.revision,
        "memory_share": config.memory_share * _MEMORY_FACTOR**attempt / config.copies_per_gpu,
        "max_sequences": sequences and max(1, sequences >> attempt),
        "halvings": attempt,
        "ignore_end": wanted.ignore_end,
        "prefix_caching": wanted.prefix_caching,
        "top_logprobs": config.sampling.top_logprobs,
    }


def _environment(config: VllmConfig, place: Place) -> dict[str, str]:
    environment = {"VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    if place.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
    if config.batch_invariant:
        environment["VLLM_BATCH_INVARIANT"] = "1"
    return environment


@dataclass(slots=True)
class _InFlight:
    request: CompletionRequest
    engine: EngineProcess
    samples_left: int


class VllmClient:
    """See `CompletionClient`."""

    def __init__(self, config: VllmConfig, engines: list[EngineProcess], events: Events) -> None:
        self._config = config
        self.engines = engines
        self._events = events
        self._fatal: dict[EngineProcess, Message] = {}
        self._numbers = count()
        self._prefixes = {engine: _Prefixes(engine) for engine in engines}
        self.facts: dict[str, Any] = {}
        """The first engine's facts, with the total `num_gpus` and the longest `start_seconds` of all engines, and the
        `waited_seconds` until they were ready."""

    def wait_until_ready(self) -> None:
        started = time.monotonic()
        deadline = started + self._config.start_seconds
        while waiting := [engine for engine in self.engines if not engine.facts]:
            if time.monotonic() > deadline:
                raise TeacherUnavailable(
                    f"{waiting[0].title} was not ready after teacher.start_seconds = {self._config.start_seconds:g}"
                )
            for engine, message in self._received(wait=True):
                engine.facts = message["ready"]
                deadline = time.monotonic() + self._config.start_seconds  # of the next on the same GPU
        all_facts = [engine.facts for engine in self.engines]
        self.facts = {
            **all_facts[0],
            "num_engines": len(all_facts),
            "num_gpus": sum(engine.facts["num_gpus"] for engine in self.engines if not engine.place.copy),
            "start_seconds": max(facts["start_seconds"] for facts in all_facts),
            "waited_seconds": round(time.monotonic() - started, 3),
        }

    def ask(self, requests: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        in_flight: dict[int, _InFlight] = {}
        for engine in self.engines:  # results of an abandoned iterator are dropped
            engine.num_in_flight = 0
        more = True
        while more or in_flight:
            more = more and self._dispatch(requests, in_flight)
            caller_seconds = 0.0
            # If the caller has more requests and an engine has room, poll without waiting.
            for _, message in self._received(wait=not (more and self._least_loaded())):
                for outcome in _outcomes(message, in_flight):
                    given_at = time.monotonic()
                    yield outcome
                    caller_seconds += time.monotonic() - given_at
            self._check_progress(caller_seconds)

    def _dispatch(self, requests: Iterator[CompletionRequest], in_flight: dict[int, _InFlight]) -> bool:
        """Send requests to the engines while they have room; returns False once `requests` is exhausted."""
        for _ in range(_DISPATCH_BATCH):
            if not (engine := self._least_loaded()):
                return True
            if not (request := next(requests, None)):
                return False
            number = next(self._numbers)
            shared = self._prefixes[engine].number(request.prompt.shared)
            if not engine.num_in_flight:
                engine.progress_at = time.monotonic()
            engine.num_in_flight += 1
            in_flight[number] = _InFlight(request, engine, len(request.samples))
            engine.send(_request_message(request, number, shared))
        return True

    def _least_loaded(self) -> EngineProcess | None:
        engine = min(self.engines, key=lambda engine: engine.num_in_flight)
        return engine if engine.num_in_flight < engine.facts["window"] else None

    def _received(self, wait: bool) -> Iterator[tuple[EngineProcess, Message]]:
        """The messages received so far. If there are none and `wait` is set, waits briefly for the first one.

        Raises the error that ended an engine.
        """
        try:
            events = [self._events.get(timeout=_POLL_SECONDS) if wait else self._events.get_nowait()]
        except queue.Empty:
            return
        events += [self._events.get_nowait() for _ in range(self._events.qsize())]
        for engine, message in events:
            if message and "fatal" in message:
                self._fatal[engine] = message["fatal"]
            elif message:
                yield engine, message
        for engine, message in events:
            if message is None:
                raise engine.exit_error(self._config, self._fatal.get(engine))

    def _check_progress(self, caller_seconds: float) -> None:
        """Kill an engine that has stalled. Time spent in the caller does not count, since the engine may have been idle
        meanwhile."""
        for engine in self.engines:
            engine.progress_at += caller_seconds
            if engine.num_in_flight and engine.stalled_seconds() > self._config.stall_seconds and self._events.empty():
                engine.kill()
                raise TeacherUnavailable(
                    f"{engine.title} hung and was ended: no token for teacher.stall_seconds = "
                    f"{self._config.stall_seconds:g}"
                )


def _outcomes(message: Message, in_flight: dict[int, _InFlight]) -> Iterator[Completion | Rejection]:
    pending = in_flight.get(message["id"])
    if not pending:
        return  # belongs to an abandoned iterator
    reason = message.get("refused")
    pending.samples_left -= 1
    if reason or not pending.samples_left:
        del in_flight[message["id"]]
        pending.engine.num_in_flight -= 1
    if reason:
        yield Rejection(pending.request.key, reason, message["detail"])
        return
    yield Completion(
        key=pending.request.key,
        sample=message["sample"],
        text=message["text"],
        finish_reason=message["finish_reason"],
        prompt_tokens=message["prompt_tokens"],
        cached_tokens=message["cached_tokens"],
        completion_tokens=message["completion_tokens"],
        scores=tuple(message["scores"]),
        top=_top(message),
        logprob=message.get("logprob"),
    )


def _top(message: Message) -> TopLogprobs | None:
    if not (top := message.get("top")):
        return None
    return TopLogprobs(top["k"], top["tokenizer"], *map(b64decode, top["packed"]))


def _request_message(request: CompletionRequest, number: int, shared: int) -> Message:
    return {
        "id": number,
        "shared": shared,
        "item": request.prompt.item,
        "earlier": [{"role": turn.role, "content": turn.content} for turn in request.prompt.earlier],
        "constraint": _constraint(request.constraint),
        "temperature": request.sampling_temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "samples": list(request.samples),
        "verbalizers": list(request.verbalizers),
        "top_logprobs": request.top_logprobs,
    }


def _constraint(constraint: Constraint | None) -> Message | None:
    if constraint is None:
        return None
    if constraint.choice is not None:
        return {"choice": list(constraint.choice)}
    if constraint.json_schema is not None:
        return {"json": dict(constraint.json_schema)}
    if constraint.regex is not None:
        return {"regex": constraint.regex}
    return {"grammar": constraint.lark or constraint.grammar}


class _Prefixes:
    """Assigns numbers to shared turns and sends them to an engine, which keeps the most recently used ones."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._known: OrderedDict[int, tuple[int, tuple[Turn, ...]]] = OrderedDict()
        self._numbers = count()

    def number(self, shared: tuple[Turn, ...]) -> int:
        """The number of the shared turns, looked up by object identity, since hashing a thousand demonstrations for
        each row would be slow."""
        if known := self._known.get(id(shared)):
            self._known.move_to_end(id(shared))
            return known[0]
        number = next(self._numbers)
        self._known[id(shared)] = (number, shared)  # holds a reference, so that no other tuple gets the same id
        turns = [{"role": turn.role, "content": turn.content} for turn in shared]
        self._engine.send({"shared": number, "turns": turns})
        if len(self._known) > _MAX_PREFIXES:
            _, (oldest, _) = self._known.popitem(last=False)
            self._engine.send({"forget": oldest})
        return number
