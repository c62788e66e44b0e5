"""Finding what must be requested among 5,000,000 stored completions, and reading those that are there.

    .venv/bin/python benchmarks/ledger.py [--known 5000000] [--asked 5050000]

Compares the ledger, in the same run, with the plain alternative: everything in a set or a dict, filled from the same
shards. Each of the four measurements is a separate process that computes the keys of the requested rows from their
texts and prints wall seconds and peak memory, including the interpreter and its libraries. The shards (each of 5,000
completions of about 60 characters, not in the order of the lookups) are created beforehand, untimed, in a temporary
folder; files just written are still in the page cache.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retort.io.parquet import Row, write_rows
from retort.store import Store
from retort.teachers.ledger import Entry, Ledger, ledger_key

TEACHER = {"kind": "vllm", "model": "benchmark"}
ASKED = pa.schema([("position", pa.int64()), ("key", pa.binary(16))])
SHARED = bytes(32)
MAX_TOKENS = 64
SHARD_ENTRIES = 5000
WORDS = [f"{number:x}" for number in range(0x1000, 0xFFFF, 97)]

arguments = argparse.ArgumentParser()
arguments.add_argument("--known", type=int, default=5_000_000)
arguments.add_argument("--asked", type=int, default=5_050_000)
arguments.add_argument("--job", help="what a process of the benchmark itself is to do")
arguments.add_argument("--folder", type=Path)
given = arguments.parse_args()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as folder:
        run("build", folder)
        files = list(Path(folder).glob("store/ledger/*/*.parquet"))
        size = sum(file.stat().st_size for file in files)
        print(f"{given.known:,} known in {len(files)} shards, {size / 2**20:.0f} MiB; {given.asked:,} asked")
        for what, ours, theirs in [("missing", "missing", "set"), ("read all", "join", "dict")]:
            (seconds, peak, rows), (other_seconds, other_peak, other_rows) = run(ours, folder), run(theirs, folder)
            assert rows == other_rows, f"the ledger finds {rows} rows, the {theirs} {other_rows}"
            print(
                f"{what:9} {rows:9,.0f} rows   ledger {seconds:5.1f} s {peak:6.0f} MiB   "
                f"{theirs:4} {other_seconds:5.1f} s {other_peak:6.0f} MiB   "
                f"ratio {seconds / other_seconds:.2f} in time, {peak / other_peak:.2f} in memory"
            )


def run(job: str, folder: str) -> tuple[float, float, float]:
    """Seconds, peak MiB, and rows found."""
    sizes = ["--known", str(given.known), "--asked", str(given.asked)]
    command = [sys.executable, __file__, *sizes, "--job", job, "--folder", folder]
    seconds, peak, rows = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(seconds), float(peak), float(rows)


def perform(job: Callable[[], int]) -> None:
    started = time.perf_counter()
    rows = job()
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, rows)


def ledger() -> Ledger:
    return Ledger(Store(str(given.folder / "store")), TEACHER)


def item(number: int) -> str:
    return f"row {number}: what is asked here is about as long as what comes back"


def build() -> int:
    """Fill the ledger. One in a hundred completions is truncated, half of those under a smaller limit."""
    order, kept = random.Random(0), ledger()
    numbers = list(range(given.known))
    order.shuffle(numbers)
    for start in range(0, given.known, SHARD_ENTRIES):
        kept.add([completion(number, order) for number in numbers[start : start + SHARD_ENTRIES]])
    return given.known


def completion(number: int, words: random.Random) -> Entry:
    key, text = ledger_key(SHARED, item(number), "", 0, 0), " ".join(words.choices(WORDS, k=12))
    finish_reason = "stop" if number % 100 else "length"
    limit = MAX_TOKENS if number % 200 else MAX_TOKENS // 2
    return Entry(key, text, finish_reason, limit, 2000, 1984, 20, (), 1.7e9 + number)


def asked_keys() -> Iterator[bytes]:
    return (ledger_key(SHARED, item(number), "", 0, 0) for number in range(given.asked))


def write_asked() -> Path:
    path = given.folder / "asked.parquet"
    rows: Iterator[Row] = ({"position": position, "key": key} for position, key in enumerate(asked_keys()))
    write_rows(path, ASKED, rows)
    return path


def find_missing() -> int:
    return sum(len(batch) for batch in ledger().missing(write_asked(), MAX_TOKENS))


def find_missing_in_a_set() -> int:
    known: set[bytes] = set()
    for file in given.folder.glob("store/ledger/*/*.parquet"):
        columns = pq.read_table(file, columns=["key", "finish_reason", "max_tokens"]).columns
        for key, finish_reason, max_tokens in zip(*(column.to_pylist() for column in columns), strict=True):
            if finish_reason != "length" or max_tokens >= MAX_TOKENS:
                known.add(key)
    return sum(key not in known for key in asked_keys())


def read_all() -> int:
    return sum(entry is not None for entry in ledger().join(write_asked()))


def read_all_from_a_dict() -> int:
    known: dict[bytes, Entry] = {}
    for file in given.folder.glob("store/ledger/*/*.parquet"):
        columns = (column.to_pylist() for column in pq.read_table(file).columns)
        known.update({values[0]: Entry._make(values) for values in zip(*columns, strict=True)})
    return sum(known.get(key) is not None for key in asked_keys())


JOBS = {
    "build": build,
    "missing": find_missing,
    "set": find_missing_in_a_set,
    "join": read_all,
    "dict": read_all_from_a_dict,
}

if __name__ == "__main__":
    perform(JOBS[given.job]) if given.job else main()
