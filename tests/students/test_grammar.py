"""Text that students generate under the grammar of a problem."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retort.config import CausalConfig, ConstituencyConfig, Seq2SeqConfig, TextConfig, TrainingConfig
from retort.models.device import Device
from retort.models.weights import find_weights
from retort.problems import Problem
from retort.problems.classification import Classification
from retort.problems.constituency import Constituency
from retort.problems.entities import Entities
from retort.problems.multi_label import MultiLabel
from retort.problems.slots import Slots, encode
from retort.problems.text import FreeText
from retort.records.base import ParseFailure
from retort.students.base import Prediction, TrainingRow
from retort.students.decoding import Request, decode
from retort.students.generative import GenerativeStudent, new_generative_student
from retort.students.grammar import Grammar

CPU = Device("cpu", "fp32", 1)
SCHEMA = {
    "type": "object",
    "properties": {"when": {"type": "integer", "maximum": 99}, "city": {"enum": ["rome", 'new "york"']}},
    "required": ["when", "city"],
    "additionalProperties": False,
}
SLOTS = Slots({"PLAY": ["ARTIST", "CITY"], "ASK": ["CITY"], "NO": []})
TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP", "S+VP"]))
BARE_TREES = Constituency(ConstituencyConfig(kind="constituency", form="unlabelled"))
CLASSES = Classification(["great", "greater", 'a "dull" film'])
SETS = MultiLabel(["great", "greater", 'a "dull" film'], ",")
ENTITIES = Entities(["ARTIST", "ART"])
JSON = FreeText(TextConfig(kind="text", json_schema=SCHEMA))
PATTERN = FreeText(TextConfig(kind="text", pattern=r"[0-9]{2}/(a|b[0-9])"))
PROBLEMS: dict[str, Problem] = {
    "slots": SLOTS, "entities": ENTITIES, "sets": SETS, "trees": TREES, "bare trees": BARE_TREES, "classes": CLASSES,
    "json": JSON, "pattern": PATTERN
}  # fmt: skip
TEXTS = ["play great film by great", "] weather [IN:X dull", "é ( a )", "film"]


Build = Callable[[str, Problem], GenerativeStudent]


@pytest.fixture(scope="module")
def build(tiny_t5: Path, tiny_causal: Path, tiny_encoder: Path) -> Build:
    """Random weights."""

    def new(kind: str, problem: Problem) -> GenerativeStudent:
        settings: dict[str, Any] = {"target": "text", "max_target_length": 60}
        match kind:
            case "causal":
                config: Any = CausalConfig(kind="causal", model=str(tiny_causal), **settings)
            case "t5":
                config = Seq2SeqConfig(kind="seq2seq", model=str(tiny_t5), **settings)
            case _:
                config = Seq2SeqConfig(kind="seq2seq", model=str(tiny_encoder), decoder_layers=1, **settings)
        torch.manual_seed(0)
        student = new_generative_student(config, find_weights(config), pretrained=True, problem=problem)
        student.model.eval()
        return student

    return new


def guided(student: GenerativeStudent, problem: Problem, texts: list[str]) -> list[Any]:
    requests = [
        Request(request.token_ids, request.max_tokens, grammar=problem.grammar(text))
        for request, text in zip(student.requests(texts), texts, strict=True)
    ]
    grammar = Grammar(student.tokenizer, end=student.target.end, num_logits=student.num_logits)  # type: ignore[union-attr]
    return decode(
        student.model, requests, student.vocabulary, device=CPU, batch_tokens=999, start=student.start, grammar=grammar
    )


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_a_student_that_has_learnt_nothing_writes_labels(build: Build, kind: str, name: str) -> None:
    problem = PROBLEMS[name]
    student = build(kind, problem)
    outcomes = list(student.predict(TEXTS, device=CPU, total=len(TEXTS)))
    for text, outcome in zip(TEXTS, outcomes, strict=True):
        if isinstance(outcome, ParseFailure):
            assert outcome.reason == "too-long"
        else:
            assert not outcome.is_repaired
            assert problem.parse(text, problem.render(text, outcome.label)) == outcome.label
    if name in ("classes", "pattern"):
        assert all(isinstance(outcome, Prediction) for outcome in outcomes)


@pytest.mark.parametrize("kind", ["t5", "causal"])
def test_what_is_chosen_is_the_best_that_is_allowed(build: Build, kind: str) -> None:
    """With log-probabilities of all that could be written, each step computed anew."""
    student = build(kind, SLOTS)
    grammar = Grammar(student.tokenizer, end=1, num_logits=student.num_logits)
    for request, text, one in zip(student.requests(TEXTS), TEXTS, guided(student, SLOTS, TEXTS), strict=True):
        assert one.is_guided
        state = grammar.batch([SLOTS.grammar(text)])
        for place, token in enumerate(one.token_ids):
            logits = _next_logits(student, request, one.token_ids[:place])
            allowed = torch.from_numpy(state.allowed([0])[0])
            assert token == int(logits.masked_fill(~allowed, -torch.inf).argmax())
            assert one.logprobs[place] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
            assert state.write([0], [token]) == []


@torch.inference_mode()
def _next_logits(student: GenerativeStudent, request: Request, written: list[int]) -> torch.Tensor:
    ids, model = torch.from_numpy(request.token_ids)[None], student.model
    if student.start is None:
        return model(torch.cat([ids, torch.tensor([written], dtype=torch.int64)], dim=1)).logits[0, -1]  # type: ignore[no-any-return]
    return model(input_ids=ids, decoder_input_ids=torch.tensor([[student.start, *written]])).logits[0, -1]  # type: ignore[no-any-return]


def test_a_text_is_written_again_only_where_it_was_no_label(build: Build) -> None:
    """What is legal is what the grammar would have had written, and what is not is as if it had been there at once."""
    student = build("causal", CLASSES)
    rows = [TrainingRow(text, label) for text, label in zip(TEXTS, ["great", "greater", "great", "great"], strict=True)]
    training = TrainingConfig(epochs=12, learning_rate=1e-2, batch_tokens=64, precision="fp32")
    student.train(rows, training, seed=0, device=CPU)
    texts = [*TEXTS, "dull " * 12, "[SL:X by", "weather"]
    free = decode(student.model, student.requests(texts), student.vocabulary, device=CPU, batch_tokens=999, start=None)
    is_legal = [isinstance(student.target.read(text, one), Prediction) for text, one in zip(texts, free, strict=True)]
    assert len(set(is_legal)) == 2, "the test wants both"
    at_once = guided(student, CLASSES, texts)
    for one, legal, other in zip(free, is_legal, at_once, strict=True):
        assert (one.token_ids == other.token_ids) == legal
    expected = [student.target.read(text, one) for text, one in zip(texts, at_once, strict=True)]
    found = list(student.predict(texts, device=CPU, total=len(texts)))
    assert [one.label for one in found] == [one.label for one in expected]  # type: ignore[union-attr]
    assert [one.confidence for one in found] == pytest.approx([one.confidence for one in expected])  # type: ignore[union-attr]


LABELS = [
    (SLOTS, "play great film by great", encode("PLAY", ["O", "B-ARTIST", "I-ARTIST", "O", "B-CITY"])),
    (SLOTS, "play great great film", encode("PLAY", ["O", "B-CITY", "B-CITY", "O"])),
    (SLOTS, "é", encode("NO", ["O"])),
    (SLOTS, "] weather [IN:X dull", encode("PLAY", ["B-CITY", "I-CITY", "I-CITY", "O"])),
    (ENTITIES, "] weather [IN:X dull", encode("", ["B-ART", "I-ART", "B-ARTIST", "O"])),
    (ENTITIES, "film", encode("", ["O"])),
    (SETS, "film", "[]"),
    (SETS, "film", '["great", "greater"]'),
    (SETS, "film", '["greater", "a \\"dull\\" film"]'),
    (TREES, "é ( a )", "(S (NP é) (S (VP -LRB- a)) -RRB-)"),
    (TREES, "film", "film"),
    (CLASSES, "film", "great"),
    (CLASSES, "film", "greater"),
    (JSON, "film", '{"city":"new \\"york\\"","when":7}'),
    (PATTERN, "film", "12/b3"),
]


def in_tokens(problem: Problem, text: str, label: str, folder: Path, **options: Any) -> tuple[Grammar, list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    grammar = Grammar(tokenizer, end=1, num_logits=420)
    return grammar, [*tokenizer(problem.render(text, label), add_special_tokens=False)["input_ids"], 1]


@pytest.mark.parametrize(("problem", "text", "label"), LABELS)
def test_no_label_is_ever_refused(problem: Problem, text: str, label: str, written_words: Path) -> None:
    """So that a legal greedy choice stays."""
    grammar, token_ids = in_tokens(problem, text, label, written_words)
    state = grammar.batch([problem.grammar(text)])
    assert [token for token in token_ids if state.write([0], [token])] == []
    assert state.is_kept == [True]


@pytest.mark.parametrize("problem", [SLOTS, ENTITIES, SETS, TREES, BARE_TREES, CLASSES, JSON, PATTERN])
def test_whatever_a_grammar_derives_is_a_label(problem: Problem, written_words: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(written_words)
    grammar, generator, ended = Grammar(tokenizer, end=1, num_logits=420), np.random.default_rng(0), 0
    for text in TEXTS * 4:
        state, written = grammar.batch([problem.grammar(text)]), list[int]()
        while len(written) < 150 and written[-1:] != [1]:
            allowed = np.flatnonzero(state.allowed([0])[0])
            written.append(1 if 1 in allowed and generator.random() < 0.5 else int(generator.choice(allowed)))
            assert state.write([0], written[-1:]) == []
        if written[-1] == 1:
            completion = tokenizer.decode(written[:-1], clean_up_tokenization_spaces=False)
            assert not isinstance(problem.parse(text, completion), ParseFailure), completion
            ended += 1
    assert ended > 8
    assert state.is_kept == [True]


def test_sentencepiece_writes_a_space_first() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "▁great", "great", "er", "▁", "dull"]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    state = Grammar(tokenizer, end=1, num_logits=8).batch([CLASSES.grammar("film")])
    assert np.flatnonzero(state.allowed([0])[0]).tolist() == [2, 3, 5]
    assert state.write([0, 0], [2, 6]) == [1]
    assert np.flatnonzero(state.allowed([0])[0]).tolist() == [1, 4]
    # After the space, both classes go on with what no token has.
    stuck = Grammar(tokenizer, end=1, num_logits=8).batch([Classification(["dul", "film"]).grammar("film"), None])
    assert stuck.write([0], [5]) == []
    assert stuck.allowed([0]).all()
    assert stuck.is_kept == [False, False]
    assert stuck.write([0], [6]) == []


def test_what_cannot_be_guided_is_written_freely_and_counted(build: Build) -> None:
    """A tokenizer of word pieces, and a pattern that looks ahead."""
    counted = ["rows, 4 of them beyond the problem's grammar"]
    assert notes_of(build("pair", CLASSES)) == counted
    assert notes_of(build("t5", FreeText(TextConfig(kind="text", pattern="(?=xy)x.*")))) == counted
    assert notes_of(build("t5", FreeText(TextConfig(kind="text")))) == ["rows"]


def notes_of(student: GenerativeStudent) -> list[str]:
    notes: list[str] = []
    list(student.predict(TEXTS, device=CPU, total=4, progress=lambda done, total, note: notes.append(note)))
    return notes


def test_a_student_learns_to_write_sets(build: Build) -> None:
    student = build("causal", SETS)
    rows = [
        TrainingRow(text, label)
        for text, label in zip(TEXTS, ['["great"]', "[]", "[]", '["great", "greater"]'], strict=True)
    ]
    training = TrainingConfig(epochs=60, learning_rate=1e-2, batch_tokens=64, precision="fp32")
    student.train(rows, training, seed=0, device=CPU)
    found = list(student.predict(TEXTS, device=CPU, total=len(TEXTS)))
    assert [one.label for one in found] == [row.label for row in rows]  # type: ignore[union-attr]
