"""Loads a config from a YAML file and dotted overrides, with errors that people can act on."""

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from retort.config.infrastructure import RecipeConfig
from retort.errors import ConfigError

Location = tuple[int | str, ...]
Schema = dict[str, Any]
Models = Mapping[str, type[RecipeConfig]]
"""Config types by the `kind` at the top of the file; the first is for files without one."""


def load(path: str | Path, overrides: Iterable[str], models: Models) -> RecipeConfig:
    """See `retort.recipes.load_config`."""
    values = _read(str(path))
    for override in overrides:
        _apply(values, override)
    return parse(values, str(path), models)


def parse(values: dict[str, Any], origin: str, models: Models) -> RecipeConfig:
    """Validate `values`. Errors give `origin` as their location."""
    kind = values.get("kind", next(iter(models)))
    if not isinstance(kind, str) or kind not in models:
        raise ConfigError(f"{origin}: kind = {_short(kind)}: allowed: {_listed(models)}")
    model = models[kind]
    if "kind" not in model.model_fields:
        values = {name: value for name, value in values.items() if name != "kind"}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        schema = model.model_json_schema()
        raise ConfigError("\n".join(f"{origin}: {_sentence(detail, schema)}" for detail in error.errors())) from None


MOST_BYTES = 4 * 2**20
"""Largest config."""
MOST_VALUES = 100_000
"""Most values in a config, where what an anchor names counts each time that it is used."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate fields, of which YAML would silently use the last, and what would take a machine's memory."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _num_values(node, {})
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value: int = super().construct_yaml_int(node)
        if abs(value) >= 2**63:
            raise yaml.constructor.ConstructorError(problem="a number is too large", problem_mark=node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem="the name of a field is no text", problem_mark=key.start_mark
                )
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"'{key.value}' is written twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values the node becomes. Raises ConstructorError for too many, or one that contains itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.constructor.ConstructorError(problem="a value contains itself", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = 0  # being counted
    inner = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
    known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    if known[id(node)] > MOST_VALUES:
        raise yaml.constructor.ConstructorError(
            problem=f"more than {MOST_VALUES:,} values, counting those of anchors", problem_mark=node.start_mark
        )
    return known[id(node)]


def _read(path: str) -> dict[str, Any]:
    try:
        data = _bytes(path)
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{path}: more than {MOST_BYTES:,} bytes, so it is no config")
        values = yaml.load(data.decode(), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: {_unreadable(error)}; give the path of a YAML config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-02-30
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not a YAML config: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        found = {type(None): "nothing", list: "a list", str: "one text"}.get(type(values), "one value")
        raise ConfigError(f"{path}: must hold fields (name: ..., data: ...), but holds {found}")
    return values


def _bytes(path: str) -> bytes:
    if "://" not in path:
        with Path(path).open("rb") as stream:
            return stream.read(MOST_BYTES + 1)
    if not path.startswith("s3://"):
        raise ConfigError(f"{path}: give the path of a YAML config, or s3://bucket/key")
    from retort.io.s3 import filesystem, remote_errors

    with remote_errors(path, None):
        content: bytes = filesystem(None).cat_file(path)
    return content


def _unreadable(error: OSError) -> str:
    match error:
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "is a folder"
    return f"cannot be read ({error.strerror})"


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    *parents, last = (part.strip() for part in dotted.split("."))
    shown = " ".join(override.split())
    if not equals or not all((*parents, last)):
        raise ConfigError(f"--set {shown}: must look like method.stages=2")
    node = values
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {shown}: '{parent}' is one value in the config and has no fields")
    try:
        node[last] = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = " ".join(text.split())
        shown = f"--set {shown}: '{value}'" if len(shown) < 200 else f"--set {shown[:100]} ...: this"
        raise ConfigError(f"{shown} is not YAML; put a text with special signs in quotes") from None


def _sentence(detail: ErrorDetails, schema: Schema) -> str:
    """One sentence with the field, the given value and what is allowed."""
    location, context = detail["loc"], detail.get("ctx", {})
    hidden = not _SECRETS.isdisjoint(location)
    given, where = detail["input"], ".".join(_written(location, schema))
    match detail["type"]:
        case "missing":
            return f"{where}: missing, but required"
        case "extra_forbidden":
            return f"{where}: unknown field; {_advice(location, schema)}"
        case "union_tag_not_found":
            return f"{where}.kind: missing, but required; allowed: {_listed(_kinds(location, schema))}"
        case "union_tag_invalid":
            return f"{where}.kind = {_short(context['tag'])}: allowed: {_listed(_kinds(location, schema))}"
        case "value_error":
            shown = "" if hidden else f" = {_short(given)}"
            prefix = f"{where}{shown}: " if where and not isinstance(given, dict) else ""
            return f"{prefix}{context['error']}"
    return f"{where}: {_rule(detail, schema)}" if hidden else f"{where} = {_short(given)}: {_rule(detail, schema)}"


_SECRETS = {"api_key", "headers", "url"}
"""Fields whose value is never shown in an error: it is a secret, or may hold one."""

_UNIONS = {
    *(("problem",), ("teacher",), ("student",)),
    *(("data", role) for role in ("labeled", "unlabeled", "test", "dev", "train")),
}
"""Fields of several possible kinds. In an error's location, pydantic adds the kind after them; users never write it."""


_MEMBERS = ("teacher", "ensemble", "members")
"""A list whose entries are such fields, too."""


def _kinds_at(location: Location, schema: Schema) -> set[int]:
    """The positions in an error's location that are kinds, not fields."""
    found = {n for n in (1, 2) if len(location) > n and location[:n] in _UNIONS}
    if 1 in found and "$ref" in schema["properties"][location[0]]:  # only one kind in this recipe
        found.remove(1)
    if location[:2] == ("data", "tests") and len(location) > 3:
        found.add(3)
    return found | ({4} if location[:3] == _MEMBERS and len(location) > 4 else set())


def _written(location: Location, schema: Schema) -> list[str]:
    """The location's fields as written in the YAML file."""
    kinds_at = _kinds_at(location, schema)
    return [str(part) for at, part in enumerate(location) if at not in kinds_at and part != "[key]"]


_RULES: Mapping[str, str] = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "bool": "must be true or false",
    "list": "must be a list, such as [a, b]",
    "literal": "allowed: {expected}",
    "greater": "must be more than {gt:g}",
    "less": "must be less than {lt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least {min_length} entries",
    "invalid_key": "this name must be a text; put it in quotes",
    "string_pattern_mismatch": "must be 1 to 63 of a-z, 0-9, '.', '_' and '-', the first of them a letter or a digit",
}
"""Rules by pydantic's type of error, or by the part before its first underscore."""


def _rule(detail: ErrorDetails, schema: Schema) -> str:
    """What is allowed, in plain words."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"must hold fields{_such_as(detail['loc'], schema)}, not one value"
    if kind == "string_type":
        quotes = not isinstance(detail["input"], dict | list | None)
        return "must be a text" + ("; put it in quotes" if quotes else "")
    rule = _RULES.get(kind) or _RULES.get(kind.partition("_")[0])
    return rule.format(**context) if rule else detail["msg"]


def _short(value: object) -> str:
    """The value as written in YAML, without a user's password in an address."""
    text = str(value).lower() if isinstance(value, bool) else "nothing" if value is None else repr(value)
    text = re.sub(r"://\S*@", "://***@", text)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _such_as(location: Location, schema: Schema) -> str:
    fields = _fields((*location, ""), schema)
    return f" ({fields[0]}: ...)" if fields else ""


def _advice(location: Location, schema: Schema) -> str:
    """Advice on an unknown field: what it may have meant, or where it belongs."""
    name, allowed = str(location[-1]), _fields(location, schema)
    if close := difflib.get_close_matches(name, allowed, n=1):
        return f"did you mean '{close[0]}'?"
    here = ".".join(_written(location, schema))
    elsewhere = sorted({path for path in _paths(schema, schema, "") if path.rpartition(".")[2] == name} - {here})
    if 0 < len(elsewhere) <= 2:
        return f"it belongs to {' or '.join(elsewhere)}"
    return f"allowed: {_listed(allowed)}"


def _fields(location: Location, schema: Schema) -> list[str]:
    """The fields that are allowed in place of the last field of an error's location."""
    return list(dict.fromkeys(name for part in _reached(location[:-1], schema) for name in part.get("properties", {})))


def _kinds(location: Location, schema: Schema) -> list[str]:
    return [part["properties"]["kind"]["const"] for part in _reached(location, schema)]


def _reached(location: Location, schema: Schema) -> list[dict[str, Any]]:
    """The parts of the JSON Schema that a location may refer to."""
    here, kinds_at = [schema], _kinds_at(location, schema)
    for at, name in enumerate(location):
        if at in kinds_at:
            here = [part for part in here if _kind_of(part) in (name, None)]
        elif isinstance(name, int):
            here = [part for one in here if "items" in one for part in _members(one["items"], schema)]
        else:
            inner = [part["properties"][name] for part in here if name in part.get("properties", {})]
            inner += [
                part["additionalProperties"] for part in here if isinstance(part.get("additionalProperties"), dict)
            ]
            here = [part for one in inner for part in _members(one, schema)]
    return here


def _kind_of(part: dict[str, Any]) -> str | None:
    kind: str | None = part.get("properties", {}).get("kind", {}).get("const")
    return kind


def _members(part: Schema, schema: Schema) -> list[Schema]:
    """The members of a part of the schema, with references resolved and unions split."""
    if "$ref" in part:
        return [schema["$defs"][part["$ref"].rpartition("/")[2]]]
    inner: list[Schema] = part.get("anyOf") or part.get("oneOf") or []
    return [member for one in inner for member in _members(one, schema)] or [part]


def _paths(part: Schema, schema: Schema, above: str) -> Iterator[str]:
    """The dotted path of every field of the config."""
    for member in _members(part, schema):
        for name, inner in member.get("properties", {}).items():
            yield above + name
            yield from _paths(inner, schema, f"{above}{name}.")
