"""Tags of words in the forms that data have, as BIO tags: IOB1 and IOB2, IOBES with its sisters BILOU, BMES and BMEWO.

IOB1 (a B- only where two spans of a type touch) and IOB2 (every span begins with B-) need no telling apart: read as
CoNLL does, an I- after O or after another type opens a span, both say the same. In IOBES every span is closed or
single, so a row with a span shows which of the two families it is of, and all rows of a file must be of one.
"""

import re
from collections.abc import Sequence

from retort.errors import RowFault

_TAG = re.compile(r"O|[BIESLUMW]-.+", re.DOTALL)
_SINGLE, _INSIDE, _END = "SUW", "IM", "EL"


class TagForm:
    """The form of one file's tags, as far as its rows showed it."""

    def __init__(self) -> None:
        self._first: dict[bool, str] = {}
        """Where the first row with a span is, by whether it is IOBES."""

    def bio(self, place: str, tags: Sequence[str]) -> list[str]:
        """The tags of a row as BIO tags. Those that are in no form are returned as they are, for the problem to refuse.

        Raises RowFault for spans that are not closed as IOBES demands, and for a row of another form than those before.
        """
        letters = {tag[:1] for tag in tags} - {"O"}
        if not letters or not all(_TAG.fullmatch(tag) for tag in tags):
            return list(tags)
        is_iobes = not letters <= {"B", "I"}
        other = self._first.get(not is_iobes)
        if other is not None and is_iobes:
            at, tag = next((at, tag) for at, tag in enumerate(tags, 1) if tag[0] not in "BIO")
            raise RowFault(
                f"{place}: tag {at}, '{tag}', is of the IOBES form, and the tags of {other} are BIO", "bad-tags"
            )
        self._first.setdefault(is_iobes, place)
        if is_iobes or other is not None:
            return _from_iobes(f"{place}: " if other is None else f"{place}: as {other} is IOBES, ", tags)
        return list(tags)


def _from_iobes(place: str, tags: Sequence[str]) -> list[str]:
    """Raises RowFault for a span that is not closed, or not opened."""
    found: list[str] = []
    opened: str | None = None
    for at, tag in enumerate(tags, 1):
        letter, name = tag[0], tag[2:]
        continues = letter in _INSIDE + _END
        if opened is not None and (not continues or name != opened):
            raise RowFault(f"{place}tag {at}, '{tag}', stands where the span '{opened}' is not closed", "bad-tags")
        if opened is None and continues:
            raise RowFault(f"{place}tag {at}, '{tag}', continues no span", "bad-tags")
        opened = name if letter == "B" or letter in _INSIDE else None
        found.append("O" if letter == "O" else f"{'I' if continues else 'B'}-{name}")
    if opened is not None:
        raise RowFault(f"{place}tag {len(tags)}, '{tags[-1]}', is the last and does not close its span", "bad-tags")
    return found
