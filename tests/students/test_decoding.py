"""The decoding engine against transformers' own `generate`, and against computing every step anew."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from retort.config import Seq2SeqConfig
from retort.models.device import Device
from retort.models.weights import find_weights
from retort.problems.slots import Slots
from retort.students.decoding import LOOK_STEPS, Request, Vocabulary, decode
from retort.students.generative import new_generative_student
from retort.students.targets import Written

CPU = Device("cpu", "fp32", 1)
MOST = 24


@pytest.fixture(scope="module", params=["t5", "bart", "causal", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Random weights, wide enough that the ends are reached at different steps."""
    from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ends: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    match request.param:
        case "t5":
            made: Any = AutoModelForSeq2SeqLM.from_pretrained(request.getfixturevalue("tiny_t5"))
        case "causal":
            made = AutoModelForCausalLM.from_pretrained(request.getfixturevalue("tiny_causal"))
        case "bart":
            sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64}
            made = BartForConditionalGeneration(
                BartConfig(
                    vocab_size=420, init_std=0.3, decoder_start_token_id=1, forced_eos_token_id=None, **ends, **sizes,
                    **heads,
                )
            )  # fmt: skip
        case _:
            made = GPT2LMHeadModel(
                GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, **ends)
            )
    return made.eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    generator = np.random.default_rng(1)
    return [Request(generator.integers(2, 420, size=int(n)), MOST) for n in generator.integers(1, 30, size=40)]


def start_of(model: PreTrainedModel) -> int | None:
    return model.config.decoder_start_token_id if model.config.is_encoder_decoder else None  # type: ignore[return-value]


def ours(model: PreTrainedModel, requests: list[Request], batch_tokens: int, end: int) -> list[Written]:
    return decode(model, requests, Vocabulary(0, end), device=CPU, batch_tokens=batch_tokens, start=start_of(model))


def end_for(model: PreTrainedModel, requests: list[Request]) -> int:
    """The token that ends the most rows, none of them with their first: a random model seldom writes token 1."""
    endless = [one.token_ids for one in ours(model, requests, 1000, 1)]
    counts = Counter(token for row in endless for token in set(row[1:]) - {0, row[0]})
    return counts.most_common(1)[0][0]


@torch.inference_mode()
def generated(model: PreTrainedModel, request: Request, end: int) -> list[int]:
    """The reference: transformers, one row at a time."""
    ids = torch.from_numpy(request.token_ids)[None]
    row = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False, num_beams=1, eos_token_id=end
    )[0]
    skipped = 1 if model.config.is_encoder_decoder else ids.shape[1]
    return [int(token) for token in row[skipped:]]


def test_the_same_tokens_as_generate(model: PreTrainedModel, requests: list[Request]) -> None:
    end = end_for(model, requests)
    expected = [generated(model, request, end) for request in requests]
    assert len({len(tokens) for tokens in expected}) > 1, "the test wants rows that end at different steps"
    for batch_tokens in (100_000, 120):
        written = ours(model, requests, batch_tokens, end)
        assert [one.token_ids for one in written] == expected
    assert [one.is_finished for one in written] == [tokens[-1] == end for tokens in expected]


@torch.inference_mode()
def logprobs_of(model: Any, request: Request, tokens: list[int]) -> list[float]:
    """All steps at once, without a cache."""
    ids = torch.from_numpy(request.token_ids)[None]
    if model.config.is_encoder_decoder:
        written = torch.tensor([[model.config.decoder_start_token_id, *tokens[:-1]]])
        logits = model(input_ids=ids, decoder_input_ids=written, use_cache=False).logits[0]
    else:
        logits = model(torch.cat([ids, torch.tensor([tokens])], dim=1), use_cache=False).logits[
            0, ids.shape[1] - 1 : -1
        ]
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()  # type: ignore[no-any-return]


def test_the_log_probabilities_are_those_of_one_pass_over_the_whole_row(
    model: PreTrainedModel, requests: list[Request]
) -> None:
    for request, one in zip(requests, ours(model, requests, 300, end_for(model, requests)), strict=True):
        assert one.logprobs == pytest.approx(logprobs_of(model, request, one.token_ids), abs=1e-4)


def test_each_row_has_its_own_limit(model: PreTrainedModel, requests: list[Request]) -> None:
    end = end_for(model, requests)
    whole = ours(model, requests, 300, end)
    limits = np.random.default_rng(0).integers(0, 6, size=len(requests)).tolist()
    limited = [Request(request.token_ids, limit) for request, limit in zip(requests, limits, strict=True)]
    for long, short, limit in zip(whole, ours(model, limited, 300, end), limits, strict=True):
        assert short.token_ids == long.token_ids[:limit]
        assert short.is_finished == (end in short.token_ids)


def test_rows_are_looked_at_seldom_and_end_where_they_did(
    model: PreTrainedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a row may write on for some steps after its end."""
    end = end_for(model, requests)
    at_each_step = ours(model, requests, 300, end)
    monkeypatch.setitem(LOOK_STEPS, "cpu", 8)
    assert [one.token_ids for one in ours(model, requests, 300, end)] == [one.token_ids for one in at_each_step]


def test_no_request_and_no_room_give_nothing(model: PreTrainedModel) -> None:
    assert ours(model, [], 100, 1) == []
    (written,) = ours(model, [Request(np.array([5, 6]), 0)], 100, 1)
    assert written.token_ids == []


def test_legal_classes_are_the_best_legal_ones_of_every_step_computed_anew(tiny_t5: Path, tiny_encoder: Path) -> None:
    slots = Slots({"PLAY": ["ARTIST"], "ASK": ["CITY"]})
    for fields in ({"model": str(tiny_t5)}, {"model": str(tiny_encoder), "decoder_layers": 2}):
        config = Seq2SeqConfig(kind="seq2seq", **fields)  # type: ignore[arg-type]
        torch.manual_seed(0)
        student = new_generative_student(config, find_weights(config), pretrained=True, problem=slots)
        texts = ["play by great film", "weather dull", "play " * 9]
        student.model.eval()
        written = decode(
            student.model,
            student.requests(texts),
            student.vocabulary,
            device=CPU,
            batch_tokens=999,
            start=student.start,
        )
        for request, one in zip(student.requests(texts), written, strict=True):
            assert request.legal is not None
            assert one.token_ids == _anew(student.model, request, student.notes.first, student.start or 0)


@torch.inference_mode()
def _anew(model: Any, request: Request, first: int, start: int) -> list[int]:
    tokens = [start]
    for legal in request.legal if request.legal is not None else []:
        logits = model(
            input_ids=torch.from_numpy(request.token_ids)[None],
            decoder_input_ids=torch.tensor([tokens]),
            use_cache=False,
        ).logits[0, -1, first : first + len(legal)]
        tokens.append(first + int(logits.masked_fill(~torch.from_numpy(legal), -torch.inf).argmax()))
    return tokens[1:]
