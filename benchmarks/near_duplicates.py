"""Time and memory of finding near-duplicates in a pool and of 2,000 test rows, and how many are found of those that
were put in.

    .venv/bin/python benchmarks/near_duplicates.py [--rows 102000]

The pool: requests of SNIPS with two words changed at random, so that many are made from one pattern; every tenth is
another row with one letter changed, which is a near-duplicate if the row is long enough.
"""

import argparse
import gzip
import json
import random
import resource
import time

from retort.data.near_duplicates import THRESHOLD, IdText, find, sketches

SOURCE = "examples/snips/unlabeled.jsonl.gz"


def made_pool(count: int) -> tuple[list[IdText], set[str]]:
    """Rows, and the ids of those copies that are near-duplicates of what they were copied from."""
    with gzip.open(SOURCE, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    chance = random.Random(0)
    rows: list[IdText] = []
    copies: set[str] = set()
    for number in range(count):
        if number % 10 == 9:
            text = chance.choice(rows)[1]
            place = chance.randrange(len(text))
            rows.append((str(number), text[:place] + "x" + text[place + 1 :]))
            one, other = (sketch.shingles for sketch in sketches([rows[-1], ("", text)]))
            if len(one & other) >= THRESHOLD * len(one | other):
                copies.add(str(number))
            continue
        words = chance.choice(texts).split()
        for _ in range(2):
            words[chance.randrange(len(words))] = f"word{chance.randrange(100_000)}"
        rows.append((str(number), " ".join(words)))
    return rows, copies


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=102_000)
    rows, copies = made_pool(parser.parse_args().rows)
    pool, test = rows[2000:], rows[:2000]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = find(pool, [], test)
    seconds = time.process_time() - started
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    named = {match.example_id for match in (*found.within, *found.leaked)}
    copies &= {example_id for example_id, _ in pool}
    print(f"{len(pool):,} rows and {len(test):,} test rows: {seconds:.1f} s of one core, {megabytes:.0f} MB")
    print(f"near-duplicates: {len(found.within):,} in the pool, {len(found.leaked):,} of test rows")
    print(f"of {len(copies):,} copies that are near-duplicates, {len(copies & named) / len(copies):.1%} were found")


if __name__ == "__main__":
    main()
