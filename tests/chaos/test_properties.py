"""Whatever comes in is read, refused in one sentence, or set aside with its raw text: never an exception of a library.

`make fuzz` tries the same properties for as long as it is told to (fuzz.py).
"""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from any_step import AnyStep
from hostile import PROBLEMS, as_yaml, changed, completions, damaged, json_lines, json_values, texts, yaml_values
from retort.config import ColumnsConfig
from retort.data.completions import BadLine, read_completions
from retort.data.lines import storable
from retort.data.reading import read_examples
from retort.errors import ConfigError, DamagedArtifact, DataError
from retort.io.parquet import EXAMPLES, FAILURES, PSEUDOLABELS
from retort.recipes import load_config
from retort.records.base import ParseFailure
from retort.store import StepOutput, Store
from retort.store.runs import RunRecord, keep_run, runs
from retort.teachers.endpoint.chat import MalformedResponse, MissingLogprobs, parse_response
from retort.teachers.ledger import Ledger, entry_of
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Turn
from retort.teachers.salvage import parse_completion

TRIES = os.environ.get("RETORT_FUZZ_EXAMPLES")
"""How many inputs are tried; set by fuzz.py only, so that the tests always try the same few."""
tried = settings(
    max_examples=int(TRIES or 60),
    derandomize=not TRIES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
problems = st.sampled_from(sorted(PROBLEMS))
finish_reasons = st.sampled_from([None, "stop", "length", "content_filter", "tool_calls"])


@tried
@given(problems, texts, completions, finish_reasons)
def test_any_completion_is_a_label_or_a_reason(
    kind: str, text: str, completion: str, finish_reason: str | None
) -> None:
    problem = PROBLEMS[kind]
    reading = parse_completion(problem, text, completion, finish_reason)
    assert 0 <= reading.covered <= 1
    label = reading.outcome
    if isinstance(label, ParseFailure):
        assert label.raw == completion
        assert label.reason
        assert label.detail
        return
    assert finish_reason != "content_filter"
    assert problem.parse(text, problem.render(text, label)) == label, "a label is written so that it is read again"
    assert problem.matches(label, label)
    assert problem.parts(label)
    if problem.classes:
        assert problem.allowed(len(problem.targets(text, label))).shape[1] == len(problem.classes)


@tried
@given(problems, texts, completions, finish_reasons)
def test_what_a_completion_gives_can_be_written_down(
    kind: str, text: str, completion: str, finish_reason: str | None
) -> None:
    outcome = parse_completion(PROBLEMS[kind], text, storable(completion), finish_reason).outcome
    if isinstance(outcome, ParseFailure):
        failure = outcome
        row = {"example_id": "1", "reason": failure.reason, "detail": failure.detail, "raw": failure.raw}
        pa.RecordBatch.from_pylist([row], schema=FAILURES)
    else:
        row = {"example_id": "1", "text": text, "label": outcome}
        pa.RecordBatch.from_pylist([row], schema=PSEUDOLABELS)


ROW = {"id": "1", "text": "play cat", "label": "up", "intent": "PlayMusic", "tags": "O B-artist", "x": [{"y": 1}]}
COLUMNS = ColumnsConfig(id="id", text="text", label="label", intent="intent", tags="tags")
rows = changed(ROW, json_values) | st.dictionaries(st.sampled_from(sorted(ROW)), json_values)


def check_examples(file: Path, kind: str) -> None:
    try:
        read = list(read_examples(str(file), COLUMNS, PROBLEMS[kind], gold="optional"))
    except DataError as error:
        is_one_sentence(str(error))
        return
    for example in read:
        pa.RecordBatch.from_pylist([{"example_id": example.example_id, "text": example.text}], schema=EXAMPLES)
        if example.label is not None:
            rendered = PROBLEMS[kind].render(example.text, example.label)
            pa.array([example.label, rendered], pa.string())


def is_one_sentence(message: str) -> None:
    assert message
    assert "Traceback" not in message
    assert len(message) < 2000


@tried
@given(problems, st.lists(rows, max_size=4))
def test_any_row_of_json_is_an_example_or_one_sentence(kind: str, rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_bytes(json_lines(rows))
        check_examples(file, kind)


CSV = b'\xef\xbb\xbfid,text,label,intent,tags\r\n1,"play ""cat""\nnow",up,PlayMusic,O\r\n2,rome,down,,\r\n'
PARQUET = pa.BufferOutputStream()
pq.write_table(pa.Table.from_pylist([{"id": 1, "text": "cat", "label": "up", "d": {"a": [1]}}] * 3), PARQUET)
FILES = {
    "rows.jsonl": json_lines([ROW, {**ROW, "id": 2}, {**ROW, "id": 3, "text": "é😀"}]),
    "rows.csv": CSV,
    "rows.parquet": PARQUET.getvalue().to_pybytes(),
}
damaged_files = st.sampled_from(sorted(FILES)).flatmap(
    lambda name: st.tuples(st.just(name), damaged(FILES[name]) | st.binary(max_size=60))
)


@tried
@given(problems, damaged_files)
def test_any_file_of_rows_is_read_or_refused_in_one_sentence(kind: str, named: tuple[str, bytes]) -> None:
    name, data = named
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(data)
        check_examples(file, kind)


BODY = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "up"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}
LINE = {"custom_id": "1", "response": {"status_code": 200, "body": BODY}, "error": None}
lines = st.lists(changed(LINE, json_values) | json_values, max_size=4).map(json_lines)


@tried
@given(lines | damaged(json_lines([LINE, LINE])) | st.binary(max_size=80))
def test_any_line_of_recorded_completions_is_read_or_told(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "completions.jsonl"
        file.write_bytes(data)
        try:
            outcomes = list(read_completions(str(file)))
        except DataError as error:  # of the whole file: UTF-16
            is_one_sentence(str(error))
            return
        for outcome in outcomes:
            if isinstance(outcome, BadLine):
                assert outcome.reason
                is_one_sentence(outcome.detail)
                row = {"example_id": outcome.example_id, "reason": outcome.reason, "detail": outcome.detail}
                pa.RecordBatch.from_pylist([{**row, "raw": outcome.raw}], schema=FAILURES)
            else:
                pa.array([outcome.example_id, outcome.text], pa.string())
                assert outcome.example_id
                assert min(outcome.prompt_tokens, outcome.completion_tokens) >= 0
                parse_completion(PROBLEMS["json"], "cat", outcome.text, outcome.finish_reason)


PROMPT = Prompt((Turn("system", "Say."),), "cat")
PLAIN = CompletionRequest(bytes(16), PROMPT, samples=(0, 1))
SCORED = CompletionRequest(bytes(16), PROMPT, verbalizers=("up", "down"))
TOKENS = [{"token": "up", "logprob": -0.1}, {"token": "down", "logprob": -2.5}]
SCORED_BODY = {**BODY, "choices": [{**BODY["choices"][0], "logprobs": {"content": [{"top_logprobs": TOKENS}]}}]}
logprobs = st.floats() | st.sampled_from(["nan", "-1", 10**400, -9999.0, True]) | json_values
spoiled_scores = logprobs.map(
    lambda value: {
        "choices": [
            {"message": {}, "logprobs": {"content": [{"top_logprobs": [{"token": "up", "logprob": value}, TOKENS[1]]}]}}
        ]
    }
)
bodies = changed(BODY, json_values) | changed(SCORED_BODY, json_values) | json_values | spoiled_scores


@tried
@given(bodies.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=60), st.booleans())
def test_any_answer_of_an_endpoint_is_read_or_told(raw: bytes, scored: bool) -> None:
    request, samples = (SCORED, (0,)) if scored else (PLAIN, (0, 1))
    try:
        found = parse_response(raw, request, samples, "json-schema")
    except (MalformedResponse, MissingLogprobs) as error:
        is_one_sentence(str(error))
        return
    assert 1 <= len(found) <= len(samples)
    assert all(math.isfinite(score) and score <= 0 for one in found for score in one.scores)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Store(folder), {"kind": "any"})
        ledger.add([entry_of(one.key, one, 8) for one in found])


CONFIG = {
    "name": "tiny",
    "problem": {"kind": "slots", "intents": {"PlayMusic": ["artist"]}},
    "data": {
        "labeled": "l.jsonl",
        "unlabeled": {"hub": "x/y", "split": "train"},
        "test": "t.jsonl",
        "columns": {"id": "i"},
    },
    "teacher": {"kind": "endpoint", "url": "http://x/v1", "model": "m", "sampling": {"max_tokens": 9}, "prices": {}},
    "student": {"kind": "token-classification", "model": "m", "training": {"epochs": 1}},
    "method": {"stages": 2, "partitions": 2, "selection": {"kind": "always"}, "merge": {"kind": "replace"}},
    "baselines": ["vanilla-kd"],
    "evaluation": {"metrics": ["slot_f1"]},
    "gate": {},
    "store": {"root": "s3://bucket/x", "endpoint_url": "http://127.0.0.1:1"},
    "tracking": {"uri": "sqlite:///x.db"},
    "execution": {"device": "cpu"},
}
ENSEMBLE = {**CONFIG, "teacher": {"kind": "ensemble", "members": [CONFIG["teacher"], CONFIG["teacher"]]}}
SOFT_LABEL = {
    "kind": "soft-label",
    "name": "tiny",
    "problem": {"kind": "classification", "labels": ["up", "down"]},
    "data": {"train": "l.jsonl", "tests": {"seen": "t.jsonl"}, "columns": {"text": ["a", "b"]}},
    "teacher": {"kind": "recorded", "probabilities": "p.jsonl"},
    "student": {"kind": "tiny"},
}
documents = st.one_of(
    *(changed(values, yaml_values).map(as_yaml) for values in (CONFIG, ENSEMBLE, SOFT_LABEL)),
    yaml_values.map(as_yaml),
    damaged(as_yaml(CONFIG).encode()).map(lambda data: data.decode(errors="replace")),
    st.text(max_size=60),
)


def check_config(document: str | bytes, *overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_bytes(document if isinstance(document, bytes) else document.encode(errors="surrogatepass"))
        try:
            config = load_config(file, overrides)
        except ConfigError as error:
            for line in str(error).splitlines():
                is_one_sentence(line)
            str(error).encode(errors="strict")
        else:
            assert type(config).model_validate(json.loads(config.model_dump_json())) == config


@tried
@given(documents)
def test_any_document_is_a_config_or_told_in_sentences(document: str) -> None:
    check_config(document)


@tried
@given(
    st.sampled_from(
        ["method.stages", "teacher", "teacher.url", "data.columns", "name", "baselines.0", "", ".", "a..b"]
    ),
    st.text(max_size=20) | yaml_values.map(as_yaml),
)
def test_any_override_is_taken_or_told_in_sentences(field: str, value: str) -> None:
    check_config(as_yaml(CONFIG), f"{field}={value}")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one artifact, its pointer and a record of a run."""
    return publish(tmp_path_factory.mktemp("published"))


STEP = AnyStep(name="stage1/student-0", values={"seed": 0}, made="students")


def publish(folder: Path) -> Path:
    (folder / "made" / "model").mkdir(parents=True)
    (folder / "made" / "rows.parquet").write_bytes(b"rows" * 100)
    (folder / "made" / "model" / "config.json").write_bytes(b"{}")
    store = Store(str(folder / "store"), cache=folder / "cache")
    ref = store.publish(STEP, folder / "made", StepOutput(rows=3, metrics={"f1": 0.5}), 1.0, "tiny")
    at = "2026-01-01T00:00:00+00:00"
    keep_run(store, RunRecord(name="tiny", run_id="1", started_at=at, ended_at=at, artifacts=(f"students/{ref.key}",)))
    return folder


def written(folder: Path, pattern: str) -> Path:
    (file,) = (folder / "store").glob(pattern)
    return file


MANIFEST = f"students/*/{STEP.key}/manifest.json"


def check_store(folder: Path, pattern: str, data: bytes) -> None:
    """Read a store in which one file holds `data`; the file is put back afterwards."""
    file = written(folder, pattern)
    whole = file.read_bytes()
    store = Store(str(folder / "store"), cache=folder / "cache")
    try:
        file.write_bytes(data)
        for use in (
            lambda: store.open(store.ref(manifest)) if (manifest := store.find("students", STEP.key)) else None,
            lambda: store.latest("tiny", STEP.name),
            lambda: runs(store),
        ):
            try:
                use()
            except DamagedArtifact as error:
                is_one_sentence(str(error))
    finally:
        file.write_bytes(whole)


@tried
@given(st.data())
def test_any_manifest_is_read_or_refused(published: Path, data: st.DataObject) -> None:
    whole = written(published, MANIFEST).read_bytes()
    altered = changed(json.loads(whole), json_values).map(lambda tree: json.dumps(tree).encode())
    check_store(published, MANIFEST, data.draw(altered | damaged(whole) | st.binary(max_size=40)))


@tried
@given(st.data())
def test_any_pointer_or_record_is_read_or_refused(published: Path, data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(["latest/tiny/stage1/*.json", "runs/tiny/*.json"]))
    whole = written(published, pattern).read_bytes()
    altered = changed(json.loads(whole), json_values).map(lambda tree: json.dumps(tree).encode())
    check_store(published, pattern, data.draw(altered | damaged(whole) | st.binary(max_size=40)))


@pytest.fixture(scope="module")
def ledger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_ledger(tmp_path_factory.mktemp("ledger"))


def fill_ledger(folder: Path) -> Path:
    ledger = Ledger(Store(str(folder / "store")), {"kind": "any"})
    for number in range(2):
        key = bytes([number]) * 16
        ledger.add([entry_of(key, Completion(key, 0, "up", "stop", 1, 0, 1), 8)])
    pq.write_table(
        pa.table({"position": [0, 1], "key": pa.array([bytes(16), bytes([1]) * 16], pa.binary(16))}), folder / "asked"
    )
    return folder


@tried
@given(st.data())
def test_any_shard_is_read_or_skipped_and_told(ledger_folder: Path, data: st.DataObject) -> None:
    file = sorted((ledger_folder / "store" / "ledger").glob("*/*.parquet"))[0]
    whole = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged(whole)))
        ledger = Ledger(Store(str(ledger_folder / "store")), {"kind": "any"})
        found = [entry.text if entry else None for entry in ledger.join(ledger_folder / "asked")]
        assert found[1] == "up", "the other shard is untouched"
        assert (found[0] == "up") == (not ledger.damaged)
    finally:
        file.write_bytes(whole)
