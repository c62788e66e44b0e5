"""Writes the YAML file, and the data files that it needs."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter

from retort.commands.new.look import Found, Rows, has_label, look
from retort.commands.new.split import Shares, shares, write
from retort.config import ColumnsConfig
from retort.config import Problem as ProblemConfig
from retort.data.reading import read_rows_of
from retort.errors import ConfigError, DataError
from retort.problems import infer_schema

LOOKED_AT = 10_000
"""Rows of a file that are looked at."""
TOKENS_PER_WORD = 1.5
"""Of a subword tokenizer, cautiously."""
LENGTHS = (64, 128, 256, 512)
ENCODER = {"en": "sentence-transformers/all-MiniLM-L6-v2", "other": "intfloat/multilingual-e5-small"}
WRITER = {"en": "google/flan-t5-small", "other": "google/mt5-small"}


class Request(NamedTuple):
    """What the user gave."""

    file: str
    """Rows with labels, and, unless `unlabeled` is given, the pool too."""
    unlabeled: str | None
    test: str | None
    out: Path
    """The folder to write to."""
    asked: Mapping[str, str | None]
    """`text`, `label`, `id` and `problem`."""
    teacher: Mapping[str, Any]
    """The section of the YAML file."""
    student: str | None


def teacher_section(teacher: str, key: str) -> dict[str, Any]:
    """The YAML section of `MODEL`, `MODEL@URL`, a file of completions, or `finetuned`. `key` names the environment
    variable with the API key of a URL.

    Raises ConfigError for a URL without a model.
    """
    if teacher == "finetuned":
        return {"kind": "finetuned"}
    model, at, url = teacher.rpartition("@")
    if re.match("https?://", url if at else teacher):
        if not model:
            raise ConfigError(f"--teacher {teacher}: which model of the server? Give MODEL@{teacher}")
        return {"kind": "endpoint", "url": url, "model": model, "api_key": f"${{{key}}}"}
    if re.search(r"\.jsonl?(\.\w+)?$", teacher):
        return {"kind": "recorded", "completions": teacher}
    return {"kind": "vllm", "model": teacher}


class Created(NamedTuple):
    config: Path
    lines: list[str]
    """What was found, for people."""


def create(request: Request) -> Created:
    """Look at the files, divide the rows, and write `config.yaml`. Existing files are never replaced.

    Raises ConfigError or DataError.
    """
    config = request.out / "config.yaml"
    if config.exists():
        raise ConfigError(f"{config}: exists already; give another folder by --out, or remove it")
    rows = _first_rows(request.file)
    pool = rows if request.unlabeled is None else _first_rows(request.unlabeled)
    found = look(rows, pool, request.asked, request.file)
    if not any(has_label(row, found) for row in rows):
        raise DataError(f"{request.file}: no row has a label; some 50 rows with labels are needed, and --label COLUMN")
    problem = _problem(request, found)
    roles = _roles(request, found)
    language = _language(pool, found.columns["text"])
    config.write_text(_yaml(request, found, problem, roles, language), encoding="utf-8")
    label = found.columns.get("label") or found.columns["tags"]
    lines = [
        f"{found.kind}: texts in '{found.columns['text']}' (language: {language}), labels in '{label}'",
        *(f"{role}: {place.file}{place.told}" for role, place in roles.items()),
    ]
    return Created(config, lines)


def _first_rows(source: str) -> Rows:
    return [row for _, row in islice(read_rows_of(source), LOOKED_AT)]


def _problem(request: Request, found: Found) -> dict[str, Any]:
    """The section `problem`, with the names of all labels in the file and in the test rows: the few labeled rows lack
    the rare ones."""
    sources = [request.file, *([request.test] if request.test else [])]
    rows = (row for source in sources for _, row in read_rows_of(source) if has_label(row, found))
    bare: ProblemConfig = TypeAdapter(ProblemConfig).validate_python({"kind": found.kind})
    return infer_schema(bare, rows, ColumnsConfig(**found.columns)).model_dump(exclude_defaults=True)


class _Place(NamedTuple):
    """Where the rows of a role are."""

    file: str
    told: str = ""


def _roles(request: Request, found: Found) -> dict[str, _Place]:
    """The place of each role's rows; what the user has no file for is written."""
    given = {"labeled": request.file, "unlabeled": request.unlabeled, "test": request.test}
    if request.unlabeled and request.test:
        request.out.mkdir(parents=True, exist_ok=True)
        return {role: _Place(str(place)) for role, place in given.items()}
    parts, repeated = _divided(request, found)
    written = {"labeled": parts.labeled, "unlabeled": parts.rest, "test": parts.test}
    paths = {role: request.out / f"{role}.jsonl" for role in given if role == "labeled" or given[role] is None}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path}: exists already; give another folder by --out, or remove it")
    request.out.mkdir(parents=True, exist_ok=True)
    places = {role: _Place(str(given[role])) for role in given if role not in paths}
    for role, path in paths.items():
        places[role] = _Place(str(path), f", {write(path, written[role]):,} rows")
    if repeated:
        places["labeled"] = places["labeled"]._replace(
            told=f"{places['labeled'].told} ({repeated:,} of {request.file} have another one's text, and are left out)"
        )
    return {role: places[role] for role in given}


def _divided(request: Request, found: Found) -> tuple[Shares, int]:
    """The roles of the file's rows (those without a label are for the pool), and how many rows repeat a text."""
    by_text: dict[str, Mapping[str, Any]] = {}
    count = 0
    for _, row in read_rows_of(request.file):
        count += 1
        text = str(row.get(found.columns["text"]) or "").strip()
        if text and (text not in by_text or (has_label(row, found) and not has_label(by_text[text], found))):
            by_text[text] = row
    labeled = [row for row in by_text.values() if has_label(row, found)]
    others = [row for row in by_text.values() if not has_label(row, found)]
    try:
        parts = shares(labeled, found.columns.get("tags") or found.columns["label"], with_test=request.test is None)
    except DataError as error:
        raise DataError(f"{request.file}: {error}") from error
    rest = [*others, *parts.rest]
    if not rest and request.unlabeled is None:
        raise DataError(f"{request.file}: no row is left for the pool; give texts without labels by --unlabeled FILE")
    return parts._replace(rest=rest), count - len(by_text)


def _language(rows: Rows, column: str) -> str:
    """The ISO 639-1 code of the language that most of the text is in."""
    import py3langid

    text = " ".join(str(row[column]) for row in rows[:200] if row.get(column))
    return str(py3langid.classify(text)[0])


def _yaml(
    request: Request, found: Found, problem: Mapping[str, Any], roles: Mapping[str, _Place], language: str
) -> str:
    tokens = found.words * TOKENS_PER_WORD + 2
    length = next((length for length in LENGTHS if tokens <= length), LENGTHS[-1])
    kind, model = _student(found.kind, language)
    columns = {field: name for field, name in found.columns.items() if name != _DEFAULTS[field]}
    files = {role: place.file for role, place in roles.items()}
    ordered = "if the classes have an order: list them from low to high, and add ordered: true"
    sections = [
        f"# Written by `retort new {request.file}`. `retort doctor` checks it, `retort plan` says what it\n"
        "# would cost, `retort run` runs it, and `retort schema` lists every field.",
        _section({"name": _name(request.out)}),
        _section({"problem": problem}, ordered if found.kind == "classification" else ""),
        _section({"data": {**files, **({"columns": columns} if columns else {})}}, _DATA_COMMENT),
        _section({"teacher": dict(request.teacher)}, _TEACHER_COMMENTS[request.teacher["kind"]]),
        _section(
            {"student": {"kind": kind, "model": request.student or model, "training": {"max_length": length}}},
            f"99 of 100 texts have at most {found.words} words; longer ones than max_length tokens are cut.",
        ),
        _section({"store": {"root": ".retort/store"}}, "or s3://bucket/prefix, for workers on several machines"),
        _section({"tracking": {"uri": "sqlite:///.retort/mlflow.db"}}, "MLflow's server or database"),
    ]
    return "\n".join(sections) + "\n"


_LIST = "tag:yaml.org,2002:seq"
_DATA_COMMENT = """labeled: shown to the teacher, and the judge of what students learn.
unlabeled: the pool, which the teacher labels. test: for the final scores only."""
_DEFAULTS = {"text": "text", "label": "label", "id": "id", "intent": "intent", "tags": "bio"}
_TEACHER_COMMENTS = {
    "endpoint": "any OpenAI-compatible server; the key is read from the environment",
    "vllm": "runs here, on a GPU or a CPU: `make teacher` builds its environment",
    "recorded": "completions that exist already, in OpenAI's batch format, by the rows' ids",
    "finetuned": "a student trained on the labeled set alone: a weak teacher that runs anywhere. A language model:\n"
    "{kind: endpoint, url: https://.../v1, model: ..., api_key: '${NAME}'} or {kind: vllm, model: ...}",
}


def _section(values: Mapping[str, Any], comment: str = "") -> str:
    told = "".join(f"# {line}\n" for line in comment.splitlines())
    dumped = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return f"{told}{dumped}".rstrip()


class _Dumper(yaml.SafeDumper):
    """Writes a list on one line: [a, b]."""


_Dumper.add_representer(list, lambda dumper, values: dumper.represent_sequence(_LIST, values, flow_style=True))


def _name(folder: Path) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-._")[:63] or "new"


def _student(kind: str, language: str) -> tuple[str, str]:
    known = "en" if language == "en" else "other"
    match kind:
        case "classification":
            return "sequence-classification", ENCODER[known]
        case "text":
            return "seq2seq", WRITER[known]
        case _:
            return "token-classification", ENCODER[known]
