"""The files that people's tools read and write: CSV, Argilla's records, Label Studio's tasks.

Argilla: `dataset.records.from_json` and `to_json` (argilla 2). Label Studio: tasks to import, and the JSON export
(https://labelstud.io/guide/task_format). In both the question is called `label`.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import quoteattr

from retort.commands.review.record import Review, ReviewRow
from retort.config import Problem
from retort.data.bad_rows import BadRow
from retort.data.files import data_files
from retort.data.formats import rows_of
from retort.errors import DataError, RowFault
from retort.io.strict_json import json_value

Format = Literal["csv", "argilla", "label-studio"]
QUESTION = "label"
ENDINGS: Mapping[Format, str] = {"csv": ".csv", "argilla": ".json", "label-studio": ".json"}


class Answer(NamedTuple):
    """What somebody said of a row."""

    place: str
    example_id: str
    review_id: str | None
    text: str | None
    label: Any
    """As a gold row of the data has it; None or blank if there is none."""
    by: str | None
    at: str | None
    raw: str


def written(review: Review, form: Format) -> str:
    match form:
        case "csv":
            return _csv(review)
        case "argilla":
            return json.dumps([_argilla(review, row) for row in review.rows], ensure_ascii=False, indent=1)
        case "label-studio":
            return json.dumps([_task(review, row) for row in review.rows], ensure_ascii=False, indent=1)


def _csv(review: Review) -> str:
    """The column `label` is to be filled in; `by` and `at` may be."""
    labelers = list(dict.fromkeys(name for row in review.rows for name in row.said))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "text", QUESTION, "by", "at", *labelers, "review"])
    for row in review.rows:
        said = [row.said.get(name, "") for name in labelers]
        writer.writerow([row.example_id, row.text, "", "", "", *said, review.review_id])
    return file.getvalue()


def _argilla(review: Review, row: ReviewRow) -> dict[str, Any]:
    about = {"review": review.review_id, "example_id": row.example_id}
    said = {name.replace(" ", "_"): label for name, label in row.said.items()}
    suggestion = {}
    if row.said:
        name, label = list(row.said.items())[-1]
        value = json.loads(label) if review.problem.kind == "multi-label" else label
        suggestion = {QUESTION: {"value": value, "score": None, "agent": name}}
    return {
        "id": row.example_id,
        "fields": {"text": row.text},
        "metadata": {**about, **said},
        "suggestions": suggestion,
        "responses": {},
        "vectors": {},
    }


def _task(review: Review, row: ReviewRow) -> dict[str, Any]:
    predictions = [
        {"model_version": name, "result": [_region(review.problem, label)]}
        for name, label in reversed(row.said.items())
        if review.problem.kind != "entities"
    ]
    about = {"id": row.example_id, "text": row.text, "review": review.review_id, **row.said}
    return {"data": about, "predictions": predictions}


def _region(problem: Problem, label: str) -> dict[str, Any]:
    match problem.kind:
        case "classification":
            value: dict[str, Any] = {"choices": [label]}
        case "multi-label":
            value = {"choices": json.loads(label)}
        case _:
            value = {"text": [label]}
    kind = next(iter(value))
    return {"from_name": QUESTION, "to_name": "text", "type": "textarea" if kind == "text" else kind, "value": value}


def label_studio_config(problem: Problem) -> str:
    """The labeling interface of a project: choices, spans, or a text to edit."""
    names = list(getattr(problem, "labels", None) or [])
    head = f'<View>\n  <Text name="text" value="$text"/>\n  <%s name="{QUESTION}" toName="text"%s>\n'
    match problem.kind:
        case "classification" | "multi-label":
            several = "multiple" if problem.kind == "multi-label" else "single"
            choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in names)
            return head % ("Choices", f' choice="{several}"') + choices + "  </Choices>\n</View>\n"
        case "entities":
            labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in names)
            return head % ("Labels", "") + labels + "  </Labels>\n</View>\n"
    return head % ("TextArea", ' editable="true" maxSubmissions="1" rows="4"') + "  </TextArea>\n</View>\n"


def answers_in(path: Path) -> Iterator[Answer | BadRow]:
    """Yield every answer of a file that a tool exported; a row that cannot be read does not stop the reading.

    Raises DataError if the file is missing, or no export of a known tool.
    """
    (file, *_) = data_files(str(path), None)
    if path.suffix.lower() in (".csv", ".tsv"):
        for row in rows_of(file):
            yield row if isinstance(row, BadRow) else _of_columns(*row)
        return
    for place, one in _objects(path):
        if not isinstance(one, dict):
            yield BadRow.of(place, RowFault(f"{place}: no object", "not-json"), json.dumps(one)[:1000])
        elif "annotations" in one:
            yield from _of_task(place, one)
        elif "responses" in one and "fields" in one:
            yield from _of_record(place, one)
        else:
            yield _of_columns(place, one)


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON array, or one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("["):
            found = json_value(text)
        else:
            found = [json_value(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"--import '{path}': neither CSV nor the JSON of Argilla or Label Studio ({error})") from None
    for number, one in enumerate(found, start=1):
        yield f"{path.name}, row {number}", one


def _of_columns(place: str, row: Mapping[str, Any]) -> Answer:
    by, at, review = (_text(row.get(name)) for name in ("by", "at", "review"))
    raw = json.dumps(dict(row), ensure_ascii=False, default=str)
    return Answer(place, _text(row.get("id")) or "", review, _text(row.get("text")), row.get(QUESTION), by, at, raw)


def _of_record(place: str, record: Mapping[str, Any]) -> Iterator[Answer]:
    """Argilla's record, with an answer for each of its responses that was not discarded."""
    about, raw = record.get("metadata") or {}, json.dumps(record, ensure_ascii=False)
    text = _text((record.get("fields") or {}).get("text"))
    row_id = _text(about.get("example_id")) or _text(record.get("id")) or ""
    responses = [one for one in (record["responses"] or {}).get(QUESTION, []) if one.get("status") != "discarded"]
    for one in responses or [{}]:
        at = _text(one.get("updated_at") or one.get("inserted_at"))
        by = _text(one.get("user_id"))
        yield Answer(place, row_id, _text(about.get("review")), text, one.get("value"), by, at, raw)


def _of_task(place: str, task: Mapping[str, Any]) -> Iterator[Answer]:
    """Label Studio's task, with an answer for each of its annotations that was not cancelled."""
    about, raw = task.get("data") or {}, json.dumps(task, ensure_ascii=False)
    row_id, review, text = (_text(about.get(name)) for name in ("id", "review", "text"))
    annotations = [one for one in task["annotations"] or [] if not one.get("was_cancelled")]
    for one in annotations:
        by, at = one.get("completed_by"), _text(one.get("updated_at") or one.get("created_at"))
        who = by.get("email") or by.get("id") if isinstance(by, dict) else by
        yield Answer(place, row_id or "", review, text, _annotated(one.get("result") or []), _text(who), at, raw)
    if not annotations:
        yield Answer(place, row_id or "", review, text, None, None, None, raw)


def _annotated(result: Iterable[Mapping[str, Any]]) -> Any:
    """A class, a list of classes, a text, or a list of spans. Of several texts the last one counts."""
    regions = [one for one in result if one.get("from_name", QUESTION) == QUESTION]
    values = [one.get("value") or {} for one in regions]
    if any("labels" in value for value in values):
        return [{"start": one["start"], "end": one["end"], "label": one["labels"][0]} for one in values]
    for value in reversed(values):
        if "choices" in value:
            return value["choices"]
        if "text" in value:
            return value["text"][-1] if isinstance(value["text"], list) else value["text"]
        if "number" in value:
            return value["number"]
    return []


def _text(value: object) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None
