"""Completions: a bad line does not stop the reading, a damaged file does."""

import gzip
import json
from pathlib import Path

import pytest

from retort.data.completions import BadLine, read_completions
from retort.errors import DataError
from retort.records.base import RecordedCompletion


def answer(custom_id: str, **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def choice(text: object, finish_reason: str = "stop") -> list[object]:
    return [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}]


GOOD = answer("1", choices=choice("hello"), usage={"prompt_tokens": 5, "completion_tokens": 2})
BAD: list[tuple[str, str, str | None]] = [
    ("not json", "not-json", None),
    ("[1]", "not-json", None),
    (json.dumps({"response": {}}), "no-custom-id", None),
    (json.dumps({"custom_id": 5}), "no-custom-id", None),
    (json.dumps({"custom_id": "a", "response": {"status_code": 429, "body": {}}}), "http-429", "a"),
    (json.dumps({"custom_id": "b", "response": None, "error": {"code": "batch_expired"}}), "error", "b"),
    (json.dumps({"custom_id": "c", "response": None}), "no-choices", "c"),
    (json.dumps(answer("d", choices=[])), "no-choices", "d"),
    (json.dumps(answer("e", choices=choice(None))), "no-choices", "e"),
    (json.dumps(answer("f", choices="x")), "no-choices", "f"),
    (json.dumps({"custom_id": "g", "response": {"body": None}}), "no-choices", "g"),
]


def test_bad_lines_do_not_end_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_text("\n\n".join([raw for raw, _, _ in BAD] + [json.dumps(GOOD)]))
    *bad, good = read_completions(str(path))
    assert good == RecordedCompletion("1", "hello", "stop", 5, 2)
    assert all(isinstance(line, BadLine) for line in bad)
    assert [(line.raw, line.reason, line.example_id) for line in bad if isinstance(line, BadLine)] == BAD
    assert isinstance(bad[1], BadLine)
    assert (bad[1].place, bad[1].detail) == (f"{path}, line 3", f"{path}, line 3: not a JSON object")


def test_cut_short_empty_and_plain_completions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl.gz"
    rows = [
        answer("1", choices=choice("hel", "length")),
        answer("2", choices=choice("")),
        answer("3", choices=[{"text": "x"}]),
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert list(read_completions(str(path))) == [
        RecordedCompletion("1", "hel", "length"),
        RecordedCompletion("2", "", "stop"),
        RecordedCompletion("3", "x"),
    ]


def test_bytes_that_are_not_utf8_cost_one_line(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_bytes(b'{"custom_id": "\xe9\n' + json.dumps(GOOD).encode())
    bad, good = read_completions(str(path))
    assert isinstance(bad, BadLine)
    assert bad.reason == "not-json"
    assert isinstance(good, RecordedCompletion)


def test_missing_and_damaged_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        list(read_completions(str(tmp_path / "none.jsonl")))
    path = tmp_path / "completions.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode() * 100)[:-20])
    with pytest.raises(DataError, match="cut in the middle"):
        list(read_completions(str(path)))


def test_halves_of_surrogate_pairs_and_odd_counts_do_not_survive(tmp_path: Path) -> None:
    """JSON can express both; the tables that completions and failures are kept in cannot."""
    path = tmp_path / "completions.jsonl"
    odd = answer("\ud83d", choices=choice("hell\ud83d"), usage={"prompt_tokens": -5, "completion_tokens": "2"})
    failed = {"custom_id": "2", "response": None, "error": {"message": "\udc00"}}
    path.write_text("\n".join(map(json.dumps, (odd, failed))))
    first, second = read_completions(str(path))
    assert first == RecordedCompletion("?", "hell?", "stop", 0, 0)
    assert isinstance(second, BadLine)
    second.detail.encode()
