"""A student learns from what its teacher could have written: from a real teacher's artifact to the student's, and what
is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from paper_method import PAPER
from retort.artifacts.pseudolabels import TEACHER_TOKENS
from retort.artifacts.students import HISTORY
from retort.config import MckdConfig
from retort.errors import ConfigError
from retort.io.parquet import read_rows
from retort.recipes import parse_config
from retort.recipes.execute import made_or_found, make
from retort.recipes.mckd.checks import check
from retort.recipes.mckd.steps import cross_label, ingest, label_by_llm, merge_labels, seen_cells, train_student
from retort.records.base import ArtifactRef
from retort.records.mckd import Data
from retort.store import Manifest
from retort.store.opening import open_store

Build = Callable[..., dict[str, Any]]
TRAINING = {
    "epochs": 2,
    "min_updates": 0,
    "learning_rate": 3e-3,
    "batch_tokens": 512,
    "precision": "fp32",
    "freeze_embeddings": False,
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ending_causal(tiny_causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a few steps on a prompt, so that its completions end: what is cut is no label."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_causal), AutoModelForCausalLM.from_pretrained(tiny_causal)
    prompt = "x\n\n" + "".join(f"play unlabeled {n}\ntime {n % 3}\n\n" for n in range(12))
    token_ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"][:250]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=token_ids, labels=token_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("ending")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def build(tiny_causal: Path, ending_causal: Path, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Free text by a causal model in this process, and a student of its tokenizer."""
    folder = tmp_path_factory.mktemp("distillation")
    for role, count in {"labeled": 4, "unlabeled": 24, "test": 4}.items():
        rows = [{"id": f"{role}-{n}", "text": f"play {role} {n}", "label": f"time {n % 3}"} for n in range(count)]
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def values(kind: str = "causal", distillation: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        model = str({"causal": tiny_causal, "seq2seq": tiny_t5}[kind])
        training = {**TRAINING, **({"distillation": distillation} if distillation is not None else {})}
        sampling = {"max_tokens": 24, "top_logprobs": 8}
        return {
            "name": "distillation",
            "problem": {"kind": "text"},
            "data": {role: str(folder / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")},
            "teacher": {
                "kind": "transformers",
                "model": str(ending_causal),
                "sampling": sampling,
                "prompt": {"instruction": "x", "demonstrations": 2, "item": "{text}"},
                "min_success_ratio": 0.5,
            },
            "student": {"kind": kind, "model": model, "training": training, "target": "text", "long_targets": "cut"},
            "method": {**PAPER, "stages": 2, "selection": {"kind": "always"}},
            "store": {"root": str(folder / "store")},
            "execution": {"device": "cpu"},
            **fields,
        }

    return values


def manifest_of(config: MckdConfig, ref: ArtifactRef) -> Manifest:
    manifest = open_store(config.store).find(ref.kind, ref.key)
    assert manifest is not None
    return manifest


def data_of(config: MckdConfig) -> Data:
    refs = {role: made_or_found(config, ingest(config, role)) for role in ("labeled", "unlabeled", "test")}
    return Data(**refs, judge=refs["labeled"])


def taught(config: MckdConfig) -> ArtifactRef:
    step = label_by_llm(config, "stage0/pseudolabels", config.teacher, data_of(config))  # type: ignore[arg-type]
    return made_or_found(config, step)


def losses(config: MckdConfig, ref: ArtifactRef) -> list[float]:
    found: list[float] = json.loads((open_store(config.store).fetch(ref) / HISTORY).read_text())["losses"]
    return found


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_from_the_teachers_artifact_to_a_student_of_its_tokenizer(build: Build, kind: str) -> None:
    plain, config = (MckdConfig.model_validate(build(kind, given)) for given in (None, {"weight": 1.0}))
    labels = taught(config)
    folder = open_store(config.store).fetch(labels)
    assert (folder / TEACHER_TOKENS).exists()
    cells = [train_student(c, "stage1/student-0", labels, cells=seen_cells(c, 0)) for c in (plain, config)]
    assert cells[0].key != cells[1].key
    assert "distillation" not in cells[0].params["training"], "keys of students without it stay as they were"
    without, student = (made_or_found(config, step) for step in cells)
    counts = manifest_of(config, student).counts
    assert counts["distilled"] == manifest_of(config, student).rows > 0
    assert "distilled" not in manifest_of(config, without).counts
    assert losses(config, student) != losses(config, without)

    # Rows that a student relabeled have no list of the teacher's: they are learnt as labels.
    data = data_of(config)
    crossed = made_or_found(config, cross_label(config, "stage1/cross-labels-0", student, data.unlabeled))
    merged = made_or_found(config, merge_labels(config, "stage1/pseudolabels", data, labels, (crossed,)))
    later = [train_student(c, "final/student", merged) for c in (plain, config)]
    by_labels, by_tokens = (made_or_found(config, step) for step in later)
    assert manifest_of(config, by_tokens).counts["distilled"] == 0
    assert losses(config, by_tokens) == losses(config, by_labels)


def test_what_was_listed_is_part_of_the_key(build: Build) -> None:
    """The student's labels are another artifact where the teacher lists more."""
    few = MckdConfig.model_validate(build("causal", {}))
    values = build("causal", {})
    values["teacher"]["sampling"]["top_logprobs"] = 4
    more = MckdConfig.model_validate(values)
    assert taught(few).key != taught(more).key
    objectives = [MckdConfig.model_validate(build("causal", {"objective": o})) for o in ("forward_kl", "reverse_kl")]
    keys = {train_student(c, "final/student", taught(few)).key for c in objectives}
    assert len(keys) == 2


def test_set_aside_rows_are_learnt_by_their_labels(build: Build, tmp_path: Path) -> None:
    """Half of the rows without a list: the other half is distilled, all are trained on."""
    import pyarrow.parquet as pq

    config = MckdConfig.model_validate(build("causal", {}))
    labels = taught(config)
    store = open_store(config.store)
    table = pq.read_table(store.fetch(labels) / TEACHER_TOKENS)
    half = tmp_path / "half.parquet"
    pq.write_table(table.slice(0, table.num_rows // 2), half)
    assert _trained_on(config, labels, half) == table.num_rows // 2


def _trained_on(config: MckdConfig, labels: ArtifactRef, tokens: Path) -> int:
    from retort.models.device import Device
    from retort.models.weights import find_weights
    from retort.problems import problem_for
    from retort.students.base import TopTokens, TrainingRow
    from retort.students.generative import new_generative_student
    from retort.teachers.top_logprobs import read_teacher_tokens
    from retort.teachers.vllm.engine.toplogprobs import tokenizer_identity

    student = new_generative_student(
        config.student,  # type: ignore[arg-type]
        find_weights(config.student),
        pretrained=True,
        problem=problem_for(config.problem),
    )
    top = {
        one.example_id: TopTokens(one.token_ids, one.ids, one.logprobs)
        for one in read_teacher_tokens(tokens, tokenizer_identity(student.tokenizer), student.num_logits)
    }
    rows = [
        TrainingRow(row["text"], row["label"], top=top.get(row["example_id"]))
        for row in read_rows(open_store(config.store).fetch(labels) / "rows.parquet")
    ]
    return student.train(rows, config.student.training, seed=0, device=Device("cpu", "fp32", 1)).counts["distilled"]


@pytest.fixture
def other_tokenizer(tiny_causal: Path, tmp_path: Path) -> str:
    """The tiny model with one more token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(shutil.copytree(tiny_causal, tmp_path / "other"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<thought>")])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return str(folder)


def test_another_tokenizer_is_refused_before_anything_is_started(build: Build, other_tokenizer: str) -> None:
    values = build("causal", {})
    values["student"]["model"] = other_tokenizer
    sentence = r"student\.training\.distillation: the tokenizer of student\.model = '.*other' is not that of teacher\."
    with pytest.raises(ConfigError, match=sentence):
        check(MckdConfig.model_validate(values))


def test_another_tokenizer_is_refused_where_the_student_is_trained(build: Build, other_tokenizer: str) -> None:
    """Of a teacher on a hub, the tokenizer is known from the tokens alone."""
    config = MckdConfig.model_validate(build("causal", {}))
    labels = taught(config)
    values = build("causal", {})
    values["student"]["model"] = other_tokenizer
    other = MckdConfig.model_validate(values)
    with pytest.raises(ConfigError, match=r"student\.model: teacher logprobs over another tokenizer \('\w+', the stud"):
        make(other, train_student(other, "final/student", labels), 0, lambda *_: None)


def test_a_tokenizer_that_only_looks_different_is_not_refused(build: Build, tiny_causal: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_causal, tmp_path / "same"))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))
    values = build("causal", {})
    values["student"]["model"] = str(folder)
    check(MckdConfig.model_validate(values))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"teacher": {"kind": "recorded", "completions": "c.jsonl"}},
            r"student\.training\.distillation needs the teacher's likeliest next tokens, and this teacher \(kind 'rec",
        ),
        (
            {
                "problem": {"kind": "slots"},
                "student": {"kind": "seq2seq", "model": "m", "training": {"distillation": {}}},
            },
            r"student\.training\.distillation goes token by token, and this student \(kind 'seq2seq'\) gives classes",
        ),
        (
            {"teacher": {"kind": "finetuned", "training": {"distillation": {}}}},
            r"training\.distillation is for student\.training alone: a fine-tuned teacher and the arm tiny",
        ),
        (
            {"student": {"kind": "causal", "model": "m", "training": {"distillation": {"objective": "kl"}}}},
            r"student\.training\.distillation\.objective = 'kl': allowed: 'forward_kl', 'reverse_kl' or 'jens",
        ),
        (
            {"student": {"kind": "causal", "model": "m", "training": {"distillation": {"weight": 1.5}}}},
            r"student\.training\.distillation\.weight = 1\.5: must be at most 1",
        ),
    ],
)
def test_what_cannot_be_distilled_is_told(build: Build, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config({**build("causal", {}), **changes}, "test")
