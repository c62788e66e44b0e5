"""The same run with its store in a bucket of a real S3 server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.io.s3 import filesystem


@pytest.mark.slow
def test_a_bucket_gives_the_same_keys_and_scores_as_a_folder(
    tiny_slots: dict[str, Any],
    configured: Callable[..., dict[str, Any]],
    run_here: Callable[[dict[str, Any]], Any],
    manifests: Callable[[Path], dict[str, bytes]],
    s3_rclone: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    endpoint_url, bucket = s3_rclone
    in_bucket = configured(tiny_slots, f"s3://{bucket}/flow", store__endpoint_url=endpoint_url)
    from_bucket, from_folder = run_here(in_bucket), run_here(configured(tiny_slots, tmp_path / "store"))
    system = filesystem(endpoint_url)
    found = [json.loads(system.cat_file(path)) for path in system.glob(f"{bucket}/flow/*/??/*/manifest.json")]
    keys = {manifest["name"]: manifest["key"] for manifest in found}
    assert keys == {name: json.loads(data)["key"] for name, data in manifests(tmp_path / "store").items()}
    assert from_bucket.summary.final.scores == from_folder.summary.final.scores
    assert {stage.status for stage in run_here(in_bucket).stages} == {"HIT"}
