"""Model folders that somebody else made: nothing in them is run, whatever is answered to transformers' question."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from retort.config import CausalConfig, SequenceClassificationConfig
from retort.config.teachers import TransformersConfig
from retort.errors import ConfigError, DamagedArtifact
from retort.models.weights import find_weights
from retort.problems.classification import Classification
from retort.students.loading import load_student, new_student
from retort.teachers.huggingface.client import open_transformers

PROBLEM = Classification(("up", "down"))
Change = Callable[[Path, Path], None]


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def code(folder: Path, mark: Path) -> None:
    """A module that makes a file when it is imported, with classes that would work."""
    lines = [f"open({str(mark)!r}, 'w').close()", "from transformers import BertConfig, BertModel, BertTokenizerFast"]
    lines += ["class Config(BertConfig): model_type = 'mine'", "class Model(BertModel): config_class = Config"]
    (folder / "code.py").write_text("\n".join([*lines, "class Words(BertTokenizerFast): pass"]))


def code_of_a_config(folder: Path, mark: Path) -> None:
    classes = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    names = {"AutoConfig": "code.Config", **dict.fromkeys(classes, "code.Model")}
    edit(folder / "config.json", model_type="mine", auto_map=names)
    code(folder, mark)


def code_of_a_tokenizer(folder: Path, mark: Path) -> None:
    names = {"AutoTokenizer": ["code.Words", "code.Words"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map=names)
    edit(folder / "config.json", auto_map=names)
    code(folder, mark)


def code_from_a_hub(folder: Path, _: Path) -> None:
    edit(folder / "config.json", attn_implementation="somebody/kernels")


def another_base(folder: Path, _: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model", "peft_type": "LORA"}')


def pickle_called_safetensors(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(mark)))


def pickle_beside(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").rename(folder / "unused.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))


def weights_elsewhere(folder: Path, _: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"embeddings": "../../../../../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "unused.safetensors").write_bytes(b"")


def weights_that_are_pickled(folder: Path, mark: Path) -> None:
    weights_elsewhere(folder, mark)
    (folder / "part.bin").write_bytes(pickle.dumps(Evil(mark)))
    edit(folder / "model.safetensors.index.json", weight_map={"embeddings": "part.bin"})


def absurd_header(folder: Path, _: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def absurd_tensor(folder: Path, _: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    header = json.dumps({"embeddings.word_embeddings.weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def bottomless_config(folder: Path, _: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def bottomless_tokenizer(folder: Path, _: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a":' * 100_000)


def unknown_quantizer(folder: Path, _: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


CHANGES: list[Change] = [
    code_of_a_config,
    code_from_a_hub,
    another_base,
    pickle_called_safetensors,
    pickle_beside,
    weights_elsewhere,
    weights_that_are_pickled,
    absurd_header,
    absurd_tensor,
    bottomless_config,
    bottomless_tokenizer,
    unknown_quantizer,
]
every_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@pytest.fixture
def said_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal whether to run a model's code, unless it is told not to."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))


def hostile(model: Path, change: Change, tmp_path: Path) -> tuple[Path, Path]:
    """(the folder, the file that would be made if anything in it were run)"""
    folder, mark = Path(shutil.copytree(model, tmp_path / "model")), tmp_path / "mark"
    change(folder, mark)
    return folder, mark


@every_change
@pytest.mark.usefixtures("said_yes")
def test_a_student_runs_nothing_of_a_model(tiny_encoder: Path, tmp_path: Path, change: Change) -> None:
    folder, mark = hostile(tiny_encoder, change, tmp_path)
    config = SequenceClassificationConfig(kind="sequence-classification", model=str(folder))
    with pytest.raises(ConfigError, match=r"^student\.model = '.*': ") as caught:
        new_student(config, find_weights(config), pretrained=True, problem=PROBLEM)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@every_change
@pytest.mark.usefixtures("said_yes")
def test_a_student_that_writes_and_a_teacher_run_nothing(tiny_causal: Path, tmp_path: Path, change: Change) -> None:
    folder, mark = hostile(tiny_causal, change, tmp_path)
    student = CausalConfig(kind="causal", model=str(folder))
    with pytest.raises(ConfigError):
        new_student(student, find_weights(student), pretrained=True, problem=PROBLEM)
    teacher = TransformersConfig(kind="transformers", model=str(folder))
    with pytest.raises(ConfigError, match=r"^teacher\.model = '.*': "):
        start(teacher, folder)
    assert not mark.exists()


def start(teacher: TransformersConfig, folder: Path) -> None:
    find_weights(teacher, field="teacher.model")
    with open_transformers(teacher, 0, str(folder), None, "cpu"):
        pass


@pytest.mark.usefixtures("said_yes")
def test_the_sentence_says_that_code_is_never_run(tiny_encoder: Path, tmp_path: Path) -> None:
    folder, _ = hostile(tiny_encoder, code_of_a_config, tmp_path)
    config = SequenceClassificationConfig(kind="sequence-classification", model=str(folder))
    with pytest.raises(ConfigError, match=r"Python code of its own \(auto_map\), and code .* is never run"):
        new_student(config, find_weights(config), pretrained=True, problem=PROBLEM)


@pytest.mark.usefixtures("said_yes")
def test_code_of_a_tokenizer_is_not_run(tiny_encoder: Path, tmp_path: Path) -> None:
    """Where tokenizer.json says all that there is to know, it may be loaded without its class."""
    folder, mark = hostile(tiny_encoder, code_of_a_tokenizer, tmp_path)
    config = SequenceClassificationConfig(kind="sequence-classification", model=str(folder))
    with suppress(ConfigError):
        new_student(config, find_weights(config), pretrained=True, problem=PROBLEM)
    assert not mark.exists()


@every_change
@pytest.mark.usefixtures("said_yes")
def test_a_students_artifact_runs_nothing(tiny_encoder: Path, tmp_path: Path, change: Change) -> None:
    """As somebody who may write the bucket could put one there."""
    folder, mark = hostile(tiny_encoder, change, tmp_path)
    with pytest.raises(DamagedArtifact, match="this student cannot be loaded: "):
        load_student(folder, "sequence-classification", 16, PROBLEM)
    assert not mark.exists()
