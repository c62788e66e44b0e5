"""The vLLM teacher's engine: `PYTHON retort/teachers/vllm/engine OPTIONS`, with the interpreter of vLLM's environment.

Retort is not installed there: the modules of this folder import each other by their plain names, and nothing else of
Retort. OPTIONS is a JSON object, which `retort.teachers.vllm` writes. On standard input come JSON lines:

    {"shared": 1, "turns": [{"role", "content"}, ...]}   turns that questions refer to; {"forget": 1} ends it
    {"id", "shared": 1, "item", "constraint": {"choice": [...]} | {"grammar": "..."} | null,
     "temperature", "top_p", "max_tokens", "samples": [0, ...], "verbalizers": [...],
     "top_logprobs": k}

and on standard output go

    {"ready": {...}}                                      once: what the engine says of itself
    {"id", "sample", "text", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens", "scores"},
        and, where they were asked for, "top": {"k", "tokenizer", "packed": [three in base64]}, see toplogprobs.py
    {"id", "refused": REASON, "detail"}                   in the place of all of a question's answers
    {"alive": {"unfinished", "tokens"}}                   twice a second, as long as anything is under way
    {"fatal": {"reason", "field", "detail"}}              the last one, see `failures.fatal`

When standard input ends, what is under way is finished, and the engine ends. When Retort is gone, it ends at once.
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
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its own processes take 50 s more to start there
        if not TYPE_CHECKING:  # late, as it imports vLLM
            from session import Session, engine_config
        config = engine_config(options)
        phase = "start"
        session = Session(config, options)
        phase = "work"
        wire.send({"ready": {**session.facts(), "start_seconds": round(time.monotonic() - started, 3)}})
        _serve(session, wire)
        session.close()
    except Exception as error:  # whatever it was, it is told, and then the process ends
        traceback.print_exc()
        wire.send({"fatal": failures.fatal(error, phase)})
        os._exit(1)
    os._exit(0)  # vLLM's threads would take their time


def _serve(session: "Session", wire: Wire) -> None:
    wire.beat(session.alive)
    open_ended = True
    while open_ended or session.unfinished:
        answers: list[Message] = []
        while open_ended and session.unfinished < session.window:
            try:
                message = wire.inbox.get(block=not (session.unfinished or answers))
            except queue.Empty:
                break
            if message is None:
                open_ended = False
            else:
                answers += session.admit(message)
        if session.unfinished:
            answers += session.step()
        if answers:
            wire.send(*answers)


if __name__ == "__main__":
    main()
