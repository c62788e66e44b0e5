"""vLLM loads the folder of a decoder that `retort export` wrote, and it answers there as it does in Retort."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from retort.serving.addresses import find_student
from retort.serving.student import load_student
from trained_student import train
from vllm_teacher import PYTHON

pytestmark = pytest.mark.teacher

ASK = """
import json, sys
from vllm import LLM, SamplingParams

folder, texts, options = json.loads(sys.argv[1])
engine = LLM(folder, dtype="float32", max_model_len=256, enforce_eager=True, gpu_memory_utilization=0.1)
answers = engine.generate([text + "\\n" for text in texts], SamplingParams(temperature=0, **options), use_tqdm=False)
print(json.dumps([[one.outputs[0].text, list(one.outputs[0].token_ids)] for one in answers]))
"""
"""Only what the model card says: a text, a line break, greedy decoding."""


@pytest.fixture(scope="module")
def decoder(written_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers and 64 dimensions with random weights; vLLM's attention needs 32 dimensions a head."""
    folder = Path(shutil.copytree(written_words, tmp_path_factory.mktemp("decoder") / "model"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(vocab_size=420, initializer_range=0.2, **sizes, **ends)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("target", ["text", "classes"])
def test_an_exported_decoder_answers_in_vllm_as_in_retort(
    target: str, decoder: Path, tiny_classes: dict[str, Any], tmp_path: Path
) -> None:
    fields = {"kind": "causal", "model": str(decoder), "target": target}
    student = {**tiny_classes["student"], **fields}
    trained = train({**tiny_classes, "student": student, "store": {"root": str(tmp_path / "store")}})
    folder = tmp_path / "exported"
    retort = str(Path(sys.executable).with_name("retort"))
    subprocess.run([retort, "export", trained.student.uri, str(folder)], check=True, capture_output=True)
    notes = json.loads((folder / "student.json").read_text())
    last = notes["first"] + len(notes["classes"])
    card = (folder / "README.md").read_text()
    assert "## How to ask it\nA prompt is the text and then a line break" in card
    assert (f"It answers in tokens {notes['first']} to {last - 1}, " in card) == (target == "classes")
    options: dict[str, Any] = {"max_tokens": notes["most"]}
    if target == "classes":
        options = {"max_tokens": 1, "allowed_token_ids": list(range(notes["first"], last))}
    texts = [row["text"] for row in trained.evaluated()]
    answers = asked(folder, texts, options)
    given = [text if target == "text" else notes["classes"][ids[0] - notes["first"]] for text, ids in answers]
    loaded = load_student(find_student(trained.student.uri), "cpu")
    expected = [one.label for one in loaded.label(texts)]
    assert given == expected
    assert set(given) == {"up", "down"}, "it has learned something"


def asked(folder: Path, texts: list[str], options: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """vLLM's (text, token ids) for each text."""
    ended = subprocess.run(
        [str(PYTHON), "-c", ASK, json.dumps([str(folder), texts, options])],
        env={
            **os.environ,
            "PYTHONPATH": "",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    answers: list[tuple[str, list[int]]] = json.loads(ended.stdout.splitlines()[-1])
    return answers
