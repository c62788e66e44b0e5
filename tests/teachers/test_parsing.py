"""A row's completions as its label and confidence."""

from typing import Any

import pytest

from retort.config import ConstituencyConfig, TextConfig
from retort.config.teachers import EndpointConfig
from retort.problems import Problem
from retort.problems.constituency import Constituency
from retort.problems.text import FreeText
from retort.records.base import ParseFailure
from retort.teachers.ledger import Entry
from retort.teachers.parsing import CompletionParser, Labeled

TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["S", "NP"]))
FREE = FreeText(TextConfig(kind="text"))
TEXT = "a b c d"
WHOLE, CUT = "(S (NP a b) c d)", "(S (NP a"


def parser(problem: Problem = TREES, **sampling: Any) -> CompletionParser:
    base = {"kind": "endpoint", "url": "http://localhost", "model": "m", "sampling": sampling}
    return CompletionParser(problem, "exact_match", EndpointConfig.model_validate(base))


def entry(text: str, finish_reason: str = "stop") -> Entry:
    return Entry(b"k" * 16, text, finish_reason, 64, 1, 0, 1, (), 0.0)


@pytest.mark.parametrize(
    ("completion", "label", "confidence", "counts"),
    [
        (WHOLE, WHOLE, 1.0, {}),
        ("(S (NP a b)) c d)", WHOLE, 1.0, {"salvaged": 1}),
        (CUT, "(S (NP a) b c d)", 0.25, {"salvaged": 1, "cut": 1}),
        ("(S (NP (NP", "(S a b c d)", 0.0, {"salvaged": 1, "cut": 1}),
    ],
)
def test_confidence_is_what_the_completion_covers(
    completion: str, label: str, confidence: float, counts: dict[str, int]
) -> None:
    ours = parser()
    assert ours.parse(TEXT, [entry(completion, "length")]) == Labeled(label, confidence)
    assert ours.counts == counts


def test_samples_keep_their_vote() -> None:
    ours = parser(samples=4, sampling_temperature=1.0)
    entries = [entry(CUT, "length"), entry(WHOLE), entry(WHOLE), entry("a")]
    assert ours.parse(TEXT, entries) == Labeled(WHOLE, 0.5)
    assert ours.counts == {"salvaged": 1, "cut": 1}


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("hello unlab", "length", "cut-short"),
        ("hello", "content_filter", "filtered"),
        ("<think>It could be", "stop", "only-thoughts"),
    ],
)
def test_what_is_no_whole_text_is_no_label(text: str, finish_reason: str, reason: str) -> None:
    outcome = parser(FREE).parse(TEXT, [entry(text, finish_reason)])
    assert isinstance(outcome, ParseFailure)
    assert (outcome.reason, outcome.raw) == (reason, text)
