"""Benchmark the command's startup: the median of five runs, and its ratio to `python -c pass` in the same venv.

    .venv/bin/python benchmarks/startup.py

Compare the ratio, not the seconds, between machines. Run it from the checkout, with nothing else running.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

RETORT = str(Path(sys.executable).with_name("retort"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "retort --help": [RETORT, "--help"],
    "retort plan examples/snips.yaml": [RETORT, "plan", "examples/snips.yaml"],
}
REPEATS = 5


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    bare = 0.0
    for name, command in COMMANDS.items():
        seconds(command)  # the first run reads the files from disk and compiles them
        median = statistics.median(seconds(command) for _ in range(REPEATS))
        bare = bare or median
        print(f"{name:32} {median:6.2f} s {median / bare:6.1f} x")


if __name__ == "__main__":
    main()
