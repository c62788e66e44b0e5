"""Writes the YAML file, and the data files that it needs."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter

from retort.commands.new.labels import decoded, scale_of, separator_of
from retort.commands.new.look import Found, Rows, as_text, has_label, look
from retort.commands.new.rows import Reader
from retort.commands.new.split import Shares, shares, write
from retort.config import ColumnsConfig
from retort.config import Problem as ProblemConfig
from retort.data.class_names import names_inside, with_tag_names
from retort.data.files import data_files
from retort.data.reading import read_rows_of
from retort.errors import ConfigError, DataError
from retort.problems import infer_schema, problem_for
from retort.problems.base import listed

TOKENS_PER_WORD = 1.5
"""Of a subword tokenizer, cautiously."""
LENGTHS = (64, 128, 256, 512)
ENCODER = {"en": "sentence-transformers/all-MiniLM-L6-v2", "other": "intfloat/multilingual-e5-small"}
WRITER = {"en": "google/flan-t5-small", "other": "google/mt5-small"}
CHATTER = {"en": "HuggingFaceTB/SmolLM2-135M-Instruct", "other": "Qwen/Qwen3-0.6B"}


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
    reader = Reader(request.file, request.asked)
    rows = reader.first_rows(request.file)
    pool = rows if request.unlabeled is None else reader.first_rows(request.unlabeled)
    found = look(rows, pool, request.asked, request.file)
    if not any(has_label(row, found) for row in rows):
        raise DataError(f"{request.file}: no row has a label; some 50 rows with labels are needed, and --label COLUMN")
    columns = _columns(request, found, rows)
    problem = _problem(request, found, columns, reader)
    roles = _roles(request, found, reader)
    language = _language(pool, found.columns["text"])
    config.write_text(_yaml(request, found, problem, columns, roles, language), encoding="utf-8")
    label = found.columns.get("label") or found.columns["tags"]
    lines = [
        f"{found.kind}{_told(problem)}: texts in '{found.columns['text']}' (language: {language}), labels in '{label}'",
        *(f"{role}: {place.file}{place.told}" for role, place in roles.items()),
    ]
    return Created(config, lines)


def _columns(request: Request, found: Found, rows: Rows) -> ColumnsConfig:
    """The columns, with the names of tags that are numbers: the files that are written do not say them."""
    columns = ColumnsConfig.model_validate(found.columns)
    tags = next((row[columns.tags] for row in rows if "tags" in found.columns and has_label(row, found)), "")
    if not isinstance(tags, list) or isinstance(tags[0], str):
        return columns
    names = names_inside(data_files(request.file, None)[0], columns.tags)
    return columns.model_copy(update={"tag_names": names}) if names else with_tag_names(columns, request.file, None)


def _problem(request: Request, found: Found, columns: ColumnsConfig, reader: Reader) -> dict[str, Any]:
    """The section `problem`, with the names of all labels in the file and in the test rows: the few labeled rows lack
    the rare ones.

    Raises DataError or ConfigError for labels that this kind of problem cannot have.
    """
    try:
        return _schema(request, found, columns, reader).model_dump(exclude_defaults=True)
    except DataError as error:
        raise error if request.file in str(error) else DataError(f"{request.file}: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{request.file}: {error}") from None


def _schema(request: Request, found: Found, columns: ColumnsConfig, reader: Reader) -> ProblemConfig:
    """Raises DataError, ConfigError."""
    sources = [request.file, *([request.test] if request.test else [])]
    section: dict[str, Any] = {"kind": found.kind}
    if found.kind in ("regression", "multi-label", "text"):
        values = (row.get(columns.label) for source in sources for row in reader.rows(source) if has_label(row, found))
        section |= _form(found.kind, list(values), columns.label)
    bare: ProblemConfig = TypeAdapter(ProblemConfig).validate_python(section)
    rows = (row for source in sources for _, row in read_rows_of(source, columns=columns) if has_label(row, found))
    problem = infer_schema(bare, rows, columns)
    problem_for(problem)
    return problem


def _form(kind: str, labels: list[Any], column: str) -> dict[str, Any]:
    """Fields of the section `problem` that say how labels are written."""
    if kind == "regression":
        return scale_of(labels, column)
    if kind == "multi-label":
        separator = separator_of([label for label in labels if isinstance(label, str)])
        return {"separator": separator} if separator else {}
    return {"json_schema": {"type": "object"}} if all(isinstance(decoded(label), dict) for label in labels) else {}


def _told(problem: Mapping[str, Any]) -> str:
    """The names of labels, or the scale; for people."""
    match problem:
        case {"labels": names} | {"intents": names}:
            return f" ({listed(list(names))})"
        case {"low": low, "high": high}:
            steps = f" in steps of {problem['step']:g}" if "step" in problem else ""
            return f" ({low:g} to {high:g}{steps})"
    return ""


class _Place(NamedTuple):
    """Where the rows of a role are."""

    file: str
    told: str = ""


def _roles(request: Request, found: Found, reader: Reader) -> dict[str, _Place]:
    """The place of each role's rows; what the user has no file for is written, and conversations that were cut."""
    given = {"labeled": request.file, "unlabeled": request.unlabeled, "test": request.test}
    if request.unlabeled and request.test and not reader.answered:
        request.out.mkdir(parents=True, exist_ok=True)
        return {role: _Place(str(place)) for role, place in given.items()}
    parts, num_repeated = _divided(request, found, reader)
    written: dict[str, Iterator[Mapping[str, Any]]] = {"labeled": iter(parts.labeled)}
    for role, rest in (("unlabeled", parts.rest), ("test", parts.test)):
        source = given[role]
        if source is None:
            written[role] = iter(rest)
        elif reader.answered:
            written[role] = reader.rows(source)
    paths = {role: request.out / f"{role}.jsonl" for role in written}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path}: exists already; give another folder by --out, or remove it")
    request.out.mkdir(parents=True, exist_ok=True)
    places = {role: _Place(str(given[role])) for role in given if role not in paths}
    for role, path in paths.items():
        places[role] = _Place(str(path), f", {write(path, written[role]):,} rows")
    if num_repeated:
        told = f" ({num_repeated:,} of {request.file} have no text or another one's, and are left out)"
        places["labeled"] = places["labeled"]._replace(told=places["labeled"].told + told)
    if num_more := sum(has_label(row, found) for row in parts.rest) if request.unlabeled is None else 0:
        told = f" ({num_more:,} of them have a label, which is used in reports only)"
        places["unlabeled"] = places["unlabeled"]._replace(told=places["unlabeled"].told + told)
    return {role: places[role] for role in given}


def _divided(request: Request, found: Found, reader: Reader) -> tuple[Shares, int]:
    """The roles of the file's rows (those without a label are for the pool), and how many rows repeat a text or have
    none."""
    by_text: dict[str, Mapping[str, Any]] = {}
    count = 0
    for row in reader.rows(request.file):
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

    text = " ".join(as_text(row.get(column)) for row in rows[:200])
    return str(py3langid.classify(text)[0])


def _yaml(
    request: Request,
    found: Found,
    problem: Mapping[str, Any],
    columns: ColumnsConfig,
    roles: Mapping[str, _Place],
    language: str,
) -> str:
    tokens = found.words * TOKENS_PER_WORD + 2
    length = next((length for length in LENGTHS if tokens <= length), LENGTHS[-1])
    kind, model = _student(found.kind, language)
    named = columns.model_dump(exclude_defaults=True)
    files = {role: place.file for role, place in roles.items()}
    sections = [
        f"# Written by `retort new {request.file}`. `retort doctor` checks it, `retort plan` says what it\n"
        "# would cost, `retort run` runs it, and `retort schema` lists every field.",
        _section({"name": _name(request.out)}),
        _section({"problem": problem}, PROBLEM_COMMENTS.get(found.kind, "")),
        _section({"data": {**files, **({"columns": named} if named else {})}}, _DATA_COMMENT),
        _section({"teacher": dict(request.teacher)}, _TEACHER_COMMENTS[request.teacher["kind"]]),
        _section(
            {
                "student": {
                    "kind": kind,
                    "model": request.student or model,
                    "training": {"max_length": length, "min_updates": 500},
                }
            },
            _STUDENT_COMMENT.format(words=found.words),
        ),
        _section({"method": {"stages": 2, "partitions": 4}}, _METHOD_COMMENT),
        _section({"store": {"root": ".retort/store"}}, "or s3://bucket/prefix, for workers on several machines"),
        _section({"tracking": {"uri": "sqlite:///.retort/mlflow.db"}}, "MLflow's server or database"),
    ]
    return "\n".join(sections) + "\n"


_LIST = "tag:yaml.org,2002:seq"
_DATA_COMMENT = """labeled: shown to the teacher, and the judge of what students learn.
unlabeled: the pool, which the teacher labels. test: for the final scores only."""
PROBLEM_COMMENTS = {
    "classification": "If the classes have an order, list them from low to high and add ordered: true; if they are\n"
    "numbers on a scale, give `retort new` --problem regression.",
    "multi-label": "Any number of these for each text; [] is a label, a blank or null is none.",
    "entities": "The types; words are what white space separates.",
    "slots": "The slots of each intent.",
    "constituency": "Phrase labels, and chains of them.",
    "regression": "The scale: the lowest and the highest label in the files; widen it if others are possible.\n"
    "With step, nothing lies between two steps.",
    "text": "Labels can be held to a pattern (a regular expression) or to a json_schema.",
    "chat": "tools: [{name: ..., description: ..., parameters: a JSON Schema}] says which tools may be called.",
}
_STUDENT_COMMENT = """model: a hub name, a folder, an s3:// address, or pkg:PACKAGE/FOLDER for an installed package's.
99 of 100 texts have at most {words} words; longer ones than max_length tokens are cut.
min_updates: optimizer steps of each training, at least. Time grows with it; below 300 little may be learned."""
_METHOD_COMMENT = """In stage 1 each of `partitions` students learns from a part of the pool and labels the rest.
Fewer of them take less time."""
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
        case "classification" | "multi-label" | "regression":
            return "sequence-classification", ENCODER[known]
        case "text":
            return "seq2seq", WRITER[known]
        case "chat":
            return "causal", CHATTER[known]
        case _:
            return "token-classification", ENCODER[known]
