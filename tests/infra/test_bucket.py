"""The bucket's rules, on a real S3 API."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.bucket import setup_bucket

SCRIPT = Path(__file__).parents[2] / "infra" / "bucket" / "setup_bucket.py"
WORKERS = "arn:aws:iam::123456789012:role/retort-worker"


def run(*arguments: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1"}
    environment.pop("RETORT_BUCKET", None)
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(s3_moto: tuple[str, str]) -> Iterator[Any]:
    """A client, after two runs: the second finds everything there."""
    import boto3  # type: ignore[import-untyped]

    for _ in range(2):
        ended = run("--bucket", "nightly", "--versions", "--workers", WORKERS, endpoint=s3_moto[0])
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == "bucket 'nightly' is ready\n"
    return boto3.client("s3", endpoint_url=s3_moto[0])


def test_the_server_keeps_the_rules(made: Any) -> None:
    kept = made.get_bucket_lifecycle_configuration(Bucket="nightly")["Rules"]
    assert kept == setup_bucket.lifecycle()["Rules"]
    assert made.get_bucket_versioning(Bucket="nightly")["Status"] == "Enabled"
    policy = made.get_bucket_policy(Bucket="nightly")["Policy"]
    assert json.loads(policy) == json.loads(setup_bucket.policy("nightly", WORKERS))


def test_no_rule_expires_a_current_object() -> None:
    rules = setup_bucket.lifecycle()["Rules"]
    assert any(rule.get("AbortIncompleteMultipartUpload") for rule in rules)
    for rule in rules:
        assert set(rule.get("Expiration", {})) <= {"ExpiredObjectDeleteMarker"}
        assert not rule.get("Transitions")


def test_workers_may_do_no_more_than_they_need() -> None:
    statements = json.loads(setup_bucket.policy("nightly", WORKERS))["Statement"]
    allowed = [statement for statement in statements if statement["Effect"] == "Allow"]
    assert all(statement["Principal"] == {"AWS": WORKERS} for statement in allowed)
    for statement in allowed:
        actions, places = (as_list(statement[key]) for key in ("Action", "Resource"))
        assert not [action for action in actions if "*" in action or ("Bucket" in action and action != "s3:ListBucket")]
        if "s3:ListBucket" in actions:
            assert places == ["arn:aws:s3:::nightly"]
            assert actions == ["s3:ListBucket"]
            prefixes = statement["Condition"]["StringLike"]["s3:prefix"]
            assert {prefix.split("/")[0] for prefix in prefixes} == {"retort", "mlflow", "data"}
        else:
            assert all(place.startswith("arn:aws:s3:::nightly/") and len(place.split("/")[1]) > 1 for place in places)
        if any(place.endswith("/data/*") for place in places):
            assert actions == ["s3:GetObject"]  # what people gave is never written to


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_clear_text_is_denied() -> None:
    statements = json.loads(setup_bucket.policy("nightly", WORKERS))["Statement"]
    denied = [each for each in statements if each["Effect"] == "Deny"]
    assert [each["Condition"] for each in denied] == [{"Bool": {"aws:SecureTransport": "false"}}]


def test_a_server_that_is_not_there_is_told_in_a_sentence(aws_environment: None) -> None:
    ended = run("--bucket", "nightly", endpoint="http://127.0.0.1:9")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: bucket 'nightly' cannot be set up: ")
    assert "Traceback" not in ended.stderr


def test_a_bucket_must_be_named(aws_environment: None) -> None:
    ended = run(endpoint="http://127.0.0.1:9")
    assert ended.returncode == 2
    assert "give --bucket NAME, or set RETORT_BUCKET" in ended.stderr
