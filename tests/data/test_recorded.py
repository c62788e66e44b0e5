"""Completions beside the rows of a pool, whatever ids and texts hold."""

import json
from pathlib import Path

from retort.data.recorded import Coverage, coverage, recorded
from retort.io.parquet import EXAMPLES, write_rows

SAID = {
    "n\0ul": "a\0b",
    "q'uote": "",
    "e\u0301": "'\"; DROP",
    "\u00e9": "x" * 100_000,
    " sp ": "\ud83d",
    "\U0001f600": "\U0001f600 \u2028",
}


def test_any_id_and_text_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows, path = tmp_path / "rows.parquet", tmp_path / "completions.jsonl"
    write_rows(rows, EXAMPLES, ({"example_id": one, "text": "t"} for one in [*SAID, "none"]))
    bodies = ((one, {"choices": [{"message": {"content": text}}]}) for one, text in reversed(SAID.items()))
    path.write_text("".join(json.dumps({"custom_id": one, "response": {"body": body}}) + "\n" for one, body in bodies))
    with recorded(str(path), None) as told:
        found = [one and (one.example_id, one.text, one.finish_reason) for one in told.beside(rows)]
    assert found == [*((one, text.replace("\ud83d", "?"), None) for one, text in SAID.items()), None]
    assert told.failures == {}


def test_a_file_without_a_completion(tmp_path: Path) -> None:
    rows, path = tmp_path / "rows.parquet", tmp_path / "completions.jsonl"
    write_rows(rows, EXAMPLES, [{"example_id": "a", "text": "t"}])
    path.write_text("no JSON\n")
    with recorded(str(path), None) as told:
        assert list(told.beside(rows)) == [None]
    assert [one.reason for one in told.failures.values()] == ["not-json"]


def test_which_rows_have_no_completion_and_which_completions_no_row(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    write_rows(rows, EXAMPLES, ({"example_id": one, "text": "t"} for one in "abcd"))
    assert coverage(iter(["x", "a", "z", "b", "x", "aside"]), rows, ["aside"]) == Coverage(2, "x", 2)
    assert coverage(iter(["a", "b", "c", "d"]), rows, []) == Coverage(0, None, 0)
    assert coverage(iter([]), rows, ["q"]) == Coverage(0, None, 4)
