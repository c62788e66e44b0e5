"""Weights of an ensemble's members for each row by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retort.artifacts.pseudolabels import Pseudolabels
from retort.config import EnsembleConfig, RegressionConfig
from retort.problems.classification import Classification
from retort.problems.regression import Regression
from retort.teachers.local_weights import LocalWeights
from retort.teachers.voting import learn_weights
from tiny_data import TRAINING, write_lines
from whole_run import whole_run

PROBLEM = Classification(["up", "down"])
SCALE = Regression(RegressionConfig(kind="regression", low=0, high=9, step=1))
TOPICS = ("film", "song")
TEXTS = [f"the {TOPICS[number % 2]} number {number}" for number in range(20)]
GOLDS = ["up"] * 20
KNOWS_FILMS: list[str | None] = ["up" if "film" in text else "down" for text in TEXTS]
KNOWS_SONGS: list[str | None] = ["up" if "song" in text else "down" for text in TEXTS]


def test_a_row_trusts_the_member_that_is_right_on_rows_like_it() -> None:
    local = LocalWeights(PROBLEM, TEXTS, GOLDS, [KNOWS_FILMS, KNOWS_SONGS])
    films, songs = local.of(["another film", "another song"])
    assert films[0] > 2 * films[1]
    assert songs[1] > 2 * songs[0]
    everywhere = learn_weights(PROBLEM, TEXTS, GOLDS, [KNOWS_FILMS, KNOWS_SONGS]).weights
    assert everywhere == pytest.approx([0.5, 0.5]), "which weights for all rows cannot tell"


def test_a_row_like_none_gets_the_weights_of_all() -> None:
    better: list[str | None] = ["up"] * 18 + ["down"] * 2
    worse: list[str | None] = ["up"] * 12 + ["down"] * 8
    (strange,) = LocalWeights(PROBLEM, TEXTS, GOLDS, [better, worse]).of(["nothing alike"])
    assert strange / strange.sum() == pytest.approx(learn_weights(PROBLEM, TEXTS, GOLDS, [better, worse]).weights)


def test_a_labeled_row_does_not_judge_itself() -> None:
    """Each row has a word of its own, and the member is right on the first row alone."""
    texts = [f"word{number}" for number in range(6)]
    once: list[str | None] = ["up"] + ["down"] * 5
    local = LocalWeights(PROBLEM, texts, ["up"] * 6, [once, ["up"] * 6])
    assert local.of(texts)[0, 0] > local.of_labeled()[0, 0]
    assert local.of_labeled()[0] == pytest.approx(local.of(["unseen"])[0])


def test_numbers_are_weighed_by_their_errors_nearby() -> None:
    golds = ["5"] * 20
    films: list[str | None] = ["5" if "film" in text else "9" for text in TEXTS]
    songs: list[str | None] = ["5" if "song" in text else "0" for text in TEXTS]
    weights = LocalWeights(SCALE, TEXTS, golds, [films, songs]).of(["another film", "another song"])
    assert weights[0, 0] > 2 * weights[0, 1]
    assert weights[1, 1] > 2 * weights[1, 0]


@pytest.mark.parametrize("members", [[[None] * 20, KNOWS_FILMS], [GOLDS, GOLDS], [KNOWS_FILMS, [None] * 19 + ["up"]]])
@pytest.mark.parametrize("texts", [TEXTS, ["-"] * 20, ["\u3000"] * 20])
def test_weights_are_finite_and_not_negative(members: Any, texts: list[str]) -> None:
    local = LocalWeights(PROBLEM, texts, GOLDS, members)
    for weights in (local.of(["the film", "", "?"]), local.of_labeled()):
        assert np.isfinite(weights).all()
        assert (weights >= 0).all()
    assert local.of([]).shape == (0, 2)


def test_members_that_cannot_be_asked_are_refused() -> None:
    asked = {"kind": "endpoint", "url": "http://a/v1", "model": "m"}
    recorded = {"kind": "recorded", "completions": "x.jsonl"}
    with pytest.raises(ValueError, match=r"merge: locally-weighted needs members .* which 'recorded' cannot fairly"):
        EnsembleConfig.model_validate({"kind": "ensemble", "merge": "locally-weighted", "members": [asked, recorded]})


def test_a_whole_run(tiny_encoder: Path, endpoint_server: Any, tmp_path: Path) -> None:
    """Two models on one server, each of which knows one topic: together they are right everywhere."""

    def truth(text: str) -> str:
        return "up" if int(text.split()[-1]) % 3 else "down"

    def reply(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"].removeprefix("Input: ").partition("\n")[0]
        wrong = {"up": "down", "down": "up"}
        return truth(text) if body["model"] in text else wrong[truth(text)]

    endpoint_server.reply = reply
    for role, first, count in (("labeled", 0, 20), ("unlabeled", 100, 40), ("test", 500, 8)):
        texts = [f"the {TOPICS[number % 2]} was number {number}" for number in range(first, first + count)]
        rows = [{"id": f"{role}-{text}", "text": text, "label": truth(text)} for text in texts]
        write_lines(tmp_path / f"{role}.jsonl", rows)
    member = {"kind": "endpoint", "url": endpoint_server.url}
    done = whole_run(
        {
            "name": "two",
            "problem": {"kind": "classification"},
            "data": {role: str(tmp_path / f"{role}.jsonl") for role in ("labeled", "unlabeled", "test")},
            "teacher": {
                "kind": "ensemble",
                "merge": "locally-weighted",
                "members": [{**member, "model": topic} for topic in TOPICS],
            },
            "student": {"kind": "sequence-classification", "model": str(tiny_encoder), "training": TRAINING},
            "method": {"stages": 1, "fine_tuning": {"kind": "never"}},
            "baselines": [],
            "evaluation": {"resamples": 100},
            "store": {"root": str(tmp_path / "store")},
            "execution": {"device": "cpu"},
        }
    )
    labels = Pseudolabels.open(done.store, done.result.labels[0])
    assert {row["label"] == truth(row["text"]) for row in labels.rows()} == {True}
    assert {row["label"] == truth(row["text"]) for row in labels.own_rows()} == {True}
    members = labels.manifest.details["members"]
    assert [one["labelled_accuracy"] for one in members] == [0.5, 0.5]
    assert sum(one["weight"] for one in members) == pytest.approx(1.0)
    assert "weight of its vote" in done.page
