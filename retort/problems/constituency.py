"""Constituency parsing. A label is a tree.

The canonical label is `(S (NP The cat) (VP sat) .)`, followed by a tab and the parts of speech if the data has them:
they are used only to delete punctuation in scoring, and neither teachers nor students write them. Teachers and
generative students write brackets without tags, or the paper's unlabeled brackets. Tagging students decide, for each
word, the unary chain above it, and for each gap between two words, how much deeper the tree is than in the previous gap
and which constituent spans the gap. These three are separate classes, as in multitask sequence labeling (Vilares, Abdou
and Søgaard 2019), so that 50 trees show most of them, but would show few of their combinations. Depths are relative,
because absolute ones cost a student of 500 CRAFT trees 14 points of bracket F1 (46.4 against 60.1 after 6 epochs).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.config import ColumnsConfig, ConstituencyConfig, Metric
from retort.errors import ConfigError, DataError, RowFault
from retort.problems.base import (
    Constraint,
    Floats,
    Mended,
    check_apart,
    gold_text,
    listed,
    looks,
    ratio,
    row_name,
    unspaced,
)
from retort.problems.brackets import bracket_counts, unlabeled_f1
from retort.problems.tree_grammars import TreeForm, any_tree, bounded_openings, bounded_tree
from retort.problems.tree_mending import mended_tree
from retort.problems.trees import (
    CHAIN,
    UNLABELED,
    Span,
    Tree,
    Unreadable,
    collapsed,
    decisions_of,
    decode_label,
    encode_label,
    escaped,
    nodes_of,
    read_tree,
    read_unlabeled,
    tree_of,
    unescaped,
    unlabeled,
    without_functions,
    without_indices,
    write_tree,
    write_unlabeled,
)
from retort.problems.words import words_of
from retort.records.base import Label, ParseFailure

_NAME = re.compile(r"[^\s()+]+")


class Constituency:
    """Trees with the phrase labels of `config.labels`, which includes the unary chains (`S+VP`) that a tagging student
    can predict. Every label of a chain is also a label by itself.

    Raises ConfigError if there is no label or one is invalid.
    """

    def __init__(self, config: ConstituencyConfig) -> None:
        given = [UNLABELED] if config.form == "unlabelled" else config.labels or []
        if not given:
            raise ConfigError("problem.labels names no phrase label")
        for name in given:
            if not all(_NAME.fullmatch(part) for part in name.split(CHAIN)):
                raise ConfigError(f"problem.labels: '{name}' is no phrase label; allowed: NP, or a unary chain as S+VP")
        self._config, self._has_labels, self._name = config, config.form == "labelled", _namer(config)
        check_apart(
            "problem.labels",
            (part for name in given for part in name.split(CHAIN)),
            lambda name: looks(self._name(name)),
            "function tags (NP-SBJ), indices and how Unicode writes a letter",
        )
        self._labels = tuple(sorted({part for name in given for part in name.split(CHAIN)}))
        nodes = tuple(sorted({*given, *self._labels}))
        # Unlabeled brackets have no constituents of one word.
        self._chains = ("", *nodes) if self._has_labels else ("",)
        self._max_change, self._nodes = config.max_change, nodes
        self._chain_index = {name: index for index, name in enumerate(self._chains)}
        self._node_index = {name: index for index, name in enumerate(self._nodes)}

    @property
    def classes(self) -> tuple[str, ...]:
        """`word:` (no chain), `word:NP` ..., then `deeper:-1` ..., then `gap:S+VP` ..."""
        return (
            *(f"word:{name}" for name in self._chains),
            *(f"deeper:{change}" for change in range(-self._max_change, self._max_change + 1)),
            *(f"gap:{name}" for name in self._nodes),
        )

    @property
    def sigmoids(self) -> tuple[str, ...]:
        return ()

    @property
    def instruction(self) -> str:
        if not self._has_labels:
            return (
                "Parse each sentence into constituents, without labels. Put brackets with spaces around each word, "
                "( word ), and around each phrase of two or more words. Copy every word and punctuation mark in the "
                "order of the sentence, and answer with the brackets and nothing else."
            )
        return (
            "Parse each sentence into a constituency tree in the style of the Penn Treebank. Write (LABEL ... ) around "
            "each phrase, without part-of-speech tags. Copy every word and punctuation mark in the order of the "
            "sentence, and answer with the tree on one line and nothing else. Use only these labels: {schema}"
        )

    @property
    def schema(self) -> str:
        return unspaced(self._labels)

    def gold(self, row: Mapping[str, Any], columns: ColumnsConfig) -> Label | None:
        """See `Problem.gold`. A blank field means no label."""
        brackets = gold_text(row, columns.label)
        if not brackets:
            return None
        tree = _read_gold(brackets, self._config)
        if difference := _difference(tree, str(row[columns.text])):
            raise DataError(f"the tree is not that of the text: {difference}")
        if not self._has_labels:
            return encode_label(unlabeled(tree))
        for label in {span.label for span in tree.spans}:
            if label not in self._labels:
                raise DataError(f"the tree's label '{label}' is not in problem.labels; allowed: {listed(self._labels)}")
        return encode_label(tree)

    def render(self, text: str, label: Label) -> str:
        tree = decode_label(label)
        return write_tree(tree) if self._has_labels else write_unlabeled(tree)

    def parse(self, text: str, completion: str) -> Label | ParseFailure:
        """See `Problem.parse`. White space is ignored, and so are part-of-speech tags: brackets around one word whose
        label is not in the schema.

        Reason codes: `empty`, `unbalanced-brackets`, `empty-bracket`, `no-tree`, `text-after-tree`, `words-differ`,
        `unknown-label`.
        """
        try:
            tree = read_tree(completion, self._is_tag, self._name) if self._has_labels else read_unlabeled(completion)
            if difference := _difference(tree, text):
                raise Unreadable("words-differ", f"{difference[0].upper()}{difference[1:]}.")
            for span in tree.spans:
                if span.label not in self._labels:
                    detail = f"'{span.label[:80]}' is no phrase label; allowed: {listed(self._labels)}."
                    raise Unreadable("unknown-label", detail)
        except Unreadable as failure:
            return ParseFailure(failure.reason, failure.detail, completion)
        return encode_label(Tree(tree.words, tree.spans))

    def _is_tag(self, label: str) -> bool:
        return label not in self._labels

    def mend(self, text: str, completion: str) -> Mended:
        """See `Problem.mend` and `mended_tree`: brackets are put right, and words that were not reached are added."""
        words = [escaped(word) for word in words_of(text)]
        return mended_tree(completion, words, has_labels=self._has_labels) or Mended(completion)

    def uncut(self, completion: str) -> str:
        """See `Problem.uncut`. All of it: a tree that was cut is not closed, and `mend` says what it lacks."""
        return completion

    def constraint(self, text: str) -> Constraint | None:
        """See `Problem.constraint`. In GBNF, brackets are not balanced; `mend` puts them right."""
        form = self._form(text)
        return Constraint(grammar=bounded_openings(form), lark=bounded_tree(form)) if form.words else None

    def grammar(self, text: str) -> str | None:
        """See `Problem.grammar`: the words in order, in balanced brackets, one of them around all words if there are
        several."""
        form = self._form(text)
        return any_tree(form) if form.words else None

    def _form(self, text: str) -> TreeForm:
        words = [escaped(word) for word in words_of(text)]
        if self._has_labels:
            return TreeForm([f"({label} " for label in self._labels], words, ")")
        return TreeForm(["( "], [f"( {word} )" for word in words], " )")

    def words(self, text: str) -> list[str]:
        return [unescaped(word) for word in words_of(text)]

    def sites(self, num_words: int) -> NDArray[np.int64]:
        """See `Problem.sites`: `3 n - 2` units, first the words' chains, then the gaps' changes of depth, then the
        gaps' constituents. Units of a gap are read at the word before it."""
        words, gaps = np.arange(1, num_words + 1), np.arange(1, num_words)
        return np.concatenate([words, gaps, gaps])

    def targets(self, text: str, label: Label) -> list[int]:
        """See `Problem.targets`. Changes of depth are clipped to `max_change`, and the next ones make up for the
        difference; a chain that is not a class is shortened from the top until it is one."""
        chains, depths, nodes = decisions_of(decode_label(label))
        no_change, at_nodes = len(self._chains) + self._max_change, self._at_nodes
        changes, reached = [], 0
        for depth in depths:
            change = max(-self._max_change, min(depth - reached, self._max_change))
            changes.append(no_change + change)
            reached += change
        return [
            *(self._chain_index[_known(chain, self._chain_index)] for chain in chains),
            *changes,
            *(at_nodes + self._node_index[_known(node, self._node_index)] for node in nodes),
        ]

    @property
    def _at_nodes(self) -> int:
        """Index of the first class of the gaps' constituents."""
        return len(self._chains) + 2 * self._max_change + 1

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        """See `Problem.allowed`. The three kinds of units take the three kinds of classes."""
        num_words = (num_units + 2) // 3
        sizes = len(self._chains), 2 * self._max_change + 1, len(self._nodes)
        of_unit = np.repeat([0, 1, 2], [num_words, num_words - 1, num_words - 1])
        allowed: NDArray[np.bool_] = of_unit[:, None] == np.repeat([0, 1, 2], sizes)
        return allowed

    def decide(self, text: str, probabilities: Floats) -> tuple[Label, float]:
        """See `Problem.decide`. Takes the most probable chains and changes of depth; each constituent then gets the
        label with the highest joint probability over all its gaps. Any probabilities give a legal tree.

        Raises ValueError unless there are 3 n - 2 units for n words.
        """
        words = [escaped(word) for word in words_of(text)]
        num_words = len(words)
        if len(probabilities) != 3 * num_words - 2:
            raise ValueError(f"{len(probabilities)} units of probabilities for {num_words} words")
        at_changes, at_nodes = len(self._chains), self._at_nodes
        chains = _logs(probabilities[:num_words, :at_changes])
        changes = _logs(probabilities[num_words : 2 * num_words - 1, at_changes:at_nodes])
        nodes = _logs(probabilities[2 * num_words - 1 :, at_nodes:])
        labeled, total = [], float(chains.max(axis=1).sum() + changes.max(axis=1).sum())
        depths = np.cumsum(changes.argmax(axis=1) - self._max_change)
        for start, end, gaps in nodes_of(depths.tolist()):
            together = nodes[gaps].sum(axis=0)
            best = int(together.argmax())
            labeled.append(Span(self._nodes[best], start, end))
            total += float(together[best])
        tree = tree_of(words, [self._chains[best] for best in chains.argmax(axis=1).tolist()], labeled)
        return encode_label(tree), min(float(np.exp(total / len(probabilities))), 1.0)

    def matches(self, gold: Label, predicted: Label | None) -> bool:
        return predicted is not None and gold.partition("\t")[0] == predicted.partition("\t")[0]

    def statistics(self, metric: Metric, gold: Label, predicted: Label | None) -> Floats:
        """bracket_*: (in both, in gold, in predicted); unlabeled_f1: (F1, 1); exact_match: (correct, 1)."""
        if metric == "exact_match":
            return np.array([float(self.matches(gold, predicted)), 1.0])
        found = decode_label(predicted) if predicted is not None else None
        if metric == "unlabeled_f1":
            return np.array([unlabeled_f1(decode_label(gold), found), 1.0])
        return bracket_counts(decode_label(gold), found)

    def value(self, metric: Metric, sums: Floats) -> Floats:
        """See `Problem.value`. If neither side has a constituent, bracket_* is 1; the means are 0 without rows."""
        common = sums[..., 0]
        match metric:
            case "bracket_f1":
                return ratio(2 * common, sums[..., 1] + sums[..., 2], empty=1.0)
            case "bracket_recall":
                return ratio(common, sums[..., 1], empty=1.0)
            case "bracket_precision":
                return ratio(common, sums[..., 2], empty=1.0)
            case "unlabeled_f1" | "exact_match":
                return ratio(common, sums[..., 1])
        raise ConfigError(f"metric '{metric}' does not measure constituency")

    def parts(self, label: Label) -> list[str]:
        """The root's label, then constituents as `NP:2-4`, with words counted from 1 and the last included."""
        spans = decode_label(label).spans
        whole = spans[0].label if spans else ""
        return [whole, *(f"{name}:{start + 1}-{end}" for name, start, end in spans)]


def infer_labels(rows: Iterable[Mapping[str, Any]], columns: ColumnsConfig, config: ConstituencyConfig) -> list[str]:
    """The labels and unary chains that occur in raw labeled rows, sorted. Rows without a label are skipped.

    Raises DataError, naming the row, if a tree cannot be read, or if there is none.
    """
    found: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            brackets = gold_text(row, columns.label)
            tree = _read_gold(brackets, config) if brackets else None
        except RowFault:
            raise  # it says where
        except DataError as error:
            raise DataError(f"{row_name(row, number)}: {error}") from None
        if tree is not None:
            found |= {span.label for span in collapsed(tree.spans)}
    if not found:
        raise DataError(
            f"no labeled row has a tree in the field '{columns.label}'; see data.columns, or give problem.labels"
        )
    return sorted(found | {part for name in found for part in name.split(CHAIN)})


def _read_gold(brackets: str, config: ConstituencyConfig) -> Tree:
    shown = brackets if len(brackets) <= 80 else f"{brackets[:80]}..."
    try:
        tree = read_tree(brackets, is_tag=lambda label: config.tags, name=_namer(config))
    except Unreadable as failure:
        raise DataError(f"'{shown}' is no tree: {failure.detail[0].lower()}{failure.detail[1:]}") from None
    if config.tags and tree.tags is None:
        raise DataError(f"'{shown}' has words without a part-of-speech tag, as (NN cat); see problem.tags")
    nameless = next((span for span in tree.spans if not span.label), None)
    if nameless is not None and config.form == "labelled":
        words = " ".join(tree.words[nameless.start : nameless.end])
        raise DataError(f"'{shown}' is no tree: the bracket around '{words:.80}' has no label")
    return tree


def _namer(config: ConstituencyConfig) -> Callable[[str], str]:
    return without_indices if config.function_tags else without_functions


def _difference(tree: Tree, text: str) -> str | None:
    """The first difference between the tree's words and the text's, as a message; None if there is none."""
    words = [escaped(word) for word in words_of(text)]
    if list(tree.words) == words:
        return None
    place = next((i for i, (ours, theirs) in enumerate(zip(tree.words, words, strict=False)) if ours != theirs), None)
    if place is None:
        return f"it has {len(tree.words)} words and the text {len(words)}"
    return f"word {place + 1} is '{tree.words[place][:80]}' and in the text '{words[place][:80]}'"


def _known(chain: str, index: Mapping[str, int]) -> str:
    """The longest lower end of a unary chain that is in `index`."""
    while chain and chain not in index:
        chain = chain.partition(CHAIN)[2]
    return chain


def _logs(probabilities: Floats) -> Floats:
    """Natural logarithms of `(units, classes)` normalized over the classes of one kind, with a floor to stay finite."""
    shares = ratio(probabilities, np.broadcast_to(probabilities.sum(axis=1, keepdims=True), probabilities.shape))
    logarithms: Floats = np.log(np.maximum(shares, 1e-12))
    return logarithms
