"""Tries the properties of test_properties.py with new seeds until the time is up: `make fuzz MINUTES=60`.

Prints what was tried and, for each property that failed, the smallest input that hypothesis found. Exit 1 if any did.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

PROPERTIES = Path(__file__).with_name("test_properties.py")
ROOT = PROPERTIES.parents[2]
EXAMPLES = 400
"""Inputs of each property in a round, before those that hypothesis leaves out."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    started, rounds = time.monotonic(), 0
    passed = failed = 0
    found: dict[str, str] = {}
    while time.monotonic() - started < 60 * arguments.minutes:
        output = one_round(arguments.seed + rounds)
        rounds += 1
        passed += total(output, "passed")
        failed += total(output, "failed")
        for name in re.findall(r"^FAILED \S+::(\w+)", output, re.MULTILINE):
            if name not in found:
                found[name] = output
                print(f"--- {name}, seed {arguments.seed + rounds - 1}\n{output}", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(
        f"fuzzed for {minutes:.1f} min: {rounds} rounds of {EXAMPLES} inputs for each property, "
        f"{(passed + failed) * EXAMPLES:,} inputs; properties that failed: {', '.join(sorted(found)) or 'none'}"
    )
    return 1 if found else 0


def one_round(seed: int) -> str:
    command = [sys.executable, "-m", "pytest", str(PROPERTIES), "-q", "-p", "no:cacheprovider", "--tb=short", "-rf"]
    environment = {**os.environ, "RETORT_FUZZ_EXAMPLES": str(EXAMPLES)}
    done = subprocess.run(
        [*command, f"--hypothesis-seed={seed}"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if done.returncode not in (0, 1):
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def total(output: str, what: str) -> int:
    counted = re.search(rf"(\d+) {what}", output)
    return int(counted[1]) if counted else 0


if __name__ == "__main__":
    sys.exit(main())
