"""How a label is written as token ids, and read back.

In *classes*, a token stands for the class of a unit, in the units' order: for slots the intent and then each word's
tag, which is the target of arXiv 2311.08640. No tokenizer can spoil it, its length is known, and only legal classes are
written. In *text*, the label is what a teacher would write, in the tokenizer's own tokens.
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
    """What a student wrote for one text."""

    token_ids: list[int]
    logprobs: list[float]
    """Of each token."""
    is_finished: bool
    """Whether it came to its end before the limit."""
    probabilities: NDArray[np.float32]
    """`(tokens, classes)` where classes are written."""
    is_guided: bool = False
    """Whether text was written by a grammar, from its beginning to its end."""


@dataclass(frozen=True, slots=True)
class ClassTarget:
    problem: Problem
    classes: tuple[str, ...]
    """Those that the student was trained on."""
    first: int
    """The token id of the first of them."""
    most: int
    """Units that are written; those beyond are cut off."""

    @property
    def columns(self) -> slice:
        """Of the vocabulary: the classes' token ids."""
        return slice(self.first, self.first + len(self.classes))

    def write(self, texts: Sequence[str], labels: Sequence[Label]) -> list[list[int]]:
        """Token ids, which may be more than `most`."""
        pairs = zip(texts, labels, strict=True)
        return [[self.first + index for index in self.problem.targets(text, label)] for text, label in pairs]

    def num_tokens(self, text: str) -> int:
        return min(self.most, self._num_units(text))

    def legal(self, text: str) -> Bools:
        """`(tokens, the student's classes)`: what may be written at each place."""
        allowed = self.problem.allowed(self._num_units(text))[: self.most]
        if self.problem.classes == self.classes:
            return allowed
        known = {name: index for index, name in enumerate(self.problem.classes)}
        legal = np.zeros((len(allowed), len(self.classes)), dtype=np.bool_)
        for index, name in enumerate(self.classes):
            if name in known:
                legal[:, index] = allowed[:, known[name]]
        return legal

    def read(self, text: str, written: Written) -> Outcome:
        """Units that were cut off have the uniform distribution, as with an encoder."""
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
    problem: Problem
    tokenizer: PreTrainedTokenizerBase
    end: int
    """The token id that ends a label."""
    most: int
    """Tokens that are written, the end included."""

    def write(self, texts: Sequence[str], labels: Sequence[Label]) -> list[list[int]]:
        """Token ids, which may be more than `most`."""
        rendered = [self.problem.render(text, label) for text, label in zip(texts, labels, strict=True)]
        if not rendered:
            return []
        ids = self.tokenizer(rendered, add_special_tokens=False, truncation=False)["input_ids"]
        return [[*row, self.end] for row in ids]

    def num_tokens(self, text: str) -> int:
        return self.most

    def read(self, text: str, written: Written) -> Outcome:
        """The confidence is the length-normalised probability of the sequence, exp(mean log p).

        Beside the problem's, the reason code `too-long`.
        """
        completion = self.completion(written.token_ids)
        if not written.is_finished:
            return ParseFailure("too-long", f"It does not end within {self.most} tokens.", completion)
        label, is_mended = self._label(text, completion)
        if isinstance(label, ParseFailure):
            return label
        confidence = float(np.exp(np.mean(written.logprobs)))
        return Prediction(label, confidence, np.empty((0, 0), dtype=np.float32), is_mended)

    def keeps(self, text: str, label: Label, token_ids: Sequence[int]) -> bool:
        """Whether the label can be read back from what `write` made of it: a tokenizer may lose case or brackets."""
        read, _ = self._label(text, self.completion(token_ids))
        return not isinstance(read, ParseFailure) and self.problem.matches(label, read)

    def completion(self, token_ids: Sequence[int]) -> str:
        ids = [token for token in token_ids if token != self.end]
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _label(self, text: str, completion: str) -> tuple[Label | ParseFailure, bool]:
        """And whether it had to be mended."""
        label = self.problem.parse(text, completion)
        if isinstance(label, ParseFailure) and (mended := self.problem.mend(text, completion)) != completion:
            return self.problem.parse(text, mended), True
        return label, False


Target = ClassTarget | TextTarget
