"""The vLLM teacher's engine: `PYTHON retort/teachers/vllm/engine OPTIONS`, with the interpreter of vLLM's environment.

Retort is not installed there, so the modules in this folder import each other by plain name and nothing else of Retort.
For the same reason, none of them may have the name of a package that vLLM imports (such as `requests`).
OPTIONS is a JSON object written by `retort.teachers.vllm`. Standard input carries JSON lines:

    {"go": true}                                         first if OPTIONS say that it waits: before, it takes no GPU
    {"shared": 1, "turns": [{"role", "content"}, ...]}   turns that requests refer to, until {"forget": 1}
    {"id", "shared": 1, "item", "earlier": [{"role", "content"}, ...],
     "constraint": {"choice": [...]} | {"grammar": GBNF or Lark} | {"json": SCHEMA} | {"regex": TEXT} | null,
     "temperature", "top_p", "max_tokens", "samples": [0, ...], "verbalizers": [...], "top_logprobs": k}

Standard output carries

    {"ready": {...}}                                      once: the engine's facts
    {"id", "sample", "text", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "scores"},
        and, if requested, "logprob" and "top": {"k", "tokenizer", "packed": [three in base64]}, see toplogprobs.py
    {"id", "refused": REASON, "detail"}                   instead of all completions of a request
    {"alive": {"unfinished", "tokens"}}                   twice a second while anything is in flight
    {"fatal": {"reason", "field", "detail"}}              the last message, see `failures.fatal`

When standard input ends, the engine finishes what is in flight and exits. When Retort dies, it exits at once.
"""

import json
import os
import queue
import sys
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retort.teachers.vllm.engine import failures
    from retort.teachers.vllm.engine.session import Session, engine_config  # noqa: F401, ruff sees one of the two only
    from retort.teachers.vllm.engine.wire import Message, Wire
else:
    import failures
    from wire import Message, Wire


def main() -> None:
    started = time.monotonic()
    options = json.loads(sys.argv[1])
    wire = Wire(options["parent"])
    phase: failures.Phase = "config"
    try:
        if options["device"] == "cpu":
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # vLLM's child processes take 50 s longer to start there
        if not TYPE_CHECKING:  # imported late because it imports vLLM
            from session import Session, engine_config
        config = engine_config(options)
        if options["waits"]:
            waited = time.monotonic()
            if wire.inbox.get() is None:
                os._exit(0)
            started += time.monotonic() - waited
        phase = "start"
        session = Session(config, options)
        phase = "work"
        wire.send({"ready": {**session.facts(), "start_seconds": round(time.monotonic() - started, 3)}})
        _serve(session, wire)
        session.close()
    except Exception as error:  # whatever it is, it is reported before the process exits
        traceback.print_exc()
        wire.send({"fatal": failures.fatal(error, phase)})
        os._exit(1)
    os._exit(0)  # a regular exit would wait for vLLM's threads


def _serve(session: "Session", wire: Wire) -> None:
    wire.beat(session.alive)
    open_ended = True
    while open_ended or session.unfinished:
        replies: list[Message] = []
        while open_ended and session.unfinished < session.window:
            try:
                message = wire.inbox.get(block=not (session.unfinished or replies))
            except queue.Empty:
                break
            if message is None:
                open_ended = False
            else:
                replies += session.admit(message)
        if session.unfinished:
            replies += session.step()
        if replies:
            wire.send(*replies)


if __name__ == "__main__":
    main()
