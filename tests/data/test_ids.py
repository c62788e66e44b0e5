"""Ids that were seen are found again, with the first place of each, and take little memory."""

import random

from hypothesis import given
from hypothesis import strategies as st

from retort.data.ids import SeenIds


@given(st.lists(st.lists(st.text(max_size=3), unique=True, max_size=20), max_size=12))
def test_as_a_dictionary_would(batches: list[list[str]]) -> None:
    seen, known = SeenIds(), dict[str, str]()
    for number, batch in enumerate(batches):
        assert seen.first_places(batch) == [known.get(one) for one in batch]
        places = {one: f"{number // 3}.jsonl, line {at}" for at, one in enumerate(batch) if one not in known}
        seen.add(list(places), list(places.values()))
        known |= places
    assert seen.first_places(list(known)) == list(known.values())


def test_24_bytes_a_row_in_few_runs() -> None:
    ids = [f"row-{number}" for number in range(50_000)]
    random.Random(0).shuffle(ids)
    seen = SeenIds()
    for start in range(0, len(ids), 1000):
        seen.add(ids[start : start + 1000], [f"pool.jsonl, line {start + at}" for at in range(1000)])
    assert sum(column.nbytes for run in seen._runs for column in run) == 24 * len(ids)
    assert len(seen._runs) < 8
    assert seen.first_places([ids[31_234], "row-50000"]) == ["pool.jsonl, line 31234", None]
