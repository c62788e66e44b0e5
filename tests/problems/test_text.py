"""Free text: corpus scores from sums, equal to sacrebleu's; labels that a pattern or a JSON Schema allows."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from sacrebleu.metrics import BLEU, CHRF

from retort.config import ColumnsConfig, MckdConfig, TextConfig
from retort.errors import ConfigError, DataError
from retort.metrics.scores import score
from retort.problems import infer_schema, problem_for
from retort.problems.text import FreeText
from retort.records.base import ParseFailure

COLUMNS = ColumnsConfig()
PLAIN = FreeText(TextConfig(kind="text"))
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/name"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "minLength": 1}},
}
JSON = FreeText(TextConfig(kind="text", json_schema=SCHEMA))
PAIRS = [
    ("The cat sat on the mat, quietly.", "The cat sat on a mat quietly."),
    ("It rains in Rome today (again)!", "It rains again in Rome; today."),
    ("yes", "yes"),
    ("no", "maybe not"),
    ("über die Brücke gehen wir", ""),
    ("a b c d e f g", "a b c d e f g"),
]

texts = st.text(alphabet="ab c.,é(", max_size=20)


def corpus(metric: Any, pairs: list[tuple[str, str]]) -> float:
    sums = np.sum([PLAIN.statistics(metric, *pair) for pair in pairs], axis=0)
    return float(PLAIN.value(metric, sums))


def test_corpus_scores_of_sums_are_sacrebleus() -> None:
    for chosen in (PAIRS, PAIRS[:2], PAIRS[:1], PAIRS[2:4], PAIRS[4:5]):
        golds, found = ([pair[side] for pair in chosen] for side in (0, 1))
        assert corpus("bleu", chosen) == pytest.approx(BLEU().corpus_score(found, [golds]).score / 100)
        assert corpus("chrf", chosen) == pytest.approx(CHRF().corpus_score(found, [golds]).score / 100)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_corpus_scores_are_sacrebleus_on_anything(pairs: list[tuple[str, str]]) -> None:
    golds, found = ([pair[side] for pair in pairs] for side in (0, 1))
    assert corpus("bleu", pairs) == pytest.approx(BLEU().corpus_score(found, [golds]).score / 100)
    assert corpus("chrf", pairs) == pytest.approx(CHRF().corpus_score(found, [golds]).score / 100)


def test_values_of_many_resamples_are_those_of_each() -> None:
    for metric in ("bleu", "chrf"):
        rows = np.stack([PLAIN.statistics(metric, *pair) for pair in PAIRS])
        weights = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), size=50).astype(float)
        together = PLAIN.value(metric, weights @ rows)
        assert together == pytest.approx([float(PLAIN.value(metric, one @ rows)) for one in weights])


def test_rouge_is_the_mean_of_the_rows() -> None:
    scorer = RougeScorer(["rougeL"])
    wanted = np.mean([scorer.score(gold, found)["rougeL"].fmeasure for gold, found in PAIRS])
    assert corpus("rouge_l", PAIRS) == pytest.approx(wanted)


def test_a_score_has_an_interval_and_a_missing_prediction_is_wrong() -> None:
    golds, found = zip(*PAIRS, strict=True)
    one = score(PLAIN, "bleu", golds, found, resamples=200, seed=0)
    assert one.low <= one.value <= one.high
    assert score(PLAIN, "exact_match", golds, [None, *found[1:]], resamples=200, seed=0).value == 2 / 6
    assert corpus("chrf", [("yes", "")]) == 0


@pytest.mark.parametrize(("label", "kept"), [(" Rome \n", "Rome"), (7, "7"), ("", None), (None, None), ("  ", None)])
def test_a_label_is_the_text_without_outer_white_space(label: Any, kept: str | None) -> None:
    assert PLAIN.gold({"text": "x", "label": label}, COLUMNS) == kept


def test_a_pattern_must_match_the_whole_label() -> None:
    problem = FreeText(TextConfig(kind="text", pattern=r"\d{4}-\d\d"))
    assert problem.parse("x", "2024-05\n") == "2024-05"
    assert failure(problem, "in 2024-05").reason == "pattern"
    with pytest.raises(DataError, match=re.escape("the label 'May' is not allowed: it does not match problem.pattern")):
        problem.gold({"text": "x", "label": "May"}, COLUMNS)


def test_json_is_compared_by_its_content() -> None:
    label = '{"city":"Rom","days":2}'
    assert JSON.parse("x", ' { "days": 2,\n "city": "Rom" } ') == label
    assert JSON.gold({"text": "x", "label": {"days": 2, "city": "Rom"}}, COLUMNS) == label


@pytest.mark.parametrize(
    ("completion", "reason", "detail"),
    [
        ("", "empty", "is empty"),
        ("Rome", "not-json", "It is not JSON: Expecting value"),
        ('{"city": NaN}', "not-json", "NaN is no number of JSON"),
        ("[" * 100_000, "not-json", "It is not JSON"),
        ('{"days": 2}', "schema", "Its the whole breaks problem.json_schema: 'city' is a required property"),
        ('{"city": "Rome", "days": "two"}', "schema", "Its days breaks problem.json_schema: 'two' is not of type"),
        ('{"city": ""}', "schema", "Its city breaks"),
    ],
)
def test_each_failure_has_its_reason(completion: str, reason: str, detail: str) -> None:
    found = failure(JSON, completion)
    assert (found.reason, found.raw) == (reason, completion)
    assert detail in found.detail


def failure(problem: FreeText, completion: str) -> ParseFailure:
    outcome = problem.parse("x", completion)
    assert isinstance(outcome, ParseFailure)
    return outcome


def test_fields_of_json_are_counted_one_by_one() -> None:
    gold, found = ('{"city":"Rome","days":2,"tags":["a","b","a"]}', '{"city":"Rome","days":3,"tags":["a","a","c"]}')
    counts = JSON.statistics("field_f1", gold, found)
    assert tuple(counts) == (3, 5, 5)  # the city and twice "a"
    assert JSON.value("field_f1", counts) == pytest.approx(0.6)
    assert tuple(JSON.statistics("field_f1", gold, None)) == (0, 0, 5)
    assert JSON.parts('{"city":"Rome"}') == ['$.city: "Rome"']


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pattern": "(a"}, "problem.pattern = '(a': is no regular expression (missing ), unterminated subpattern"),
        ({"json_schema": {"type": "objekt"}}, "problem.json_schema.type: is no JSON Schema: 'objekt' is not"),
        ({"json_schema": {"properties": {"a": 1}}}, "problem.json_schema.properties.a: is no JSON Schema"),
        ({"json_schema": {"$ref": "#/$defs/x"}}, "problem.json_schema: $ref '/$defs/x' leads nowhere"),
        ({"json_schema": {"$ref": "https://example.org/s.json"}}, "leads nowhere; allowed: places in the schema"),
    ],
)
def test_a_schema_that_is_none_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        problem_for(TextConfig(kind="text", **fields))


def test_a_free_text_has_no_schema_to_infer_and_no_votes() -> None:
    config = TextConfig(kind="text")
    assert infer_schema(config, [], COLUMNS) is config
    assert PLAIN.classes == ()
    with pytest.raises(ConfigError, match="has no classes"):
        PLAIN.decide("x", np.empty((0, 0)))


CONFIG: dict[str, Any] = {
    "name": "x",
    "data": {"labeled": "a", "unlabeled": "b", "test": "c"},
    "problem": {"kind": "text"},
    "teacher": {"kind": "recorded", "completions": "d"},
    "student": {"kind": "seq2seq", "model": "m"},
}


def test_field_f1_is_measured_where_there_are_fields() -> None:
    assert MckdConfig.model_validate(CONFIG).metrics == ("exact_match", "chrf", "bleu", "rouge_l")
    with_schema = {**CONFIG, "problem": {"kind": "text", "json_schema": SCHEMA}}
    assert MckdConfig.model_validate(with_schema).metrics[-1] == "field_f1"
    with pytest.raises(ValueError, match="field_f1 measures JSON"):
        MckdConfig.model_validate({**CONFIG, "evaluation": {"metrics": ["field_f1"]}})


def test_an_ensemble_cannot_vote_on_texts() -> None:
    members = [{"kind": "recorded", "completions": "d"}, {"kind": "recorded", "completions": "e"}]
    with pytest.raises(ValueError, match=r"teacher\.kind 'ensemble' cannot vote on 'text'"):
        MckdConfig.model_validate({**CONFIG, "teacher": {"kind": "ensemble", "members": members}})


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ('{"a": 1}', '{"a":1.0}'),
        ('{"a": 100, "b": [1, {"c": 0}]}', '{"b": [1.0, {"c": -0.0}], "a": 1e2}'),
        ('{"city": "München"}', '{"city": "M\\u00fcnchen"}'),
        ("[12345678901234567890]", "[12345678901234567890]"),
        ("10000000000000000000000", "1e22"),
        ("0.10", "1e-1"),
    ],
)
def test_json_labels_are_equal_if_their_content_is(written: str, same: str) -> None:
    anything = FreeText(TextConfig(kind="text", json_schema={}))
    gold, found = anything.gold({"label": written}, COLUMNS), anything.parse("", same)
    assert isinstance(found, str)
    assert gold == found
    assert anything.statistics("field_f1", gold, found)[0] > 0


@pytest.mark.parametrize(
    ("one", "other"), [("true", "1"), ("[1]", "[true]"), ('"1"', "1"), ("null", "0"), ("1", "1.5")]
)
def test_json_labels_of_another_type_differ(one: str, other: str) -> None:
    anything = FreeText(TextConfig(kind="text", json_schema={}))
    assert anything.parse("", one) != anything.parse("", other)


def test_json_that_no_store_can_hold_is_no_label() -> None:
    anything = FreeText(TextConfig(kind="text", json_schema={}))
    for completion in ("1e999", '{"a": -1e400}', '"\\ud83d"', "Infinity"):
        failure = anything.parse("", completion)
        assert isinstance(failure, ParseFailure)
        assert failure.reason == "not-json"


def test_gold_objects_keep_their_letters() -> None:
    assert PLAIN.gold({"label": {"city": "München"}}, COLUMNS) == '{"city": "München"}'
    assert PLAIN.gold({"label": ["😀", "é"]}, COLUMNS) == '["😀", "é"]'
    anything = FreeText(TextConfig(kind="text", json_schema={}))
    assert anything.gold({"label": True}, COLUMNS) == "true"
    for wrong in ({"a": float("nan")}, {"a": b"x"}):
        with pytest.raises(DataError, match="cannot be written as JSON"):
            PLAIN.gold({"label": wrong}, COLUMNS)
