"""The ledger in a folder and in buckets of real S3 servers, with writers in separate processes."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import duckdb
import pyarrow as pa
import pytest

from retort.errors import DataError, StoreUnavailable
from retort.io.parquet import count_rows, write_rows
from retort.records.base import digest
from retort.store import Store
from retort.teachers.ledger import Entry, Ledger, LedgerWriter, entry_of, ledger_key
from retort.teachers.requests import Completion
from retort.teachers.shards import SCHEMA, Shards

ROOT = Path(__file__).parents[2]
TEACHER = {"kind": "vllm", "model": "Müller/tiny", "revision": "abc"}
ASKED = pa.schema([("position", pa.int64()), ("key", pa.binary(16))])


def key(number: int) -> bytes:
    return ledger_key(b"shared", f"row {number}", "", 0, 0)


def entry(number: int, text: str = "a label", finish_reason: str | None = "stop", **fields: float) -> Entry:
    values = {"max_tokens": 64, "prompt_tokens": 2000, "cached_tokens": 1990, "completion_tokens": 3, "asked_at": 1.5}
    return Entry(key=key(number), text=text, finish_reason=finish_reason, scores=(), **{**values, **fields})  # type: ignore[arg-type]


@dataclass
class Lookup:
    """A ledger as a fresh process sees it; looks up rows by their numbers."""

    ledger: Ledger
    folder: Path

    def asked(self, numbers: list[int]) -> Path:
        path = self.folder / f"{uuid4().hex}.parquet"
        write_rows(path, ASKED, ({"position": place, "key": key(n)} for place, n in enumerate(numbers)))
        return path

    def texts(self, numbers: list[int]) -> list[str | None]:
        return [found.text if found else None for found in self.ledger.join(self.asked(numbers))]

    def missing(self, numbers: list[int], max_tokens: int = 64) -> list[int]:
        batches = list(self.ledger.missing(self.asked(numbers), max_tokens))
        positions = [position for batch in batches for position in batch["position"].to_pylist()]
        keys = [found for batch in batches for found in batch["key"].to_pylist()]
        assert keys == [key(numbers[position]) for position in positions]
        return positions


Look = Callable[[Store], Lookup]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    return lambda store: Lookup(Ledger(store, TEACHER), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store [a]*?"), cache=tmp_path / "folder's cache")


@pytest.fixture(params=["folder", "s3_moto", "s3_rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        store: Store = request.getfixturevalue("folder")
        return store
    endpoint_url, bucket = request.getfixturevalue(request.param)
    return Store(f"s3://{bucket}/{uuid4().hex}", endpoint_url, cache=tmp_path / "cache")


def shard_files(store: Store) -> list[Path]:
    return sorted(Path(store.root).glob("ledger/*/*.parquet"))


def add_singly(store: Store, numbers: range) -> None:
    for number in numbers:
        Ledger(store, TEACHER).add([entry(number, text=f"text {number}")])


def test_a_key_is_of_all_that_was_asked() -> None:
    parts = [(b"a", b"ab"), ("x", "1 x", " x", ""), ("", "x", '["yes"]'), (0, 1, 11), (0, 1, 11)]
    keys = [ledger_key(*asked) for asked in itertools.product(*parts)]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    assert {len(found) for found in keys} == {16}
    assert ledger_key(b"a", "Müller 日本", "", 0, 0) == ledger_key(b"a", "Müller 日本", "", 0, 0)


def test_what_is_added_comes_back_in_the_order_asked(store: Store, look: Look) -> None:
    first = entry(1, text="Müller 日本\n[x y]", finish_reason=None, max_tokens=7, asked_at=1.7e9 + 0.123456)
    scored = entry(2, text="")._replace(scores=(-0.1, -1e300, float("-inf")))
    Ledger(store, TEACHER).add([first, scored])
    Ledger(store, TEACHER).add([entry(3)])
    lookup = look(store)
    assert list(lookup.ledger.join(lookup.asked([2, 9, 1, 2]))) == [scored, None, first, scored]
    assert lookup.missing([2, 9, 1, 8, 2]) == [1, 3]
    assert json.loads(store.place.read(f"{lookup.ledger.folder}/teacher.json")) == TEACHER
    assert lookup.ledger.folder == f"ledger/{digest(TEACHER)[:16]}"
    assert tuple(SCHEMA.names) == Entry._fields


def test_an_empty_ledger_misses_everything_and_writes_nothing(store: Store, look: Look) -> None:
    lookup = look(store)
    lookup.ledger.add([])
    assert (lookup.texts([1, 2]), lookup.missing([1, 2]), lookup.texts([]), lookup.missing([])) == (
        [None, None],
        [0, 1],
        [],
        [],
    )
    assert (lookup.ledger.compact(), lookup.ledger.files(), store.place.list(lookup.ledger.folder)) == (0, [], [])


def test_another_teacher_has_another_ledger(folder: Store, look: Look) -> None:
    Ledger(folder, {**TEACHER, "revision": "def"}).add([entry(1)])
    assert look(folder).texts([1]) == [None]


def test_a_cut_completion_is_missing_only_under_a_larger_limit(folder: Store, look: Look) -> None:
    Ledger(folder, TEACHER).add([entry(1), entry(2, finish_reason="length"), entry(3, finish_reason="content_filter")])
    lookup = look(folder)
    assert lookup.missing([1, 2, 3, 4], max_tokens=64) == [3]
    assert lookup.missing([1, 2, 3, 4], max_tokens=65) == [1, 3]
    assert lookup.texts([2]) == ["a label"]


@pytest.mark.parametrize("compacted", [False, True])
def test_the_best_of_several_entries_counts_in_whatever_order_they_came(
    folder: Store, look: Look, compacted: bool
) -> None:
    for number, order in enumerate(itertools.permutations(range(4))):
        ranked = [
            entry(number, "ended", "stop", max_tokens=32, asked_at=5),
            entry(number, "ended later", "stop", max_tokens=32, asked_at=6),
            entry(number, "longest", "length", max_tokens=256, asked_at=3),
            entry(number, "cut", "length", max_tokens=64, asked_at=1),
        ]
        for place in order:
            Ledger(folder, TEACHER).add([ranked[place]])
    lookup = look(folder)
    if compacted:
        assert lookup.ledger.compact() == 96
        assert [count_rows(file) for file in shard_files(folder)] == [24]
    assert lookup.texts(list(range(24))) == ["ended"] * 24
    assert lookup.missing(list(range(24)), max_tokens=1000) == []


def test_half_a_surrogate_pair_does_not_take_its_shard_with_it(folder: Store, look: Look) -> None:
    Ledger(folder, TEACHER).add([entry(1, text="smile \ud83d"), entry(2)])
    assert look(folder).texts([1, 2]) == ["smile ?", "a label"]


def test_odd_facts_of_a_server_do_not_take_the_shard_with_them(folder: Store, look: Look) -> None:
    odd = Completion(key(1), 0, "up", "st\ud83dop", prompt_tokens=2**70, cached_tokens=-1, completion_tokens=True)
    Ledger(folder, TEACHER).add([entry_of(key(1), odd, 8), entry(2)])
    (found,) = look(folder).ledger.join(look(folder).asked([1]))
    assert found is not None
    assert found[2:7] == ("st?op", 8, 2**31 - 1, 0, 1)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "seen_before"), [(flip, False), (cut, False), (empty, False), (cut, True), (empty, True)]
)
def test_a_damaged_shard_loses_itself_only_and_is_named(
    folder: Store, look: Look, damage: Callable[[Path], None], seen_before: bool
) -> None:
    add_singly(folder, range(5))
    lookup, file = look(folder), shard_files(folder)[2]
    if seen_before:
        assert lookup.missing(list(range(5))) == []
    damage(file)
    assert lookup.missing(list(range(5))) == [2]
    assert lookup.texts(list(range(5))) == ["text 0", "text 1", None, "text 3", "text 4"]
    address = f"{folder.root}/{lookup.ledger.folder}/{file.name}"
    (sentence,) = lookup.ledger.damaged
    assert sentence == (
        f"ledger shard {address} is damaged (its content is not what its name says): "
        "its completions will be asked for again"
    )
    assert lookup.ledger.compact() == 4
    assert file in shard_files(folder)
    assert lookup.missing(list(range(5))) == [2]
    file.unlink()
    assert (lookup.missing(list(range(5))), lookup.ledger.damaged) == ([2], [])


def test_a_file_that_is_no_shard_is_named(folder: Store, look: Look, tmp_path: Path) -> None:
    add_singly(folder, range(1))
    write_rows(tmp_path / "other", ASKED, [{"position": 0, "key": key(0)}])
    lookup = look(folder)
    Shards(folder, lookup.ledger.folder).upload(tmp_path / "other", newest=shard_files(folder)[0].name)
    assert lookup.missing([0]) == []
    assert ["it has not the columns of a ledger" in sentence for sentence in lookup.ledger.damaged] == [True]


def test_a_bucket_s_shards_are_downloaded_once_and_verified(
    s3_moto: tuple[str, str], look: Look, tmp_path: Path
) -> None:
    store = Store(f"s3://{s3_moto[1]}/{uuid4().hex}", s3_moto[0], cache=tmp_path / "cache")
    add_singly(store, range(3))
    assert look(store).missing([0, 1, 2]) == []
    first, second, third = sorted(tmp_path.glob("cache/ledger/*/*.parquet"))
    flip(first)
    times = [file.stat().st_mtime_ns for file in (second, third)]
    store.place.write(f"{look(store).ledger.folder}/{third.name}", b"damaged in the bucket, whole in the cache")
    assert look(store).texts([0, 1, 2]) == ["text 0", "text 1", "text 2"]
    assert [file.stat().st_mtime_ns for file in (second, third)] == times
    third.unlink()
    lookup = look(store)
    assert lookup.missing([0, 1, 2]) == [2]
    assert third.name in lookup.ledger.damaged[0]
    assert lookup.ledger.compact() == 2
    assert lookup.missing([0, 1, 2]) == [2]
    assert not {first.name, second.name} & {file.name for file in first.parent.iterdir()}


def test_compaction_keeps_everything_and_comes_to_an_end(store: Store, look: Look) -> None:
    add_singly(store, range(12))
    assert look(store).ledger.compact() == 12
    files = look(store).ledger.files()
    assert len(files) == 1
    lookup = look(store)
    assert (lookup.ledger.compact(), lookup.ledger.files()) == (0, files)
    assert lookup.texts([*range(12), 12]) == [*(f"text {n}" for n in range(12)), None]
    add_singly(store, range(10, 14))
    assert lookup.ledger.compact() == 5
    assert lookup.texts(list(range(15))) == [*(f"text {n}" for n in range(14)), None]


def test_compaction_makes_pieces_of_bounded_size_and_leaves_full_ones(
    folder: Store, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.teachers.shards.PIECE_ROWS", 100)
    monkeypatch.setattr("retort.teachers.shards.BATCH_ROWS", 50)
    for start in range(0, 2_500, 50):
        Ledger(folder, TEACHER).add([entry(n, text=f"text {n}") for n in range(start, start + 50)])
    assert look(folder).ledger.compact() == 50
    sizes = sorted(count_rows(file) for file in shard_files(folder))
    assert sum(sizes) == 2_500
    assert len(sizes) > 1
    assert sizes[1] >= 100
    files = shard_files(folder)
    assert look(folder).ledger.compact() == 0
    assert shard_files(folder) == files
    assert look(folder).texts(list(range(2_500))) == [f"text {n}" for n in range(2_500)]


SCRIPT = """
import json, sys, time
from retort.store import Store
from retort.teachers.ledger import Entry, Ledger, LedgerWriter, ledger_key

job, root, teacher, first, last, delay = sys.argv[1:]
ledger = Ledger(Store(root), json.loads(teacher))
print("ready", flush=True)
sys.stdin.readline()
numbers = range(int(first), int(last))
keys = (ledger_key(b"shared", f"row {n}", "", 0, 0) for n in numbers)
entries = (Entry(key, f"text {n}", "stop", 64, 1, 1, 1, (), time.time()) for n, key in zip(numbers, keys))
if job == "write":
    with LedgerWriter(ledger, delay_seconds=float(delay)) as writer:
        for number, entry in zip(numbers, entries):
            writer.add(entry)
            print(number, time.time(), flush=True)
            time.sleep(0.002)
elif job == "add":
    for entry in entries:
        ledger.add([entry])
else:
    for _ in numbers:
        ledger.compact()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(folder: Store) -> Iterator[Start]:
    """A process that waits for a line, then does its job `first..last` on the same ledger."""
    started: list[subprocess.Popen[str]] = []

    def run(job: str, first: int, last: int, delay: float = 4.0) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            job,
            folder.root,
            json.dumps(TEACHER),
            str(first),
            str(last),
            str(delay),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0


def test_two_processes_append_at_once(folder: Store, look: Look, start: Start) -> None:
    processes = [start("write", 0, 300, 0.1), start("write", 200, 500, 0.1)]
    go(*processes)
    finish(*processes)
    assert len(shard_files(folder)) > 2
    assert look(folder).texts([*range(500), 500]) == [*(f"text {n}" for n in range(500)), None]


def test_a_killed_writer_loses_only_what_came_last(folder: Store, look: Look, start: Start) -> None:
    process = start("write", 0, 100_000, 0.5)
    go(process)
    wait_for(lambda: len(shard_files(folder)) >= 3)
    time.sleep(0.2)  # somewhere between two shards
    process.kill()
    assert process.stdout
    lines = [line.split() for line in process.stdout.read().splitlines()]
    added = {int(line[0]): float(line[1]) for line in lines if len(line) == 2}
    lost = [list(added)[position] for position in look(folder).missing(list(added))]
    assert lost == list(added)[len(added) - len(lost) :]
    # The last shard has all that came until it was begun, which was after the one before had been written.
    before_last = sorted(file.stat().st_mtime for file in shard_files(folder))[-2]
    assert all(added[number] > before_last for number in lost)
    assert len(added) > len(lost)


def test_compaction_while_another_process_appends_and_a_reader_reads(folder: Store, look: Look, start: Start) -> None:
    add_singly(folder, range(100))
    adding, first, second = start("add", 100, 500), start("compact", 0, 25), start("compact", 0, 25)
    go(adding, first, second)
    seen, lookups = 0, 0
    while adding.poll() is None or first.poll() is None or second.poll() is None:
        missing = look(folder).missing(list(range(500)))
        assert missing == list(range(500 - len(missing), 500))
        assert 500 - len(missing) >= max(seen, 100)
        seen, lookups = 500 - len(missing), lookups + 1
    finish(adding, first, second)
    assert lookups > 3
    lookup = look(folder)
    assert lookup.texts([*range(500), 500]) == [*(f"text {n}" for n in range(500)), None]
    lookup.ledger.compact()
    assert sum(count_rows(file) for file in shard_files(folder)) == 500
    assert lookup.ledger.damaged == []


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_writer_writes_by_itself_when_nothing_more_comes(folder: Store, look: Look) -> None:
    with LedgerWriter(Ledger(folder, TEACHER), delay_seconds=0.3) as writer:
        writer.add(entry(1))
        assert shard_files(folder) == []
        wait_for(lambda: len(shard_files(folder)) == 1)
        writer.add(entry(2))
        wait_for(lambda: len(shard_files(folder)) == 2)
    assert len(shard_files(folder)) == 2
    assert look(folder).missing([1, 2]) == []


def test_a_writer_writes_full_shards_at_once_and_the_rest_at_the_end(folder: Store, look: Look) -> None:
    with LedgerWriter(Ledger(folder, TEACHER), delay_seconds=3600, shard_entries=10) as writer:
        for number in range(10):
            writer.add(entry(number))
        wait_for(lambda: len(shard_files(folder)) == 1)
        writer.add(entry(10))
    assert [count_rows(file) for file in shard_files(folder)] == [10, 1]


def write_one(ledger: Ledger, passing: BaseException | None = None) -> None:
    with LedgerWriter(ledger) as writer:
        writer.add(entry(1))
        if passing:
            raise passing


@pytest.mark.parametrize("passing", [DataError("x"), KeyboardInterrupt()])
def test_a_writer_keeps_what_came_when_an_exception_passes(folder: Store, look: Look, passing: BaseException) -> None:
    with pytest.raises(type(passing)):
        write_one(Ledger(folder, TEACHER), passing)
    assert look(folder).missing([1]) == []


def test_a_bucket_that_cannot_be_reached_says_so(aws_environment: None, tmp_path: Path) -> None:
    ledger = Ledger(Store("s3://nowhere/x", "http://127.0.0.1:9", cache=tmp_path), TEACHER)
    with pytest.raises(StoreUnavailable):
        ledger.add([entry(1)])
    with pytest.raises(StoreUnavailable):
        ledger.files()


def unseen_as_folder(store: Store) -> Store:
    """The store as buckets are used: shards are downloaded into the cache, although it lies in a folder."""

    class Place:
        def __getattr__(self, name: str) -> object:
            return getattr(folder, name)

    folder, store._place = store.place, Place()  # type: ignore[assignment]
    return store


def test_a_process_with_an_older_listing_leaves_the_shards_that_another_has_cached_since(
    tmp_path: Path, look: Look
) -> None:
    ours, others = (look(unseen_as_folder(Store(str(tmp_path / "s"), cache=tmp_path / "cache"))) for _ in range(2))
    ours.ledger.add([entry(1)])
    listed = ours.ledger.files()
    others.ledger.add([entry(2)])
    assert others.missing([1, 2, 3]) == [2]
    ours.ledger._shards._look(listed)  # our process was busy downloading
    assert len(list(tmp_path.glob("cache/ledger/*/*.parquet"))) == 2
    assert others.missing([1, 2, 3]) == [2]


def test_a_cache_that_vanishes_is_filled_again(tmp_path: Path, look: Look) -> None:
    lookup = look(unseen_as_folder(Store(str(tmp_path / "s"), cache=tmp_path / "cache")))
    lookup.ledger.add([entry(1)])
    assert lookup.missing([1, 2]) == [1]
    for file in tmp_path.glob("cache/ledger/*/*.parquet"):
        file.unlink()
    assert lookup.missing([1, 2]) == [1]
    lookup.ledger._shards._download = lambda name: None  # type: ignore[method-assign]
    for file in tmp_path.glob("cache/ledger/*/*.parquet"):
        file.unlink()
    with pytest.raises(duckdb.Error):
        lookup.missing([1, 2])


def listings(store: Store, *found: list[str]) -> Shards:
    """Shards whose folder is listed as told, the last for ever."""
    answers = itertools.chain(found, itertools.repeat(found[-1]))
    shards = Shards(store, "ledger/any")
    shards._place = SimpleNamespace(list=lambda _: next(answers))  # type: ignore[assignment]
    return shards


def test_a_listing_counts_once_nothing_has_gone_since_the_one_before(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = "a.parquet", "b.parquet", "c.parquet"
    assert listings(folder, [], ["t.json", a], [a, b]).names() == [a]
    assert listings(folder, [a, b], [b], [], [b], [b, c], []).names() == [b]
    assert listings(folder, [a, b], [], [a, c], [a]).names() == [a, c]
    growing = ([f"{n:04}.parquet" for n in range(count)] for count in itertools.count())
    shards = listings(folder, [])
    shards._place.list = lambda _: next(growing)  # type: ignore[method-assign, union-attr]
    assert shards.names() == ["0000.parquet"], "others may write all the time"

    monkeypatch.setattr("retort.teachers.shards.LISTING_SECONDS", -1.0)
    with pytest.raises(StoreUnavailable, match=r"each listing of ledger .*any lacks files of the one before"):
        listings(folder, [a], [b]).names()


def block(store: Store) -> Path:
    """Nothing can be written to the ledger's folder until the file is gone."""
    in_the_way = Path(store.root) / "ledger"
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("a file where a folder should be")
    return in_the_way


def aside(store: Store) -> list[Path]:
    return sorted(store.cache.glob("ledger-aside/*/*.parquet"))


def test_an_outage_ends_no_writer_and_holds_nothing_in_memory(folder: Store, look: Look) -> None:
    in_the_way = block(folder)
    with LedgerWriter(Ledger(folder, TEACHER), delay_seconds=0.05) as writer:
        writer.add(entry(1))
        wait_for(lambda: len(aside(folder)) == 1)
        writer.add(entry(2))
        wait_for(lambda: len(aside(folder)) == 2)
        assert writer._num_held() == 0
        in_the_way.unlink()
        wait_for(lambda: len(shard_files(folder)) == 2)
        writer.add(entry(3))
    assert aside(folder) == []
    assert look(folder).missing([1, 2, 3]) == []
    assert (Path(folder.root) / look(folder).ledger.folder / "teacher.json").exists()


@pytest.mark.parametrize("has_disk", [True, False])
def test_leaving_a_writer_waits_for_an_outage_to_end(folder: Store, look: Look, has_disk: bool) -> None:
    in_the_way, failures = block(folder), itertools.count()
    ledger = Ledger(folder, TEACHER)
    set_aside = ledger.set_aside

    def at_last(entries: Sequence[Entry]) -> Path:
        if next(failures) == 2 or has_disk:
            in_the_way.unlink()
        if has_disk:
            return set_aside(entries)
        raise StoreUnavailable("the disk is full")

    ledger.set_aside = at_last  # type: ignore[method-assign]
    with LedgerWriter(ledger, delay_seconds=0.01) as writer:
        writer.add(entry(1))
    assert look(folder).missing([1]) == []


def test_an_outage_that_lasts_is_raised_and_the_next_run_adds_what_was_set_aside(
    folder: Store, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.teachers.ledger.OUTAGE_SECONDS", 0.0)
    in_the_way, added = block(folder), itertools.count()

    def label() -> None:
        with LedgerWriter(Ledger(folder, TEACHER), delay_seconds=0.01) as writer:
            while True:
                writer.add(entry(next(added)))
                time.sleep(0.01)

    told = rf"completions wait in {folder.cache}/ledger-aside/.* until the next run on this machine .*: cannot "
    with pytest.raises(StoreUnavailable, match=told):
        label()
    in_the_way.unlink()
    other = Store(f"{folder.root} 2", cache=folder.cache)
    assert look(other).missing([0]) == [0]
    assert len(aside(folder)) > 0, "what waits for one store goes into no other"
    assert look(folder).missing(list(range(next(added)))) == []
    assert aside(folder) == []


@pytest.mark.parametrize("has_disk", [True, False])
def test_a_last_write_that_fails_is_raised_but_hides_no_interrupt(
    folder: Store, look: Look, monkeypatch: pytest.MonkeyPatch, has_disk: bool
) -> None:
    monkeypatch.setattr("retort.teachers.ledger.OUTAGE_SECONDS", 0.0)
    in_the_way = block(folder)
    if not has_disk:
        folder.cache.write_text("a file where a folder should be")
    told = "completions wait in" if has_disk else "1 completions could not be kept in the ledger: cannot "
    for passing in (None, DataError("x")):
        with pytest.raises(StoreUnavailable, match=told):
            write_one(Ledger(folder, TEACHER), passing)
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt) as caught:
        write_one(Ledger(folder, TEACHER), KeyboardInterrupt())
    assert [note.startswith(told) for note in caught.value.__notes__] == [True]
    in_the_way.unlink()
    assert look(folder).missing([1]) == ([] if has_disk else [0])


def test_a_writer_holds_a_bounded_number_while_the_storage_hangs(folder: Store, look: Look) -> None:
    ledger, storage, took = Ledger(folder, TEACHER), threading.Event(), list[int]()
    add = ledger.add

    def hanging(entries: Sequence[Entry]) -> None:
        storage.wait()
        took.append(len(entries))
        add(entries)

    ledger.add = hanging  # type: ignore[method-assign]
    with LedgerWriter(ledger, delay_seconds=0.01, shard_entries=2) as writer:
        adding = threading.Thread(target=lambda: [writer.add(entry(number)) for number in range(50)])
        adding.start()
        try:
            wait_for(lambda: writer._num_held() == 8)
            adding.join(0.2)
            assert (adding.is_alive(), writer._num_held()) == (True, 8)
        finally:
            storage.set()
            adding.join()
    assert max(took) <= 8
    assert look(folder).missing(list(range(50))) == []
