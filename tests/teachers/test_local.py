"""The transformers teacher: a tiny Qwen2 and a tiny Mistral with random weights, checked against plain forward passes
over whole prompts."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    GPT2Config,
    MambaConfig,
    T5Config,
)

from local_teacher import ROWS, SHARED, SIZES, ByHand, asked, opened, requests, save, texts
from retort.config.teachers import TransformersConfig
from retort.errors import ConfigError
from retort.problems import Constraint
from retort.teachers.huggingface.client import open_transformers
from retort.teachers.huggingface.decoding import sample_token
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Rejection

LABELS = ("correct", "correct but incomplete", "wrong", "wet")
KINDS = ["plain", "chat", "parting", "sliding"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


# ---- writing


def test_greedy_completions_are_those_of_plain_forward_passes(folder: Path) -> None:
    by_hand, wanted = ByHand(folder), requests()[:10]
    with opened(folder, batch_rows=4) as client:
        completions = asked(client, wanted)
    for request in wanted:
        completion = completions[request.key, 0]
        assert completion.text == by_hand.completion(request)
        assert completion.prompt_tokens == len(by_hand.prompt(request))
        assert completion.completion_tokens <= 12
        assert (completion.finish_reason == "length") == (completion.completion_tokens == 12)
    assert len(set(texts(completions).values())) > 3


def test_order_and_batch_size_do_not_matter(folder: Path) -> None:
    rows = ROWS[6:16]
    for wanted in (
        requests(rows),
        requests(rows, sampling_temperature=0.8, samples=(0, 5)),
        requests(rows, verbalizers=LABELS),
    ):
        with opened(folder, batch_rows=8) as client:
            first = asked(client, wanted)
        with opened(folder, batch_rows=3) as client:
            again = asked(client, wanted[::-1])
        with opened(folder, batch_rows=1) as client:
            some = asked(client, wanted[5:9])
        assert texts(again) == texts(first)
        assert texts(some).items() <= texts(first).items()
        for key, completion in first.items():
            assert again[key].scores == pytest.approx(completion.scores, abs=1e-4)


def test_samples_differ_by_number_row_and_seed_and_repeat(folders: dict[str, Path]) -> None:
    wanted = requests(ROWS[6:7] * 4, sampling_temperature=1.5, samples=(0, 1, 2))
    with opened(folders["plain"]) as client:
        first = texts(asked(client, wanted))
        assert texts(asked(client, wanted)) == first
    assert len(set(first.values())) == 12
    with opened(folders["plain"], seed=1) as client:
        assert not texts(asked(client, wanted)).items() & first.items()


def test_samples_at_temperature_0_are_written_once_and_all_the_same(folders: dict[str, Path]) -> None:
    with opened(folders["plain"]) as client:
        completions = asked(client, requests(ROWS[6:8], samples=(0, 3)))
    for request in requests(ROWS[6:8]):
        assert completions[request.key, 0].text == completions[request.key, 3].text


def test_sampling_is_from_the_nucleus() -> None:
    logits, generator = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25])), torch.Generator().manual_seed(0)

    def shares(temperature: float, top_p: float) -> list[float]:
        drawn = torch.tensor([sample_token(logits, temperature, top_p, generator) for _ in range(4000)])
        return (drawn.bincount(minlength=4) / 4000).tolist()

    assert shares(1.0, 1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)
    assert shares(1.0, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(1.0, 0.4) == [0, 1, 0, 0]
    squares = [0.01, 0.25, 0.0225, 0.0625]
    assert shares(0.5, 1.0) == pytest.approx([square / sum(squares) for square in squares], abs=0.03)


def test_a_choice_is_written_and_nothing_else(folder: Path) -> None:
    constraint = Constraint(choice=LABELS)
    with opened(folder) as client:
        greedy = asked(client, requests(constraint=constraint))
        drawn = asked(client, requests(constraint=constraint, sampling_temperature=3.0, samples=(0, 1, 2)))
        cut = asked(client, requests(constraint=Constraint(choice=("wrong", "wrong again")), max_tokens=1))
    assert set(texts(greedy).values()) <= set(LABELS)
    assert set(texts(drawn).values()) == set(LABELS)
    assert {completion.finish_reason for completion in [*greedy.values(), *drawn.values()]} == {"stop"}
    assert {completion.finish_reason for completion in cut.values()} == {"length"}
    by_hand = ByHand(folder)
    assert texts(greedy) == {(request.key, 0): by_hand.choice(request, LABELS) for request in requests()}


def test_a_grammar_is_not_enforced(folders: dict[str, Path]) -> None:
    free, held = requests(), requests(constraint=Constraint(grammar='root ::= "x"'))
    with opened(folders["plain"]) as client:
        assert texts(asked(client, free)) == texts(asked(client, held))


# ---- scores


def test_scores_are_the_probabilities_of_the_texts_after_the_whole_prompt(folder: Path) -> None:
    """Labels of one token and of several; `correct` is a prefix of another label, so it is terminated."""
    by_hand, wanted = ByHand(folder), requests(verbalizers=(*LABELS, "x", "PlayMusic"))[:6]
    single = by_hand.tokenizer.encode("x", add_special_tokens=False)
    assert len(single) == 1 < len(by_hand.tokenizer.encode("correct", add_special_tokens=False))
    with opened(folder, batch_rows=4) as client:
        completions = asked(client, wanted)
    for request in wanted:
        completion = completions[request.key, 0]
        expected = [by_hand.score(request, text, ended=text == "correct") for text in request.verbalizers]
        assert completion.scores == pytest.approx(expected, abs=1e-4)
        assert 0 <= 1 - sum(map(math.exp, completion.scores)) <= 1
        assert completion.text == request.verbalizers[expected.index(max(expected))]
        assert completion.completion_tokens == 0


# ---- the shared prefix


def test_the_prefix_is_computed_once(folder: Path) -> None:
    prefix_tokens = len(ByHand(folder).prompt(replace(requests()[0], prompt=Prompt(SHARED, ""))))
    with opened(folder) as client:
        first = sorted(completion.cached_tokens for completion in asked(client, requests()).values())
        later = {completion.cached_tokens for completion in asked(client, requests(verbalizers=LABELS)).values()}
    assert first[0] == 0 < prefix_tokens - 8 <= first[1] == first[-1] < prefix_tokens
    assert later == {first[-1]}


def test_rows_with_turns_of_their_own(folder: Path) -> None:
    """As when a labeled row must not see itself: every prompt has a different prefix, or none."""
    wanted = [
        replace(request, prompt=Prompt(SHARED[: 2 * (number % 4)], request.prompt.item))
        for number, request in enumerate(requests()[:8])
    ]
    by_hand = ByHand(folder)
    with opened(folder, batch_rows=2) as client:
        completions = asked(client, wanted)
    assert texts(completions) == {(request.key, 0): by_hand.completion(request) for request in wanted}


def test_odd_rows(folder: Path) -> None:
    """The characters at the row's ends can change how the text around the prefix's end is tokenized."""
    odd = ["", " ", "\n", "\n\nplay", " play ", "play\n", "é漢🙂", "<|im_end|>"]
    wanted, by_hand = requests([{"text": text} for text in odd]), ByHand(folder)
    with opened(folder, batch_rows=3) as client:
        completions = asked(client, wanted)
    assert texts(completions) == {(request.key, 0): by_hand.completion(request) for request in wanted}


# ---- what cannot be answered


def test_a_row_that_is_too_long_is_rejected_and_the_others_are_completed(tmp_path: Path) -> None:
    folder = save(tmp_path, "plain")
    settings = json.loads((folder / "config.json").read_text())
    by_hand = ByHand(folder)
    short, exact, long = requests([{"text": "play"}, {"text": "play it"}, {"text": "play " * 30}])
    limit = len(by_hand.prompt(exact)) + 1
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": limit}))
    with opened(folder) as client:
        completions = {completion.key: completion for completion in client.ask(iter([short, exact, long]))}
        soft = list(client.ask(iter([replace(exact, verbalizers=LABELS)])))
    refusal = completions[long.key]
    assert isinstance(refusal, Rejection)
    assert (refusal.reason, refusal.detail) == (
        "too-long",
        f"The prompt has {len(by_hand.prompt(long))} tokens, and the model's context is {limit}.",
    )
    cut = completions[exact.key]
    assert isinstance(cut, Completion)
    assert cut.completion_tokens == 1
    assert isinstance(completions[short.key], Completion)
    assert isinstance(soft[0], Rejection)


def test_nothing_to_ask(folders: dict[str, Path]) -> None:
    with opened(folders["plain"]) as client:
        assert list(client.ask(iter([]))) == []


def test_requests_are_taken_as_they_are_needed(folders: dict[str, Path]) -> None:
    taken = 0

    def counted() -> Iterator[CompletionRequest]:
        nonlocal taken
        for request in requests(ROWS * 4):
            taken += 1
            yield request

    with opened(folders["plain"]) as client:
        next(client.ask(counted()))
    assert taken < 4 * len(ROWS)


# ---- opening


def test_facts_and_half_a_batch_for_each_attempt(folders: dict[str, Path]) -> None:
    for attempt, rows in ((0, 8), (1, 4), (3, 1), (9, 1)):
        with opened(folders["plain"], attempt, dtype="bfloat16") as client:
            facts = client.facts
            assert facts["batch_rows"] == rows
            assert (facts["dtype"], facts["device"], facts["num_gpus"]) == ("bfloat16", "cpu", 0)


def test_random_weights_need_no_file_and_are_the_same_each_time(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["plain"] / name).read_bytes())
    found = []
    for _ in range(2):
        state = torch.get_rng_state()
        with opened(tmp_path, weights="random") as client:
            found.append(texts(asked(client, requests()[:4])))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    with pytest.raises(ConfigError, match="cannot be loaded"), opened(tmp_path):
        pass


ENCODERS = {
    "bert": BertConfig(**SIZES),
    "t5": T5Config(d_model=64, num_layers=2),
    "mamba": MambaConfig(hidden_size=64, num_hidden_layers=2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_no_causal_model_is_refused_before_weights_are_loaded(name: str, tmp_path: Path) -> None:
    ENCODERS[name].save_pretrained(tmp_path)
    expected = rf"teacher\.model = .*: is no causal language model.*'{name}'"
    with pytest.raises(ConfigError, match=expected), opened(tmp_path):
        pass


def test_a_folder_without_a_model_and_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.model = .*: cannot be loaded"), opened(tmp_path):
        pass
    GPT2Config(n_layer=1, n_embd=16, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"teacher\.model = .*: cannot be loaded"), opened(tmp_path):
        pass


def test_a_chat_template_that_cannot_be_used(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["plain"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content | upper }}")
    with opened(tmp_path) as client, pytest.raises(ConfigError, match=r"teacher\.model = .* does not render"):
        list(client.ask(iter(requests())))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folders: dict[str, Path]) -> None:
    config = TransformersConfig(kind="transformers", model="x")
    with pytest.raises(ConfigError, match="no GPU"):
        open_transformers(config, 0, str(folders["plain"]), None, "cuda").__enter__()
