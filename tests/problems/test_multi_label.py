"""Multi-label classification against scikit-learn, and the forms of gold labels and completions."""

import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from retort.config import ColumnsConfig, MckdConfig, Metric, MultiLabelConfig
from retort.config.gate import GateConfig
from retort.errors import ConfigError, DataError
from retort.problems import infer_schema, problem_for
from retort.problems.multi_label import MultiLabel
from retort.records.base import ParseFailure
from retort.report.mistakes import NOTHING, error_tables
from retort.serving.answers import answer, answer_schema
from retort.steps.gate import check_slices
from retort.students.base import decided
from retort.teachers.salvage import parse_completion
from retort.teachers.voting import learn_weights, merge_votes

COLUMNS = ColumnsConfig()
NAMES = ["joy", "joyful", "yes, but", 'a "b"\n', "é"]
PROBLEM = MultiLabel(NAMES, ",")
EMOTIONS = ["anger", "fear", "joy"]
THREE = MultiLabel(EMOTIONS, ",")
subsets = st.lists(st.sampled_from(EMOTIONS), unique=True, max_size=3)
pairs = st.lists(st.tuples(subsets, subsets), min_size=1, max_size=20)


def label(names: Sequence[str]) -> str:
    return json.dumps(sorted(names))


def value(metric: Metric, rows: Sequence[tuple[Sequence[str], Sequence[str] | None]]) -> float:
    sums = sum(THREE.statistics(metric, label(one), None if other is None else label(other)) for one, other in rows)
    return float(THREE.value(metric, np.asarray(sums)))


@given(pairs)
def test_metrics_equal_scikit_learn(rows: list[tuple[list[str], list[str]]]) -> None:
    gold, found = (np.array([[name in row[side] for name in EMOTIONS] for row in rows]) for side in (0, 1))
    with warnings.catch_warnings(action="ignore"):
        assert value("micro_f1", rows) == pytest.approx(f1_score(gold, found, average="micro", zero_division=1.0))
        assert value("jaccard", rows) == pytest.approx(jaccard_score(gold, found, average="samples", zero_division=1.0))
        macro = f1_score(gold, found, average="macro", zero_division=np.nan)
    assert value("macro_f1", rows) == pytest.approx(np.nan_to_num(macro))
    assert value("exact_match", rows) == pytest.approx((gold == found).all(axis=1).mean())


def test_a_missing_prediction_is_wrong_even_where_there_is_nothing_to_find() -> None:
    rows: list[tuple[list[str], list[str] | None]] = [([], None), (["joy"], ["joy"])]
    assert (value("exact_match", rows), value("jaccard", rows), value("micro_f1", rows)) == (0.5, 0.5, 1.0)
    assert value("micro_f1", [(["joy", "fear"], None), (["joy"], ["joy"])]) == 0.5


def test_values_are_computed_for_many_sums_at_once() -> None:
    rows = [(["joy"], ["fear"]), (["fear", "joy"], ["fear"]), ([], [])]
    metrics: tuple[Metric, ...] = ("micro_f1", "macro_f1", "jaccard", "exact_match")
    for metric in metrics:
        sums = np.stack([THREE.statistics(metric, label(one), label(other)) for one, other in rows])
        assert THREE.value(metric, sums) == pytest.approx([value(metric, [row]) for row in rows])


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (["joy", "anger"], ["anger", "joy"]),
        ('["joy", "anger", "joy"]', ["anger", "joy"]),
        ("joy, anger", ["anger", "joy"]),
        ("joy,", ["joy"]),
        ("joy", ["joy"]),
        ([], []),
        ("[]", []),
        ((), []),
    ],
)
def test_gold(raw: Any, names: list[str]) -> None:
    assert THREE.gold({"label": raw}, COLUMNS) == label(names)


@pytest.mark.parametrize("raw", [None, "", "  ", " , ", float("nan")])
def test_a_blank_field_is_no_label(raw: Any) -> None:
    assert THREE.gold({"label": raw}, COLUMNS) is None


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (["joy", "rage"], "label 'rage' is not a class; allowed: anger, fear, joy"),
        ("joy; fear", "label 'joy; fear' is not a class"),
        ("['joy', 'fear']", "is no JSON list"),
        ('["joy"', "is no JSON list"),
        (["joy", None], "holds None, which is no class name"),
        (["joy", ""], "holds '', which is no class name"),
        ([["joy"]], "which is no class name"),
        ([True], "holds True, which is no class name"),
        ({"joy": 1}, "is no list of class names"),
        (b"joy", "is no list of class names"),
        (True, "is no list of class names"),
    ],
)
def test_gold_that_is_no_set_is_refused(raw: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        THREE.gold({"label": raw}, COLUMNS)


def test_numbers_and_other_separators() -> None:
    numbers = MultiLabel(["1", "2", "10"], "|")
    assert numbers.gold({"label": [10, 2.0]}, COLUMNS) == '["2", "10"]'
    assert numbers.gold({"label": "10 | 1"}, COLUMNS) == '["1", "10"]'
    assert numbers.gold({"label": 2}, COLUMNS) == '["2"]'
    assert numbers.parse("", "[10, 1]") == '["1", "10"]'


@given(st.lists(st.sampled_from(NAMES), unique=True))
def test_what_is_rendered_parses_back_whatever_the_names_are(names: list[str]) -> None:
    written = json.dumps(names)
    parsed = PROBLEM.parse("", written)
    assert isinstance(parsed, str)
    assert set(json.loads(parsed)) == set(names)
    assert PROBLEM.parse("", PROBLEM.render("", parsed)) == parsed


@pytest.mark.parametrize(
    ("completion", "names"),
    [
        ("[]", []),
        (' [ "JOY","anger." , "joy"]\n', ["anger", "joy"]),
        ('```json\n["fear"]\n```', ["fear"]),
        ('Classes: ["fear", "joy"]', ["fear", "joy"]),
        ('The text shows ["fear"], I think.', ["fear"]),
        ("<think>joy?</think>\n[]", []),
    ],
)
def test_completions(completion: str, names: list[str]) -> None:
    assert parse_completion(THREE, "", completion).outcome == label(names)


@pytest.mark.parametrize(
    ("completion", "finish", "reason"),
    [
        ("", "stop", "empty"),
        ("joy", "stop", "not-a-list"),
        ("joy\nrage", "stop", "not-a-list"),
        ('{"joy": true}', "stop", "not-a-list"),
        ("[" * 100_000, "stop", "not-a-list"),
        ('["joy", "rage"]', "stop", "unknown-label"),
        ('["joy", ["fear"]]', "stop", "unknown-label"),
        ('["joy", "fe', "length", "cut-short"),
    ],
)
def test_failures(completion: str, finish: str, reason: str) -> None:
    failure = parse_completion(THREE, "", completion, finish).outcome
    assert isinstance(failure, ParseFailure)
    assert (failure.reason, failure.raw) == (reason, completion)


@given(st.text())
def test_parse_never_raises(completion: str) -> None:
    assert isinstance(THREE.parse("", completion), str | ParseFailure)


def test_a_teacher_may_write_every_set_once() -> None:
    grammar = THREE.constraint("").grammar or ""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def derived(rule: str) -> set[str]:
        found: set[str] = set()
        for alternative in rules[rule].split(" | "):
            *literals, last = re.findall(r'"(?:\\.|[^"\\])*"|\w+', alternative)
            start = "".join(json.loads(one) for one in literals)
            found |= {start + json.loads(last)} if last.startswith('"') else {start + rest for rest in derived(last)}
        return found

    sets = [[name for bit, name in enumerate(EMOTIONS) if mask >> bit & 1] for mask in range(8)]
    assert derived("root") == {label(names) for names in sets}


def test_units_are_the_classes_and_soft_labels_are_thresholded() -> None:
    assert THREE.targets("", label(["joy"])) == [0, 0, 1]
    assert THREE.sites(1).tolist() == [0, 0, 0]
    assert THREE.allowed(3).all()
    chosen, confidence = THREE.decide("", np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]))
    assert (chosen, confidence) == (label(["joy"]), pytest.approx((0.9 * 0.5 * 0.8) ** (1 / 3)))
    assert THREE.decide("", np.zeros((3, 2)))[0] == "[]"
    with pytest.raises(ValueError, match="2 units of probabilities for 3 classes"):
        THREE.decide("", np.zeros((2, 2)))
    assert (THREE.parts(label(["joy", "anger"])), THREE.parts("[]")) == (["anger", "joy"], [])


def test_the_schema_is_read_off_labeled_rows() -> None:
    config = MultiLabelConfig(kind="multi-label")
    rows = [{"label": ["b", "a"]}, {"label": "c,a"}, {"label": []}, {"label": None}]
    found = infer_schema(config, rows, COLUMNS)
    assert found == MultiLabelConfig(kind="multi-label", labels=["a", "b", "c"])
    assert problem_for(found).schema == '"a", "b", "c"'
    with pytest.raises(DataError, match="no labeled row has a class in the field 'label'"):
        infer_schema(config, [{"label": []}], COLUMNS)
    with pytest.raises(DataError, match=r"labeled row 2: the label .* is no JSON list"):
        infer_schema(config, [{"label": "a"}, {"label": "['b']"}], COLUMNS)
    with pytest.raises(ConfigError, match=r"problem\.labels is not given"):
        problem_for(config)
    with pytest.raises(ConfigError, match="'Joy' and 'joy' must differ"):
        MultiLabel(["Joy", "joy"], ",")


def test_a_student_that_writes_writes_the_list() -> None:
    values: dict[str, Any] = {
        "name": "desk",
        "problem": {"kind": "multi-label"},
        "data": {"labeled": "a", "unlabeled": "b", "test": "c"},
        "teacher": {"kind": "recorded", "completions": "d"},
        "student": {"kind": "seq2seq", "model": "e"},
        "store": {"root": "f"},
    }
    config = MckdConfig.model_validate(values)
    assert (config.form, config.cross_labels) == ("text", "hard")
    encoder = MckdConfig.model_validate({**values, "student": {"kind": "sequence-classification", "model": "e"}})
    assert (encoder.form, encoder.cross_labels) == ("classes", "soft")
    with pytest.raises(ValueError, match=r"student\.target 'classes': a set of classes is no single one; use text"):
        MckdConfig.model_validate({**values, "student": {**values["student"], "target": "classes"}})
    with pytest.raises(ValueError, match="'accuracy' does not measure 'multi-label'; allowed: micro_f1, macro_f1"):
        MckdConfig.model_validate({**values, "evaluation": {"metrics": ["accuracy"]}})


def test_teachers_vote_on_each_class() -> None:
    texts, golds = ["a", "b", "c"], [label(["joy"]), label([]), label(["fear", "joy"])]
    sure, unsure = [*golds], [label(["anger"]), label(["anger"]), None]
    members = learn_weights(THREE, texts, golds, [sure, unsure])
    assert members.accuracies.tolist() == pytest.approx([1.0, 0.5])
    assert merge_votes(THREE, "", [label(["joy"]), label(["joy", "fear"]), None], [1.0, 0.5, 1.0]) == (
        label(["joy"]),
        pytest.approx((2 / 3) ** (1 / 3)),
    )


def test_mistakes_slices_and_answers_are_of_each_class() -> None:
    config = MultiLabelConfig(kind="multi-label", labels=EMOTIONS)
    pairs: list[tuple[list[str], list[str] | None]] = [
        (["joy"], ["fear"]),
        (["joy", "fear"], ["joy"]),
        (["fear"], None),
    ]
    rows = [
        {"text": str(at), "gold": label(gold), "predicted": None if found is None else label(found)}
        for at, (gold, found) in enumerate(pairs)
    ]
    (table,) = error_tables(config, THREE, rows)
    assert [(one.name, one.support, one.predicted, one.recall) for one in table.names] == [
        ("fear", 2, 1, 0.0),
        ("joy", 2, 1, 0.5),
    ]
    assert {(one.gold, one.predicted): one.count for one in table.confusions} == {
        ("joy", "fear"): 1,
        ("fear", NOTHING): 2,
    }
    check_slices(config, GateConfig.model_validate({"slices": [{"name": "s", "label": "joy", "floor": 0.5}]}))
    with pytest.raises(ConfigError, match="no such class; allowed: anger, fear, joy"):
        check_slices(config, GateConfig.model_validate({"slices": [{"name": "s", "label": "rage", "floor": 0.5}]}))
    prediction = decided(THREE, "", np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]], dtype=np.float32))
    assert answer(THREE, "", prediction, probabilities=True) == {
        "label": '["fear", "joy"]',
        "confidence": pytest.approx((0.9 * 0.7 * 0.8) ** (1 / 3)),
        "labels": ["fear", "joy"],
        "probabilities": {"anger": 0.1, "fear": 0.7, "joy": 0.8},
    }
    assert answer_schema(THREE, probabilities=True).field("probabilities").type.num_fields == 3
