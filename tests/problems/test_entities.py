"""Entities: tags, spans of characters and bracket text are three faces of one label, without an intent."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort.config import ColumnsConfig, EntitiesConfig
from retort.errors import ConfigError, DataError
from retort.problems import infer_schema, problem_for
from retort.problems.entities import Entities
from retort.problems.slots import encode
from retort.records.base import ParseFailure
from retort.report.mistakes import error_tables
from retort.teachers.salvage import parse_completion

COLUMNS = ColumnsConfig()
PROBLEM = Entities(["person", "city"])
TEXT = "Angela Merkel  flew to New York ."
TAGS = "B-person I-person O O B-city I-city O"
BRACKETS = "[ [PERSON Angela Merkel ] [CITY New York ] ]"
LABEL = '{"tags":["B-PERSON","I-PERSON","O","O","B-CITY","I-CITY","O"]}'
SPANS = [{"start": 0, "end": 13, "label": "person"}, {"start": 23, "end": 31, "label": "city"}]


@pytest.mark.parametrize(
    "row",
    [
        {"bio": TAGS},
        {"bio": TAGS.split()},
        {"label": BRACKETS},
        {"label": SPANS},
        {"label": [[23, 31, "city"], (0, 13, "person")]},
        {"label": '[[0, 13, "person"], [23, 31, "city"]]'},
    ],
)
def test_all_forms_of_gold_are_one_label(row: dict[str, Any]) -> None:
    assert PROBLEM.gold({"text": TEXT, **row}, COLUMNS) == LABEL
    assert PROBLEM.render(TEXT, LABEL) == BRACKETS
    assert PROBLEM.parse(TEXT, BRACKETS) == LABEL


@pytest.mark.parametrize("row", [{"label": []}, {"label": "[]"}, {"label": "[ ]"}, {"bio": "O O O O O O O"}])
def test_a_text_may_hold_no_entity(row: dict[str, Any]) -> None:
    label = PROBLEM.gold({"text": TEXT, **row}, COLUMNS)
    assert label == encode("", ["O"] * 7)
    assert PROBLEM.render(TEXT, label) == "[ ]"
    assert PROBLEM.parse(TEXT, "[ ]") == label
    assert PROBLEM.parts(label) == []


@pytest.mark.parametrize("row", [{}, {"label": None}, {"label": " "}, {"bio": None}])
def test_a_row_without_a_label_has_none(row: dict[str, Any]) -> None:
    assert PROBLEM.gold({"text": TEXT, **row}, COLUMNS) is None


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"label": [[0, 12, "person"]]}, "the span 0-12 'Angela Merke' does not begin and end with a word"),
        ({"label": [[13, 19, "city"]]}, "does not begin and end with a word"),
        ({"label": [[7, 6, "city"]]}, "does not begin and end with a word"),
        ({"label": [[0, 13, "person"], [7, 13, "city"]]}, "shares a word with another; entities must not overlap"),
        ({"label": [[0, 6, "dog"]]}, "'DOG' is no type of entity; allowed: CITY, PERSON"),
        ({"label": [[0, 6]]}, "is no span; give"),
        ({"label": [{"start": 0, "end": 6}]}, "is no span; give"),
        ({"label": [{"start": "0", "end": 6, "label": "city"}]}, "is no span; give"),
        ({"label": "Merkel"}, "It must begin with [, not 'Merkel'"),
        ({"bio": "B-dog O O O O O O"}, "'DOG' is no type of entity"),
        ({"bio": "O"}, "1 tags for 7 words"),
    ],
)
def test_a_wrong_gold_label_is_refused_in_a_sentence(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        PROBLEM.gold({"text": TEXT, **row}, COLUMNS)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "empty"),
        ("none", "no-intent"),
        ("[PERSON Angela Merkel ]", "no-intent"),
        ("[ [PERSON Angela Merkel ]", "unbalanced-brackets"),
        ("[ [PERSON Angela [CITY New York ] ] ]", "nested-brackets"),
        ("[ [PERSON ] ]", "empty-slot"),
        ("[ Angela ]", "words-outside-slots"),
        ("[ [DOG Angela ] ]", "unknown-slot"),
        ("[ [CITY Paris ] ]", "words-not-in-request"),
        ("[ [CITY New ] [CITY New ] ]", "overlapping-slots"),
        ("[ ] and more", "text-after-parse"),
        ("[ [ Angela ] ]", "nested-brackets"),
    ],
)
def test_each_failure_has_its_reason(completion: str, reason: str) -> None:
    failure = PROBLEM.parse(TEXT, completion)
    assert isinstance(failure, ParseFailure)
    assert (failure.reason, failure.raw) == (reason, completion)
    assert "slot" not in failure.detail
    assert "ntent" not in failure.detail


def test_a_completion_that_was_cut_is_no_label() -> None:
    reading = parse_completion(PROBLEM, TEXT, "[ [PERSON Angela Merkel ]", "length")
    assert isinstance(reading.outcome, ParseFailure)
    assert parse_completion(PROBLEM, TEXT, f"Entities: {BRACKETS} done").outcome == LABEL


@given(st.data())
def test_words_that_look_like_brackets_can_be_parsed_back(data: st.DataObject) -> None:
    words = st.sampled_from(["]", "[", "[1]", "[CITY", "\\[", "\\\\]", "\\", "a]", "x"])
    text = data.draw(st.lists(words, min_size=1, max_size=6, unique=True))
    tags = st.sampled_from(["O", "B-CITY", "I-CITY", "B-PERSON"])
    label = encode("", data.draw(st.lists(tags, min_size=len(text), max_size=len(text))))
    assert PROBLEM.parse(" ".join(text), PROBLEM.render(" ".join(text), label)) == label


@given(st.text(), st.text(alphabet="[]CITYPERSON \\ab"))
def test_parse_never_raises(text: str, completion: str) -> None:
    assert isinstance(PROBLEM.parse(text, completion), str | ParseFailure)


def test_units_are_the_words() -> None:
    assert PROBLEM.classes == ("O", "B-CITY", "I-CITY", "B-PERSON", "I-PERSON")
    assert PROBLEM.sites(3).tolist() == [1, 2, 3]
    assert PROBLEM.targets("a b", encode("", ["B-PERSON", "O"])) == [3, 0]
    assert PROBLEM.allowed(2).all()
    probabilities = np.array([[0.1, 0.1, 0.1, 0.6, 0.1], [0.1, 0.0, 0.8, 0.0, 0.1]])
    assert PROBLEM.decide("a b", probabilities) == (encode("", ["B-PERSON", "B-CITY"]), pytest.approx(0.48**0.5))
    with pytest.raises(ValueError, match="2 units of probabilities for 1 words"):
        PROBLEM.decide("a", probabilities)


def test_entity_f1_is_that_of_spans() -> None:
    found = encode("", ["B-PERSON", "I-PERSON", "O", "O", "B-CITY", "O", "O"])
    sums = PROBLEM.statistics("entity_f1", LABEL, found) + PROBLEM.statistics("entity_f1", LABEL, None)
    assert sums.tolist() == [1, 1, 3]
    assert float(PROBLEM.value("entity_f1", sums)) == pytest.approx(1 / 3)
    assert PROBLEM.statistics("exact_match", LABEL, LABEL).tolist() == [1, 1]
    assert PROBLEM.parts(LABEL) == ["PERSON:1-2", "CITY:5-6"]
    config = EntitiesConfig(kind="entities", labels=["CITY", "PERSON"])
    (table,) = error_tables(config, PROBLEM, [{"text": TEXT, "gold": LABEL, "predicted": found}])
    assert [(one.name, one.f1) for one in table.names] == [("CITY", 0.0), ("PERSON", 1.0)]
    assert table.confusions[0].predicted == "CITY (other words)"


def test_the_schema_is_read_off_labeled_rows() -> None:
    config = EntitiesConfig(kind="entities")
    rows = [
        {"text": TEXT, "bio": TAGS},
        {"text": "x", "label": "[ [DATE x ] ]"},
        {"text": "x", "label": [[0, 1, "org"]]},
    ]
    found = infer_schema(config, rows, COLUMNS)
    assert found == EntitiesConfig(kind="entities", labels=["CITY", "DATE", "ORG", "PERSON"])
    assert problem_for(found).schema == "CITY, DATE, ORG, PERSON"
    with pytest.raises(DataError, match=r"no labeled row has an entity \(looked in 'bio' and 'label'\)"):
        infer_schema(config, [{"text": "x", "bio": "O"}], COLUMNS)
    for twice in (
        [{"bio": "B-City"}, {"bio": "B-city"}],
        [{"label": [[0, 1, "date-time"]]}, {"label": [[0, 1, "date_time"]]}],
        [{"label": "[ [City x ] ]"}, {"label": "[ [CITY x ] ]"}],
    ):
        with pytest.raises(ConfigError, match="must differ in more than"):
            infer_schema(config, [{"text": "x", **row} for row in twice], COLUMNS)
    with pytest.raises(ConfigError, match=r"problem\.labels: 'city' and 'CITY' must differ"):
        Entities(["city", "CITY"])
