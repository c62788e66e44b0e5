"""Slots: bracket text and tags are two faces of one label, and spans are conlleval's."""

import json
import random
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from seqeval.metrics import f1_score

from retort.config import ColumnsConfig, SlotsConfig
from retort.errors import ConfigError, DataError
from retort.problems import Constraint, infer_schema, problem_for
from retort.problems.slots import Slots, decode, encode, intent_name, slot_name, spans
from retort.records.base import ParseFailure

COLUMNS = ColumnsConfig()
BYTES = LLTokenizer("byte")
SCHEMA = {
    "PlayMusic": ["artist", "album", "service", "year"],
    "AddToPlaylist": ["entity_name", "playlist", "playlist-owner", "artist", "music_item"],
    "Stop": [],
}
PROBLEM = Slots(SCHEMA)
WESTBAM = "listen to westbam alumb allergic on google music"
WESTBAM_PARSE = "[IN:PLAY_MUSIC [SL:ARTIST westbam ] [SL:ALBUM allergic ] [SL:SERVICE google music ] ]"
REAL_ROWS = [  # SNIPS, CC0 1.0
    (WESTBAM, "PlayMusic", "O O B-artist O B-album O B-service I-service", WESTBAM_PARSE),
    (
        "add step to me to the 50 clásicos playlist",
        "AddToPlaylist",
        "O B-entity_name I-entity_name I-entity_name O O B-playlist I-playlist O",
        "[IN:ADD_TO_PLAYLIST [SL:ENTITY_NAME step to me ] [SL:PLAYLIST 50 clásicos ] ]",
    ),
    (
        "please add iris dement to my playlist this is selena",
        "AddToPlaylist",
        "O O B-artist I-artist O B-playlist_owner O B-playlist I-playlist I-playlist",
        "[IN:ADD_TO_PLAYLIST [SL:ARTIST iris dement ] [SL:PLAYLIST_OWNER my ] [SL:PLAYLIST this is selena ] ]",
    ),
    ("stop", "Stop", "O", "[IN:STOP ]"),
]

tag_lists = st.lists(st.sampled_from(PROBLEM.classes[:-3]), max_size=12)
pairs_of_tags = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=8).flatmap(
    lambda gold: st.tuples(
        st.just(gold),
        st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=len(gold), max_size=len(gold)),
    )
)


@pytest.mark.parametrize(("text", "intent", "tags", "brackets"), REAL_ROWS)
def test_tags_and_bracket_text_give_the_same_label(text: str, intent: str, tags: str, brackets: str) -> None:
    label = PROBLEM.gold({"text": text, "intent": intent, "bio": tags}, COLUMNS)
    assert label is not None
    assert PROBLEM.gold({"text": text, "intent": intent, "bio": tags.split()}, COLUMNS) == label
    assert PROBLEM.gold({"text": text, "label": brackets}, COLUMNS) == label
    assert PROBLEM.gold({"text": text, "target": brackets}, COLUMNS) == label
    assert PROBLEM.render(text, label) == brackets
    assert PROBLEM.parse(text, f"\n {brackets.lower()} \n") == label


def test_the_label_is_canonical_json() -> None:
    label = PROBLEM.gold({"text": "play ärzte", "intent": "PlayMusic", "bio": "O I-artist"}, COLUMNS)
    assert label == '{"intent":"PLAY_MUSIC","tags":["O","B-ARTIST"]}'


@pytest.mark.parametrize(
    "row", [{}, {"bio": None}, {"label": None, "target": None}, {"bio": "", "label": " "}, {"bio": " "}, {"bio": []}]
)
def test_a_row_without_a_label_has_none(row: dict[str, Any]) -> None:
    assert PROBLEM.gold({"text": "stop", **row}, COLUMNS) is None


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"intent": "Stop", "bio": "O O"}, "2 tags for 1 words"),
        ({"intent": "Go", "bio": "O"}, "intent 'GO' is not known; allowed: ADD_TO_PLAYLIST, PLAY_MUSIC, STOP"),
        ({"intent": "Stop", "bio": "B-artist"}, "'ARTIST' does not belong to intent STOP; allowed there: none"),
        ({"intent": "PlayMusic", "bio": "B-x"}, "'X' exists in no intent; allowed in PLAY_MUSIC: ALBUM, ARTIST"),
        ({"intent": "Stop", "bio": "artist"}, "tag 'artist' is not O, B-slot or I-slot"),
        ({"intent": "Stop", "bio": "B-"}, "tag 'B-' is not O"),
        ({"intent": "Stop", "bio": 0}, "'bio' is 0, where a tag for each word is needed"),
        ({"bio": "O"}, "it has tags ('bio') but no intent ('intent')"),
        ({"label": "[IN:STOP"}, "The intent is not closed"),
    ],
)
def test_a_wrong_gold_label_is_refused_in_a_sentence(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        PROBLEM.gold({"text": "stop", **row}, COLUMNS)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (" \n", "empty"),
        ("Sure! [IN:STOP ]", "no-intent"),
        ("[IN: ]", "no-intent"),
        ("[IN:GO ]", "unknown-intent"),
        ("[IN:STOP [SL:ARTIST westbam ] ]", "unknown-slot"),
        ("[IN:PLAY_MUSIC [SL:SINGER westbam ] ]", "unknown-slot"),
        ("[IN:PLAY_MUSIC [SL:ARTIST ] ]", "empty-slot"),
        ("[IN:PLAY_MUSIC [SL:ARTIST westbam ]", "unbalanced-brackets"),
        ("[IN:PLAY_MUSIC [SL:ARTIST westbam", "unbalanced-brackets"),
        ("[IN:PLAY_MUSIC [SL:ARTIST westbam] ]", "unbalanced-brackets"),
        ("[IN:PLAY_MUSIC ] ]", "unbalanced-brackets"),
        ("[IN:PLAY_MUSIC [SL:ARTIST [SL:ALBUM westbam ] ] ]", "nested-brackets"),
        ("[IN:PLAY_MUSIC [IN:STOP ] ]", "nested-brackets"),
        ("[IN:PLAY_MUSIC listen to [SL:ARTIST westbam ] ]", "words-outside-slots"),
        ("[IN:PLAY_MUSIC ] request: next", "text-after-parse"),
        ("[IN:PLAY_MUSIC [SL:ARTIST Westbam ] ]", "words-not-in-request"),
        ("[IN:PLAY_MUSIC [SL:ARTIST westbam allergic ] ]", "words-not-in-request"),
        ("[IN:PLAY_MUSIC [SL:SERVICE google music ] [SL:ALBUM music ] ]", "overlapping-slots"),
    ],
)
def test_each_failure_has_its_reason_and_keeps_the_raw_text(completion: str, reason: str) -> None:
    failure = PROBLEM.parse(WESTBAM, completion)
    assert isinstance(failure, ParseFailure)
    assert (failure.reason, failure.raw) == (reason, completion)
    assert failure.detail.endswith(".")


def test_a_slot_of_another_intent_and_one_of_no_intent_are_told_apart() -> None:
    elsewhere = PROBLEM.parse(WESTBAM, "[IN:PLAY_MUSIC [SL:PLAYLIST westbam ] ]")
    nowhere = PROBLEM.parse(WESTBAM, "[IN:PLAY_MUSIC [SL:SINGER westbam ] ]")
    assert isinstance(elsewhere, ParseFailure)
    assert isinstance(nowhere, ParseFailure)
    assert "does not belong to intent PLAY_MUSIC" in elsewhere.detail
    assert "exists in no intent" in nowhere.detail


def test_repeated_words_are_taken_in_order_then_anywhere_free() -> None:
    text = "a b a c"
    slots = [f"[SL:{name} {word} ]" for name, word in [("ALBUM", "b"), ("ARTIST", "a"), ("YEAR", "a")]]
    label = PROBLEM.parse(text, f"[IN:PLAY_MUSIC {' '.join(slots)} ]")
    assert isinstance(label, str)
    assert decode(label)[1] == ["B-YEAR", "B-ALBUM", "B-ARTIST", "O"]


@given(tag_lists)
def test_render_then_parse_keeps_every_span_when_words_are_distinct(tags: list[str]) -> None:
    problem = Slots({"X": ["artist", "album", "service", "year", *SCHEMA["AddToPlaylist"]]})
    text = " ".join(f"w{number}" for number in range(len(tags)))
    label = encode("X", tags)
    assert problem.parse(text, problem.render(text, label)) == label


@given(st.text(), st.text())
def test_parse_never_raises_on_arbitrary_text(text: str, completion: str) -> None:
    assert isinstance(PROBLEM.parse(text, completion), ParseFailure | str)


@given(st.lists(st.sampled_from(["[IN:PLAY_MUSIC", "[IN:", "[SL:ARTIST", "[SL:YEAR", "]", "a", "b", "["]), max_size=12))
def test_parse_never_raises_on_near_misses_and_what_it_accepts_is_legal(tokens: list[str]) -> None:
    text = "a b a ["
    label = PROBLEM.parse(text, " ".join(tokens))
    if not isinstance(label, ParseFailure):
        intent, tags = decode(label)
        row = {"text": text, "intent": intent, "bio": tags}
        assert PROBLEM.gold(row, COLUMNS) == label
        assert len(spans(tags)) == sum(token.startswith("[SL:") for token in tokens)


@given(st.lists(pairs_of_tags, min_size=1, max_size=6))
def test_slot_f1_equals_seqeval(pairs: list[tuple[list[str], list[str]]]) -> None:
    problem = Slots({"X": ["a", "b"]})
    sums = np.sum([problem.statistics("slot_f1", encode("X", g), encode("X", p)) for g, p in pairs], axis=0)
    if not sums.any():
        assert problem.value("slot_f1", sums) == 1.0
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where one side has no span
        expected = f1_score([gold for gold, _ in pairs], [predicted for _, predicted in pairs])
    assert problem.value("slot_f1", sums) == pytest.approx(expected)


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])))
def test_canonical_tags_are_a_fixed_point(tags: list[str]) -> None:
    label = encode("X", tags)
    assert encode(*decode(label)) == label


def test_metrics_of_hand_made_rows() -> None:
    gold = encode("PLAY_MUSIC", ["O", "B-ARTIST", "I-ARTIST", "B-YEAR"])
    shorter = encode("STOP", ["O", "B-ARTIST", "O", "B-YEAR"])
    assert PROBLEM.statistics("slot_f1", gold, shorter).tolist() == [1, 1, 1]
    assert PROBLEM.statistics("slot_f1", gold, None).tolist() == [0, 0, 2]
    assert PROBLEM.statistics("intent_accuracy", gold, shorter).tolist() == [0, 1]
    assert PROBLEM.statistics("exact_match", gold, gold).tolist() == [1, 1]
    assert PROBLEM.statistics("exact_match", gold, None).tolist() == [0, 1]
    assert PROBLEM.value("slot_f1", np.array([[1.0, 1, 1], [0, 0, 2]])).tolist() == [0.5, 0.0]
    with pytest.raises(ConfigError, match="macro_f1"):
        PROBLEM.value("macro_f1", np.ones(2))


def test_parts_name_the_intent_and_the_words_of_each_span() -> None:
    assert PROBLEM.parts(encode("STOP", ["O", "B-ARTIST", "I-ARTIST", "B-YEAR"])) == ["STOP", "ARTIST:2-3", "YEAR:4-4"]


def test_units_are_the_intent_and_each_word() -> None:
    label = encode("STOP", ["O", "B-ARTIST"])
    assert [PROBLEM.classes[index] for index in PROBLEM.targets("a b", label)] == ["IN:STOP", "O", "B-ARTIST"]
    allowed = PROBLEM.allowed(3)
    names = np.array(PROBLEM.classes)
    assert names[allowed[0]].tolist() == ["IN:ADD_TO_PLAYLIST", "IN:PLAY_MUSIC", "IN:STOP"]
    assert not any(name.startswith("IN:") for name in names[allowed[2]])
    assert PROBLEM.classes[:3] == ("O", "B-ALBUM", "I-ALBUM")


def test_decide_looks_at_allowed_classes_only_and_mends_an_opening_inside_tag() -> None:
    problem = Slots({"X": ["a"], "Y": ["a"]})
    assert problem.classes == ("O", "B-A", "I-A", "IN:X", "IN:Y")
    probabilities = np.array([[0.6, 0, 0, 0.1, 0.3], [0.1, 0.1, 0.2, 0.5, 0.1], [0.4, 0.1, 0.3, 0.1, 0.1]])
    label, confidence = problem.decide("u v", probabilities)
    assert label == encode("Y", ["B-A", "O"])
    assert confidence == pytest.approx((0.75 * 0.5 * 0.5) ** (1 / 3))


def test_decide_on_empty_text_certainty_and_nothing() -> None:
    problem = Slots({"X": ["a"], "Y": []})
    assert problem.decide("", np.array([[0, 0, 0, 1.0, 0]])) == (encode("X", []), 1.0)
    assert problem.decide("", np.zeros((1, 5)))[1] < 1e-9
    with pytest.raises(ValueError, match="2 units of probabilities for 0 words"):
        problem.decide("", np.ones((2, 5)))


def regex_of(grammar: str) -> re.Pattern[str]:
    """GBNF without recursion as a regular expression: literals escaped, rule names replaced by their bodies."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())

    def body(name: str) -> str:
        tokens = re.findall(r'"(?:[^"\\]|\\.)*"|\w+|[()|*?]', rules[name])
        return "(?:" + "".join(expand(token) for token in tokens) + ")"

    def expand(token: str) -> str:
        if token in "()|*?":
            return token.replace("(", "(?:")
        return re.escape(json.loads(token)) if token.startswith('"') else body(token)

    return re.compile(body("root"))


@pytest.mark.parametrize(("text", "intent", "tags", "brackets"), REAL_ROWS)
def test_the_grammar_derives_the_gold_parse(text: str, intent: str, tags: str, brackets: str) -> None:
    grammar = PROBLEM.constraint(text).grammar
    assert grammar is not None
    assert regex_of(grammar).fullmatch(brackets)
    assert derives(PROBLEM.constraint(text), brackets)


def test_the_grammar_refuses_what_parse_refuses() -> None:
    grammar = regex_of(PROBLEM.constraint(WESTBAM).grammar or "")
    for wrong in [
        "[IN:GO ]",
        "[IN:STOP [SL:ARTIST westbam ] ]",
        "[IN:PLAY_MUSIC [SL:PLAYLIST westbam ] ]",
        "[IN:PLAY_MUSIC [SL:ARTIST ] ]",
        "[IN:PLAY_MUSIC [SL:ARTIST westbam allergic ] ]",
        "[IN:PLAY_MUSIC [SL:ARTIST westbam ]",
        "[IN:PLAY_MUSIC ] ]",
    ]:
        assert isinstance(PROBLEM.parse(WESTBAM, wrong), ParseFailure)
        assert not grammar.fullmatch(wrong)


@given(tag_lists, st.integers(0, 2**32))
def test_the_grammar_derives_every_rendering(tags: list[str], seed: int) -> None:
    problem = Slots({"X": ["artist", "album", "service", "year", *SCHEMA["AddToPlaylist"]], "Y": ["year"]})
    text = " ".join(random.Random(seed).choices(['"', "\\", "]", "é", "a"], k=len(tags)))
    constraint, rendering = problem.constraint(text), problem.render(text, encode("X", tags))
    assert regex_of(constraint.grammar or "").fullmatch(rendering)
    assert derives(constraint, rendering)


def derives(constraint: Constraint, completion: str) -> bool:
    """Whether the counting grammar does."""
    matcher = LLMatcher(BYTES, constraint.lark or "", log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(completion.encode())) == len(completion.encode()) and matcher.is_accepting()


def test_the_counting_grammar_uses_no_word_twice() -> None:
    """A small model that may repeat itself does so until its tokens are used up."""
    constraint = PROBLEM.constraint(WESTBAM)
    assert derives(constraint, "[IN:PLAY_MUSIC [SL:ARTIST westbam ] ]")
    assert not derives(constraint, "[IN:PLAY_MUSIC [SL:ARTIST westbam ] [SL:ALBUM westbam ] ]")
    assert derives(PROBLEM.constraint(""), "[IN:PLAY_MUSIC ]")


def test_the_grammar_of_an_empty_request_and_of_control_characters() -> None:
    assert regex_of(PROBLEM.constraint("").grammar or "").fullmatch("[IN:PLAY_MUSIC ]")
    assert r'"a\U00000007 "' in (PROBLEM.constraint("a\x07").grammar or "")


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("PlayMusic", "PLAY_MUSIC"),
        ("play-music", "PLAY_MUSIC"),
        ("GetHTTPPage", "GET_HTTP_PAGE"),
        ("Top10Songs", "TOP10_SONGS"),
        ("PLAY_MUSIC", "PLAY_MUSIC"),
    ],
)
def test_names_of_intents(name: str, canonical: str) -> None:
    assert intent_name(name) == canonical


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("object_part_of_series_type", "OBJECT_PART_OF_SERIES_TYPE"),
        ("timeRange", "TIMERANGE"),
        ("depart-date.day name", "DEPART_DATE.DAY_NAME"),
    ],
)
def test_names_of_slots(name: str, canonical: str) -> None:
    assert slot_name(name) == canonical


@given(st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True))
def test_canonical_names_are_fixed_points(name: str) -> None:
    assert intent_name(intent_name(name)) == intent_name(name)
    assert slot_name(intent_name(name)) == intent_name(name)


def test_the_schema_is_read_off_labeled_rows() -> None:
    rows: list[dict[str, Any]] = [
        {"text": "x", "intent": "PlayMusic", "bio": "O B-year I-artist"},
        {"text": "x", "bio": None, "label": "[IN:STOP ]"},
        {"text": "x", "target": "[IN:PLAY_MUSIC [SL:ALBUM x ] ]"},
        {"text": "unlabelled"},
    ]
    config = infer_schema(SlotsConfig(kind="slots"), rows, COLUMNS)
    assert config == SlotsConfig(kind="slots", intents={"PLAY_MUSIC": ["ALBUM", "ARTIST", "YEAR"], "STOP": []})
    assert problem_for(config).classes[-1] == "IN:STOP"
    given_schema = SlotsConfig(kind="slots", intents={"A": []})
    assert infer_schema(given_schema, rows, COLUMNS) is given_schema


def test_the_schema_of_bad_or_no_rows_is_refused() -> None:
    with pytest.raises(DataError, match=r"labeled row 2: .*must begin with"):
        infer_schema(SlotsConfig(kind="slots"), [{"label": "[IN:A ]"}, {"label": "A"}], COLUMNS)
    with pytest.raises(DataError, match="no labeled row has a label"):
        infer_schema(SlotsConfig(kind="slots"), [{"text": "x"}], COLUMNS)
    with pytest.raises(ConfigError, match=r"problem\.intents is not given"):
        problem_for(SlotsConfig(kind="slots"))
    with pytest.raises(ConfigError, match="names no intent"):
        problem_for(SlotsConfig(kind="slots", intents={}))


def test_decide_takes_the_intent_and_the_tags_that_are_most_probable_together() -> None:
    problem = Slots({"X": ["a"], "Y": ["b"]})
    # Classes: O B-A I-A B-B I-B IN:X IN:Y. The intent alone says X, but the word is surely a b, which only Y allows.
    probabilities = np.array([[0, 0, 0, 0, 0, 0.6, 0.4], [0.05, 0.05, 0, 0.9, 0, 0, 0]])
    label, confidence = problem.decide("word", probabilities)
    assert label == encode("Y", ["B-B"])
    assert confidence == pytest.approx((0.4 * 0.9) ** 0.5)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([("PlayMusic", "O"), ("play_music", "O")], ("PlayMusic", "play_music")),
        ([("play music", "O"), ("PLAY-MUSIC", "O")], ("play music", "PLAY-MUSIC")),
        ([("A", "B-time-range"), ("B", "B-TIME_RANGE")], ("time-range", "TIME_RANGE")),
        ([("A", ["B-city"]), ("A", ["I-City"])], ("city", "City")),
        ([("Caf\u00e9", "O"), ("Cafe\u0301", "O")], ("Caf\u00e9", "Cafe\u0301")),
    ],
)
def test_names_that_become_one_are_refused(rows: list[tuple[str, Any]], names: tuple[str, str]) -> None:
    raw = [{"text": "x", "intent": intent, "bio": tags} for intent, tags in rows]
    with pytest.raises(ConfigError, match=f"'{names[0]}' and '{names[1]}' must differ in more than"):
        infer_schema(SlotsConfig(kind="slots"), raw, COLUMNS)


def test_names_of_parses_that_become_one_are_refused_but_not_two_ways_to_write_one() -> None:
    with pytest.raises(ConfigError, match="'Play' and 'PLAY'"):
        infer_schema(SlotsConfig(kind="slots"), [{"label": "[IN:Play ]"}, {"label": "[IN:PLAY ]"}], COLUMNS)
    rows = [{"intent": "PlayMusic", "bio": "O"}, {"label": "[IN:PLAY_MUSIC ]"}]
    assert infer_schema(SlotsConfig(kind="slots"), rows, COLUMNS).intents == {"PLAY_MUSIC": []}  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="'PlayMusic' and 'play_music'"):
        Slots({"PlayMusic": [], "play_music": []})
    with pytest.raises(ConfigError, match="'time-range' and 'time_range'"):
        Slots({"A": ["time-range"], "B": ["time_range"]})


@given(st.data())
def test_what_a_teacher_is_shown_can_be_parsed_back_whatever_the_words_are(data: st.DataObject) -> None:
    words = st.sampled_from(["]", "\\]", "\\\\]", "[IN:X", "[sl:artist", "\\[SL:ARTIST", "[", "\\", "[IN:", "a"])
    text = data.draw(st.lists(words, min_size=1, max_size=6, unique=True))
    tags = data.draw(st.lists(st.sampled_from(["O", "B-ARTIST", "I-ARTIST"]), min_size=len(text), max_size=len(text)))
    label = encode("PLAY_MUSIC", tags)
    assert PROBLEM.parse(" ".join(text), PROBLEM.render(" ".join(text), label)) == label


def test_a_word_that_looks_like_a_bracket_is_escaped() -> None:
    row = {"text": "play note ] two", "intent": "PlayMusic", "bio": "O B-artist I-artist I-artist"}
    label = PROBLEM.gold(row, COLUMNS)
    assert label is not None
    assert PROBLEM.render(row["text"], label) == "[IN:PLAY_MUSIC [SL:ARTIST note \\] two ] ]"


def test_slot_names_with_commas_can_be_told_apart() -> None:
    assert Slots({"A": ["x", "y"]}).schema == "A: X, Y"
    assert Slots({"A": ["x,y", "z"]}).schema == "A: X,Y Z"


SEEMING_SPACES = ["\u00a0", "\u202f", "\u3000", "\u2028", "\u0085", "\x1c", "\u2009"]


@pytest.mark.parametrize("space", SEEMING_SPACES)
def test_words_are_parted_where_the_author_parted_them(space: str) -> None:
    text = f"play  10{space}000\tnow\n"
    label = PROBLEM.gold({"text": text, "intent": "PlayMusic", "bio": "O B-album O"}, COLUMNS)
    assert label == encode("PLAY_MUSIC", ["O", "B-ALBUM", "O"])
    assert PROBLEM.words(text) == ["play", f"10{space}000", "now"]
    assert PROBLEM.parse(text, PROBLEM.render(text, label)) == label
    assert PROBLEM.parse(text, "[IN:PLAY_MUSIC [SL:ALBUM 10 000 ] ]") == label, "a model may write a plain space"
    assert isinstance(PROBLEM.parse(text, "[IN:PLAY_MUSIC [SL:ALBUM 000 ] ]"), ParseFailure)


@pytest.mark.parametrize("intent", [0, 0.0, False, "0"])
def test_an_intent_may_be_falsy(intent: Any) -> None:
    row = {"text": "stop", "intent": intent, "bio": "O"}
    schema = infer_schema(SlotsConfig(kind="slots"), [row], COLUMNS)
    label = problem_for(schema).gold(row, COLUMNS)
    assert label is not None
    assert decode(label)[0] == ("FALSE" if intent is False else "0")


@pytest.mark.parametrize("intent", [None, "", " "])
def test_a_blank_intent_is_none(intent: Any) -> None:
    with pytest.raises(DataError, match=r"it has tags \('bio'\) but no intent \('intent'\)"):
        PROBLEM.gold({"text": "stop", "intent": intent, "bio": "O"}, COLUMNS)


def test_a_label_of_0_is_a_label() -> None:
    with pytest.raises(DataError, match="the parse '0' is no label"):
        PROBLEM.gold({"text": "stop", "label": 0, "target": "[IN:STOP ]"}, COLUMNS)
