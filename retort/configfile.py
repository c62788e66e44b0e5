"""From a YAML file and dotted overrides to a `Config`, with errors that a person can act on."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from retort.config import Config
from retort.errors import ConfigError


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read, override and validate. `overrides` are `dotted.field=value`, the value in YAML syntax.

    Raises ConfigError with one line for each thing that is wrong.
    """
    values = _read(Path(path))
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], origin: str) -> Config:
    """Validate; `origin` is what the error names as the place."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {_sentence(detail)}" for detail in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the path of a YAML config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold fields (name: ..., data: ...), not {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: must look like method.stages=2")
    *parents, last = dotted.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: '{parent}' holds no fields")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: '{text}' is not YAML") from None


_UNION_TAGS = {
    *("slots", "classification", "recorded", "finetuned", "token-classification", "sequence-classification"),
    *("address", "hub"),
}
# They stand in an error's location between a field and its own fields; people do not write them.


def _sentence(detail: ErrorDetails) -> str:
    """One sentence: the field, what was given, what is allowed."""
    where = ".".join(str(part) for part in detail["loc"] if part not in _UNION_TAGS)
    given, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"{where}: missing, but required"
        case "extra_forbidden":
            return f"{where}: unknown field{_suggestion(detail['loc'])}"
        case "union_tag_not_found":
            return f"{where}.kind: missing; see retort schema"
        case "union_tag_invalid":
            return f"{where}.kind = '{context['tag']}': allowed: {context['expected_tags']}"
        case "value_error":
            prefix = f"{where} = {given!r}: " if where and not isinstance(given, dict) else ""
            return f"{prefix}{context['error']}"
    message = detail["msg"].removeprefix("Input ").replace("should be", "must be")
    return f"{where} = {_short(given)}: {message}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(location: tuple[int | str, ...]) -> str:
    names = _field_names(Config.model_json_schema())
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _field_names(schema: dict[str, Any]) -> list[str]:
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({name for part in parts for name in part.get("properties", {})})
