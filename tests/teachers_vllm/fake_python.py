#!/usr/bin/env python3
"""A stand-in for the interpreter of vLLM's environment: reports that vLLM is installed, and plays the engine as
FAKE_ENGINE says, ready after FAKE_START_SECONDS.

It completes each request with the GPUs that it sees.
"""

import json
import os
import sys
import time

if sys.argv[1] == "-c":
    print(json.dumps({"vllm": "0.0"}))
    sys.exit()
options, mode = json.loads(sys.argv[2]), os.environ.get("FAKE_ENGINE", "well")
gpus = os.environ["CUDA_VISIBLE_DEVICES"]


def say(**message):
    print(json.dumps(message), flush=True)


def log(*lines):
    print(*lines, sep="\n", file=sys.stderr, flush=True)


if options["waits"]:
    assert json.loads(sys.stdin.readline()) == {"go": True}
    gpus += " copy"
HEARD = "(EngineCore pid=9) ERROR 01-01 00:00:00 [core.py:1] "
if mode == "silent":
    time.sleep(60)
if mode == "out of memory":
    log(HEARD + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    log("RuntimeError: Engine core initialization failed. See root cause above.")
if mode == "context":
    log(HEARD + "ValueError: To serve at least one request with the models's max seq len (40960), 5.62 GiB is needed")
if mode in ("out of memory", "context"):
    detail = "RuntimeError: Engine core initialization failed. See root cause above."
    say(fatal={"reason": "engine", "field": "", "detail": detail})
    sys.exit(1)
num_gpus = options["tensor_parallel"] * options["pipeline_parallel"]
began = time.monotonic()
start_seconds = float(os.environ.get("FAKE_START_SECONDS", "0"))
time.sleep(start_seconds)
say(ready={"window": 4, "num_gpus": num_gpus, "start_seconds": start_seconds, "options": options, "began": began})
for number, line in enumerate(sys.stdin):
    message = json.loads(line)
    if "id" not in message:
        continue
    if mode == "dies" and number > 4:
        log("it was nice", "while it lasted")
        sys.exit(7)
    if mode == "spins":  # alive, and no token comes
        for _ in range(600):
            say(alive={"unfinished": 1, "tokens": 12})
            time.sleep(0.1)
    for sample in message["samples"]:
        usage = {"prompt_tokens": 3, "cached_tokens": 2, "completion_tokens": 1}
        say(id=message["id"], sample=sample, text=gpus, finish_reason="stop", scores=[], **usage)
