"""`retort doctor`: one finding for each thing, and a thing that is wrong does not hide the next."""

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest

from infra.download_model import MODELS
from retort.commands import doctor
from retort.config import EndpointConfig, MckdConfig, VllmConfig
from retort.errors import ConfigError
from retort.models import gpus
from retort.recipes import load_config
from retort.recipes.mckd import checks

THINGS = [
    "versions",
    "store",
    "data.labeled",
    "data.unlabeled",
    "data.test",
    "leakage",
    "near-duplicates",
    "teacher",
    "student",
    "method",
    "tracking",
]

LLM_EXAMPLES = [path for path in sorted(Path("examples").glob("*.yaml")) if ".retort/models/" in path.read_text()]
"""Those that need `make llm`, and some `make teacher`."""


@pytest.fixture(autouse=True)
def _weights_are_not_loaded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Torch takes seconds; one test loads them."""
    if "real_weights" not in request.fixturenames:
        monkeypatch.setattr(checks, "_loaded", lambda config, weights: f"{config.student.model}: loaded")


@pytest.fixture
def real_weights() -> None:
    """Asks for weights that are really loaded."""


def findings(desk: Any, *overrides: str) -> dict[str, tuple[str, str]]:
    found = doctor.examine(load_config(desk.save(), overrides))
    return {finding.what: (finding.verdict, finding.detail) for finding in found}


def wrong(found: dict[str, tuple[str, str]]) -> set[str]:
    return {what for what, (verdict, _) in found.items() if verdict == "wrong"}


@pytest.mark.parametrize(
    ("installed", "overrides", "verdict", "words"),
    [
        (2, [], "ok", "up to 2 of this machine's 2 GPUs train a student"),
        (
            1,
            [],
            "wrong",
            "execution.gpus_per_student = 2: this machine has 1 GPU to train on; lower it, or name in",
        ),
        (0, [], "wrong", "execution.gpus_per_student = 2: this machine has no GPU to train on; "),
        (2, ["execution.device=cpu"], "wrong", "execution.gpus_per_student = 2: not with execution.device = 'cpu'"),
        (0, ["execution.student_pool=far"], "ok", "2 of a worker of the work pool 'far' train a student"),
    ],
)
def test_more_gpus_for_a_student_than_the_machine_has(
    slots: Any,
    installed: int,
    overrides: list[str],
    verdict: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_installed", lambda: [f"GPU-{number}" for number in range(installed)])
    config = load_config(slots.save(), ["execution.gpus_per_student=2", *overrides])
    found = {finding.what: (finding.verdict, finding.detail) for finding in doctor.examine(config)}
    assert found["GPUs"][0] == verdict
    assert found["GPUs"][1].startswith(words)
    if verdict == "wrong":
        with pytest.raises(ConfigError, match=r"^execution\.gpus_per_student = 2: "):
            checks.check(config)
    else:
        checks.check(config)


def test_good_config(slots: Any, real_weights: None) -> None:
    slots.values["tracking"] = {"uri": f"sqlite:///{slots.folder}/new/mlflow.db"}
    found = findings(slots)
    assert list(found) == THINGS
    assert found.pop("near-duplicates")[0] == "note"  # play unlabeled1, play unlabeled11
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert found["data.unlabeled"] == ("ok", "40 rows")
    assert found["teacher"] == ("ok", "40 of the pool's 40 rows have a recorded completion, 40 of them a label")
    assert found["method"] == ("ok", "2 stages of 2 students: at most 5 trainings")
    assert ": 22.6 M parameters, on " in found["student"][1]
    assert not slots.file("new").exists()


def test_a_student_that_no_gpu_here_can_hold(slots: Any, real_weights: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.students.sharding.memory_bytes", lambda device: 3e8)
    verdict, detail = findings(slots, "student.training.precision=bf16")["student"]
    assert verdict == "wrong"
    assert detail.startswith(
        "execution.gpus_per_student: training the 0.023 billion weights of student.model takes 0.451 GB, more than 1 "
        "GPU of 0.3 GB; set it to 2 or more"
    )


def test_good_classification(classes: Any) -> None:
    del classes.values["problem"]["labels"]
    classes.values["teacher"] = {"kind": "finetuned"}
    found = findings(classes, "method.stages=1")
    assert not wrong(found)
    assert found["teacher"] == ("ok", "finetuned: trained on the labeled set")
    assert found["method"] == ("ok", "1 stage: 1 training")
    assert found["tracking"][0] == "note"


def test_equal_texts_are_counted(slots: Any) -> None:
    pool, test = slots.read("unlabeled.jsonl"), slots.read("test.jsonl")
    labeled = slots.read("labeled.jsonl")
    texts = [row["text"] for row in (labeled[0], labeled[2], test[0], test[2], test[4])]
    slots.write("unlabeled.jsonl", [{**row, "text": text} for row, text in zip(pool, texts, strict=False)] + pool[5:])
    slots.values["teacher"] = {"kind": "finetuned"}
    assert findings(slots)["leakage"] == (
        "note",
        "equal texts in labeled and pool (left out of it): 2, labeled and test: 0, pool and test: 3",
    )


def test_near_duplicates_are_counted(slots: Any) -> None:
    """Of the pool: rows that nearly repeat an earlier one; of the test rows: those that the pool nearly repeats."""
    text = "tell me whether it will rain in {} tomorrow afternoon"
    pool, test = slots.read("unlabeled.jsonl")[:3], slots.read("test.jsonl")[:1]
    texts = [text.format("rome"), text.format("Rome"), "play something that i like"]
    slots.write("unlabeled.jsonl", [{"id": row["id"], "text": one} for row, one in zip(pool, texts, strict=True)])
    tags = " ".join(["O"] * len(text.split()))
    slots.write("test.jsonl", [{**test[0], "text": text.format("rom"), "intent": "WEATHER", "bio": tags}])
    assert findings(slots)["near-duplicates"] == (
        "note",
        "1 of the pool's rows (33.3%), 1 of the test rows (100.0%): 'u0' nearly repeats 't0'",
    )
    slots.write("unlabeled.jsonl", [{"id": "t0", "text": text.format("rom")}])
    assert findings(slots)["near-duplicates"][1].endswith("1 of the test rows (100.0%)"), "no row repeats itself"
    slots.write("unlabeled.jsonl", [{"id": "u0", "text": "play something that i like"}])
    assert findings(slots)["near-duplicates"] == ("ok", "none in the pool, and none of the test rows")


def test_rows_without_completion_are_counted(slots: Any) -> None:
    slots.write("completions.jsonl", slots.read("completions.jsonl")[:-3])
    assert findings(slots)["teacher"] == (
        "note",
        "37 of the pool's 40 rows have a recorded completion, 37 of them a label",
    )


def test_completions_without_a_label_are_counted(slots: Any) -> None:
    rows = slots.read("completions.jsonl")
    for row in rows[5:]:
        row["response"]["body"]["choices"][0]["message"]["content"] = "I cannot"
    slots.write("completions.jsonl", rows)
    found = "40 of the pool's 40 rows have a recorded completion, 5 of them a label"
    assert findings(slots)["teacher"] == ("note", found)


def test_one_wrong_thing_does_not_hide_the_next(slots: Any) -> None:
    slots.write("labeled.jsonl", [{**row, "intent": "SING"} for row in slots.read("labeled.jsonl")])
    slots.file("test.jsonl").unlink()
    slots.values["student"]["model"] = "/no/such/model"
    slots.values["tracking"] = {"uri": "http://127.0.0.1:9"}
    slots.values["method"]["partitions"] = 41
    slots.values["store"]["root"] = str(slots.file("unlabeled.jsonl"))
    found = findings(slots)
    assert list(found) == THINGS
    assert wrong(found) == {"store", "data.labeled", "data.test", "student", "method", "tracking"}
    assert "intent 'SING' is not known" in found["data.labeled"][1]
    assert found["data.unlabeled"] == ("ok", "40 rows")
    assert found["leakage"] == ("note", "not looked at, for a reason given above")
    assert found["teacher"][0] == "note"
    assert found["tracking"][1].endswith("start the MLflow server, or correct the address")


def versions_with(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name not in versions:
            return real(name)
        told = versions[name]
        if told is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return told

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize("version", ["0.138.9", "0.151.0", "0.151.0rc1", "1.0"])
def test_fastapi_that_breaks_prefect(slots: Any, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    versions_with(monkeypatch, fastapi=version)
    verdict, detail = findings(slots)["versions"]
    assert verdict == "wrong"
    assert detail.startswith(f"fastapi {version} breaks every flow of prefect ")
    assert detail.endswith("install fastapi>=0.139,<0.151")


@pytest.mark.parametrize("version", ["0.139.0", "0.150.9"])
def test_fastapi_that_works(slots: Any, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    versions_with(monkeypatch, fastapi=version)
    assert findings(slots)["versions"][0] == "ok"


def test_package_that_is_not_installed(slots: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    versions_with(monkeypatch, mlflow=None)
    assert findings(slots)["versions"] == ("wrong", "mlflow is not installed: install what requirements.lock lists")


def test_weights_that_are_damaged(slots: Any, real_weights: None) -> None:
    from retort.models.weights import find_weights

    shipped = Path(find_weights(load_config(slots.save()).student).address)
    folder = slots.folder / "model"
    folder.mkdir()
    for file in shipped.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    verdict, detail = findings(slots, f"student.model={folder}")["student"]
    assert verdict == "wrong"
    assert detail.startswith(f"student.model = '{folder}': cannot be loaded: ")
    assert "\n" not in detail


def test_tracking_database_in_a_file(slots: Any) -> None:
    slots.values["tracking"] = {"uri": f"sqlite:///{slots.file('test.jsonl')}/mlflow.db"}
    verdict, detail = findings(slots)["tracking"]
    assert (verdict, detail.split(": ")[1]) == ("wrong", f"nothing can be written in '{slots.file('test.jsonl')}'")


def test_exit_codes_and_text(slots: Any, command: Any) -> None:
    code, out, err = command("doctor", slots.save())
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()][:2] == [["ok", "versions:"], ["ok", "store:"]]
    slots.file("test.jsonl").unlink()
    code, out, err = command("doctor", slots.save())
    assert (code, err) == (2, "")
    assert f"wrong  data.test: {slots.file('test.jsonl')}: there is no such file or folder" in out.splitlines()


def test_json(slots: Any, command: Any) -> None:
    code, out, err = command("doctor", slots.save(), "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["findings"]
    assert [finding["what"] for finding in found] == THINGS
    assert found[1] == {"verdict": "ok", "what": "store", "detail": f"{slots.store} can be written"}
    code, out, _ = command("doctor", slots.save(), "--json", "--set", "student.model=/no/such/model")
    assert code == 2
    assert [f["what"] for f in json.loads(out)["findings"] if f["verdict"] == "wrong"] == ["student"]


@pytest.mark.parametrize("path", LLM_EXAMPLES, ids=str)
def test_examples_with_a_language_model(path: Path, tmp_path: Path) -> None:
    config = load_config(path, [f"store.root={tmp_path}/store", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])
    assert isinstance(config, MckdConfig)
    models = {getattr(config.teacher, "model", config.student.model), config.student.model}
    models = {model for model in models if model.startswith(".retort/models/")}  # an endpoint's is another
    assert {Path(model).name for model in models} <= set(MODELS), "`make llm` makes them"
    told = re.findall(r"make llm(?: MODEL=([\w.-]*\w))?", path.read_text().partition("\nname:")[0])
    assert {name or "smollm2-135m" for name in told} == {Path(model).name for model in models}
    if not all(Path(model).is_dir() for model in models):
        pytest.skip("needs `make llm`, for each model")
    if isinstance(config.teacher, VllmConfig) and not Path(config.teacher.python).exists():
        pytest.skip("needs `make teacher`")
    if isinstance(config.teacher, EndpointConfig):
        pytest.skip("needs a server")
    found = {finding.what: finding for finding in doctor.examine(config)}
    assert list(found) == THINGS
    assert {what: finding.detail for what, finding in found.items() if finding.verdict == "wrong"} == {}
