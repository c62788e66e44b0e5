"""`retort predict --shard-rows`: the same answers as without, and shards that are known are not labeled again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.artifacts.shards import NUM_ROWS
from retort.config import ExecutionConfig
from retort.errors import ConfigError
from retort.recipes.execute import make
from retort.serving import files
from retort.serving.files import PredictionJob, dump_job, load_job, predict_file, prepared
from retort.serving.shards import SET_ASIDE, gather_answers, split_texts, text_shards
from retort.serving.texts import Fields
from retort.store.opening import open_store

ROOT = Path(__file__).parents[2]
RETORT = str(Path(sys.executable).with_name("retort"))
Trained = Any


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """60 texts that fill a window of a million characters after every 30th, and one that cannot be labeled."""
    lines = [{"id": f"r{n}", "text": f"the film {n} was {'great ' * 6000}{'dull' * (n % 2)}"} for n in range(60)]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"id": "none"}]))
    return file


def job_of(student: Trained, file: Path, out: Path, **more: Any) -> PredictionJob:
    fields = {"tracking": None, "fields": Fields("text", "id"), "probabilities": True, "device": "cpu", "max_bad": 0.1}
    return PredictionJob(student.student.uri, str(file), out, **{**fields, **more})


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_answers_in_shards_are_the_same(
    classes_student: Trained, requests: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WINDOW_ROWS", 10)
    whole, sharded = (tmp_path / f"{name}.{suffix}" for name in ("whole", "sharded"))
    tally = predict_file(job_of(classes_student, requests, whole))
    job = load_job(dump_job(job_of(classes_student, requests, sharded)))
    found, fields = prepared(job)
    settings = classes_student.config.run_settings.model_copy(update={"execution": ExecutionConfig(device="cpu")})

    split = make(settings, split_texts(job, fields, 15), 0, lambda *_: None)
    manifest = open_store(settings.store).manifest_of(split)
    assert manifest.details[NUM_ROWS] == [[10, 10]] * 3, "shards are whole windows"
    assert manifest.details[SET_ASIDE] == {"no-text": 1}
    shards = text_shards(job, found, split)
    made = [make(settings, shard, 0, lambda *_: None) for shard in shards]
    told = gather_answers(job, found, split, shards, made)
    assert sharded.read_bytes() == whole.read_bytes()
    assert str(told) == str(tally)

    with requests.open("a") as stream:
        stream.write(json.dumps({"id": "new", "text": "the film anew was dull"}) + "\n")
    grown = text_shards(job, found, make(settings, split_texts(job, fields, 15), 0, lambda *_: None))
    assert [shard.key for shard in grown[:3]] == [shard.key for shard in shards]
    assert len(grown) == 4


@pytest.mark.slow
def test_the_command_labels_in_shards(
    prefect_api: str, classes_student: Trained, requests: Path, tmp_path: Path
) -> None:
    whole, sharded = tmp_path / "whole.jsonl", tmp_path / "sharded.jsonl"
    predict_file(job_of(classes_student, requests, whole, probabilities=False))
    command = [RETORT, "predict", classes_student.student.uri, str(requests), "--out", str(sharded)]
    environment = {**os.environ, "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [*command, "--device", "cpu", "--shard-rows", "10"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sharded.read_bytes() == whole.read_bytes()
    assert "60 rows labeled, 1 set aside (1 no-text)" in done.stderr
    assert "predict/shard-1: made in" in done.stderr


def test_what_cannot_be_is_told_at_once(
    command: Callable[..., tuple[int, str, str]],
    classes_student: Trained,
    requests: Path,
    tmp_path: Path,
) -> None:
    code, _, err = command("predict", classes_student.student.uri, requests, "--pool", "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "--pool 'nowhere': give --shard-rows as well" in err
    with pytest.raises(ConfigError, match="standard input cannot be split"):
        split_texts(job_of(classes_student, Path("-"), tmp_path / "out.jsonl"), Fields("text", "id"), 10)


@pytest.mark.slow
def test_a_prediction_that_ends_leaves_the_rows_to_another_of_the_same_file(
    prefect_api: str, classes_student: Trained, requests: Path, tmp_path: Path
) -> None:
    whole, first, second = (tmp_path / f"{name}.jsonl" for name in ("whole", "first", "second"))
    job = job_of(classes_student, requests, second)
    predict_file(job_of(classes_student, requests, whole))
    found, fields = prepared(job)
    settings = classes_student.config.run_settings.model_copy(update={"execution": ExecutionConfig(device="cpu")})
    split = make(settings, split_texts(job, fields, 10), 0, lambda *_: None)

    command = [RETORT, "predict", classes_student.student.uri, str(requests), "--out", str(first)]
    environment = {**os.environ, "PREFECT_API_URL": prefect_api}
    done = subprocess.run(
        [*command, "--device", "cpu", "--shard-rows", "10"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

    shards = text_shards(job, found, split)
    made = [make(settings, shard, 0, lambda *_: None) for shard in shards]
    gather_answers(job, found, split, shards, made)
    assert second.read_bytes() == whole.read_bytes()
