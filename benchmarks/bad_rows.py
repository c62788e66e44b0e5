"""Benchmark: a pool of 100,000 rows of which some cannot be used runs to its end, with exact counts.

    .venv/bin/python benchmarks/bad_rows.py [--rows 100000]

First 0.5 % of the rows are broken, in ten ways and as often in each, across files of JSON lines, CSV and Parquet.
`retort run` goes from the data to the final student with a recorded teacher and an encoder of 20,000 parameters (2
stages of 2 students, which label the whole pool), and must count every reason exactly: in the artifact, the report and
MLflow. Then 2 % are broken: the run must stop with one sentence and exit code 2, before anything is trained. Last, the
broken rows are mended, and all rows must be there.

`ingest` is the step that reads the pool, in a process of its own: seconds, and peak memory with the interpreter and its
libraries. The other lines are whole commands, with the memory of their main process, from which trainings are started.
Ends with exit code 1 if a count is wrong.
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.random_encoder import write_encoder
from retort.artifacts.examples import Examples
from retort.recipes import load_config
from retort.recipes.execute import made_or_found
from retort.recipes.mckd.checks import resolve
from retort.recipes.mckd.steps import ingest
from retort.store.opening import open_store

ROOT = Path(__file__).parents[1]
RETORT = str(Path(sys.executable).with_name("retort"))
WORDS = ("good", "bad", "film", "book", "play", "plot", "end", "cast", "song", "tale")
CLASSES = ("bad", "good")
LINE_FAULTS = {
    "an empty text": "empty-text",
    "a null": "null-text",
    "no text": "no-text",
    "a number as the text": "not-text",
    "a line that is cut": "not-json",
    "a byte that is not UTF-8": "not-utf8",
    "the id of an earlier row": "duplicate-id",
    "a key twice": "key-twice",
}
"""Ways in which a line of JSON is broken, and their reasons."""
CSV_FAULT, PARQUET_FAULT = "wrong-columns", "not-utf8"
WAYS = len(LINE_FAULTS) + 2


def text_of(number: int) -> str:
    return " ".join(WORDS[(number // step) % len(WORDS)] for step in (1, 10, 100, 1000, 10_000)) + f" {number}"


def row_of(number: int) -> dict[str, Any]:
    return {"id": f"row-{number:07}", "text": text_of(number)}


def broken_line(fault: str, number: int) -> bytes:
    """Row `number` as a line that is broken in this way."""
    row = row_of(number)
    match fault:
        case "an empty text":
            row["text"] = " "
        case "a null":
            row["text"] = None
        case "no text":
            del row["text"]
        case "a number as the text":
            row["text"] = number
        case "the id of an earlier row":
            row["id"] = row_of(0)["id"]
    line = json.dumps(row).encode()
    match fault:
        case "a line that is cut":
            return line[: len(line) // 2]
        case "a byte that is not UTF-8":
            return line.replace(b"good", b"g\xf6\xf6d", 1) if b"good" in line else line.replace(b" ", b"\xe9 ", 3)
        case "a key twice":
            return line[:-1] + b', "text": "another"}'
    return line


def spread(numbers: range, count: int) -> list[int]:
    """So many of the numbers, evenly apart; the first is none of them."""
    return [numbers[1 + at * (len(numbers) - 1) // count] for at in range(count)]


def write_pool(folder: Path, rows: int, each: int) -> Counter[str]:
    """Write a pool of so many rows, of which `each` are broken in each of the ten ways. Returns them by reason.

    Of ten rows eight are lines of JSON, one of CSV and one of Parquet.
    """
    folder.mkdir(parents=True)
    first, second = rows * 8 // 10, rows * 9 // 10
    write_lines(folder / "1.jsonl", range(first), each)
    write_csv(folder / "2.csv", range(first, second), each)
    write_parquet(folder / "3.parquet", range(second, rows), each)
    reasons = [*LINE_FAULTS.values(), CSV_FAULT, PARQUET_FAULT]
    return Counter(reason for reason in reasons for _ in range(each))


def write_lines(path: Path, numbers: range, each: int) -> None:
    broken = dict(zip(spread(numbers, each * len(LINE_FAULTS)), itertools.cycle(LINE_FAULTS)))
    with path.open("wb") as file:
        for number in numbers:
            line = broken_line(broken[number], number) if number in broken else json.dumps(row_of(number)).encode()
            file.write(line + b"\n")


def write_csv(path: Path, numbers: range, each: int) -> None:
    broken = set(spread(numbers, each))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number in numbers:
            writer.writerow([*row_of(number).values(), *(["one too many"] if number in broken else [])])


def write_parquet(path: Path, numbers: range, each: int) -> None:
    broken = set(spread(numbers, each))
    texts = [text_of(number).encode() + (b" \xff" if number in broken else b"") for number in numbers]
    # Bytes that are declared as a string but are none, as writers leave them that do not check.
    unchecked = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": [row_of(number)["id"] for number in numbers], "text": unchecked}), path)


def write_rest(folder: Path, rows: int, model: Path | str) -> dict[str, Any]:
    """Write labeled and test rows and a completion for every row of the pool, broken or not. Returns the config."""
    for role, start, count in (("labeled", rows, 20), ("test", rows + 20, 200)):
        gold = ({**row_of(number), "label": CLASSES[number % 2]} for number in range(start, start + count))
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    with (folder / "completions.jsonl").open("w") as file:
        for number in range(rows):
            choice = {"message": {"content": CLASSES[number % 2]}, "finish_reason": "stop"}
            answer = {"status_code": 200, "body": {"choices": [choice]}}
            file.write(json.dumps({"custom_id": row_of(number)["id"], "response": answer}) + "\n")
    training = {"epochs": 0.1, "learning_rate": 3e-3, "freeze_embeddings": False, "precision": "fp32"}
    return {
        "name": "bad-rows",
        "problem": {"kind": "classification"},
        "data": {
            "labeled": str(folder / "labeled.jsonl"),
            "unlabeled": str(folder / "pool"),
            "test": str(folder / "test.jsonl"),
        },
        "teacher": {"kind": "recorded", "completions": str(folder / "completions.jsonl")},
        "student": {"kind": "sequence-classification", "model": str(model), "training": training},
        "method": {"stages": 2, "partitions": 2, "fine_tuning": {"kind": "never"}},
        "baselines": [],
        "evaluation": {"resamples": 100},
        "store": {"root": str(folder / "store")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "execution": {"device": "cpu"},
    }


def main() -> None:
    rows: int = given.rows
    with tempfile.TemporaryDirectory(prefix="retort-benchmark-") as name:
        folder = Path(name)
        path = folder / "bad-rows.yaml"
        # In a process of its own: a process's peak memory counts from that of the one which started it.
        subprocess.run(
            [sys.executable, __file__, "--encoder", str(folder / "encoder")], check=True, capture_output=True
        )
        path.write_text(yaml.safe_dump(write_rest(folder, rows, folder / "encoder")))
        within(path, folder, rows)
        beyond(path, folder, rows)
        mended(path, folder, rows)


def within(path: Path, folder: Path, rows: int) -> None:
    """0.5 % are broken: the run reaches its end and counts them."""
    expected = write_pool(folder / "pool", rows, each=rows // 200 // WAYS)
    bad = expected.total()
    timed("ingest", [sys.executable, __file__, "--ingest", str(path)])
    told = timed("retort run, 0.5 % broken", [RETORT, "run", str(path)])
    assert f"{bad:,} of {rows:,} rows (0.50%) cannot be used" in " ".join(told.split()), told
    counted = Counter(row["reason"] for row in pool_of(path).set_aside_rows())
    print(f"\n{'reason':16}{'written':>9}{'counted':>9}{'MLflow':>9}")
    for reason, count in expected.most_common():
        print(f"{reason:16}{count:9,}{counted[reason]:9,}{logged(folder, reason):9,}")
    good = sum(1 for _ in pool_of(path).rows(["example_id"]))
    print(f"{'all bad rows':16}{bad:9,}{counted.total():9,}{logged(folder):9,}")
    print(f"{'good rows':16}{rows - bad:9,}{good:9,}\n")
    report = subprocess.run([RETORT, "report", str(path), "--out", str(folder / "report")], capture_output=True)
    assert report.returncode == 0, report.stderr
    assert f"{bad:,} of {rows:,} rows" in (folder / "report" / "report.md").read_text()
    assert counted == expected, (counted, expected)
    assert good == rows - bad, good
    assert (logged(folder), {reason: logged(folder, reason) for reason in expected}) == (bad, dict(expected))


def beyond(path: Path, folder: Path, rows: int) -> None:
    """2 % are broken: the run stops with one sentence."""
    shutil.rmtree(folder / "pool")
    write_pool(folder / "pool", rows, each=rows // 50 // WAYS)
    shutil.move(folder / "store", folder / "store-of-before")
    told = timed("retort run, 2 % broken", [RETORT, "run", str(path)], code=2)
    print(f"  {told}", end="")
    assert len(told.splitlines()) == 1, told
    assert [one.name for one in (folder / "store").iterdir() if one.name == "students"] == [], "a student was trained"


def mended(path: Path, folder: Path, rows: int) -> None:
    shutil.rmtree(folder / "pool")
    write_pool(folder / "pool", rows, each=0)
    timed("ingest, mended", [sys.executable, __file__, "--ingest", str(path)])
    pool = pool_of(path)
    assert (pool.manifest.rows, pool.set_aside()) == (rows, None)


def timed(what: str, command: list[str], code: int = 0) -> str:
    """Run the command and print its seconds and its process's peak MiB. Returns its standard error."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        errors.seek(0)
        told = errors.read()
    assert os.waitstatus_to_exitcode(status) == code, told
    print(f"{what:26}{given.rows:9,} rows{seconds:8.1f} s{usage.ru_maxrss / 1024:8.0f} MiB", flush=True)
    return told


def pool_of(path: Path) -> Examples:
    """The pool as ingested."""
    config = resolve(load_config(str(path)))
    return Examples.open(open_store(config.store), made_or_found(config, ingest(config, "unlabeled")))


def logged(folder: Path, reason: str = "") -> int:
    """What MLflow has as the number of rows that were set aside."""
    name = "rows_set_aside" + (f"_{reason.replace('-', '_')}" if reason else "")
    with sqlite3.connect(folder / "mlflow.db") as database:
        (value,) = database.execute("SELECT value FROM latest_metrics WHERE key = ?", (name,)).fetchone() or (0,)
    return int(value)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--ingest", type=Path, help="only ingest the pool of this config; for the benchmark itself")
    arguments.add_argument("--encoder", type=Path, help="only write the encoder there; for the benchmark itself")
    given = arguments.parse_args()
    if given.ingest:
        pool_of(given.ingest)
    elif given.encoder:
        digits = [f"{mark}{digit}" for mark in ("", "##") for digit in range(10)]
        write_encoder(given.encoder, [*WORDS, *digits], layers=2)
    else:
        main()
