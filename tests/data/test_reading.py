"""Every kind of source, and the error message for every way in which one can be wrong."""

import csv
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast
from uuid import uuid4

import boto3  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.config import ColumnsConfig, HubConfig, Source
from retort.data import fingerprint, read_examples, read_rows_of
from retort.errors import DataError, StoreUnavailable
from retort.problems.base import Problem
from retort.records.base import Example

ROWS = [{"id": str(n), "text": f"text {n}", "label": "odd" if n % 2 else "even"} for n in range(1, 21)]


CUT = "a.jsonl: the file is cut in the middle: line 3 is incomplete; line 2 is the last good one"
ARRAY_HINT = "); a JSON array must become one object on each line"
UTF8 = "save the file as UTF-8; it may be Latin-1 (Windows-1252), where this byte is 'é'"
LATIN = f"(byte 0xe9 at position 14); {UTF8}"


class OddOrEven:
    """The part of a problem that reading needs."""

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> str | None:
        label = row.get(columns.label)
        if label not in (None, "odd", "even"):
            raise DataError(f"label '{label}' is not one of odd, even")
        return label


PROBLEM = cast(Problem, OddOrEven())


def lines(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    """Write the rows in the format of the file's extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif path.suffix == ".gz":
        plain = write(path.with_suffix(""), rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    elif path.suffix == ".csv":
        write_csv(path, rows)
    else:
        path.write_bytes(lines(rows))
    return path


def read(source: Source) -> list[Mapping[str, Any]]:
    return [row for _, row in read_rows_of(source)]


def examples(source: Source, gold: str = "optional", columns: ColumnsConfig | None = None) -> list[Example]:
    return list(read_examples(source, columns or ColumnsConfig(), PROBLEM, gold=gold))  # type: ignore[arg-type]


def fault(path: Path | str, read: Callable[[str], object] = read) -> str:
    """The error message, with the path shortened to the file's name."""
    with pytest.raises(DataError) as caught:
        read(str(path))
    return str(caught.value).replace(f"{Path(path).parent}/", "")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet", "A.JSONL"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    assert read(str(path)) == ROWS
    assert examples(str(path), "required")[2] == Example("3", "text 3", "odd")
    first, last = [place for place, _ in read_rows_of(str(path))][:: len(ROWS) - 1]
    unit, start = ("row", 1) if name.endswith("parquet") else ("line", 2 if ".csv" in name else 1)
    assert (first, last) == (f"{path}, {unit} {start}", f"{path}, {unit} {start + 19}")


def test_folder_and_glob(tmp_path: Path) -> None:
    write(tmp_path / "part-2.jsonl", ROWS[10:15])
    write(tmp_path / "part-1.csv.gz", ROWS[:10])
    write(tmp_path / "sub" / "part-3.parquet", ROWS[15:])
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-1.crc").touch()
    assert read(str(tmp_path)) == ROWS
    assert read(f"{tmp_path}/") == ROWS
    assert read(f"{tmp_path}/part-*") == ROWS[:15]
    assert read(f"{tmp_path}/**/*.parquet") == ROWS[15:]
    places = [place for place, _ in read_rows_of(str(tmp_path))]
    assert places[0] == f"{tmp_path}/part-1.csv.gz, line 2"
    assert places[-1] == f"{tmp_path}/sub/part-3.parquet, row 5"


def test_relative_addresses_stay_relative_in_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "a.jsonl", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    for address, name in [("data/a.jsonl", "data/a.jsonl"), ("data", "data/a.jsonl"), ("*/a.jsonl", "data/a.jsonl")]:
        assert [place for place, _ in read_rows_of(address)] == [f"{name}, line 1"]


def test_variables_are_expanded_but_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", ROWS[:1])
    monkeypatch.setenv("DATA_HERE", str(tmp_path))
    for address in ("${DATA_HERE}/a.jsonl", "${DATA_HERE}", "${DATA_HERE}/*.jsonl"):
        assert [place for place, _ in read_rows_of(address)] == ["${DATA_HERE}/a.jsonl, line 1"]


def test_linked_file_and_file_with_a_wildcard_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "real" / "a[1].jsonl")
    assert read(str(path)) == ROWS
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.jsonl").symlink_to(path)
    assert read(str(tmp_path / "linked")) == ROWS


@pytest.mark.parametrize("server", ["s3_moto", "s3_rclone"])
def test_bucket(request: pytest.FixtureRequest, tmp_path: Path, server: str) -> None:
    endpoint_url, bucket = request.getfixturevalue(server)
    client, prefix = boto3.client("s3", endpoint_url=endpoint_url), uuid4().hex
    for name, rows in {"a.jsonl.gz": ROWS[:5], "b.parquet": ROWS[5:10], "c.csv": ROWS[10:]}.items():
        client.upload_file(str(write(tmp_path / name, rows)), bucket, f"{prefix}/{name}")
    address = f"s3://{bucket}/{prefix}"
    for source in (address, f"{address}/*"):
        placed = list(read_rows_of(source, endpoint_url))
        assert [row for _, row in placed] == ROWS
        assert placed[0][0] == f"{address}/a.jsonl.gz, line 1"
    assert [row for _, row in read_rows_of(f"{address}/c.csv", endpoint_url)] == ROWS[10:]
    before = fingerprint(address, endpoint_url)
    assert fingerprint(address, endpoint_url) == before
    client.upload_file(str(write(tmp_path / "c.csv", ROWS[11:])), bucket, f"{prefix}/c.csv")
    assert fingerprint(address, endpoint_url) != before
    for missing in (f"{address}/d.csv", "s3://no-such-bucket/a.csv"):
        with pytest.raises(DataError, match="there is no such file or folder"):
            list(read_rows_of(missing, endpoint_url))
    with pytest.raises(DataError, match="no file matches"):
        list(read_rows_of(f"{address}/*.json", endpoint_url))


def test_bucket_that_cannot_be_reached(aws_environment: None) -> None:
    with pytest.raises(StoreUnavailable, match=r"http://127.0.0.1:9 cannot be reached"):
        list(read_rows_of("s3://b/a.jsonl", "http://127.0.0.1:9"))


def test_hub_reads_a_folder_as_datasets_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set" / "train.jsonl")
    hub = HubConfig(hub=str(tmp_path / "set"))
    placed = list(read_rows_of(hub))
    assert [row for _, row in placed] == ROWS
    assert placed[2][0] == f"{tmp_path / 'set'} (train), row 3"
    assert fingerprint(hub) != fingerprint(hub.model_copy(update={"revision": "abc"}))
    with pytest.raises(DataError, match=r"set \(nosuch\): .*nosuch"):
        list(read_rows_of(hub.model_copy(update={"split": "nosuch"})))
    with pytest.raises(DataError, match=r"missing \(train\): "):
        list(read_rows_of(HubConfig(hub=str(tmp_path / "missing"))))


def test_fingerprint_of_a_hub_folder_follows_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder / "train-1.jsonl", ROWS[:10])
    hub = HubConfig(hub=str(folder))
    before = fingerprint(hub)
    assert fingerprint(hub) == before
    moved = HubConfig(hub=str(shutil.copytree(folder, tmp_path / "moved")))
    assert fingerprint(moved) == before
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()
    assert fingerprint(hub) == before, "datasets ignores hidden files"
    write(folder / "train-1.jsonl", ROWS[:11])
    grown = fingerprint(hub)
    write(folder / "more" / "train-2.jsonl", ROWS[11:])
    assert len({before, grown, fingerprint(hub)}) == 3


PINNED = "0" * 39 + "a"


@pytest.fixture
def hub_commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, str]]]:
    """A hub with answers set by the test: (HTTP status, commit or error code) by revision."""
    answers: dict[str, tuple[int, str]] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith("/api/datasets/org/set/revision/")
            status, value = answers[self.path.rpartition("/")[2]]
            self.send_response(status)
            if status != 200:
                self.send_header("X-Error-Code", value)
            self.end_headers()
            self.wfile.write(json.dumps({"id": "org/set", "sha": value}).encode())

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield answers
        server.shutdown()
        thread.join()


def test_fingerprint_of_a_hub_data_set_follows_its_commit(hub_commits: dict[str, tuple[int, str]]) -> None:
    main, pinned = HubConfig(hub="org/set"), HubConfig(hub="org/set", revision=PINNED)
    hub_commits["main"] = (200, PINNED)
    before = fingerprint(main)
    assert fingerprint(main) == before == fingerprint(pinned), "a commit needs no answer from the hub"
    hub_commits["main"] = (200, "b" * 40)
    assert fingerprint(main) != before
    for answer, kind, sentence in (
        ((404, "RepoNotFound"), DataError, "org/set: the hub has no such data set, or does not let you read it"),
        ((404, "RevisionNotFound"), DataError, "org/set: the hub has no revision 'main' of this data set"),
        ((500, "Any"), StoreUnavailable, "org/set: the hub does not answer (Server error '500"),
    ):
        hub_commits["main"] = answer
        with pytest.raises(kind, match=re.escape(sentence)):
            fingerprint(main)
    with pytest.raises(DataError, match="no such folder, and not the name of a data set on a hub"):
        fingerprint(HubConfig(hub="/no/such/folder"))


def test_fingerprint_needs_a_hub_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(StoreUnavailable, match="org/set: the hub does not answer"):
        fingerprint(HubConfig(hub="org/set"))


def test_fingerprint_of_plain_files_never_changes(tmp_path: Path) -> None:
    """The keys of stored artifacts depend on it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n')
    assert fingerprint(str(path)) == "a2cdfe35bc4f2291d1dc3caa806d92721ac8bca0ca83bac019aa6c3113bcbffb"


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    one, same = write(tmp_path / "one" / "a.jsonl"), write(tmp_path / "two" / "b.jsonl")
    assert fingerprint(str(one)) == fingerprint(str(same)) == fingerprint(str(one.parent))
    write(same, ROWS[1:])
    assert fingerprint(str(one)) != fingerprint(str(same))
    with pytest.raises(DataError):
        fingerprint(str(tmp_path / "missing"))


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS[:1]) + b"\n  \r\n" + lines(ROWS[1:2]).rstrip())
    assert [place for place, _ in read_rows_of(str(path))] == [f"{path}, line 1", f"{path}, line 4"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert read(str(path)) == []


def test_missing(tmp_path: Path) -> None:
    assert fault(tmp_path / "a.jsonl") == "a.jsonl: there is no such file or folder"
    assert fault(tmp_path / "*.jsonl") == "*.jsonl: no file matches this pattern"
    (tmp_path / "empty").mkdir()
    assert fault(tmp_path / "empty") == "empty: the folder holds no files"
    assert "unknown protocol" in fault("nonsense://x/a.jsonl").lower() or "Protocol not known" in fault("nonsense://x")


def test_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    assert fault(tmp_path / "a.xlsx") == "a.xlsx: spreadsheets are not read; save it as CSV (UTF-8)"
    (tmp_path / "a.xlsx").unlink()
    (tmp_path / "a.docx").touch()
    allowed = (
        ".jsonl, .ndjson, .json, .csv, .tsv, .conll, .iob, .iob2, .bio, .mrg, .ptb, .parquet, all but .parquet also"
    )
    said = fault(tmp_path / "a.docx")
    assert said.startswith(
        f"a.docx: the extension says no format that can be read; allowed: {allowed} compressed (.gz, "
    )
    (tmp_path / "b.jsonl").touch()
    assert fault(tmp_path, read).endswith("a pattern takes only some files of a folder (pool/*.parquet)")


@pytest.mark.parametrize(
    ("third", "sentence"),
    [
        (b"not json\n", "a.jsonl, line 3: not JSON (Expecting value at column 1)"),
        (b"[\n", "a.jsonl, line 3: not JSON (Expecting value at column 2" + ARRAY_HINT),
        (b"[1]\n", "a.jsonl, line 3: a JSON array where an object {...} is needed; write its objects one on each line"),
        (b'"x"\n', "a.jsonl, line 3: a JSON string where an object {...} is needed"),
        (b"[" * 100_000 + b"\n", "a.jsonl, line 3: not JSON (nested too deeply" + ARRAY_HINT),
        ('{"text": "café"}\n'.encode("latin-1"), "a.jsonl, line 3: not UTF-8 " + LATIN),
        (b'{"id": "3", "te', CUT),
        ('{"id": "é'.encode()[:-1], CUT),
    ],
)
def test_bad_line(tmp_path: Path, third: bytes, sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(ROWS[:2]) + third + (lines(ROWS[3:]) if third.endswith(b"\n") else b""))
    assert fault(path) == sentence


def test_only_line_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"id": "3", "te')
    assert fault(tmp_path / "a.json").startswith("a.json, line 1: not JSON (Unterminated string")


def gzip_rows(path: Path, num_rows: int = 5000) -> bytes:
    rows = [{"id": str(n), "text": f"text {n * 7919 % 10007}"} for n in range(num_rows)]
    path.write_bytes(gzip.compress(lines(rows), mtime=0))
    return path.read_bytes()


def test_gzip_cut_in_the_middle_names_the_last_good_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip_rows(path)[:10_000])
    good: list[str] = []
    with pytest.raises(DataError) as caught:
        good.extend(place for place, _ in read_rows_of(str(path)))
    assert str(caught.value) == f"{path}: the file is cut in the middle; line {len(good)} is the last good one"
    assert len(good) > 1000
    path.write_bytes(gzip_rows(path)[:12])
    assert fault(path) == "a.jsonl.gz: the file is cut in the middle; not one line is left"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_gzip_with_a_flipped_byte_is_named_as_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = gzip_rows(path) if "json" in name else write(path, ROWS * 300).read_bytes()
    sentences = set()
    for position in range(len(data) // 4, len(data), len(data) // 15):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        sentences.add(fault(path))
    assert sentences
    for sentence in sentences:
        # A flipped byte can also make the data seem longer than they are, and thus truncated.
        assert "the gzip data are damaged" in sentence or "cut in the middle" in sentence
        assert "line " in sentence


def test_gzip_with_a_wrong_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = bytearray(gzip_rows(path, 100))
    data[-8] ^= 1
    path.write_bytes(data)
    assert fault(path).startswith("a.jsonl.gz: the gzip data are damaged (CRC check failed")
    assert fault(path).endswith("noticed after line 100")


def test_names_that_are_wrong_about_gzip(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(lines(ROWS))
    assert fault(tmp_path / "a.jsonl.gz") == "a.jsonl.gz: its name ends in .gz, but it is not gzip data"
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(lines(ROWS)))
    assert fault(tmp_path / "a.jsonl") == "a.jsonl: this is gzip data; its name must end in .gz"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id,text\n1,a,b\n", "a.csv, line 2: 3 fields where the header has 2"),
        ('id,text\n1,"two\nlines"\n2\n', "a.csv, line 4: 1 fields where the header has 2"),
        ('id,text\n1,"a\n', "a.csv: the file is cut in the middle: the row that begins in line 2 is incomplete"),
        ('id,text\n1,"a"b\n', "a.csv, line 2: not CSV (',' expected after '\"')"),
        ("id,id\n1,a\n", "a.csv, line 1: in the header, the column 'id' occurs twice"),
        ("id,\n1,a\n", "a.csv, line 1: in the header, a column has no name"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert fault(tmp_path / "a.csv") == sentence


def test_csv_with_quotes_and_empty_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text,label\r\n1,"a ""b"",\nc",\r\n\r\n2,d,odd\r\n')
    assert list(read_rows_of(str(path))) == [
        (f"{path}, line 2", {"id": "1", "text": 'a "b",\nc', "label": None}),
        (f"{path}, line 5", {"id": "2", "text": "d", "label": "odd"}),
    ]
    path.write_bytes("id,text\n1,café\n".encode("latin-1"))
    assert fault(path) == f"a.csv, line 2: not UTF-8 (byte 0xe9 at position 6); {UTF8}"


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"nonsense" * 100)
    assert fault(path).startswith("a.parquet: not a Parquet file, or damaged from the start (")
    rows = [{"id": str(n), "text": f"text {n * 7919 % 10007}"} for n in range(9000)]
    data = bytearray(write(path, rows).read_bytes())
    write_at = len(data) // 2
    data[write_at : write_at + 400] = b"\xff" * 400
    path.write_bytes(data)
    assert "not a Parquet file, or damaged" in fault(path)
    path.write_bytes(data[:write_at])
    assert "not a Parquet file, or damaged" in fault(path)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"id": "3"}, "no column 'text' for the text; its columns are 'id'"),
        ({}, "no column 'text' for the text; its columns are none"),
        ({"id": "3", "text": ""}, "the text ('text') is empty"),
        ({"id": "3", "text": " \n"}, "the text ('text') is empty"),
        ({"id": "3", "text": None}, "the text ('text') is empty"),
        ({"id": "3", "text": 5}, "'text' is 5, where a text is needed"),
        ({"id": "3", "text": "\ud83d"}, "'text' holds half of a surrogate pair ('\\ud83d')"),
        ({"id": None, "text": "x"}, "the id ('id') is None, where a string or a number is needed"),
        ({"id": [1], "text": "x"}, "the id ('id') is [1], where a string or a number is needed"),
        ({"id": True, "text": "x"}, "the id ('id') is True, where a string or a number is needed"),
        ({"id": "", "text": "x"}, "the id ('id') is '', where a string or a number is needed"),
        ({"id": "3", "text": "x"}, "no gold label, which is needed here; its columns are 'id', 'text'"),
        ({"id": "3", "text": "x", "label": "prime"}, "label 'prime' is not one of odd, even"),
        ({"id": "1", "text": "x", "label": "odd"}, "the id '1' is already that of a.jsonl, line 1"),
    ],
)
def test_row_that_breaks_the_contract(tmp_path: Path, row: dict[str, object], sentence: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([*ROWS[:2], row]))
    found = fault(path, lambda source: examples(source, "required")).replace(f"{tmp_path}/", "")
    assert found == f"a.jsonl, line 3: {sentence}"


def test_duplicate_id_in_another_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ROWS[:5])
    write(tmp_path / "b.csv", ROWS[4:])
    found = fault(tmp_path, examples)
    assert found.endswith("b.csv, line 2: the id '5' is already that of " + f"{tmp_path.name}/a.jsonl, line 5")


def test_rows_without_id_are_named_by_their_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "abc"}, {"text": "abd"}]))
    assert [example.example_id for example in examples(str(path))] == ["ba7816bf8f01cfea", "a52d159f262b2c6d"]
    path.write_bytes(lines([{"text": "abc"}, {"text": "abc"}]))
    assert "a.jsonl, line 2: the same text as a.jsonl, line 1; rows without an id ('id')" in fault(
        path, examples
    ).replace(f"{tmp_path}/", "")


def test_column_names_and_numbers_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"key": 7, "query": "x", "kind": "odd"}, {"key": 8.5, "query": "y"}]))
    columns = ColumnsConfig(id="key", text="query", label="kind")
    assert examples(str(path), columns=columns) == [Example("7", "x", "odd"), Example("8.5", "y", None)]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for number in range(40_000):
            file.write(lines([{"id": str(number), "text": "x" * 1000}]))
    tracemalloc.start()
    count = sum(1 for _ in read_rows_of(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < 4 * 2**20


def test_rows_before_a_failure_come_first_and_ids_are_compared_with_all_before(tmp_path: Path) -> None:
    rows = [{"id": f"r{number}", "text": f"text {number}"} for number in range(3000)]
    path = tmp_path / "pool.jsonl"
    path.write_bytes(lines([*rows, {"id": "r7", "text": "again"}, {"id": "r2999", "text": "again"}]) + b'{"id": "cut')
    found = read_examples(str(path), ColumnsConfig(), PROBLEM, gold="optional")
    assert [next(found).example_id for _ in rows] == [row["id"] for row in rows]
    with pytest.raises(DataError, match=r"line 3001: the id 'r7' is already that of .*pool.jsonl, line 8$"):
        next(found)
    path.write_bytes(lines(rows[:10]) + b'{"id": "cut')
    found = read_examples(str(path), ColumnsConfig(), PROBLEM, gold="optional")
    assert len([next(found) for _ in range(10)]) == 10
    with pytest.raises(DataError, match="is cut in the middle"):
        next(found)
