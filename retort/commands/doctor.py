"""`retort doctor`: checks everything that a run needs. More thorough, and slower, than a run's own checks."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from typing import Literal

from retort.config import RecipeConfig
from retort.errors import RetortError
from retort.io.scratch import scratch
from retort.recipes import recipe_of
from retort.recipes.base import DoctorCheck
from retort.recipes.checks import check_gpus_of_students
from retort.records.base import Record
from retort.store.opening import refusals, usable_store
from retort.tracking.address import check_reachable, database_file, tracking_uri, without_secrets


class Finding(Record):
    verdict: Literal["ok", "note", "wrong"]
    what: str
    detail: str


def examine(config: RecipeConfig) -> Iterator[Finding]:
    """Yield one finding per check. A failed check does not prevent the next ones."""
    reported: set[str] = set()
    with scratch("doctor") as spare:
        for what, check in _checks(config).items():
            finding = _finding(what, check, config)
            if what == "store" and finding.verdict == "wrong":
                # The rows can be checked anyway.
                config = config.model_copy(update={"store": config.store.model_copy(update={"root": str(spare)})})
            if finding.verdict == "wrong" and finding.detail in reported:
                yield Finding(verdict="note", what=what, detail="not looked at, for a reason given above")
                continue
            reported.add(finding.detail)
            yield finding


def _checks(config: RecipeConfig) -> Mapping[str, DoctorCheck]:
    several: Mapping[str, DoctorCheck] = {"GPUs": gpus} if config.execution.gpus_per_student > 1 else {}
    recipes = recipe_of(config).doctor_checks(config)
    return {"versions": versions, "store": store, **several, **recipes, "tracking": tracking}


def _finding(what: str, check: DoctorCheck, config: RecipeConfig) -> Finding:
    try:
        with refusals():
            detail = check(config)
    except RetortError as error:
        return Finding(verdict="wrong", what=what, detail=str(error))
    if detail.startswith("note: "):
        return Finding(verdict="note", what=what, detail=detail.removeprefix("note: "))
    return Finding(verdict="ok", what=what, detail=detail)


FASTAPI = ((0, 139), (0, 151))
"""(lowest version, first version that is too high). Others break Prefect's server although pip accepts them."""


def versions(config: RecipeConfig) -> str:
    """Checks for combinations that are known to break although pip accepts them."""
    found = {name: _version(name) for name in ("prefect", "torch", "transformers", "mlflow", "fastapi")}
    fastapi = tuple(int(part) for part in found["fastapi"].split(".")[:2])
    if not FASTAPI[0] <= fastapi < FASTAPI[1]:
        raise RetortError(
            f"fastapi {found['fastapi']} breaks every flow of prefect {found['prefect']}: install fastapi>=0.139,<0.151"
        )
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise RetortError(f"{name} is not installed: install what requirements.lock lists") from None


def store(config: RecipeConfig) -> str:
    usable_store(config).check_writable()
    return f"{config.store.root} can be written"


def gpus(config: RecipeConfig) -> str:
    return check_gpus_of_students(config.execution)


def tracking(config: RecipeConfig) -> str:
    if config.tracking is None:
        return "note: no tracking is configured, so numbers go to the report only"
    uri = tracking_uri(config.tracking)
    check_reachable(uri)
    if (file := database_file(uri)) is not None:
        above = next(folder for folder in file.parents if folder.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise RetortError(f"tracking.uri = '{config.tracking.uri}': nothing can be written in '{above}'")
    return f"{without_secrets(config.tracking.uri)} can be reached"
