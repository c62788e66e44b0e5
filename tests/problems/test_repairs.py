"""Whether the most probable classes, unit by unit, are a label as they stand."""

from itertools import product

import numpy as np
import pytest

from retort.config import ClassificationConfig, ConstituencyConfig
from retort.problems import problem_for
from retort.problems.base import is_put_right
from retort.problems.constituency import Constituency
from retort.problems.slots import Slots
from retort.problems.trees import Span, Tree, encode_label

SLOTS = Slots({"PLAY": ["ARTIST", "TRACK"], "ASK": ["CITY"]})


def repaired(problem: object, text: str, names: list[str]) -> bool:
    """Probabilities of a student that is sure of these classes; all others are equally unlikely."""
    classes = problem.classes  # type: ignore[attr-defined]
    probabilities = np.full((len(names), len(classes)), 0.01)
    probabilities[range(len(names)), [classes.index(name) for name in names]] = 0.9
    label, _ = problem.decide(text, probabilities)  # type: ignore[attr-defined]
    return is_put_right(problem, text, label, probabilities)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "is_repaired"),
    [
        (["IN:PLAY", "B-ARTIST", "I-ARTIST", "O"], False),
        (["IN:PLAY", "B-ARTIST", "B-ARTIST", "I-ARTIST"], False),
        (["IN:ASK", "O", "O", "B-CITY"], False),
        (["IN:PLAY", "I-ARTIST", "I-ARTIST", "O"], True),
        (["IN:PLAY", "O", "O", "I-TRACK"], True),
        (["IN:PLAY", "B-ARTIST", "I-TRACK", "O"], True),
        (["IN:PLAY", "B-ARTIST", "O", "I-ARTIST"], True),
        (["IN:ASK", "B-ARTIST", "I-ARTIST", "O"], True),
    ],
)
def test_slots(names: list[str], is_repaired: bool) -> None:
    assert repaired(SLOTS, "a b c", names) == is_repaired


def is_valid(tags: list[str], slots: list[str]) -> bool:
    """BIO by the book, and nothing but the intent's slots."""
    before = "O"
    for tag in tags:
        if tag[0] == "I" and before[1:] != tag[1:]:
            return False
        if tag != "O" and tag[2:] not in slots:
            return False
        before = tag
    return True


def test_slots_against_bio_by_the_book() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(400):
        probabilities = generator.dirichlet(np.full(len(SLOTS.classes), 0.3), size=4)
        allowed = np.where(SLOTS.allowed(4), probabilities, -1)
        intent, *tags = (SLOTS.classes[index] for index in allowed.argmax(axis=1))
        label, _ = SLOTS.decide("a b c", probabilities)
        found.append(is_put_right(SLOTS, "a b c", label, probabilities))
        slots = {"IN:PLAY": ["ARTIST", "TRACK"], "IN:ASK": ["CITY"]}[intent]
        assert found[-1] != is_valid(tags, slots), (intent, tags)
    assert 0 < sum(found) < 400


TREES = Constituency(ConstituencyConfig(kind="constituency", labels=["A", "B"], max_change=2))


def test_of_all_tags_of_three_words_exactly_the_encodings_of_trees_need_no_repair() -> None:
    """Flat, left-branching and right-branching: 2 + 4 + 4 trees by their labels, without unary chains."""
    words = ("a", "b", "c")
    trees = [Tree(words, (Span(outer, 0, 3),)) for outer in "AB"]
    for outer, inner in product("AB", "AB"):
        trees.append(Tree(words, (Span(outer, 0, 3), Span(inner, 0, 2))))
        trees.append(Tree(words, (Span(outer, 0, 3), Span(inner, 1, 3))))
    encodings = {tuple(TREES.targets("a b c", encode_label(tree))) for tree in trees}
    assert len(encodings) == 10
    changes = [name for name in TREES.classes if name.startswith("deeper:")]
    nodes = ["gap:A", "gap:B"]
    sound = set()
    for pair, labels in product(product(changes, changes), product(nodes, nodes)):
        names = ["word:"] * 3 + [*pair, *labels]
        if not repaired(TREES, "a b c", names):
            sound.add(tuple(TREES.classes.index(name) for name in names))
    assert sound == encodings


@pytest.mark.parametrize(
    ("names", "is_repaired"),
    [
        (["word:", "word:", "deeper:1", "gap:A"], False),
        (["word:A", "word:B", "deeper:1", "gap:A"], False),
        (["word:", "word:", "deeper:2", "gap:A"], True),
        (["word:", "word:", "deeper:0", "gap:A"], True),
        (["word:", "word:", "deeper:-1", "gap:B"], True),
    ],
)
def test_levels_that_no_tree_has(names: list[str], is_repaired: bool) -> None:
    assert repaired(TREES, "a b", names) == is_repaired


def test_one_class_for_a_text_is_never_put_right() -> None:
    problem = problem_for(ClassificationConfig(kind="classification", labels=["a", "b", "c"]))
    for row in np.random.default_rng(0).dirichlet(np.ones(3), size=50):
        label, _ = problem.decide("x", row[None])
        assert not is_put_right(problem, "x", label, row[None])
