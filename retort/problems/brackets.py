"""What two trees over the same words have in common, as `evalb` and as the paper of MCKD count it.

Words are deleted before spans are compared; which ones, the gold tree's tags say. Where it has none, the words'
forms do: on the CRAFT treebank they differ from the tags for 0.16 % of words (evalb's deletion) and 0.43 % (the
paper's), most of them dashes and colons.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from retort.problems.base import Floats
from retort.problems.trees import Tree

_DELETED_TAGS = frozenset({",", ":", "``", "''", ".", "-NONE-"})
"""DELETE_LABEL of evalb's COLLINS.prm, for words."""
_DELETED_LABELS = frozenset({"TOP", "ROOT", "S1"})
"""The same, for constituents (COLLINS.prm has TOP; ROOT and S1 are other treebanks' names of it)."""
_SAME = {"PRT": "ADVP"}
"""EQ_LABEL of COLLINS.prm."""
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
    """(in both, in gold, in predicted), `(3,)`: labelled constituents after evalb's COLLINS.prm, which deletes
    punctuation by tag, takes PRT for ADVP and counts a constituent that occurs twice twice."""
    kept = [tag not in _DELETED_TAGS for tag in gold.tags] if gold.tags else _kept_by_form(gold, _PUNCTUATION)
    wanted = _labeled(gold, kept)
    found = _labeled(predicted, kept) if predicted is not None else Counter()
    return np.array([(wanted & found).total(), wanted.total(), found.total()], dtype=np.float64)


def unlabeled_f1(gold: Tree, predicted: Tree | None) -> float:
    """One sentence's F1 as the paper of MCKD counts it (its `parserlib.py`): sets of spans of two words and more, the
    whole sentence among them, after all is deleted that has none of the Penn Treebank's 36 word tags. 0 where nothing
    is in common, so a sentence with less than two words has 0 even where it is parsed perfectly."""
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
