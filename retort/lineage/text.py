"""Formats a lineage or a row's history as text, with details on indented lines."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from retort.lineage.row import RowHistory, TeacherOutput
from retort.lineage.student import Lineage, LineageStep
from retort.tracking.mlflow_runs import ARTIFACT_KEY
from retort.tracking.origin import Origin
from retort.tracking.registry import ARTIFACT, ModelVersion

MOST = 160
"""Most characters shown of a value."""
_DEVICE = ("device", "precision", "threads")


def lineage_lines(lineage: Lineage) -> Iterator[str]:
    for version in lineage.registered:
        yield from _version_lines(version)
    if not lineage.registered:
        yield f"student {lineage.key[:12]}, in no registry that was asked"
    yield f"  artifact: {lineage.address}"
    if lineage.origin:
        yield from _origin_lines(lineage.origin)
    elif lineage.registered:
        yield "  tracking run: gone, so the data sets, the commit and the Prefect run are not known"
    yield f"  packages: {_listed(lineage.steps[-1].versions)}"
    for step in reversed(lineage.steps):
        yield from _step_lines(step, lineage)
    if lineage.start:
        yield f"began with the weights of student {lineage.start[:12]}, which has a lineage of its own"
    for data in lineage.data:
        if not any(step.key.startswith(data.key) for step in lineage.steps):
            yield f"{data.role} set {data.key[:12]}: {data.rows:,} rows, {data.gold:,} with gold, of {data.source}"
    for gone in lineage.swept:
        yield f"not in the store any more: {gone}"


def _version_lines(version: ModelVersion) -> Iterator[str]:
    aliases = "".join(f" @{alias}" for alias in version.aliases)
    yield f"{version.model} version {version.version}{aliases}"
    for name, value in sorted(version.tags.items()):
        if name not in (ARTIFACT_KEY, ARTIFACT):
            yield f"  {name.removeprefix('retort.')}: {_short(value)}"


def _origin_lines(origin: Origin) -> Iterator[str]:
    yield f"  tracking run: {origin.run_id}"
    for name, title in (("git.commit", "commit"), ("prefect.flow_run_id", "Prefect run"), ("prefect.url", "page")):
        if value := origin.tags.get(f"retort.{name}"):
            yield f"  {title}: {value}"


def _step_lines(step: LineageStep, lineage: Lineage) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {name}" for name, count in step.counts.items() if count and name != "asked")
    yield (
        f"{step.name} {step.kind} {step.key[:12]}: {step.rows:,} rows{f' ({counts})' if counts else ''}, made in "
        f"{step.seconds:.1f} s, {step.made_at}"
    )
    for name, value in _facts(step, lineage).items():
        yield f"    {name}: {_short(value)}"
    made_of = [f"{role} {', '.join(key[:12] for key in keys)}" for role, keys in step.inputs.items()]
    if made_of:
        yield f"    of: {'; '.join(made_of)}"


def _facts(step: LineageStep, lineage: Lineage) -> dict[str, str]:
    params = step.params
    match step.verb:
        case "ingest":
            return {"content": params["content"], **_source(step, lineage)}
        case "train-student":
            trained = {"student": params["student"], "seed": params["seed"], **params["training"]}
            device = {name: step.details[name] for name in _DEVICE if name in step.details}
            start = {"start": step.inputs["start"][0][:12]} if "start" in step.inputs else {}
            return {
                "weights": params["weights"],
                **start,
                "training": _listed(trained),
                **_cells(params),
                **_on(device),
            }
        case "pseudolabel":
            return teacher_facts(step)
        case "merge-labels":
            return {"merged": _listed(params["merge"])}
        case _:
            return _cells(params)


def teacher_facts(step: LineageStep) -> dict[str, str]:
    """What a step of the kind `pseudolabel` says of its teacher: title -> text."""
    params = step.params
    if params["teacher"] == "recorded":
        return {"teacher": f"recorded completions {params['completions']}"}
    if params["teacher"] == "ensemble":
        return {"teacher": f"an ensemble, by {params['merge']}"}
    facts = {
        "teacher": _listed({name: value for name, value in params["identity"].items() if value is not None}),
        "sampling": _listed({**params["sampling"], "seed": params["seed"], "labels": params["labels"]}),
    }
    if step.prompt:
        facts["prompt"] = step.prompt.digest
        facts["instruction"] = " ".join(step.prompt.instruction.split())
        facts["demonstrations"] = ", ".join(step.prompt.demonstrations) or "none"
    return facts


def _source(step: LineageStep, lineage: Lineage) -> dict[str, str]:
    places = [data.source for data in lineage.data if step.key.startswith(data.key)]
    return {"source": places[0]} if places else {}


def _cells(params: Mapping[str, Any]) -> dict[str, str]:
    cells = params.get("cells")
    return {"cells": f"{', '.join(map(str, cells['only']))} of {cells['of']}, by seed {cells['seed']}"} if cells else {}


def _on(device: Mapping[str, Any]) -> dict[str, str]:
    return {"on": _listed(device)} if device else {}


def history_lines(history: RowHistory) -> Iterator[str]:
    yield f"row {history.example_id}: {history.text}"
    yield f"  in: {', '.join(history.sets)}"
    if history.unknown_sets:
        yield f"  not known whether in: {', '.join(history.unknown_sets)}"
    if history.gold is not None:
        yield f"  gold label: {history.gold}"
    for stage in history.demonstrated_by:
        yield f"  shown to the teacher of {stage} with its gold label"
    for output in history.said:
        yield from _output_lines(output)
    for one in history.set_aside:
        yield f"  {one.stage}: set aside, {one.reason}: {one.detail}"
        yield f"    raw: {one.raw!r}"
    for label in history.labels:
        yield f"  {label.stage}: {label.label}  (confidence {label.confidence:.2f}, by {label.labeler})"
    yield f"  trained: {', '.join(history.trained) or 'no student'}"


def _output_lines(output: TeacherOutput) -> Iterator[str]:
    if output.note:
        yield f"  teacher of {output.stage}: {output.note}"
    for raw in output.completions:
        asked_at = f", {datetime.fromtimestamp(raw.asked_at, UTC):%Y-%m-%d %H:%M} UTC" if raw.asked_at else ""
        yield f"  teacher of {output.stage} (try {raw.attempt}, sample {raw.sample}{asked_at}): {raw.text!r}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _short(text: str) -> str:
    return text if len(text) <= MOST else f"{text[: MOST - 4]} ..."
