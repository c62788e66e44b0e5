"""Recorded completions are read like those that are asked for, and it is counted what had to be salvaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import MckdConfig
from retort.errors import StageFailed
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.checks import resolve
from retort.recipes.mckd.steps import ingest, label_recorded
from retort.store import Manifest
from retort.store.opening import open_store

TREES = {"kind": "constituency", "labels": ["S", "NP"], "tags": False}
CLASSES = {"kind": "classification", "labels": ["bad", "good"]}
FREE = {"kind": "text"}
ROWS = {"constituency": "(S a b c d)", "classification": "good", "text": "hello"}
Completions = list[tuple[str, str]]
"""(text, finish_reason)"""


def labeled(
    folder: Path, problem: dict[str, Any], completions: Completions, least: float = 0.0
) -> tuple[list[dict[str, Any]], Manifest, dict[str, str]]:
    """The labels, their manifest, and the reasons of failures by row."""
    gold = ROWS[problem["kind"]]
    lines = {
        "labeled": [{"id": "l0", "text": "a b c d", "label": gold}, {"id": "l1", "text": "a b c d", "label": gold}],
        "unlabeled": [{"id": f"u{number}", "text": "a b c d"} for number in range(len(completions))],
        "test": [{"id": "t0", "text": "a b c d", "label": gold}],
        "completions": [
            {
                "custom_id": f"u{number}",
                "response": {"body": {"choices": [{"message": {"content": text}, "finish_reason": reason}]}},
            }
            for number, (text, reason) in enumerate(completions)
        ],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    values = {
        "name": "recorded",
        "problem": problem,
        "data": {role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")},
        "teacher": {
            "kind": "recorded",
            "completions": str(folder / "completions.jsonl"),
            "min_success_ratio": least,
        },
        "student": {"kind": "seq2seq", "model": "nowhere", "target": "text", "decoder_layers": 1},
        "store": {"root": str(folder / "store")},
        "execution": {"device": "cpu"},
    }
    (folder / "config.json").write_text(json.dumps(values))
    return read_again(folder)


def read_again(folder: Path) -> tuple[list[dict[str, Any]], Manifest, dict[str, str]]:
    """See `labeled`, of files that are there."""
    config = resolve(MckdConfig.model_validate_json((folder / "config.json").read_text()))
    whole = {"without": None, "labeled": None}  # with the texts of the labeled set
    pool = made_or_found(config, ingest(config, "unlabeled").model_copy(update=whole))
    step = label_recorded(config, "stage0/pseudolabels", config.teacher, pool)  # type: ignore[arg-type]
    ref, store = make(config, step, 0, lambda *_: None), open_store(config.store)
    found = Pseudolabels.open(store, ref)
    rows = list(found.rows())
    assert step.num_labels(store) == len(rows)
    failures = {row["example_id"]: row["reason"] for row in found.failures()}
    return rows, store.manifest_of(ref), failures


def test_wrapped_labels_are_found(tmp_path: Path) -> None:
    said = ["<think>hm</think>\nbad", "```json\ngood\n```", "Label: bad", '"good"', "bad", "neither"]
    rows, manifest, failures = labeled(tmp_path, CLASSES, [(text, "stop") for text in said])
    assert [row["label"] for row in rows] == ["bad", "good", "bad", "good", "bad"]
    assert {row["confidence"] for row in rows} == {1.0}
    assert manifest.counts == {"asked": 6, "unknown-label": 1, "salvaged": 4, "failures": 1}
    assert failures == {"u5": "unknown-label"}


def test_trees_are_mended_and_their_share_is_known(tmp_path: Path) -> None:
    completions = [
        ("(S (NP a b) c d)", "stop"),
        ("(S (NP a b)) c d)", "stop"),
        ("(S (NP a b (NP c", "length"),
        ("(S (NP x", "length"),
    ]
    rows, manifest, failures = labeled(tmp_path, TREES, completions)
    assert [(row["label"], row["confidence"]) for row in rows] == [
        ("(S (NP a b) c d)", 1.0),
        ("(S (NP a b) c d)", 1.0),
        ("(S (NP a b (NP c)) d)", 0.75),
    ]
    assert manifest.counts == {"asked": 4, "cut-short": 1, "salvaged": 2, "cut": 1, "failures": 1}
    assert failures == {"u3": "cut-short"}


def test_half_a_text_is_no_label(tmp_path: Path) -> None:
    completions = [
        ("hello unlab", "length"),
        ("hello", "content_filter"),
        ("<think>Let me see, it could be", "stop"),
        ("<think>Let me see.</think>\nhello", "stop"),
    ]
    rows, manifest, failures = labeled(tmp_path, FREE, completions)
    assert [row["label"] for row in rows] == ["hello"]
    assert failures == {"u0": "cut-short", "u1": "filtered", "u2": "only-thoughts"}
    assert manifest.counts["salvaged"] == 1


def test_too_few_labels_are_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"only 0 of 2 rows .* reasons: cut-short 1, filtered 1"):
        labeled(tmp_path, FREE, [("hello unlab", "length"), ("hello", "content_filter")], least=0.9)


def test_completions_of_any_order_that_occur_twice_or_failed(tmp_path: Path) -> None:
    """More than are looked up together; of two with one id the first counts, wherever the other is."""
    count = 2500
    rows, _, failures = labeled(tmp_path, CLASSES, [("good" if n % 3 else "neither", "stop") for n in range(count)])
    path = tmp_path / "completions.jsonl"
    lines = path.read_text().splitlines()
    again, other = (json.loads(lines[n]) for n in (4, 7))
    again["response"]["body"]["choices"][0]["message"]["content"] = "bad"
    failed = [{"custom_id": f"u{n}", "error": {"message": "busy"}} for n in (6, 8)]  # u6 has another, which is no label
    lines = [*reversed(lines), *map(json.dumps, (again, *failed, other, again)), "no JSON"]
    del lines[count - 1 - 8]
    path.write_text("".join(f"{line}\n" for line in lines))
    found, manifest, known = read_again(tmp_path)
    assert [row for row in found if row["example_id"] != "u8"] == [row for row in rows if row["example_id"] != "u8"]
    assert "u8" not in {row["example_id"] for row in found}
    first = {"u4 (again)": "duplicated", "u6": "unknown-label", "u8": "error", "u7 (again)": "duplicated"}
    assert list(known.items())[:4] == list(first.items())
    assert known == {**first, f"{path}, line {len(lines)}": "not-json", **failures}
    assert manifest.counts == {"asked": count, "unknown-label": 834, "error": 1, "failures": 835}
