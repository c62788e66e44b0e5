"""Structured outputs: how a constraint is sent to a server, and how a label that had to be wrapped is read again."""

import json
from collections.abc import Mapping
from typing import Any

from retort.config.endpoint import ConstraintStyle
from retort.errors import ConfigError
from retort.problems import Constraint

Schema = dict[str, Any]
_DEFINITIONS = ("$defs", "definitions")
NOTHING: Mapping[str, Schema] = {}


def constraint_settings(constraint: Constraint | None, style: ConstraintStyle) -> Schema:
    """The body fields that constrain decoding to legal labels; empty for a grammar with the json-schema style, since
    no JSON schema can express one.

    Raises ConfigError for a JSON Schema that must be wrapped, but refers to itself.
    """
    if constraint is None or style == "none":
        return {}
    if style == "vllm":
        return {"structured_outputs": _vllm(constraint)}
    schema = _json_schema(constraint)
    if schema is None:
        return {}
    # Vendors hold a completion to a schema only if it is strict, and refuse one that is not but claims to be.
    form = {"name": "label", "strict": _is_strict(schema), "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def _vllm(constraint: Constraint) -> Schema:
    if constraint.choice is not None:
        return {"choice": constraint.choice}
    if constraint.json_schema is not None:
        return {"json": constraint.json_schema}
    return {"grammar": constraint.grammar} if constraint.regex is None else {"regex": constraint.regex}


def _json_schema(constraint: Constraint) -> Schema | None:
    """A schema whose root is an object, as vendors want it: the label's own, or one with the label in a field."""
    schema = label_schema(constraint)
    is_wrapped = schema is not None and (constraint.json_schema is None or schema.get("type") != "object")
    return wrapped(schema) if schema is not None and is_wrapped else schema


def label_schema(constraint: Constraint) -> Schema | None:
    """A JSON Schema of the labels, which are texts if they are not JSON; None for a grammar."""
    if constraint.choice is not None:
        return {"type": "string", "enum": constraint.choice}
    if constraint.json_schema is not None:
        return dict(constraint.json_schema)
    if constraint.regex is not None:
        return {"type": "string", "pattern": f"^(?:{constraint.regex})$"}
    return None


def wrapped(label: Schema, before: Mapping[str, Schema] = NOTHING) -> Schema:
    """A schema of objects with a label in a field, after the fields `before`.

    Raises ConfigError for the schema of a label that refers to itself.
    """
    for reference in _references(label):
        if not reference.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS)):
            raise ConfigError(
                f"problem.json_schema: the teacher is asked for the label in a field of an object (for its rationale, "
                f"or because constraint_style: json-schema needs an object), where $ref '{reference}' leads nowhere; "
                "refer to #/$defs/NAME"
            )
    return {
        "type": "object",
        "properties": {**before, "label": {name: part for name, part in label.items() if name not in _DEFINITIONS}},
        "required": [*before, "label"],
        "additionalProperties": False,
        **{name: label[name] for name in _DEFINITIONS if name in label},
    }


def _references(schema: object) -> list[str]:
    if isinstance(schema, Mapping):
        own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        return own + [found for child in schema.values() for found in _references(child)]
    return [found for child in schema for found in _references(child)] if isinstance(schema, list) else []


def _is_strict(schema: object) -> bool:
    """Whether each object in the schema requires all of its fields and allows no others."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    fields = schema.get("properties")
    if schema.get("type") == "object" or isinstance(fields, Mapping):
        required = schema.get("required")
        whole = set(required) == set(fields or {}) if isinstance(required, list) else not fields
        if not whole or schema.get("additionalProperties") is not False:
            return False
    return all(map(_is_strict, schema.values()))


def wrapping(constraint: Constraint | None, style: ConstraintStyle) -> Constraint | None:
    """The constraint if a label under it comes in a field of an object, see `unwrap_label`; else None."""
    if constraint is None or style != "json-schema":
        return None
    if constraint.json_schema is not None and constraint.json_schema.get("type") == "object":
        return None
    return None if constraint.grammar is not None else constraint


def unwrap_label(text: str, constraint: Constraint) -> str:
    """The label in `{"label": ...}`; any other text (truncated, or not following the schema) is returned unchanged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(value, dict) or value.keys() != {"label"}:
        return text
    if constraint.json_schema is not None:
        return json.dumps(value["label"], ensure_ascii=False)
    return value["label"] if isinstance(value["label"], str) else text
