"""S3 servers (moto in memory, rclone as a real one; both take the same credentials), a Prefect server, tiny
models, configs of a whole distillation on tiny data, and the command in this process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from hypothesis import HealthCheck, settings

from paper_method import PAPER
from tiny_data import LETTERS, SIZES, TRAINING, WHOLE_WORDS, class_row, completion, slots_row, write_lines

# Before anything imports torch: threads that spin while they wait for each other make a tiny training on a busy
# machine forty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A busy machine is slow, and no fault.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Their assertions are to say what differs, as those of the tests do.
pytest.register_assert_rewrite("endpoint_server", "local_teacher")

KEY, SECRET, BUCKET = "retort-tests", "retort-tests-secret", "retort-tests"


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def s3_moto(aws_environment: None) -> Iterator[tuple[str, str]]:
    """(endpoint_url, bucket)"""
    import boto3  # type: ignore[import-untyped]
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint_url = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint_url).create_bucket(Bucket=BUCKET)
    yield endpoint_url, BUCKET
    server.stop()


@pytest.fixture(scope="session")
def s3_rclone(aws_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(endpoint_url, bucket)"""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / BUCKET).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    rclone = Path(sys.executable).with_name("rclone")
    command = [str(rclone), "serve", "s3", str(folder), "--addr", address, "--auth-key", f"{KEY},{SECRET}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://{address}")
        yield f"http://{address}", BUCKET
    finally:
        process.terminate()
        process.wait(120)


def _wait_for(url: str) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            urlopen(url, timeout=10).close()
        except HTTPError:
            return  # it answers, if only to refuse
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers and 32 dimensions with random weights. Words that its vocabulary lacks fall into letters."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    pieces = [*MARKS, *WHOLE_WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), MARKS, strict=True))
    marks = {f"{name}_token": mark for name, mark in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.2, pad_token_id=0, **sizes
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_slots(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config of 60 pool rows with recorded completions (a tenth wrong, one unparsable), 12 labeled, 20 test."""
    folder = tmp_path_factory.mktemp("slots")
    data = {role: [slots_row(role, number) for number in range(n)] for role, n in SIZES.items()}
    for role, rows in data.items():
        write_lines(folder / f"{role}.jsonl", rows)
    write_lines(folder / "completions.jsonl", [completion(n, row) for n, row in enumerate(data["unlabeled"])])
    return {
        "name": "tiny-slots",
        "problem": {"kind": "slots"},
        "data": {role: str(folder / f"{role}.jsonl") for role in SIZES},
        "teacher": {"kind": "recorded", "completions": str(folder / "completions.jsonl")},
        "student": {"kind": "token-classification", "model": str(tiny_encoder), "training": TRAINING},
        "method": {**PAPER, "stages": 2, "selection": {"kind": "always"}},
        "baselines": [],
        "evaluation": {"resamples": 100},
        "store": {"root": str(folder / "store")},
        "execution": {"device": "cpu"},
    }


@pytest.fixture(scope="session")
def tiny_classes(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same sizes with one class for each text, and a teacher fine-tuned on the 12 labeled rows."""
    folder = tmp_path_factory.mktemp("classes")
    for role, size in SIZES.items():
        write_lines(folder / f"{role}.jsonl", [class_row(role, number) for number in range(size)])
    return {
        "name": "tiny-classes",
        "problem": {"kind": "classification"},
        "data": {role: str(folder / f"{role}.jsonl") for role in SIZES},
        "teacher": {"kind": "finetuned", "training": {**TRAINING, "epochs": 20}},
        "student": {"kind": "sequence-classification", "model": str(tiny_encoder), "training": TRAINING},
        "method": {**PAPER, "stages": 2, "selection": {"kind": "always"}},
        "baselines": [],
        "evaluation": {"resamples": 100},
        "store": {"root": str(folder / "store")},
        "execution": {"device": "cpu"},
    }


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prefect server, for flows of this process and of others."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    with pytest.MonkeyPatch.context() as patch, (home / "server.log").open("w") as log:
        for name, value in environment.items():
            patch.setenv(name, value)
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(f"{environment['PREFECT_API_URL']}/health")
            yield environment["PREFECT_API_URL"]
        finally:
            process.terminate()
            process.wait(120)


@pytest.fixture
def endpoint_server() -> Iterator[Any]:
    """An OpenAI-compatible server on loopback that answers `food`; see support/endpoint_server.py for its faults."""
    from endpoint_server import EndpointServer

    with EndpointServer() as server:
        yield server


@pytest.fixture(scope="session")
def written_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer that has learnt to write the slots' texts and parses, and loses nothing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    rows = [slots_row(role, number) for role, size in SIZES.items() for number in range(size)]
    parses = [completion(0, row)["response"]["body"]["choices"][0]["message"]["content"] for row in rows]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([row["text"] for row in rows] + parses, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(written_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of 2 + 2 layers and 32 dimensions with random weights."""
    import shutil

    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder = Path(shutil.copytree(written_words, tmp_path_factory.mktemp("t5") / "model"))
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=420, dropout_rate=0.1, **sizes, **ends)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_causal(written_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers and 32 dimensions with random weights."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(shutil.copytree(written_words, tmp_path_factory.mktemp("causal") / "model"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "max_position_embeddings": 256}
    LlamaForCausalLM(LlamaConfig(vocab_size=420, initializer_range=0.2, **sizes, **ends)).save_pretrained(folder)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`retort ARGUMENTS` in this process: (exit code, standard output, standard error)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        from retort.cli import main

        monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return call
