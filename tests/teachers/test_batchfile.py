"""Batch files: they hold the bodies that an endpoint is sent, and completions are matched to their requests."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from retort.config import EndpointConfig, TransformersConfig, VllmConfig
from retort.config.teachers import LlmTeacherConfig
from retort.data.completions import BadLine
from retort.errors import ConfigError, DataError
from retort.problems import Constraint
from retort.teachers.endpoint.batchfile import read_answers, write_requests
from retort.teachers.endpoint.chat import BodyWriter
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Turn

ENDPOINT = EndpointConfig(kind="endpoint", url="http://unused/v1", model="dummy", constraint_style="json-schema")
PROMPT = Prompt((Turn("system", "Say what it is."),), "an äpple")
CHOICE = Constraint(choice=("food", "drink"))
KEYS = [bytes([0xA0 + n]) * 16 for n in range(10)]


def batch_lines(requests: list[CompletionRequest], config: LlmTeacherConfig = ENDPOINT) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    number = write_requests(config, requests, stream)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == number
    return lines


def answered(request: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    return {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None} | more


def write(path: Path, lines: list[Any]) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_a_request_is_what_the_endpoint_is_sent() -> None:
    request = CompletionRequest(KEYS[1], PROMPT, CHOICE)
    (line,) = batch_lines([request])
    assert line == {
        "custom_id": KEYS[1].hex(),
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": json.loads(BodyWriter.of(ENDPOINT).body(request, (0,))),
    }


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (ENDPOINT, "response_format"),
        (VllmConfig(kind="vllm", model="m"), "structured_outputs"),
        (TransformersConfig(kind="transformers", model="m"), None),
    ],
)
def test_the_constraint_is_written_for_whoever_answers(config: LlmTeacherConfig, field: str | None) -> None:
    (line,) = batch_lines([CompletionRequest(KEYS[1], PROMPT, CHOICE)], config)
    assert line["body"]["model"] == config.model
    assert {"response_format", "structured_outputs"} & line["body"].keys() == ({field} if field else set())


def test_each_sample_has_a_line_and_a_seed_and_comes_back(tmp_path: Path) -> None:
    several = CompletionRequest(KEYS[1], PROMPT, samples=(0, 1, 2), sampling_temperature=1.0)
    late = CompletionRequest(KEYS[2], PROMPT, samples=(3,), sampling_temperature=1.0)
    lines = batch_lines([several, late, CompletionRequest(KEYS[3], PROMPT)])
    hexes = [key.hex() for key in KEYS]
    assert [line["custom_id"] for line in lines] == [f"{hexes[1]}-{n}" for n in range(3)] + [f"{hexes[2]}-3", hexes[3]]
    assert len({line["body"].get("seed") for line in lines}) == 5
    assert not [line for line in lines if "n" in line["body"]]
    output = write(tmp_path / "output.jsonl.gz", [answered(line, f"text {n}") for n, line in enumerate(lines)][::-1])
    assert list(read_answers(output, None))[::-1] == [
        Completion(key, sample, f"text {n}", "stop", 9, 0, 2)
        for n, (key, sample) in enumerate([(KEYS[1], 0), (KEYS[1], 1), (KEYS[1], 2), (KEYS[2], 3), (KEYS[3], 0)])
    ]


def test_a_json_schema_completion_is_unwrapped(tmp_path: Path) -> None:
    lines = batch_lines([CompletionRequest(KEYS[1], PROMPT, CHOICE), CompletionRequest(KEYS[2], PROMPT, CHOICE)])
    output = write(tmp_path / "o.jsonl", [answered(lines[0], '{"label": "food"}'), answered(lines[1], "drink")])
    assert [
        completion.text for completion in read_answers(output, None, CHOICE) if isinstance(completion, Completion)
    ] == [
        "food",
        "drink",
    ]
    first = next(read_answers(output, None))
    assert isinstance(first, Completion)
    assert first.text == '{"label": "food"}'


def test_bad_lines_are_reported_and_end_nothing(tmp_path: Path) -> None:
    lines = batch_lines([CompletionRequest(key, PROMPT) for key in KEYS])
    failed = answered(lines[1], "", response={"status_code": 500, "body": {}})
    expired = answered(lines[2], "", response=None, error={"code": "batch_expired"})
    unknown = [f"row-{KEYS[0].hex()}", KEYS[0].hex().upper(), f"{KEYS[0].hex()}-", f"{KEYS[0].hex()}-01", "7"]
    output = write(
        tmp_path / "output.jsonl",
        [
            answered(lines[0], "first"),
            answered(lines[0], "second"),
            {**answered(lines[0], "third"), "custom_id": f"{KEYS[0].hex()}-0"},
            failed,
            answered(lines[1], "late but good"),
            expired,
            "{not json",
            *({**answered(lines[0], "x"), "custom_id": name} for name in unknown),
            answered(lines[3], ""),
        ],
    )
    outcomes = list(read_answers(output, None))
    assert [(outcome.key, outcome.text) for outcome in outcomes if isinstance(outcome, Completion)] == [
        (KEYS[0], "first"),
        (KEYS[1], "late but good"),
        (KEYS[3], ""),
    ]
    bad = [outcome for outcome in outcomes if isinstance(outcome, BadLine)]
    assert [line.reason for line in bad] == ["duplicate"] * 2 + ["http-500", "error", "not-json"] + ["unknown-id"] * 5
    assert bad[0].raw == "second"
    assert bad[0].detail == f"{output}: custom_id '{KEYS[0].hex()}' was answered before; the first answer counts"
    assert [line.example_id for line in bad[-5:]] == unknown


def test_soft_labels_do_not_go_through_batch_files() -> None:
    with pytest.raises(ConfigError, match="labels: soft does not go through batch files"):
        batch_lines([CompletionRequest(KEYS[0], PROMPT, verbalizers=("a", "b"))])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_answers(str(tmp_path / "none.jsonl"), None))
