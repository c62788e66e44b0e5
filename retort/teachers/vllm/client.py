"""The vLLM teacher: engines of our own, one process for each GPU or group of GPUs, in vLLM's environment.

Here is Retort's side; `engine/` runs on the other one, with another interpreter, and says what passes between them.
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
from typing import Any

from retort.config import VllmConfig
from retort.errors import TeacherUnavailable
from retort.problems import Constraint
from retort.teachers.requests import Completion, CompletionRequest, Rejection, Turn
from retort.teachers.top_logprobs import TopLogprobs
from retort.teachers.vllm.machine import Place, find_interpreter, places
from retort.teachers.vllm.process import EngineChild, Message

ENGINE = Path(__file__).parent / "engine"
_LESS_MEMORY = 0.9
"""Factor on memory_share for each out-of-memory before."""
_HAND_OUT = 64
"""Questions taken from the caller at once, between two looks at what came."""
_KEPT_PREFIXES = 32
_POLL_SECONDS = 0.25

Events = queue.SimpleQueue[tuple[EngineChild, Message | None]]


@contextmanager
def open_vllm(
    config: VllmConfig, attempt: int, address: str, revision: str | None, *, ignore_end: bool = False
) -> Iterator["VllmAsker"]:
    """Start the engines for the model at `address` (a folder, or a hub name with its revision); leaving ends them.

    `attempt` n > 0 takes less memory and fewer sequences, for a retry after an out-of-memory. `ignore_end` is for
    measuring speed: each completion takes all of max_tokens. Raises ConfigError where the environment, the GPUs, the
    model or an option is to blame, ChildOutOfMemory, or TeacherUnavailable where an engine does not start.
    """
    python, built_for = find_interpreter(config)
    options = _options(config, attempt, address, revision, ignore_end)
    events: Events = queue.SimpleQueue()
    with ExitStack() as stack:
        engines = []
        for place in places(config, built_for):
            command = [python, str(ENGINE), json.dumps({**options, "device": place.device})]
            engines.append(EngineChild(command, _environment(config, place), events, place.title))
            stack.callback(engines[-1].close)
        asker = VllmAsker(config, engines, events)
        try:
            asker.wait_until_ready()
            yield asker
        except BaseException:
            for engine in engines:
                engine.kill()
            raise


def _options(config: VllmConfig, attempt: int, address: str, revision: str | None, ignore_end: bool) -> dict[str, Any]:
    sequences = config.max_sequences
    taken = {"weights", "dtype", "quantization", "seed", "tensor_parallel", "max_length", "prefix_caching"}
    return {
        **config.model_dump(include=taken),
        "parent": os.getpid(),
        "model": address,
        "revision": revision,
        "memory_share": config.memory_share * _LESS_MEMORY**attempt,
        "max_sequences": sequences and max(1, sequences >> attempt),
        "halvings": attempt,
        "ignore_end": ignore_end,
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
class _UnderWay:
    question: CompletionRequest
    engine: EngineChild
    answers_left: int


class VllmAsker:
    """See `Asker`."""

    def __init__(self, config: VllmConfig, engines: list[EngineChild], events: Events) -> None:
        self._config = config
        self.engines = engines
        self._events = events
        self._fatal: dict[EngineChild, Message] = {}
        self._numbers = count()
        self._prefixes = {engine: _Prefixes(engine) for engine in engines}
        self.facts: dict[str, Any] = {}
        """What the first engine said of itself when it was ready; `num_gpus` of all, `start_seconds` of the last."""

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._config.start_seconds
        while waiting := [engine for engine in self.engines if not engine.facts]:
            if time.monotonic() > deadline:
                raise TeacherUnavailable(
                    f"{waiting[0].title} was not ready after teacher.start_seconds = {self._config.start_seconds:g}"
                )
            for engine, message in self._heard(wait=True):
                engine.facts = message["ready"]
        told = [engine.facts for engine in self.engines]
        self.facts = {
            **told[0],
            "num_engines": len(told),
            "num_gpus": sum(facts["num_gpus"] for facts in told),
            "start_seconds": max(facts["start_seconds"] for facts in told),
        }

    def ask(self, questions: Iterator[CompletionRequest]) -> Iterator[Completion | Rejection]:
        under_way: dict[int, _UnderWay] = {}
        for engine in self.engines:  # of an iterator that was left early nobody wants the rest
            engine.num_under_way = 0
        more = True
        while more or under_way:
            more = more and self._hand_out(questions, under_way)
            caller_seconds = 0.0
            # Where the caller has more and an engine has room, only look whether something came.
            for _, message in self._heard(wait=not (more and self._roomiest())):
                for answer in _answers(message, under_way):
                    given_at = time.monotonic()
                    yield answer
                    caller_seconds += time.monotonic() - given_at
            self._check_progress(caller_seconds)

    def _hand_out(self, questions: Iterator[CompletionRequest], under_way: dict[int, _UnderWay]) -> bool:
        """False when there are no more."""
        for _ in range(_HAND_OUT):
            if not (engine := self._roomiest()):
                return True
            if not (question := next(questions, None)):
                return False
            number = next(self._numbers)
            shared = self._prefixes[engine].number(question.prompt.shared)
            if not engine.num_under_way:
                engine.progress_at = time.monotonic()
            engine.num_under_way += 1
            under_way[number] = _UnderWay(question, engine, len(question.samples))
            engine.tell(_asked(question, number, shared))
        return True

    def _roomiest(self) -> EngineChild | None:
        engine = min(self.engines, key=lambda engine: engine.num_under_way)
        return engine if engine.num_under_way < engine.facts["window"] else None

    def _heard(self, wait: bool) -> Iterator[tuple[EngineChild, Message]]:
        """What engines have said by now, or the first of it where there is nothing yet; nothing after a while.

        Raises what ended an engine.
        """
        try:
            heard = [self._events.get(timeout=_POLL_SECONDS) if wait else self._events.get_nowait()]
        except queue.Empty:
            return
        heard += [self._events.get_nowait() for _ in range(self._events.qsize())]
        for engine, message in heard:
            if message and "fatal" in message:
                self._fatal[engine] = message["fatal"]
            elif message:
                yield engine, message
        for engine, message in heard:
            if message is None:
                raise engine.death(self._config, self._fatal.get(engine))

    def _check_progress(self, caller_seconds: float) -> None:
        """An engine may have been idle while the caller was busy with what it got."""
        for engine in self.engines:
            engine.progress_at += caller_seconds
            if engine.num_under_way and engine.stalled_seconds() > self._config.stall_seconds and self._events.empty():
                engine.kill()
                raise TeacherUnavailable(
                    f"{engine.title} hung and was ended: no token for teacher.stall_seconds = "
                    f"{self._config.stall_seconds:g}"
                )


def _answers(message: Message, under_way: dict[int, _UnderWay]) -> Iterator[Completion | Rejection]:
    asked = under_way.get(message["id"])
    if not asked:
        return  # of an iterator that was left early
    refused = message.get("refused")
    asked.answers_left -= 1
    if refused or not asked.answers_left:
        del under_way[message["id"]]
        asked.engine.num_under_way -= 1
    if refused:
        yield Rejection(asked.question.key, refused, message["detail"])
        return
    yield Completion(
        key=asked.question.key,
        sample=message["sample"],
        text=message["text"],
        finish_reason=message["finish_reason"],
        prompt_tokens=message["prompt_tokens"],
        cached_tokens=message["cached_tokens"],
        completion_tokens=message["completion_tokens"],
        scores=tuple(message["scores"]),
        top=_top(message),
    )


def _top(message: Message) -> TopLogprobs | None:
    if not (top := message.get("top")):
        return None
    return TopLogprobs(top["k"], top["tokenizer"], *map(b64decode, top["packed"]))


def _asked(question: CompletionRequest, number: int, shared: int) -> Message:
    return {
        "id": number,
        "shared": shared,
        "item": question.prompt.item,
        "constraint": _constraint(question.constraint),
        "temperature": question.sampling_temperature,
        "top_p": question.top_p,
        "max_tokens": question.max_tokens,
        "samples": list(question.samples),
        "verbalizers": list(question.verbalizers),
        "top_logprobs": question.top_logprobs,
    }


def _constraint(constraint: Constraint | None) -> Message | None:
    if constraint is None:
        return None
    if constraint.choice is not None:
        return {"choice": list(constraint.choice)}
    return {"grammar": constraint.grammar}


class _Prefixes:
    """The shared turns that an engine knows by number: those used last."""

    def __init__(self, engine: EngineChild) -> None:
        self._engine = engine
        self._known: OrderedDict[int, tuple[int, tuple[Turn, ...]]] = OrderedDict()
        self._numbers = count()

    def number(self, shared: tuple[Turn, ...]) -> int:
        """By identity, as hashing a thousand demonstrations for each row would take its time."""
        if known := self._known.get(id(shared)):
            self._known.move_to_end(id(shared))
            return known[0]
        number = next(self._numbers)
        self._known[id(shared)] = (number, shared)  # kept, so that no other tuple gets its id
        turns = [{"role": turn.role, "content": turn.content} for turn in shared]
        self._engine.tell({"shared": number, "turns": turns})
        if len(self._known) > _KEPT_PREFIXES:
            _, (oldest, _) = self._known.popitem(last=False)
            self._engine.tell({"forget": oldest})
        return number
