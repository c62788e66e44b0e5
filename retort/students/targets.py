"""How a label is written as token ids and read back.

A *classes* target has one new token per unit, which stands for the unit's class: for slots the intent and then each
word's tag, as in arXiv 2311.08640; for classification the one class. It does not depend on the tokenizer, its length is
known, and only legal classes can be generated. A *text* target is the label as a teacher would write it, in the
tokenizer's own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from retort.problems import Problem
from retort.records.base import Label, ParseFailure
from retort.students.base import Outcome, Prediction, decided

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Written:
    """What a student generated for one text."""

    token_ids: list[int]
    logprobs: list[float]
    """Natural log-probability of each token."""
    is_finished: bool
    """Whether it ended before reaching the token limit."""
    probabilities: NDArray[np.float32]
    """`(tokens, classes)`, each row summing to 1; `(0, 0)` for a text target."""
    is_guided: bool = False
    """Whether a grammar constrained the whole text."""


@dataclass(frozen=True, slots=True)
class ClassTarget:
    """Labels as one token per unit."""

    problem: Problem
    classes: tuple[str, ...]
    """The classes that the student was trained on, in the order of their token ids."""
    first: int
    """Token id of the first class."""
    max_tokens: int
    """Maximum number of units; the rest is cut off."""

    @property
    def columns(self) -> slice:
        """The classes' token ids."""
        return slice(self.first, self.first + len(self.classes))

    def write(self, texts: Sequence[str], labels: Sequence[Label]) -> list[list[int]]:
        """Token ids of each label, not yet cut to `max_tokens`."""
        pairs = zip(texts, labels, strict=True)
        return [[self.first + index for index in self.problem.targets(text, label)] for text, label in pairs]

    def num_tokens(self, text: str) -> int:
        return min(self.max_tokens, self._num_units(text))

    def legal(self, text: str) -> Bools:
        """`(tokens, student's classes)`: which classes each unit may take."""
        allowed = self.problem.allowed(self._num_units(text))[: self.max_tokens]
        if self.problem.classes == self.classes:
            return allowed
        known = {name: index for index, name in enumerate(self.problem.classes)}
        legal = np.zeros((len(allowed), len(self.classes)), dtype=np.bool_)
        for index, name in enumerate(self.classes):
            if name in known:
                legal[:, index] = allowed[:, known[name]]
        return legal

    def read(self, text: str, written: Written) -> Outcome:
        """The label. Units that were cut off get the uniform distribution, as with an encoder."""
        names = self.problem.classes
        probabilities = np.full((self._num_units(text), len(names)), 1 / len(names), dtype=np.float32)
        own = written.probabilities
        if names != self.classes:
            at = {name: index for index, name in enumerate(self.classes)}
            nothing = np.zeros(len(own), dtype=np.float32)
            own = np.stack([own[:, at[name]] if name in at else nothing for name in names], axis=1)
        probabilities[: len(own)] = own
        return decided(self.problem, text, probabilities)

    def _num_units(self, text: str) -> int:
        return len(self.problem.sites(len(self.problem.words(text))))


@dataclass(frozen=True, slots=True)
class TextTarget:
    """Labels as text."""

    problem: Problem
    tokenizer: PreTrainedTokenizerBase
    end: int
    """Token id that ends a label."""
    max_tokens: int
    """Maximum number of tokens, including the end token."""

    def write(self, texts: Sequence[str], labels: Sequence[Label]) -> list[list[int]]:
        """Token ids of each label, not yet cut to `max_tokens`."""
        rendered = [self.problem.render(text, label) for text, label in zip(texts, labels, strict=True)]
        if not rendered:
            return []
        ids = self.tokenizer(rendered, add_special_tokens=False, truncation=False)["input_ids"]
        return [[*row, self.end] for row in ids]

    def num_tokens(self, text: str) -> int:
        return self.max_tokens

    def read(self, text: str, written: Written) -> Outcome:
        """The label, with the sequence's length-normalized probability exp(mean log p) as confidence.

        Adds the reason code `too-long` to those of the problem's parser.
        """
        completion = self.completion(written.token_ids)
        if not written.is_finished:
            return ParseFailure("too-long", f"It does not end within {self.max_tokens} tokens.", completion)
        label, is_mended = self._label(text, completion)
        if isinstance(label, ParseFailure):
            return label
        confidence = float(np.exp(np.mean(written.logprobs)))
        return Prediction(label, confidence, np.empty((0, 0), dtype=np.float32), is_mended)

    def keeps(self, text: str, label: Label, token_ids: Sequence[int]) -> bool:
        """Whether decoding `token_ids` gives the label back, unmended: a tokenizer may lose case or brackets."""
        read = self.problem.parse(text, self.completion(token_ids))
        return not isinstance(read, ParseFailure) and self.problem.matches(label, read)

    def completion(self, token_ids: Sequence[int]) -> str:
        """The decoded text without special tokens."""
        ids = [token for token in token_ids if token != self.end]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _label(self, text: str, completion: str) -> tuple[Label | ParseFailure, bool]:
        """The parsed label, and whether it had to be mended."""
        label = self.problem.parse(text, completion)
        if not isinstance(label, ParseFailure):
            return label, False
        mended = self.problem.mend(text, completion)
        if mended.covered < 1:
            return label, False  # the student ended too early; what is missing would be a guess without a confidence
        repaired = self.problem.parse(text, mended.completion)
        return (label, False) if isinstance(repaired, ParseFailure) else (repaired, True)


Target = ClassTarget | TextTarget
