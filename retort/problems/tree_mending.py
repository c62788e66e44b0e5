"""Trees from brackets that do not close as they should. The words must be right; only brackets are put right.

Language models close a tree before all words are written, or open brackets until they are cut. Of 6,000 completions by
a model of 1.5 billion parameters on CRAFT, 2,391 were trees as they were, 2,731 had every word and 878 did not; the
three have a bracket F1 of 43.4, 38.9 and 22.4 against gold.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from retort.problems.base import Mended

_LABELED = re.compile(r"\([ \t-\r]*[^ \t-\r()]*|\)|[^ \t-\r()]+")
"""An opening bracket with its label, a closing one, or a word."""
_UNLABELED = re.compile(r"\(|\)|[^ \t-\r()]+")


def mended_tree(completion: str, words: Sequence[str], *, has_labels: bool) -> Mended | None:
    """The completion with its brackets put right, and the words that it does not reach added as the root's last
    children. None if a word is not the expected one, or if no bracket holds the words."""
    brackets = _Brackets(words)
    tokens = (_LABELED if has_labels else _UNLABELED).findall(completion)
    for place, token in enumerate(tokens):
        if token == ")":
            brackets.close()
        elif token[0] != "(":
            is_cut = place == len(tokens) - 1 and token != brackets.next_word
            if is_cut and brackets.next_word.startswith(token):
                break  # the token limit lies inside a word, which then counts as not reached
            if not brackets.write(token):
                return None
        elif brackets.is_complete:
            break  # nothing but a second tree can follow
        else:
            brackets.open(token)
    return brackets.closed()


@dataclass
class _Brackets:
    """Brackets that are legal so far."""

    words: Sequence[str]
    num_written: int = 0
    _tokens: list[str] = field(default_factory=list)
    _open: list[int] = field(default_factory=list)
    """Places in `_tokens` of the brackets that are open."""

    @property
    def next_word(self) -> str:
        """The word to come; "" after the last."""
        return "" if self.is_complete else self.words[self.num_written]

    @property
    def is_complete(self) -> bool:
        return self.num_written == len(self.words)

    def open(self, bracket: str) -> None:
        self._open.append(len(self._tokens))
        self._tokens.append(bracket)

    def write(self, word: str) -> bool:
        """False, and nothing is written, if the word is not the next one or no bracket would hold it."""
        if word != self.next_word or not self._open:
            return False
        self._tokens.append(word)
        self.num_written += 1
        return True

    def close(self) -> None:
        """Closes the innermost bracket; removes it if it is empty. Does nothing if none is open, or if only the root is
        and words remain, which would be in no tree."""
        if not self._open or (len(self._open) == 1 and not self.is_complete):
            return
        if self._open.pop() == len(self._tokens) - 1:
            self._tokens.pop()
        else:
            self._tokens.append(")")

    def closed(self) -> Mended | None:
        """The whole tree. Nothing says where words that were not reached belong, so they are the root's."""
        if not self._open and not self.is_complete:
            return None
        covered = self.num_written / max(1, len(self.words))
        while len(self._open) > 1:
            self.close()
        for word in self.words[self.num_written :]:
            self.write(word)
        self.close()
        return Mended(" ".join(self._tokens), covered)
