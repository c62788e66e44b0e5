"""What problems share whose label is one of a list that is known beforehand. The only unit is the whole text."""

import numpy as np
from numpy.typing import NDArray

from retort.problems.base import Constraint, Mended, lark_rules, lark_text


class Choice:
    """Methods of `Problem` that depend on two lists alone."""

    _classes: tuple[str, ...]
    _choices: tuple[str, ...]
    """What a teacher may write."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @property
    def sigmoids(self) -> tuple[str, ...]:
        """None: the classes of the one unit exclude each other."""
        return ()

    def mend(self, text: str, completion: str) -> Mended:
        return Mended(completion)

    def uncut(self, completion: str) -> str:
        """See `Problem.uncut`. A choice may be the start of a longer one, so the line that was cut is left out."""
        return completion.rpartition("\n")[0]

    def constraint(self, text: str) -> Constraint:
        return Constraint(choice=self._choices)

    def grammar(self, text: str) -> str:
        # One terminal for all choices: of two terminals with a common prefix, only the longer would ever match.
        return lark_rules({"label": ["LABEL"], "LABEL": [lark_text(choice) for choice in self._choices]})

    def words(self, text: str) -> list[str]:
        return [text]

    def sites(self, num_words: int) -> NDArray[np.int64]:
        return np.zeros(1, dtype=np.int64)

    def allowed(self, num_units: int) -> NDArray[np.bool_]:
        return np.ones((num_units, len(self._classes)), dtype=np.bool_)
