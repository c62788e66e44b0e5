import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.teachers.vllm.client import VllmClient, open_vllm
from vllm_teacher import CONTEXT, PYTHON, ROOT, config_for

END = "<|end|>"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="vLLM's environment is not there; `make teacher` builds it")
    for item in items:
        if item.get_closest_marker("teacher") and not PYTHON.exists():
            item.add_marker(missing)


@pytest.fixture(scope="session")
def snips_lines() -> list[str]:
    rows = (ROOT / "examples/snips/labeled.jsonl").read_text().splitlines()
    return [*(json.loads(row)["text"] for row in rows), *(ROOT / "examples/snips/prompt.txt").read_text().splitlines()]


@pytest.fixture(scope="session")
def tiny_causal(snips_lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 2 layers and 64 dimensions with random weights, whose next tokens are neither certain nor all alike,
    and a byte-level BPE tokenizer of 600 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("causal")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(snips_lines, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        eos_token_id=tokenizer.token_to_id(END),
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def client(tiny_causal: Path) -> Iterator[VllmClient]:
    with open_vllm(config_for(tiny_causal), 0, str(tiny_causal), None) as opened:
        yield opened
