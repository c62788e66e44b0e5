"""Rows that cannot be used: set aside in the pool, an error everywhere else."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retort.config import ChatConfig, ColumnsConfig, RegressionConfig
from retort.data import read_examples, read_rows_of
from retort.data.bad_rows import BadRow
from retort.data.reading import read_pool
from retort.errors import DataError
from retort.io.parquet import BAD_ROWS, RowWriter, read_rows
from retort.problems import problem_for
from retort.problems.base import Problem
from retort.problems.classification import Classification
from retort.records.base import Example

PROBLEM = cast(Problem, Classification(["bad", "good"]))
GOOD = [{"id": f"g{number}", "text": f"text {number}"} for number in range(3)]


def pool(path: Path | str) -> tuple[list[Example], list[BadRow]]:
    rows = list(read_pool(str(path), ColumnsConfig(), PROBLEM))
    return [row for row in rows if isinstance(row, Example)], [row for row in rows if isinstance(row, BadRow)]


def strict(path: Path) -> str:
    """What an error of the same file says as a test set without labels."""
    with pytest.raises(DataError) as caught:
        list(read_examples(str(path), ColumnsConfig(), PROBLEM, gold="optional"))
    return str(caught.value)


def lines(*rows: Mapping[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize(
    ("line", "reason", "example_id"),
    [
        (b'{"id": "x", "text": ""}', "empty-text", "x"),
        (b'{"id": "x", "text": " \\t"}', "empty-text", "x"),
        (b'{"id": "x", "text": null}', "null-text", "x"),
        (b'{"id": "x", "text": NaN}', "null-text", "x"),
        (b'{"id": "x", "body": "a"}', "no-text", "x"),
        (b"{}", "no-text", None),
        (b'{"id": "x", "text": 5}', "not-text", "x"),
        (b'{"id": "x", "text": ["a", 1]}', "not-text", "x"),
        (b'{"id": "x", "text": {"a": 1}}', "not-text", "x"),
        (b'{"id": "x", "text": true}', "not-text", "x"),
        (b'{"id": "x", "text": "a', "not-json", None),
        (b'{"id": "x" "text": "a"}', "not-json", None),
        (b"[1]", "not-json", None),
        (b'"a text"', "not-json", None),
        (b"<html>", "not-json", None),
        (b"[" * 100_000, "not-json", None),
        (b'{"id": "x", "text": "caf\xe9"}', "not-utf8", None),
        (b'{"id": "x", "text": "\xc3"}', "not-utf8", None),
        (b'{"id": "x", "text": "half \\ud83d"}', "not-unicode", "x"),
        (b'{"id": "g0", "text": "another"}', "duplicate-id", "g0"),
        (b'{"id": "x", "text": "a", "text": "b"}', "key-twice", None),
        (b'{"id": "x", "text": "a", "more": {"k": 1, "k": 2}}', "key-twice", None),
        (b'{"id": "x", "text": "a", "\\ud83d": 1, "\\ud83d": 2}', "key-twice", None),
        (b'{"id": null, "text": "a"}', "bad-id", None),
        (b'{"id": [1], "text": "a"}', "bad-id", None),
        (b'{"id": " ", "text": "a"}', "bad-id", None),
        (b'{"id": "x", "text": "a", "label": "ugly"}', "bad-gold", "x"),
        (b'{"id": "x", "text": "a", "label": ["good"]}', "bad-gold", "x"),
        (b'{"id": "x", "text": "a", "label": "\\ud83d"}', "bad-gold", "x"),
        (b'{"id": "\\ud83d", "text": "a"}', "not-unicode", None),
        (b"\x00", "not-json", None),
    ],
)
def test_a_line_is_set_aside_and_the_next_one_is_read(
    tmp_path: Path, line: bytes, reason: str, example_id: str | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD[0]) + line + b"\n" + lines(*GOOD[1:]))
    examples, (bad,) = pool(path)
    assert [example.example_id for example in examples] == ["g0", "g1", "g2"]
    assert (bad.place, bad.reason, bad.example_id) == (f"{path}, line 2", reason, example_id)
    assert bad.detail == strict(path).encode(errors="backslashreplace").decode()
    assert bad.detail.startswith(bad.place)
    assert bad.raw == line.decode(errors="backslashreplace")


def test_a_byte_that_is_not_utf8_is_kept_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "x", "text": "caf\xe9"}\r\n' + lines(GOOD[0]))
    _, (bad,) = pool(path)
    assert bad.raw == '{"id": "x", "text": "caf\\xe9"}'


def test_a_last_line_that_is_incomplete_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*GOOD) + b'{"id": "x", "te')
    examples, (bad,) = pool(path)
    assert (len(examples), bad.reason, bad.raw) == (3, "incomplete", '{"id": "x", "te')
    assert bad.detail == f"{path}: the file is cut in the middle: line 4 is incomplete; line 3 is the last good one"


def test_a_row_that_was_set_aside_does_not_take_an_id(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({**GOOD[0], "label": "ugly"}, GOOD[0]))
    examples, bad = pool(path)
    assert ([example.text for example in examples], len(bad)) == (["text 0"], 1)


def test_equal_texts_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "a"}, {"text": "b"}, {"text": "a"}))
    examples, (bad,) = pool(path)
    assert ([example.text for example in examples], bad.reason) == (["a", "b"], "duplicate-text")


def test_csv_goes_on_in_the_line_after_the_one_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'id,text\n1,"two\nlines"\n2,a,one too many\n3\n4,"never closed\n5,b\n6,"closed" wrongly\n7,caf\xe9\n8,\n'
        b'9,"quoted, with a comma"\n10,"a ""b"""\n2,c\n'
    )
    examples, bad = pool(path)
    assert [(one.example_id, one.text) for one in examples] == [
        ("1", "two\nlines"),
        ("5", "b"),
        ("9", "quoted, with a comma"),
        ("10", 'a "b"'),
        ("2", "c"),
    ]
    assert [(one.place.rpartition(" ")[2], one.reason, one.raw) for one in bad] == [
        ("4", "wrong-columns", "2,a,one too many"),
        ("5", "wrong-columns", "3"),
        ("6", "not-csv", '4,"never closed'),
        ("8", "not-csv", '6,"closed" wrongly'),
        ("9", "not-utf8", "7,caf\\xe9"),
        ("10", "null-text", "8,"),
    ]
    assert all(one.detail.startswith(f"{path}, line ") for one in bad)


def test_csv_whose_last_quote_is_never_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"a\n2,b\n3,c\n')
    examples, (bad,) = pool(path)
    assert ([example.example_id for example in examples], bad.reason, bad.raw) == (["2", "3"], "incomplete", '1,"a')
    path.write_text('id,"te"xt\n1,a\n')
    with pytest.raises(DataError, match=r"a.csv, line 1: not CSV"):
        pool(path)


def unchecked(texts: list[bytes]) -> "pa.Array[Any]":
    return pa.array(texts, pa.binary()).view(pa.string())


def test_parquet_values_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    far = pa.array([0, 2**60, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": unchecked([b"a", b"b \xff", b"c"]), "on": far}), path)
    examples, (bad,) = pool(path)
    assert [example.example_id for example in examples] == ["1", "3"]
    assert (bad.reason, bad.example_id, bad.detail) == ("not-utf8", "2", f"{path}, row 2: 'text' is not UTF-8")
    assert json.loads(bad.raw)["text"] == "b \\xff"
    assert "timestamp[us]" in json.loads(bad.raw)["on"]
    assert strict(path) == bad.detail
    _, (bad,) = (list(part) for part in pool_of_column(path, "on"))
    assert (bad.reason, bad.place) == ("unreadable", f"{path}, row 2")


def pool_of_column(path: Path, label: str) -> tuple[list[Example], list[BadRow]]:
    rows = list(read_pool(str(path), ColumnsConfig(text="id", label=label), cast(Problem, Anything())))
    return [row for row in rows if isinstance(row, Example)], [row for row in rows if isinstance(row, BadRow)]


class Anything:
    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> str:
        return str(row[columns.label])


def test_parquet_columns_that_nobody_reads_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "id": pa.array(["1", "2"]),
        "text": pa.array([b"caf\xc3\xa9", b"b"], pa.binary()),
        "date": pa.array([2**31 - 1, -(2**31)], pa.date32()),
        "when": pa.array([2**62, -(2**62)], pa.timestamp("us")),
        "note": unchecked([b"\xff", b"\xfe"]),
        "notes": pa.array([[b"\xff"], []], pa.list_(pa.binary())),
    }
    pq.write_table(pa.table(columns), path)
    examples, bad = pool(path)
    assert ([(one.example_id, one.text) for one in examples], bad) == ([("1", "café"), ("2", "b")], [])
    (_, first), _ = read_rows_of(str(path))
    assert list(first) == list(columns)
    for name, sentence in (
        ("date", "'date' cannot be read ("),
        ("note", "'note' is not UTF-8"),
    ):
        with pytest.raises(DataError) as caught:
            first[name]
        assert str(caught.value).startswith(f"{path}, row 1: {sentence}")
    assert first.get("gone") is None


def test_parquet_whose_column_names_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["1"], "text": ["a"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xfft"))
    assert strict(path).startswith(f"{path}: not a Parquet file, or damaged from the start (")


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    assert strict(path) == f"{path}: the column 'text' occurs twice"


@pytest.mark.parametrize("damaged", [gzip.compress(lines(*GOOD * 100))[:60], b"\x1f\x8b" + b"x" * 50])
def test_a_file_that_is_damaged_is_no_matter_of_rows(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"cut in the middle|damaged"):
        pool(path)


def test_gold_that_does_not_fit(tmp_path: Path) -> None:
    from retort.config import SlotsConfig

    path = tmp_path / "a.jsonl"
    slots = problem_for(SlotsConfig(kind="slots", intents={"PLAY": ["ARTIST"]}))
    rows = [
        {"id": "1", "text": "play queen", "intent": "PLAY", "bio": "O B-ARTIST"},
        {"id": "2", "text": "play queen", "intent": "PLAY", "bio": "O"},
        {"id": "3", "text": "play queen", "intent": "SING", "bio": ["O", "O"]},
        {"id": "4", "text": "play queen", "intent": "PLAY", "bio": 7},
        {"id": "5", "text": "play queen", "intent": "PLAY", "bio": {"O": 1}},
        {"id": "6", "text": "play queen", "intent": None, "bio": float("nan")},
    ]
    path.write_bytes(lines(*rows))
    read = list(read_pool(str(path), ColumnsConfig(), slots))
    assert [row.reason if isinstance(row, BadRow) else row.label is not None for row in read] == [
        True,
        *["bad-gold"] * 4,
        False,
    ]


def test_what_is_set_aside_is_written_in_bounded_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "set_aside.parquet"
    tracemalloc.start()
    with RowWriter(path, BAD_ROWS) as writer:
        for number in range(60):
            writer.write({"place": f"line {number}", "reason": "not-json", "raw": f"{number} " + "x" * 1_000_000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    rows = list(read_rows(path, ["place", "example_id"]))
    assert (len(rows), rows[59]) == (60, {"place": "line 59", "example_id": None})
    with RowWriter(tmp_path / "none.parquet", BAD_ROWS):
        pass
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "x", "text": null}', "null-text"),
        (b'{"id": "x", "text": NaN}', "null-text"),
        (b'{"id": "x", "text": " "}', "empty-text"),
        (b'{"id": "x"}', "no-text"),
        (b'{"id": "x", "text": []}', "no-conversation"),
        (b'{"id": "x", "text": 5}', "no-conversation"),
        (b'{"id": "x", "text": ["hello", "you"]}', "no-conversation"),
        (b'{"id": "x", "text": [{"role": "user", "content": ""}]}', "no-conversation"),
        (b'{"id": "x", "text": [{"role": "user", "content": "a\\ud83d"}]}', "no-conversation"),
        (
            b'{"id": "x", "text": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "no-conversation",
        ),
        (b'{"id": "x", "text": [{"role": "user", "content": "a", "content": "b"}]}', "key-twice"),
        (b'{"id": "x", "text": "[{\\"role\\": \\"user\\", \\"role\\": \\"tool\\"}]"}', "no-conversation"),
        (b'{"id": "x", "text": "hello", "label": {"role": "assistant", "tool_calls": 5}}', "bad-gold"),
        (b'{"id": "x", "text": "hello", "label": {"role": "user", "content": "hi"}}', "bad-gold"),
    ],
)
def test_a_pool_of_conversations_sets_bad_ones_aside(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(lines(*GOOD) + line + b"\n")
    chat = problem_for(ChatConfig(kind="chat"))
    *good, bad = read_pool(str(path), ColumnsConfig(), chat)
    assert [row.text for row in good if isinstance(row, Example)] == [
        f'[{{"content":"text {number}","role":"user"}}]' for number in range(3)
    ]
    assert isinstance(bad, BadRow)
    assert (bad.reason, bad.raw) == (reason, line.decode())
    assert bad.detail.startswith(f"{path}, line 4: ")


@pytest.mark.parametrize("label", [b"[1]", b"6", b'"many"', b"1e999", b"true", b'{"a": 1}'])
def test_a_pool_of_numbers_sets_bad_gold_aside(tmp_path: Path, label: bytes) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(lines(*GOOD) + b'{"id": "x", "text": "a", "label": ' + label + b"}\n")
    marks = problem_for(RegressionConfig(kind="regression", low=0, high=5, step=1))
    *good, bad = read_pool(str(path), ColumnsConfig(), marks)
    assert len(good) == 3
    assert isinstance(bad, BadRow)
    assert bad.reason == "bad-gold"
