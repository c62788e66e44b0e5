"""A causal model in this process: a tiny Qwen2 and a tiny Mistral with random weights, checked against plain forward
passes over whole prompts."""

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

from local_teacher import ROWS, SHARED, SIZES, ByHand, asked, opened, questions, save, texts
from retort.config.teachers import TransformersConfig
from retort.errors import ConfigError
from retort.problems import Constraint
from retort.teachers.huggingface.client import open_transformers
from retort.teachers.huggingface.decoding import sampled
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
    by_hand, wanted = ByHand(folder), questions()[:10]
    with opened(folder, batch_rows=4) as asker:
        answers = asked(asker, wanted)
    for question in wanted:
        answer = answers[question.key, 0]
        assert answer.text == by_hand.completion(question)
        assert answer.prompt_tokens == len(by_hand.prompt(question))
        assert answer.completion_tokens <= 12
        assert (answer.finish_reason == "length") == (answer.completion_tokens == 12)
    assert len(set(texts(answers).values())) > 3


def test_order_and_batch_size_do_not_matter(folder: Path) -> None:
    rows = ROWS[6:16]
    for wanted in (
        questions(rows),
        questions(rows, sampling_temperature=0.8, samples=(0, 5)),
        questions(rows, verbalizers=LABELS),
    ):
        with opened(folder, batch_rows=8) as asker:
            first = asked(asker, wanted)
        with opened(folder, batch_rows=3) as asker:
            again = asked(asker, wanted[::-1])
        with opened(folder, batch_rows=1) as asker:
            some = asked(asker, wanted[5:9])
        assert texts(again) == texts(first)
        assert texts(some).items() <= texts(first).items()
        for key, answer in first.items():
            assert again[key].scores == pytest.approx(answer.scores, abs=1e-4)


def test_samples_differ_by_number_row_and_seed_and_repeat(folders: dict[str, Path]) -> None:
    wanted = questions(ROWS[6:7] * 4, sampling_temperature=1.5, samples=(0, 1, 2))
    with opened(folders["plain"]) as asker:
        first = texts(asked(asker, wanted))
        assert texts(asked(asker, wanted)) == first
    assert len(set(first.values())) == 12
    with opened(folders["plain"], seed=1) as asker:
        assert not texts(asked(asker, wanted)).items() & first.items()


def test_samples_at_temperature_0_are_written_once_and_all_the_same(folders: dict[str, Path]) -> None:
    with opened(folders["plain"]) as asker:
        answers = asked(asker, questions(ROWS[6:8], samples=(0, 3)))
    for question in questions(ROWS[6:8]):
        assert answers[question.key, 0].text == answers[question.key, 3].text


def test_sampling_is_from_the_nucleus() -> None:
    logits, generator = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25])), torch.Generator().manual_seed(0)

    def shares(temperature: float, top_p: float) -> list[float]:
        drawn = torch.tensor([sampled(logits, temperature, top_p, generator) for _ in range(4000)])
        return (drawn.bincount(minlength=4) / 4000).tolist()

    assert shares(1.0, 1.0) == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)
    assert shares(1.0, 0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.03)
    assert shares(1.0, 0.4) == [0, 1, 0, 0]
    squares = [0.01, 0.25, 0.0225, 0.0625]
    assert shares(0.5, 1.0) == pytest.approx([square / sum(squares) for square in squares], abs=0.03)


def test_a_choice_is_written_and_nothing_else(folder: Path) -> None:
    constraint = Constraint(choice=LABELS)
    with opened(folder) as asker:
        greedy = asked(asker, questions(constraint=constraint))
        drawn = asked(asker, questions(constraint=constraint, sampling_temperature=3.0, samples=(0, 1, 2)))
        cut = asked(asker, questions(constraint=Constraint(choice=("wrong", "wrong again")), max_tokens=1))
    assert set(texts(greedy).values()) <= set(LABELS)
    assert set(texts(drawn).values()) == set(LABELS)
    assert {answer.finish_reason for answer in [*greedy.values(), *drawn.values()]} == {"stop"}
    assert {answer.finish_reason for answer in cut.values()} == {"length"}
    by_hand = ByHand(folder)
    assert texts(greedy) == {(question.key, 0): by_hand.choice(question, LABELS) for question in questions()}


def test_a_grammar_is_not_enforced(folders: dict[str, Path]) -> None:
    free, held = questions(), questions(constraint=Constraint(grammar='root ::= "x"'))
    with opened(folders["plain"]) as asker:
        assert texts(asked(asker, free)) == texts(asked(asker, held))


# ---- scores


def test_scores_are_the_probabilities_of_the_texts_after_the_whole_prompt(folder: Path) -> None:
    """Of one token and of several; `correct` begins another label, so it is ended."""
    by_hand, wanted = ByHand(folder), questions(verbalizers=(*LABELS, "x", "PlayMusic"))[:6]
    single = by_hand.tokenizer.encode("x", add_special_tokens=False)
    assert len(single) == 1 < len(by_hand.tokenizer.encode("correct", add_special_tokens=False))
    with opened(folder, batch_rows=4) as asker:
        answers = asked(asker, wanted)
    for question in wanted:
        answer = answers[question.key, 0]
        expected = [by_hand.score(question, text, ended=text == "correct") for text in question.verbalizers]
        assert answer.scores == pytest.approx(expected, abs=1e-4)
        assert 0 <= 1 - sum(map(math.exp, answer.scores)) <= 1
        assert answer.text == question.verbalizers[expected.index(max(expected))]
        assert answer.completion_tokens == 0


# ---- the shared prefix


def test_the_prefix_is_computed_once(folder: Path) -> None:
    prefix_tokens = len(ByHand(folder).prompt(replace(questions()[0], prompt=Prompt(SHARED, ""))))
    with opened(folder) as asker:
        first = sorted(answer.cached_tokens for answer in asked(asker, questions()).values())
        later = {answer.cached_tokens for answer in asked(asker, questions(verbalizers=LABELS)).values()}
    assert first[0] == 0 < prefix_tokens - 8 <= first[1] == first[-1] < prefix_tokens
    assert later == {first[-1]}


def test_rows_with_turns_of_their_own(folder: Path) -> None:
    """As where a labelled row must not see itself: every prompt has another prefix, or none."""
    wanted = [
        replace(question, prompt=Prompt(SHARED[: 2 * (number % 4)], question.prompt.item))
        for number, question in enumerate(questions()[:8])
    ]
    by_hand = ByHand(folder)
    with opened(folder, batch_rows=2) as asker:
        answers = asked(asker, wanted)
    assert texts(answers) == {(question.key, 0): by_hand.completion(question) for question in wanted}


def test_odd_rows(folder: Path) -> None:
    """What stands at the row's ends can change how the prefix's last token is parted from it."""
    odd = ["", " ", "\n", "\n\nplay", " play ", "play\n", "é漢🙂", "<|im_end|>"]
    wanted, by_hand = questions([{"text": text} for text in odd]), ByHand(folder)
    with opened(folder, batch_rows=3) as asker:
        answers = asked(asker, wanted)
    assert texts(answers) == {(question.key, 0): by_hand.completion(question) for question in wanted}


# ---- what cannot be answered


def test_a_row_that_is_too_long_is_refused_and_the_others_are_answered(tmp_path: Path) -> None:
    folder = save(tmp_path, "plain")
    settings = json.loads((folder / "config.json").read_text())
    by_hand = ByHand(folder)
    short, exact, long = questions([{"text": "play"}, {"text": "play it"}, {"text": "play " * 30}])
    limit = len(by_hand.prompt(exact)) + 1
    (folder / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": limit}))
    with opened(folder) as asker:
        answers = {answer.key: answer for answer in asker.ask(iter([short, exact, long]))}
        soft = list(asker.ask(iter([replace(exact, verbalizers=LABELS)])))
    refusal = answers[long.key]
    assert isinstance(refusal, Rejection)
    assert (refusal.reason, refusal.detail) == (
        "too-long",
        f"The prompt has {len(by_hand.prompt(long))} tokens, and the model's context is {limit}.",
    )
    cut = answers[exact.key]
    assert isinstance(cut, Completion)
    assert cut.completion_tokens == 1
    assert isinstance(answers[short.key], Completion)
    assert isinstance(soft[0], Rejection)


def test_nothing_to_ask(folders: dict[str, Path]) -> None:
    with opened(folders["plain"]) as asker:
        assert list(asker.ask(iter([]))) == []


def test_questions_are_taken_as_they_are_needed(folders: dict[str, Path]) -> None:
    taken = 0

    def counted() -> Iterator[CompletionRequest]:
        nonlocal taken
        for question in questions(ROWS * 4):
            taken += 1
            yield question

    with opened(folders["plain"]) as asker:
        next(asker.ask(counted()))
    assert taken < 4 * len(ROWS)


# ---- opening


def test_facts_and_half_a_batch_for_each_attempt(folders: dict[str, Path]) -> None:
    for attempt, rows in ((0, 8), (1, 4), (3, 1), (9, 1)):
        with opened(folders["plain"], attempt, dtype="bfloat16") as asker:
            facts = asker.facts
            assert facts["batch_rows"] == rows
            assert (facts["dtype"], facts["device"], facts["num_gpus"]) == ("bfloat16", "cpu", 0)


def test_random_weights_need_no_file_and_are_the_same_each_time(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["plain"] / name).read_bytes())
    found = []
    for _ in range(2):
        state = torch.get_rng_state()
        with opened(tmp_path, weights="random") as asker:
            found.append(texts(asked(asker, questions()[:4])))
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
    with opened(tmp_path) as asker, pytest.raises(ConfigError, match=r"teacher\.model = .* does not render"):
        list(asker.ask(iter(questions())))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folders: dict[str, Path]) -> None:
    config = TransformersConfig(kind="transformers", model="x")
    with pytest.raises(ConfigError, match="no GPU"):
        open_transformers(config, 0, str(folders["plain"]), None, "cuda").__enter__()
