"""Bracket scores of two trees over the same words, as in `evalb` and in the MCKD paper (arXiv 2311.08640).

Some words are deleted before spans are compared: by the gold tree's part-of-speech tags or, without tags, by the words
themselves. On the CRAFT treebank the two differ for 0.16 % of words (evalb's deletion) and 0.43 % (the paper's), mostly
dashes and colons.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from retort.problems.base import Floats
from retort.problems.trees import Tree

_DELETED_TAGS = frozenset({",", ":", "``", "''", ".", "-NONE-"})
"""DELETE_LABEL of evalb's COLLINS.prm, for word tags."""
_DELETED_LABELS = frozenset({"TOP", "ROOT", "S1"})
"""DELETE_LABEL for constituents (COLLINS.prm has TOP; other treebanks call it ROOT or S1)."""
_SAME = {"PRT": "ADVP"}
"""EQ_LABEL of COLLINS.prm: labels that count as equal."""
_WORD_TAGS = frozenset(
    [
        *("CC", "CD", "DT", "EX", "FW", "IN", "JJ", "JJR", "JJS", "LS", "MD", "NN", "NNS", "NNP", "NNPS", "PDT", "POS"),
        *("PRP", "PRP$", "RB", "RBR", "RBS", "RP", "SYM", "TO", "UH", "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "WDT"),
        *("WP", "WP$", "WRB"),
    ]
)
"""The Penn Treebank's 36 tags of words."""

_PUNCTUATION = frozenset([",", ".", ";", ":", "?", "!", "``", "''", "“", "”", "—", "--", "..."])
_NO_WORDS = _PUNCTUATION | frozenset(
    ["-LRB-", "-RRB-", "-LSB-", "-RSB-", "-LCB-", "-RCB-", "[", "]", "{", "}", "-", "/"]
)


def bracket_counts(gold: Tree, predicted: Tree | None) -> Floats:
    """Number of labeled constituents (in both, in gold, in predicted), `(3,)`, by the rules of evalb's COLLINS.prm: it
    deletes punctuation by tag, treats PRT as ADVP and counts duplicate constituents separately."""
    kept = [tag not in _DELETED_TAGS for tag in gold.tags] if gold.tags else _kept_by_form(gold, _PUNCTUATION)
    wanted = _labeled(gold, kept)
    found = _labeled(predicted, kept) if predicted is not None else Counter()
    return np.array([(wanted & found).total(), wanted.total(), found.total()], dtype=np.float64)


def unlabeled_f1(gold: Tree, predicted: Tree | None) -> float:
    """Unlabeled sentence F1 in [0, 1], as in the MCKD paper (its `parserlib.py`).

    It compares the sets of spans of at least two words, including the whole sentence, after deleting words without one
    of the Penn Treebank's 36 word tags. It is 0 if no span is shared, so a sentence of fewer than two words has 0 even
    if it is parsed perfectly.
    """
    kept = [tag in _WORD_TAGS for tag in gold.tags] if gold.tags else _kept_by_form(gold, _NO_WORDS)
    wanted = _unlabeled(gold, kept)
    found = _unlabeled(predicted, kept) if predicted is not None else set()
    common = len(wanted & found)
    return 2 * common / (len(wanted) + len(found)) if common else 0.0


def _kept_by_form(tree: Tree, deleted: frozenset[str]) -> list[bool]:
    return [word not in deleted for word in tree.words]


def _labeled(tree: Tree, kept: Sequence[bool]) -> Counter[tuple[str, int, int]]:
    places = [0, *accumulate(kept)]
    return Counter(
        (_SAME.get(label, label), places[start], places[end])
        for label, start, end in tree.spans
        if places[end] > places[start] and label not in _DELETED_LABELS
    )


def _unlabeled(tree: Tree, kept: Sequence[bool]) -> set[tuple[int, int]]:
    places = [0, *accumulate(kept)]
    spans = ((places[span.start], places[span.end]) for span in tree.spans)
    return {(start, end) for start, end in spans if end - start > 1}
