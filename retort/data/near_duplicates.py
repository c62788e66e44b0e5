"""Near-duplicate texts: MinHash signatures in a locality-sensitive index (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3), so that the work grows with the number of rows and not with that of pairs.

Two texts are near-duplicates if the sets of their runs of `SHINGLE` characters have a Jaccard similarity of at least
`THRESHOLD`, without regard to case and white space. What the index proposes is compared exactly. With 18 bands of 7
signature values it proposes 98 % of the pairs of similarity 0.8, and all of 0.9. For 100,000 rows of
46 characters it takes 20 s of one core and 630 MB (`benchmarks/near_duplicates.py`); both grow with the characters. So
no more than `MOST_INDEXED` rows of a pool are compared with each other; all are compared with the test rows.
"""

import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datasketch import MinHash

THRESHOLD = 0.8
SHINGLE = 5
BANDS, BAND_VALUES = 18, 7
MOST_CHARACTERS = 4000
"""Of a text, so many are looked at, which bounds the time that long ones take."""
MOST_COMPARED = 64
"""Proposals that are compared for one text: rows made from one pattern may be proposed by the thousand."""
MOST_INDEXED = 100_000
"""Rows of a pool that are compared with each other. Of a larger pool so many are drawn, and the near-duplicates among
these are fewer: a pair of which one row is drawn is not seen."""

IdText = tuple[str, str]


class Match(NamedTuple):
    """A text and one that it nearly is."""

    example_id: str
    text: str
    of_id: str
    of_text: str
    similarity: float
    """Jaccard, in [`THRESHOLD`, 1]."""


class _Sketch(NamedTuple):
    example_id: str
    text: str
    shingles: frozenset[str]
    signature: "MinHash"


class NearDuplicates:
    """An index of texts."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH  # with scipy, a third of what importing every recipe takes

        self._index = MinHashLSH(num_perm=BANDS * BAND_VALUES, params=(BANDS, BAND_VALUES))
        self._texts: list[IdText] = []
        self._equal: dict[str, int] = {}
        """Places by what remains of a text without case and white space."""

    def matches(self, sketch: _Sketch) -> list[Match]:
        """The texts in the index that this one nearly is, the most similar first."""
        places = dict.fromkeys([self._equal[sketch.text]] if sketch.text in self._equal else [])
        for place in sorted(self._index.query(sketch.signature))[:MOST_COMPARED]:
            places[place] = None
        found = [self._match(sketch, place) for place in places]
        return sorted((one for one in found if one.similarity >= THRESHOLD), key=lambda one: -one.similarity)

    def _match(self, sketch: _Sketch, place: int) -> Match:
        of_id, of_text = self._texts[place]
        other = _shingles(of_text)
        similarity = len(sketch.shingles & other) / len(sketch.shingles | other)
        return Match(sketch.example_id, sketch.text, of_id, of_text, similarity)

    def add(self, sketch: _Sketch) -> None:
        place = len(self._texts)
        self._texts.append((sketch.example_id, sketch.text))
        if sketch.text not in self._equal:  # further equal ones would be found through the first
            self._equal[sketch.text] = place
            self._index.insert(place, sketch.signature)


class Found(NamedTuple):
    within: list[Match]
    """Each row of the pool that nearly is an earlier one which is none itself, with that one."""
    leaked: list[Match]
    """For each test row that nearly is one of the pool or the labeled set, the most similar one, with the test row."""


def indexed_share(rows: int) -> float:
    """The share of a pool of so many rows that is drawn, in (0, 1]."""
    return min(1.0, MOST_INDEXED / max(1, rows))


def is_drawn(example_id: str, share: float) -> bool:
    """Whether a row is among those that are compared with each other. It is or is not in every night's pool."""
    if share >= 1:
        return True
    digest = blake2b(example_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def find(pool: Iterable[IdText], labeled: Iterable[IdText], test: Iterable[IdText], share: float = 1.0) -> Found:
    """Memory is that of the texts of the test rows and of the drawn share of the pool, and of their index."""
    seen, tested = NearDuplicates(), NearDuplicates()
    within: list[Match] = []
    leaked: dict[str, Match] = {}
    same: dict[str, list[str]] = {}
    in_test: set[str] = set()
    for sketch in sketches(test):
        same.setdefault(sketch.text, []).append(sketch.example_id)
        tested.add(sketch)
        in_test |= sketch.shingles

    def may_leak(text: str) -> bool:
        """Whether enough of its shingles are in any test row for it to nearly be one of these."""
        shingles = _shingles(_plain(text))
        return len(shingles & in_test) >= THRESHOLD * len(shingles) - 1e-9

    def note_leaks(sketch: _Sketch) -> None:
        for match in tested.matches(sketch):
            for of_id in same[match.of_text]:
                if of_id not in leaked or leaked[of_id].similarity < match.similarity:
                    leaked[of_id] = match._replace(of_id=of_id)

    for sketch in sketches(row for row in pool if is_drawn(row[0], share) or may_leak(row[1])):
        note_leaks(sketch)
        if not is_drawn(sketch.example_id, share):
            continue
        if found := seen.matches(sketch):
            within.append(found[0])
        else:
            seen.add(sketch)
    for sketch in sketches(labeled):
        note_leaks(sketch)
    return Found(within, list(leaked.values()))


def sketches(rows: Iterable[IdText]) -> Iterator[_Sketch]:
    """Lazily, in the order of the rows."""
    from datasketch import MinHash

    signature = MinHash(num_perm=BANDS * BAND_VALUES, hashfunc=zlib.crc32)
    for example_id, text in rows:
        plain = _plain(text)
        shingles = _shingles(plain)
        signature.clear()
        signature.update_batch([one.encode("utf-8", "surrogatepass") for one in shingles])
        yield _Sketch(example_id, plain, shingles, signature)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())[:MOST_CHARACTERS]


def _shingles(text: str) -> frozenset[str]:
    """Runs of characters; the whole of a shorter text."""
    return frozenset(text[at : at + SHINGLE] for at in range(max(1, len(text) - SHINGLE + 1)))
