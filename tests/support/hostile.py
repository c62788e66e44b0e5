"""Hypothesis strategies for what the world sends: completions, rows, lines, YAML trees and damaged files."""

import copy
import json
from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

from retort.config import ClassificationConfig, ConstituencyConfig, SlotsConfig, TextConfig
from retort.problems import Problem, problem_for

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
PROBLEMS: dict[str, Problem] = {
    "slots": problem_for(SlotsConfig(kind="slots", intents={"PlayMusic": ["artist", "track"], "GetWeather": ["city"]})),
    "classes": problem_for(ClassificationConfig(kind="classification", labels=["up", "down", "no idea", "0", "1.5"])),
    "trees": problem_for(ConstituencyConfig(kind="constituency", labels=["S", "NP", "VP", "S+VP"])),
    "bare trees": problem_for(ConstituencyConfig(kind="constituency", labels=["S", "NP"], tags=False)),
    "unlabeled trees": problem_for(ConstituencyConfig(kind="constituency", form="unlabelled")),
    "text": problem_for(TextConfig(kind="text")),
    "pattern": problem_for(TextConfig(kind="text", pattern=r"[a-z ]+")),
    "json": problem_for(TextConfig(kind="text", json_schema=SCHEMA)),
}

PIECES = (
    *("[IN:PLAY_MUSIC", "[IN:GET_WEATHER", "[SL:ARTIST", "[SL:CITY", "[IN:", "[SL:", "]", "[", "(", ")", "()", "(S"),
    *("(NP", "(VP", "(S+VP", "(NN cat)", "(-NONE- *)", "-LRB-", "-RRB-", "-LSB-", "cat", "play", "rome", "up", "down"),
    *("no idea", "0", "1.5", "nan", "Infinity", "null", "true", '{"city": "rome"}', '{"days": 1.0}', "{", "}", '"'),
    *(
        '{"label": "up"}',
        '{"city": ',
        "\\ud83d",
        "\\u0000",
        "\\",
        "<think>",
        "</think>",
        "<|im_end|>",
        "```",
        "```json\n",
    ),
    *(
        "Label:",
        ":",
        ".",
        ",",
        "'",
        "`",
        "*",
        "\n",
        "\r\n",
        "\t",
        " ",
        "  ",
        "\u00a0",
        "\u2028",
        "\u200b",
        "\ufeff",
        "\x00",
    ),
    *(
        "\x1c",
        "\x85",
        "é",
        "e\u0301",
        "İ",
        "ß",
        "ǅ",
        "😀",
        "\ud83d",
        "\ude00",
        "\ufffe",
        "<",
        ">",
        "${HOME}",
        "%s",
        "{0}",
    ),
)
"""What labels, and what models write around them, are made of."""

words = st.sampled_from(
    ["cat", "play", "rome", "up", "(", ")", "[", "]", "-LRB-", "é", "İ", "\u00a0", "a\u00a0b", "''", "😀"]
)
texts = st.lists(words, min_size=1, max_size=8).map(" ".join) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30
).filter(str.strip)
"""A row's text, as the readers let it through."""
_soup = st.lists(st.sampled_from(PIECES) | st.text(max_size=4) | words, max_size=24)
completions = st.one_of(
    _soup.map("".join),
    _soup.map(" ".join),
    st.text(),
    st.builds(lambda piece, times: piece * times, st.sampled_from(PIECES), st.integers(100, 5000)),
    st.builds(
        lambda start, times, end: start + "(S " * times + end,
        st.text(max_size=3),
        st.integers(1, 3000),
        st.text(max_size=3),
    ),
)
"""What a teacher may write."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**63) - 1, 10**400, 0.1, -0.0, 1e308]),
    st.floats(),
    st.sampled_from(PIECES),
    st.text(max_size=8),
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
"""Anything that Python's JSON reader may return."""
_yaml_only = st.one_of(
    st.dates(), st.datetimes(), st.binary(max_size=4), st.frozensets(st.integers(), max_size=2).map(set)
)
yaml_values = st.recursive(
    scalars | _yaml_only,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=5) | st.integers() | st.none() | st.booleans() | st.dates(), inner, max_size=4
        )
    ),
    max_leaves=8,
)
"""Anything that a YAML file may hold."""


def paths(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the nodes of a tree of dicts and lists are; the root is ()."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [above, *(path for name, child in children for path in paths(child, (*above, name)))]


@st.composite
def changed(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any], most: int = 3) -> Any:
    """The tree with one to `most` of its nodes replaced, removed, or given a child that does not belong there."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(paths(tree)))
        if not path:
            continue
        *above, last = path
        node = tree
        for name in above:
            node = node[name]
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "remove":
            del node[last]
        elif what == "add" and isinstance(node[last], dict):
            node[last][draw(st.text(max_size=5))] = draw(values)
        else:
            node[last] = draw(values)
    return tree


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with bytes flipped, cut, doubled, removed or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "double", "remove", "insert"])):
            case "flip" if start < len(data):
                data[start] ^= draw(st.integers(1, 255))
            case "cut":
                del data[start:]
            case "double":
                data[start:start] = data[start : start + draw(st.integers(0, 40))]
            case "remove":
                del data[start : start + draw(st.integers(0, 40))]
            case _:
                data[start:start] = draw(st.binary(max_size=8))
    return bytes(data)


def json_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, allow_unicode=True)
