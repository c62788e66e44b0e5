"""One label from several samples and from several teachers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retort.problems.classification import Classification
from retort.problems.slots import Slots, encode
from retort.teachers.voting import learn_weights, majority, merge_votes, minimum_risk

CLASSES = ["a", "b", "c", "d"]
PROBLEM = Classification(CLASSES)
SLOTS = Slots({"Play": ["artist", "track"], "Rate": ["track"]})
TEXT = "play let it be by them"

labels = st.sampled_from(CLASSES)
maybe_labels = st.none() | labels


def song(*tags: str) -> str:
    return encode("PLAY", list(tags))


# ---- samples of one teacher


def test_the_majority_counts_what_could_not_be_parsed() -> None:
    assert majority(["a", "b", "b", None]) == ("b", 0.5)
    assert majority(["b", "a"]) == ("b", 0.5)
    assert majority(["b", "a", "a", "b"]) == ("b", 0.5)
    assert majority(["a"]) == ("a", 1.0)
    assert majority([None, None]) is None
    assert majority([]) is None


def test_of_accuracy_the_least_risk_is_the_majority() -> None:
    assert minimum_risk(["a", "b", "b", None], PROBLEM, "accuracy") == ("b", pytest.approx(1 / 3))
    assert minimum_risk(["a"], PROBLEM, "accuracy") == ("a", 1.0)
    assert minimum_risk(["b", "a"], PROBLEM, "accuracy") == ("b", 0.0)
    assert minimum_risk([None], PROBLEM, "accuracy") is None


def test_minimum_risk_prefers_the_label_that_is_nearly_what_the_others_say() -> None:
    """Three different labels: two share no span with each other, the third shares one with both."""
    one = song("O", "B-TRACK", "I-TRACK", "I-TRACK", "O", "O")
    both = song("O", "B-TRACK", "I-TRACK", "I-TRACK", "O", "B-ARTIST")
    other = song("O", "O", "O", "O", "O", "B-ARTIST")
    assert majority([one, other, both]) == (one, pytest.approx(1 / 3))
    assert minimum_risk([one, other, both], SLOTS, "slot_f1") == (both, pytest.approx(2 / 3))


@given(st.lists(maybe_labels, min_size=1, max_size=9))
def test_minimum_risk_of_accuracy_chooses_as_the_majority_does(samples: list[str | None]) -> None:
    vote, least_risk = majority(samples), minimum_risk(samples, PROBLEM, "accuracy")
    assert (vote and vote[0]) == (least_risk and least_risk[0])


# ---- members of an ensemble


@given(st.lists(maybe_labels, min_size=1, max_size=7))
def test_equal_weights_are_a_plain_vote(votes: list[str | None]) -> None:
    merged = merge_votes(PROBLEM, "x", votes, [1.0] * len(votes))
    counts = Counter(vote for vote in votes if vote).most_common()
    if not counts:
        assert merged is None
        return
    assume(len(counts) == 1 or counts[0][1] > counts[1][1])
    assert merged == (counts[0][0], pytest.approx(counts[0][1] / sum(counts_of(votes))))


def counts_of(votes: list[str | None]) -> list[int]:
    return list(Counter(vote for vote in votes if vote).values())


@given(labels, st.floats(0, 100))
def test_one_member_alone_is_right(label: str, weight: float) -> None:
    assert merge_votes(PROBLEM, "x", [label], [weight]) == (label, 1.0)
    assert merge_votes(PROBLEM, "x", [None, label, None], [9.0, weight, 9.0]) == (label, 1.0)


weighted = st.lists(st.tuples(maybe_labels, st.floats(0.01, 10)), min_size=1, max_size=7)


@given(weighted, st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(votes: list[tuple[str | None, float]], random: object) -> None:
    shuffled = votes.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one = merge_votes(PROBLEM, "x", [label for label, _ in votes], [weight for _, weight in votes])
    other = merge_votes(PROBLEM, "x", [label for label, _ in shuffled], [weight for _, weight in shuffled])
    assert one == pytest.approx(other) if one is None else one == (other[0], pytest.approx(other[1]))  # type: ignore[index]


@given(weighted, st.floats(0.001, 1000))
def test_the_scale_of_weights_does_not_matter(votes: list[tuple[str | None, float]], factor: float) -> None:
    names, weights = [label for label, _ in votes], [weight for _, weight in votes]
    one = merge_votes(PROBLEM, "x", names, weights)
    other = merge_votes(PROBLEM, "x", names, [weight * factor for weight in weights])
    assert one is other is None or one[0] == other[0]  # type: ignore[index]


def test_a_heavy_member_outvotes_two_light_ones_and_weight_0_counts_only_alone() -> None:
    assert merge_votes(PROBLEM, "x", ["a", "b", "b"], [3.0, 1.0, 1.0]) == ("a", pytest.approx(0.6))
    assert merge_votes(PROBLEM, "x", ["a", "b", "b"], [1.0, 0.0, 0.0]) == ("a", 1.0)
    assert merge_votes(PROBLEM, "x", [None, "b", "b"], [1.0, 0.0, 0.0]) == ("b", 1.0)


def test_soft_members_vote_with_their_probabilities() -> None:
    soft = [np.array([[0.4, 0.6, 0, 0]]), None, np.array([[0.3, 0.7, 0, 0]])]
    assert merge_votes(PROBLEM, "x", ["b", "a", "b"], [1, 1, 1], soft) == ("a", pytest.approx(1.7 / 3))
    assert merge_votes(PROBLEM, "x", ["b", "a", None], [1, 1, 1], soft) == ("a", pytest.approx(0.7))


def test_slots_are_voted_on_word_by_word_and_stay_legal() -> None:
    one = song("O", "B-TRACK", "I-TRACK", "I-TRACK", "O", "O")
    other = song("O", "O", "O", "O", "O", "B-ARTIST")
    both = song("O", "B-TRACK", "I-TRACK", "I-TRACK", "O", "B-ARTIST")
    label, confidence = merge_votes(SLOTS, TEXT, [one, other, both], [1, 1, 1]) or ("", 0.0)
    assert label == both
    assert 2 / 3 < confidence < 1
    assert merge_votes(SLOTS, TEXT, [one], [1]) == (one, 1.0)


# ---- learning weights


def noisy(gold: list[str], accuracy: float, seed: int, classes: int = 4) -> list[str | None]:
    generator = np.random.default_rng(seed)
    return [
        label if generator.random() < accuracy else str(generator.choice([c for c in CLASSES[:classes] if c != label]))
        for label in gold
    ]


def test_weights_are_the_log_odds_of_two_classes() -> None:
    problem, gold = Classification(["a", "b"]), ["a"] * 100
    members: list[list[str | None]] = [["a"] * 90 + ["b"] * 10, ["b"] * 40 + ["a"] * 60, ["b"] * 80 + ["a"] * 20]
    learned = learn_weights(problem, gold, gold, members)
    odds = np.array([np.log(91 / 11), np.log(61 / 41), 0.0])
    assert learned.weights == pytest.approx(odds / odds.sum())
    assert learned.accuracies == pytest.approx([0.9, 0.6, 0.2])
    agreement = [[1, 0.5, 0.1], [0.5, 1, 0.6], [0.1, 0.6, 1]]
    assert learned.agreement == pytest.approx(np.array(agreement))


def test_learned_weights_beat_a_vote_where_one_teacher_is_much_better() -> None:
    gold = [CLASSES[number % 4] for number in range(2000)]
    members = [noisy(gold, accuracy, seed) for seed, accuracy in enumerate((0.9, 0.4, 0.4))]
    learned = learn_weights(PROBLEM, gold[:300], gold[:300], [member[:300] for member in members])
    assert learned.weights[0] > 0.6

    def accuracy(weights: object) -> float:
        rows = zip(*(member[300:] for member in members), strict=True)
        merged = [merge_votes(PROBLEM, "x", row, weights) for row in rows]  # type: ignore[arg-type]
        return float(
            np.mean([one is not None and one[0] == label for one, label in zip(merged, gold[300:], strict=True)])
        )

    assert accuracy(learned.weights) > 0.88 > accuracy([1, 1, 1]) + 0.1


def test_a_member_below_one_half_counts_where_there_are_many_ways_to_be_wrong() -> None:
    """With four classes, 0.45 is better than chance, and its errors seldom agree with another's."""
    gold = [CLASSES[number % 4] for number in range(600)]
    learned = learn_weights(PROBLEM, gold, gold, [noisy(gold, 0.45, 1), noisy(gold, 0.45, 2)])
    assert learned.weights == pytest.approx([0.5, 0.5], abs=0.1)
    three = learn_weights(PROBLEM, gold, gold, [noisy(gold, 0.45, 1), noisy(gold, 0.45, 2), noisy(gold, 0.7, 3)])
    assert 0.1 < three.weights[0] < three.weights[2]


def test_all_useless_and_nothing_known_are_equal() -> None:
    wrong: list[str | None] = ["b"] * 10
    assert learn_weights(PROBLEM, ["a"] * 10, ["a"] * 10, [wrong, wrong]).weights == pytest.approx([0.5, 0.5])
    none: list[str | None] = [None] * 3
    silent = learn_weights(PROBLEM, ["a"] * 3, ["a"] * 3, [none, none])
    assert silent.weights == pytest.approx([0.5, 0.5])
    assert silent.accuracies == pytest.approx([0, 0])
    assert silent.agreement == pytest.approx(np.zeros((2, 2)))
    empty = learn_weights(PROBLEM, [], [], [[], []])
    assert empty.weights == pytest.approx([0.5, 0.5])


def test_missing_labels_are_left_out_and_slots_are_counted_by_unit() -> None:
    right = song("O", "B-TRACK", "I-TRACK", "I-TRACK", "O", "B-ARTIST")
    half = song("O", "O", "O", "O", "O", "B-ARTIST")
    learned = learn_weights(SLOTS, [TEXT] * 2, [right] * 2, [[right, None], [half, right], [right, right]])
    assert learned.accuracies == pytest.approx([1, 11 / 14, 1])
    assert learned.agreement == pytest.approx(np.array([[1, 0, 1], [0, 1, 0.5], [1, 0.5, 1]]))
    assert learned.weights.sum() == pytest.approx(1)
    assert learned.weights[1] < learned.weights[0] < learned.weights[2]
