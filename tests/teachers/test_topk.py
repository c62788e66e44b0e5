"""A teacher's top log-probabilities: from manual forward passes through the ledger to the artifact and the loss."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from local_teacher import ByHand, asked, opened, requests, save
from retort.artifacts.pseudolabels import TEACHER_TOKENS
from retort.config import MckdConfig
from retort.config.teachers import SamplingConfig
from retort.errors import ConfigError
from retort.io.parquet import read_rows, write_rows
from retort.problems import Constraint
from retort.recipes.execute import make
from retort.recipes.mckd.steps import ingest, label_by_llm
from retort.records.base import ArtifactRef
from retort.records.mckd import Data
from retort.store import Store
from retort.store.opening import open_store
from retort.students.losses import reverse_kl, token_distillation
from retort.teachers.labeler import ASKED
from retort.teachers.ledger import Entry, Ledger
from retort.teachers.requests import Completion, CompletionRequest
from retort.teachers.shards import OLDER_SCHEMAS
from retort.teachers.top_logprobs import TokensWriter, TopLogprobs, read_teacher_tokens
from retort.teachers.vllm.engine.toplogprobs import pack, tokenizer_identity

K = 5
LABELS = ("correct", "correct but incomplete", "wrong")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"), "plain")


# ---- packing


def unpacked(top: TopLogprobs) -> tuple[list[int], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ids, logprobs = np.frombuffer(top.ids, "<i4"), np.frombuffer(top.logprobs, "<f4")
    return np.frombuffer(top.token_ids, "<i4").tolist(), ids.reshape(-1, top.k), logprobs.reshape(-1, top.k)


def test_the_likeliest_come_first_and_short_lists_are_padded() -> None:
    """An engine also lists the generated token, even if it is not one of the k likeliest."""
    listed = [{7: -0.5, 3: -0.25, 9: -20.0}, {4: -0.125}]
    top = TopLogprobs(2, "abc", *pack([9, 4], listed, 2))
    token_ids, ids, logprobs = unpacked(top)
    assert token_ids == [9, 4]
    assert ids.tolist() == [[3, 7], [4, 0]]
    assert logprobs.tolist() == [[-0.25, -0.5], [-0.125, -np.inf]]
    assert pack([], [], 3) == (b"", b"", b"")


def test_the_identity_is_of_what_ids_mean(teacher: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    again = AutoTokenizer.from_pretrained(teacher)
    assert tokenizer_identity(tokenizer) == tokenizer_identity(again)
    again.add_tokens(["<thought>"])
    again.save_pretrained(tmp_path)
    assert tokenizer_identity(AutoTokenizer.from_pretrained(tmp_path)) != tokenizer_identity(tokenizer)


# ---- transformers


def held_to(by_hand: ByHand, token_ids: list[int], logits: torch.Tensor) -> None:
    """A mask `(tokens, vocab)`: -inf for the tokens that no label can continue with."""
    bare = [by_hand.tokenizer.encode(label, add_special_tokens=False) for label in LABELS]
    paths = [ids + [by_hand.end] * (label == "correct") for ids, label in zip(bare, LABELS, strict=True)]
    for at in range(len(token_ids)):
        allowed = {path[at] for path in paths if path[:at] == token_ids[:at] and len(path) > at}
        logits[at, [token for token in range(logits.shape[1]) if token not in allowed]] = -torch.inf


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling_temperature": 1.5, "samples": (3,)},
        {"constraint": Constraint(choice=LABELS)},
        {"constraint": Constraint(choice=LABELS), "max_tokens": 2},
    ],
)
def test_lists_are_those_of_plain_forward_passes(teacher: Path, fields: dict[str, Any]) -> None:
    """At any temperature, they are of the model's own distribution, or of that distribution restricted to what a choice
    allows. A student with the teacher's weights and the same prompt then has nothing to learn."""
    by_hand = ByHand(teacher)
    with opened(teacher) as client:
        plain = asked(client, requests(**fields))
        found: dict[tuple[bytes, int], Completion] = asked(client, requests(**fields, top_logprobs=K))
    assert {key: completion.text for key, completion in found.items()} == {
        key: completion.text for key, completion in plain.items()
    }
    assert all(completion.top is None for completion in plain.values())
    by_key: dict[bytes, CompletionRequest] = {request.key: request for request in requests()}
    for (key, _), completion in found.items():
        assert completion.top
        token_ids, ids, logprobs = unpacked(completion.top)
        assert completion.top.tokenizer == tokenizer_identity(by_hand.tokenizer)
        assert len(token_ids) == completion.completion_tokens == len(ids)
        assert completion.logprob is not None
        written = by_hand.tokenizer.decode(token_ids, skip_special_tokens=True)
        assert written.startswith(completion.text) or completion.text.startswith(written)
        prompt = by_hand.prompt(by_key[key])
        logits = by_hand.logits([*prompt, *token_ids])[None, len(prompt) - 1 : -1].clone()
        if "constraint" in fields:
            held_to(by_hand, token_ids, logits[0])
        of_all = logits[0].log_softmax(-1)
        expected = of_all.topk(K)
        np.testing.assert_allclose(logprobs, expected.values.numpy(), atol=1e-4)
        assert completion.logprob == pytest.approx(of_all[range(len(token_ids)), token_ids].sum().item(), abs=1e-3)
        tensors = torch.tensor(ids.astype(np.int64))[None], torch.tensor(logprobs.copy())[None]
        everywhere = torch.ones(1, len(token_ids), dtype=torch.bool)
        loss = token_distillation(logits.clamp(min=-1e4), *tensors, everywhere, divergence=reverse_kl)
        assert loss.abs().max() < 1e-4


def test_more_than_the_vocabulary(teacher: Path) -> None:
    with opened(teacher) as client:
        (completion,) = asked(client, requests(top_logprobs=10_000)[:1]).values()
    _, ids, logprobs = unpacked(completion.top)
    vocabulary = AutoModelForCausalLM.from_pretrained(teacher).config.vocab_size
    assert np.isneginf(logprobs[:, vocabulary:]).all()
    np.testing.assert_allclose(np.exp(logprobs.astype(np.float64)).sum(-1), 1.0, atol=1e-5)
    assert [len(set(row[:vocabulary])) for row in ids.tolist()] == [vocabulary] * len(ids)


# ---- the ledger

TEACHER = {"kind": "transformers", "model": "tiny"}
TOP = TopLogprobs(2, "abc", *pack([9, 4], [{7: -0.5, 3: -0.25}, {4: -0.125}], 2))


def entry(number: int, text: str, top: TopLogprobs | None = None, logprob: float | None = None) -> Entry:
    return Entry(number.to_bytes(16), text, "stop", 64, 10, 0, 2, (), 1.5, top, logprob)


def old_shard(store: Store, ledger: Ledger, schema: pa.Schema, entries: list[Entry]) -> None:
    """A shard as it was written before some columns existed."""
    columns = dict(zip(Entry._fields, zip(*entries, strict=True), strict=True))
    sink = pa.BufferOutputStream()
    columns["top"] = tuple(top and top._asdict() for top in columns["top"])
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    name = f"20260101T000000.000000Z-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    store.place.write(f"{ledger.folder}/{name}", data)


def test_older_shards_are_read_beside_newer_ones_and_merged_with_them(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    ledger = Ledger(store, TEACHER)
    old, new = [entry(1, "old"), entry(2, "old too", TOP)], [entry(3, "new", TOP, -0.375), entry(4, "plain")]
    for schema, one in zip(reversed(OLDER_SCHEMAS), old, strict=True):
        old_shard(store, ledger, schema, [one])
    asked_for = tmp_path / "asked.parquet"
    numbers = [3, 1, 5, 2, 4]
    write_rows(asked_for, ASKED, ({"position": at, "key": n.to_bytes(16)} for at, n in enumerate(numbers)))
    assert list(Ledger(store, TEACHER).join(asked_for)) == [None, old[0], None, old[1], None]
    ledger.add(new)
    expected = [new[0], old[0], None, old[1], new[1]]
    for _ in range(2):
        fresh = Ledger(store, TEACHER)
        assert list(fresh.join(asked_for)) == expected
        missing = [place for batch in fresh.missing(asked_for, 64) for place in batch["position"].to_pylist()]
        assert (missing, fresh.damaged) == ([2], [])
        fresh.compact()
    assert len(ledger.files()) == 1


# ---- the artifact

Build = Callable[[int], MckdConfig]


@pytest.fixture(scope="module")
def build(tiny_classes: dict[str, Any], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    root = tmp_path_factory.mktemp("topk") / "store"

    def config(top_logprobs: int) -> MckdConfig:
        sampling = {"max_tokens": 8, **({"top_logprobs": top_logprobs} if top_logprobs else {})}
        given = {"kind": "transformers", "model": str(teacher), "sampling": sampling}
        problem = {"kind": "classification", "labels": ["down", "up"]}
        return MckdConfig.model_validate(
            {**tiny_classes, "problem": problem, "teacher": given, "store": {"root": str(root)}}
        )

    return config


def labeled(config: MckdConfig, data: Data) -> Path:
    step = label_by_llm(config, "stage0/pseudolabels", config.teacher, data)  # type: ignore[arg-type]
    return open_store(config.store).fetch(make(config, step, 0, lambda *_: None))


def ingested(config: MckdConfig) -> Data:
    def ref(role: str) -> ArtifactRef:
        step = ingest(config, role)
        manifest = open_store(config.store).find(step.artifact_kind, step.key)
        return open_store(config.store).ref(manifest) if manifest else make(config, step, 0, lambda *_: None)

    refs = {role: ref(role) for role in ("labeled", "unlabeled", "test")}
    return Data(**refs, judge=refs["labeled"])


def test_the_artifact_holds_what_the_teacher_thought_of_each_label(build: Build, teacher: Path) -> None:
    plain, config = build(0), build(K)
    data = ingested(config)
    assert not (labeled(plain, data) / TEACHER_TOKENS).exists()
    folder = labeled(config, data)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    found = list(read_teacher_tokens(folder / TEACHER_TOKENS, tokenizer_identity(tokenizer), 10**6))
    rows = list(read_rows(folder / "rows.parquet"))
    assert [tokens.example_id for tokens in found] == [row["example_id"] for row in rows]
    assert len(rows) == 60
    for tokens, row in zip(found, rows, strict=True):
        assert tokenizer.decode(tokens.token_ids) == row["label"]
        assert tokens.ids.shape == tokens.logprobs.shape == (len(tokens.token_ids), K)
        # Constrained to two labels, the teacher has at most two tokens to choose from.
        assert (tokens.logprobs[:, 0] >= tokens.logprobs[:, 1]).all()
        assert np.isneginf(tokens.logprobs[:, 2:]).all()
        assert np.exp(tokens.logprobs).sum(-1) == pytest.approx(1, abs=1e-5)
    assert min(tokens.logprobs[0, 1] for tokens in found) > -np.inf


def test_a_second_labeling_takes_them_from_the_ledger(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build(K)
    data = ingested(config)
    first = (labeled(config, data) / TEACHER_TOKENS).read_bytes()
    monkeypatch.setattr("retort.steps.pseudolabel_llm.open_client", lambda *_: pytest.fail("the teacher was started"))
    again = labeled(config, data)
    assert (again / TEACHER_TOKENS).read_bytes() == first


def test_keys_stay_as_they_were_without_it(build: Build) -> None:
    plain, config = build(0), build(K)
    data = ingested(config)
    steps = [label_by_llm(c, "s", c.teacher, data) for c in (plain, config)]  # type: ignore[arg-type]
    sampling = [step.params["sampling"] for step in steps]
    assert sampling[0] == {
        "sampling_temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 8,
        "samples": 1,
        "choose": "majority",
    }
    assert sampling[1] == {**sampling[0], "top_logprobs": K}
    assert steps[0].key != steps[1].key
    assert SamplingConfig.model_validate(sampling[1]).top_logprobs == K


def written(path: Path) -> Path:
    with TokensWriter(path) as writer:
        writer.add("a", TOP)
        writer.add("b", TOP._replace(k=1, ids=TOP.token_ids, logprobs=np.zeros(2, "<f4").tobytes()))
    return path


def test_a_student_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher logprobs over another tokenizer"):
        list(read_teacher_tokens(written(tmp_path / TEACHER_TOKENS), "abd", 10))


def test_tokens_that_a_student_cannot_write_go_to_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path / TEACHER_TOKENS)
    whole, cut = ([*read_teacher_tokens(path, "abc", most)] for most in (10, 7))
    assert [tokens.ids.tolist() for tokens in whole] == [[[3, 7], [4, 0]], [[9], [4]]]
    assert whole[0].logprobs.tolist() == [[-0.25, -0.5], [-0.125, -np.inf]]
    assert cut[0].ids.tolist() == [[3, 0], [4, 0]]
    assert cut[0].logprobs.tolist() == [[-0.25, -np.inf], [-0.125, -np.inf]]
    assert cut[1].logprobs.tolist() == [[-np.inf], [0.0]]


def test_without_a_row_there_is_no_file(tmp_path: Path) -> None:
    with TokensWriter(tmp_path / TEACHER_TOKENS):
        pass
    assert not (tmp_path / TEACHER_TOKENS).exists()


@pytest.mark.parametrize(
    ("teacher_fields", "said"),
    [
        ({"kind": "endpoint", "model": "m", "url": "http://localhost/v1", "sampling": {"top_logprobs": 5}}, "endpoint"),
        ({"sampling": {"top_logprobs": 5}, "labels": "soft"}, "labels: soft"),
        ({"sampling": {"top_logprobs": 5, "samples": 3, "sampling_temperature": 1.0}}, "samples must be 1"),
        ({"sampling": {"top_logprobs": 257}}, "256"),
    ],
)
def test_what_cannot_have_them(tiny_classes: dict[str, Any], teacher_fields: dict[str, Any], said: str) -> None:
    given = {"kind": "transformers", "model": "m", **teacher_fields}
    with pytest.raises(ValidationError, match=said):
        MckdConfig.model_validate({**tiny_classes, "teacher": given})
