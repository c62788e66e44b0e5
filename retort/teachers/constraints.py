"""What a teacher's completions can be held to while they are written."""

from retort.config.teachers import EndpointConfig, LlmTeacherConfig, VllmConfig
from retort.errors import ConfigError
from retort.problems import Constraint, Problem
from retort.teachers.endpoint.structured import constraint_settings
from retort.teachers.rationales import constraint_of

_TEXT = "a"
"""What constrains one text constrains any."""


def expressible(constraint: Constraint | None, teacher: LlmTeacherConfig) -> Constraint | None:
    """The constraint if this teacher can be held to it, else None."""
    if constraint is None or isinstance(teacher, VllmConfig):
        return constraint
    if isinstance(teacher, EndpointConfig):
        return constraint if constraint_settings(constraint, teacher.constraint_style) else None
    return constraint if constraint.choice is not None else None


def held_to(problem: Problem, teacher: LlmTeacherConfig) -> str:
    """What the teacher's completions are held to, as part of a sentence."""
    if teacher.labels == "soft":
        return "asked for probabilities"
    constraint = expressible(constraint_of(problem, teacher, _TEXT), teacher) if teacher.constrained else None
    if constraint is None:
        return "not constrained"
    to = "a rationale and a label" if teacher.rationales else _name(constraint)
    return f"held to {to}" + (" where needed" if teacher.constrained == "when-needed" else "")


def _name(constraint: Constraint) -> str:
    if constraint.choice is not None:
        return "the classes"
    if constraint.json_schema is not None:
        return "problem.json_schema"
    return "a grammar" if constraint.regex is None else "problem.pattern"


def check_constrained(problem: Problem, teacher: LlmTeacherConfig) -> None:
    """Raises ConfigError if the config says `constrained: true` or `when-needed` although nothing constrains.

    Where the config does not say it, a teacher is constrained as far as it can be.
    """
    constraint = constraint_of(problem, teacher, _TEXT)
    said = teacher.constrained and "constrained" in teacher.model_fields_set
    if not said or teacher.labels == "soft" or expressible(constraint, teacher) is not None:
        return
    if constraint is None:
        why = "the problem has nothing to hold it to; give problem.json_schema, or a pattern that decoders can read"
    elif isinstance(teacher, EndpointConfig):
        why = (
            f"constraint_style: {teacher.constraint_style} cannot express what these labels may be; take another style"
        )
    else:
        why = "this kind of teacher can only choose among classes; take kind: vllm or endpoint"
    said_so = "true" if teacher.constrained is True else teacher.constrained
    raise ConfigError(f"teacher.constrained = {said_so}: {why}, or leave it out")
