"""Constituency trees: read from brackets, written as brackets, and converted to one decision per word and gap.

A tree is a flat list of constituents as word spans, outer before inner: no depth of nesting can exhaust Python's stack,
and a chain of unary constituents over the same words keeps its order. Parentheses inside words are written -LRB- and
-RRB-, as in the Penn Treebank.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from retort.records.base import Label

CHAIN = "+"
"""Joins the labels of a unary chain, outer first: `S+VP`."""
UNLABELED = "X"
"""The label of every constituent in unlabeled trees."""
_ROOTS = ("TOP", "ROOT", "S1", "")
"""Labels of the bracket that treebanks put around a whole sentence; they carry no information."""

_TOKEN = re.compile(r"[()]|[^ \t-\r()]+")
EMPTY = "-NONE-"
"""The tag of what the sentence does not say: traces (`*T*-1`) and zeros, which are no words of the text."""
_FUNCTION = re.compile(r"^([^-=]+)[-=].*")
_INDEX = re.compile(r"(?<=[^-=])[-=]\d+(?=$|[-=])")


class Span(NamedTuple):
    """A constituent, from its first word to the word after its last, counted from 0."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tree:
    """A sentence with its constituents. At least one covers all words, unless there is a single word without any."""

    words: tuple[str, ...]
    spans: tuple[Span, ...]
    """Sorted by start, then longer before shorter, then outer before inner."""
    tags: tuple[str, ...] | None = None
    """The words' parts of speech, if known."""


class Decisions(NamedTuple):
    """A tree of n words as 3n - 2 decisions (Gomez-Rodriguez and Vilares 2018, "Constituent Parsing as Sequence
    Labeling"), with each unary chain as one constituent."""

    chains: list[str]
    """`(n,)`: the unary chain above each word, `""` for none."""
    depths: list[int]
    """`(n - 1,)`: the number of constituents that contain both the word and the next one, >= 1."""
    nodes: list[str]
    """`(n - 1,)`: the smallest constituent that contains both, with the unary chain above it."""


class Unreadable(Exception):
    """Brackets that are not a tree, with a reason code and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def escaped(word: str) -> str:
    return word.replace("(", "-LRB-").replace(")", "-RRB-")


def unescaped(word: str) -> str:
    """The word as in running text, which is what pretrained tokenizers know."""
    return word.replace("-LRB-", "(").replace("-RRB-", ")")


@lru_cache(maxsize=4096)
def without_functions(label: str) -> str:
    """`NP` for NP-SBJ, NP-SBJ-1 and NP=2."""
    return _FUNCTION.sub(r"\1", label)


@lru_cache(maxsize=4096)
def without_indices(label: str) -> str:
    """`NP-SBJ` for NP-SBJ and NP-SBJ-1. An index points to another phrase or to a trace, and is no kind of phrase."""
    return _INDEX.sub("", label)


def read_tree(text: str, is_tag: Callable[[str], bool], name: Callable[[str], str] = without_functions) -> Tree:
    """Reads brackets with a label after each opening one: `(S (NP The cat) (VP sat))`, over one line or several. `name`
    turns a label as written into that of the constituent. Left out are empty elements (`(-NONE- *)`) with what holds
    nothing else, and all brackets around the whole sentence that have no phrase label.

    A bracket around a single word is its part-of-speech tag if `is_tag` of the label, which is not "". The tree has
    tags if every word has one. Raises Unreadable.
    """
    reading = _Reading(is_tag, name)
    tokens, at = _TOKEN.findall(text), 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if reading.is_over:
            raise _after_end(token)
        if token == "(":
            is_named = at < len(tokens) and tokens[at] not in "()"
            reading.open(tokens[at] if is_named else "")
            at += is_named
        elif token == ")":
            reading.close()
        else:
            reading.words.append(token)
    return reading.tree()


_Open = tuple[str, int, int, int]
"""A bracket that is not closed: its label, its first word, its place in `spans`, and the number of empty elements
before it. No NamedTuple, since there are millions."""


@dataclass
class _Reading:
    """The part of a tree that was read."""

    is_tag: Callable[[str], bool]
    name: Callable[[str], str]
    words: list[str] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    """(Label, first word, word after the last), outer before inner."""
    tags: dict[int, str] = field(default_factory=dict)
    _open: list[_Open] = field(default_factory=list)
    _num_empty: int = 0

    @property
    def is_over(self) -> bool:
        return bool(self.spans) and not self._open

    def open(self, label: str) -> None:
        self._open.append((label, len(self.words), len(self.spans), self._num_empty))
        self.spans.append((label, len(self.words), -1))

    def close(self) -> None:
        """Raises Unreadable."""
        if not self._open:
            raise Unreadable("unbalanced-brackets", "A bracket is closed that was not opened.")
        label, start, place, num_empty = self._open.pop()
        if label == EMPTY and place == len(self.spans) - 1:
            del self.words[start:], self.spans[place:]
            self._num_empty += 1
        elif start < len(self.words):
            self._close(label, start, place)
        elif self._num_empty > num_empty:
            self.spans.pop()
        else:
            raise Unreadable("empty-bracket", f"The bracket '{label}' holds no word.")

    def _close(self, label: str, start: int, place: int) -> None:
        name = self.name(label)
        self.spans[place] = (name, start, len(self.words))
        is_innermost = start == len(self.words) - 1 and place == len(self.spans) - 1 and start not in self.tags
        if is_innermost and name and self.is_tag(name):
            self.tags[start] = label
            self.spans.pop()

    def tree(self) -> Tree:
        """Raises Unreadable."""
        words = self.words
        if self._open:
            raise Unreadable("unbalanced-brackets", f"{len(self._open)} bracket(s) are not closed.")
        if not words:
            raise Unreadable("empty", "There is no word.")
        spans = self.spans[self._num_wrappers() :]
        if len(words) > 1 and (not spans or spans[0][1:] != (0, len(words))):
            raise Unreadable("no-tree", f"No bracket holds all words, from '{words[0][:80]}' on.")
        if spans and not spans[0][0]:
            spans = [(_ROOTS[0], *spans[0][1:]), *spans[1:]]
        known = tuple(self.tags[place] for place in range(len(words))) if len(self.tags) == len(words) else None
        return Tree(tuple(words), tuple(Span(*span) for span in spans), known)

    def _num_wrappers(self) -> int:
        """The number of outer brackets without a phrase label that hold a single word or a bracket of all words."""
        for place, (label, *extent) in enumerate(self.spans):
            inner = self.spans[place + 1][1:] if place + 1 < len(self.spans) else ()
            if label not in _ROOTS or (len(self.words) > 1 and tuple(extent) != inner):
                return place
        return len(self.spans)


def _after_end(token: str) -> Unreadable:
    if token == ")":
        return Unreadable("unbalanced-brackets", "A bracket is closed that was not opened.")
    return Unreadable("text-after-tree", f"'{token[:80]}' follows the tree.")


def write_tree(tree: Tree) -> str:
    """The tree as `(S (NP The cat) (VP sat) .)`, without tags."""
    opened: list[list[str]] = [[] for _ in tree.words]
    closed = [0] * len(tree.words)
    for label, start, end in tree.spans:
        opened[start].append(f"({label} ")
        closed[end - 1] += 1
    words = zip(opened, tree.words, closed, strict=True)
    return " ".join("".join(labels) + word + ")" * ends for labels, word, ends in words)


def write_unlabeled(tree: Tree) -> str:
    """The tree as `( ( ( The ) ( cat ) ) ( sat ) )`, the target of MCKD (arXiv 2311.08640): each word in brackets of
    its own, and each constituent of several words once, however many labels it has."""
    opened, closed = [0] * len(tree.words), [0] * len(tree.words)
    for start, end in {span[1:] for span in tree.spans if span.end - span.start > 1}:
        opened[start] += 1
        closed[end - 1] += 1
    words = zip(opened, tree.words, closed, strict=True)
    return " ".join("( " * starts + f"( {word} )" + " )" * ends for starts, word, ends in words)


def read_unlabeled(text: str) -> Tree:
    """Reads unlabeled brackets as a tree whose constituents all have the label X. White space is ignored. Raises
    Unreadable."""
    # Brackets around a single word carry no information here.
    labeled = text.replace("(", f"({UNLABELED} ")
    return unlabeled(read_tree(labeled, is_tag=lambda label: False))


def unlabeled(tree: Tree) -> Tree:
    """The tree with only the constituents of several words, each once and with the label X."""
    extents = dict.fromkeys(span[1:] for span in tree.spans if span.end - span.start > 1)
    return Tree(tree.words, tuple(Span(UNLABELED, *extent) for extent in extents), tree.tags)


def encode_label(tree: Tree) -> Label:
    """The canonical label: the tree without tags, followed by a tab and the tags if they are known."""
    brackets = write_tree(tree)
    return brackets if tree.tags is None else f"{brackets}\t{' '.join(tree.tags)}"


@lru_cache(maxsize=4096)  # a row's metrics are computed in succession, and so are all systems' scores of a gold label
def decode_label(label: Label) -> Tree:
    """The tree of a canonical label."""
    brackets, _, tags = label.partition("\t")
    tree = read_tree(brackets, is_tag=lambda label: False, name=str)
    return Tree(tree.words, tree.spans, tuple(tags.split(" "))) if tags else tree


def decisions_of(tree: Tree) -> Decisions:
    """The tree's decisions, see `Decisions`. Lossless except for tags, unless the only word has no constituent."""
    num_words = len(tree.words)
    chains, depths, nodes = [""] * num_words, [0] * (num_words - 1), [""] * (num_words - 1)
    open_ends: list[int] = []
    for label, start, end in collapsed(tree.spans):
        if end - start == 1:
            chains[start] = label
            continue
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
        open_ends.append(end)
        # Outer constituents come first, so the innermost one has the last word.
        width = end - start - 1
        depths[start : end - 1] = [len(open_ends)] * width
        nodes[start : end - 1] = [label] * width
    return Decisions(chains, depths, nodes)


def collapsed(spans: Sequence[Span]) -> list[Span]:
    """The spans with each unary chain joined into one, its labels separated by +."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1][1:] == span[1:]:
            found[-1] = Span(f"{found[-1].label}{CHAIN}{span.label}", span.start, span.end)
        else:
            found.append(span)
    return found


class Node(NamedTuple):
    """A constituent of several words without its label."""

    start: int
    end: int
    gaps: list[int]
    """The gaps whose smallest constituent it is; gap i is between words i and i + 1."""


def nodes_of(depths: Sequence[int]) -> list[Node]:
    """The constituents of several words that depths `(n - 1,)` describe; for a tree's own depths, its constituents.

    Any depths give a tree: a gap that is deeper than the previous one opens a constituent, and every gap closes the
    constituents deeper than itself. Only the order of depths matters, so skipped levels are dropped.
    """
    done: list[Node] = []
    rising: list[tuple[int, Node]] = []
    for gap, depth in enumerate(depths):
        start = gap
        while rising and rising[-1][0] > depth:
            start = rising[-1][1].start
            done.append(rising.pop()[1]._replace(end=gap + 1))
        if rising and rising[-1][0] == depth:
            rising[-1][1].gaps.append(gap)
        else:
            rising.append((depth, Node(start, -1, [gap])))
    done += [node._replace(end=len(depths) + 1) for _, node in rising]
    return done


def tree_of(words: Sequence[str], chains: Sequence[str], labeled: Sequence[Span]) -> Tree:
    """The tree of the words' chains `(n,)` and the constituents of several words, whose labels may be chains too."""
    leaves = [Span(chain, place, place + 1) for place, chain in enumerate(chains) if chain]
    order = sorted([*labeled, *leaves], key=lambda span: (span.start, -span.end))
    spans = tuple(Span(label, s, e) for chain, s, e in order for label in chain.split(CHAIN))
    return Tree(tuple(words), spans)
