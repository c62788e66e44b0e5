"""How much two labels of the same text differ, whatever the problem."""

from collections import Counter

from retort.problems.base import Problem, Scale
from retort.problems.text import FreeText
from retort.records.base import Label


def disagreement(problem: Problem, one: Label, other: Label) -> float:
    """In [0, 1]: 0 if one says what the other does. Of numbers it is the distance in ranges of the scale, of free texts
    1 - chrF, and of all others the share of their parts (classes, spans, constituents, fields) that only one has."""
    if one == other or problem.matches(one, other):
        return 0.0
    if isinstance(problem, Scale):
        width = abs(float(problem.classes[-1]) - float(problem.classes[0]))
        return min(1.0, abs(float(one) - float(other)) / width) if width else 1.0
    parts, others = Counter(problem.parts(one)), Counter(problem.parts(other))
    if isinstance(problem, FreeText) and max(parts.total(), others.total()) == 1:
        return 1.0 - float(problem.value("chrf", problem.statistics("chrf", one, other)))
    either = (parts | others).total()
    return 1.0 - (parts & others).total() / either if either else 1.0
