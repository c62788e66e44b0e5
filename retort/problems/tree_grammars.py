"""Grammars of the trees over given words, for the decoders of teachers and students.

Those in llguidance's dialect of Lark count: the words written so far in the lower 16 bits of a rule's parameter, and
the open brackets above. So their brackets are balanced, and one of them is around all words if there are several.
"""

from collections.abc import Sequence
from typing import NamedTuple

from retort.problems.base import LARK_OPTIONS, gbnf_text, lark_rules, lark_text

MOST_OPENINGS = 8
"""Brackets that a teacher may open before a word: some models never stop. In the 11,700 trees of CRAFT it is 7."""
MOST_OPEN = 40
"""Brackets of a teacher that may be open at once, so that its tokens suffice to close them. In CRAFT it is 27."""

_PASSED, _DEPTH = "[0:16]", "[16:32]"


class TreeForm(NamedTuple):
    """How trees over some words are written; a space joins the words."""

    openings: Sequence[str]
    """What may open a constituent."""
    words: Sequence[str]
    close: str


def any_tree(form: TreeForm) -> str:
    """All trees, in Lark; derives `label`."""
    return lark_rules(
        {
            "label": ["before::0"],
            "before::_": [f"({_names(form)}) before::incr({_DEPTH})", *_leaves(form)],
            **_after(form, "before::_"),
        }
    )


def bounded_tree(form: TreeForm) -> str:
    """Trees within the bounds of teachers, in Lark; derives `start`."""
    rules = {"start": ["before0::0"], "OPENING": [_names(form)]}
    for opened in range(MOST_OPENINGS):
        following = f"before{opened + 1}" if opened + 1 < MOST_OPENINGS else "leaf"
        opening = f"OPENING {following}::incr({_DEPTH}) %if lt({_DEPTH}, {MOST_OPEN})"
        rules[f"before{opened}::_"] = [opening, "leaf::_"]
    return LARK_OPTIONS + lark_rules({**rules, "leaf::_": _leaves(form), **_after(form, "before0::_")})


def bounded_openings(form: TreeForm) -> str:
    """The words in order with openings within the bounds of teachers, in GBNF, which cannot count: any number of
    closing brackets may follow a word. Derives `root`."""
    close = f"({gbnf_text(form.close)})*"
    body = ' " " '.join(f"open{{0,{MOST_OPENINGS}}} {gbnf_text(word)} {close}" for word in form.words)
    return f"root ::= {body}\nopen ::= {' | '.join(map(gbnf_text, form.openings))}\n"


def _names(form: TreeForm) -> str:
    return " | ".join(map(lark_text, form.openings))


def _leaves(form: TreeForm) -> list[str]:
    inside = f"ge({_DEPTH}, {int(len(form.words) > 1)})"
    return [
        f"{lark_text(word)} after::incr({_PASSED}) %if and(eq({_PASSED}, {number}), {inside})"
        for number, word in enumerate(form.words)
    ]


def _after(form: TreeForm, before: str) -> dict[str, list[str]]:
    """What may follow a word: closing brackets, then the next word or the end."""
    num_words = len(form.words)
    is_over = f"eq({_PASSED}, {num_words})"
    return {
        "after::_": [
            f"{lark_text(form.close)} after::decr({_DEPTH}) %if or(ge({_DEPTH}, 2), and(eq({_DEPTH}, 1), {is_over}))",
            f'" " {before} %if lt({_PASSED}, {num_words})',
            f'"" %if and(eq({_DEPTH}, 0), {is_over})',
        ]
    }
