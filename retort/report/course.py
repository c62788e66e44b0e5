"""The course of a run, from manifests alone: what was made where and when, how losses fell, what each arm cost."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from retort.artifacts.students import HISTORY
from retort.records.base import ArtifactRef, Record
from retort.store import Manifest, Store
from retort.store.ancestry import lineage_of

CURVE_POINTS = 200
"""Points of a loss curve that are kept; a history has about one entry per percent of its steps."""


class Made(NamedTuple):
    """An artifact of the run, in the group that first needed it."""

    group: str
    """`data`, `teacher`, `stage 1`, `final student`, or the name of a baseline or an arm."""
    manifest: Manifest

    what: str
    """The kind of work; siblings (`stage1/student-0`, `-1`) are the same."""


class Span(Record):
    """When and where an artifact was made."""

    group: str
    what: str
    host: str
    """Empty for artifacts of before hosts were recorded."""
    device: str
    """`CPU`, `GPU 0`, `GPU 0,1`, or a GPU's name; empty if it is not known."""
    started_at: str
    """ISO 8601."""
    seconds: float

    @property
    def start(self) -> float:
        """Seconds since the epoch."""
        return datetime.fromisoformat(self.started_at).timestamp()

    @property
    def end(self) -> float:
        return self.start + self.seconds


class Curve(Record):
    """A student's losses during its training: the mean objective per unit, in nats."""

    group: str
    name: str
    steps: tuple[int, ...]
    """Optimizer steps."""
    losses: tuple[float, ...]
    held_out_steps: tuple[int, ...] = ()
    held_out_losses: tuple[float, ...] = ()


class ArmCost(Record):
    """What an arm costs."""

    name: str
    seconds: float
    """Compute of everything that it rests on, as if no other arm had been there."""
    own_seconds: float
    """The part of it that no arm before needed."""
    money: float
    """Paid to teachers for labels that it rests on, in the currency of `teacher.prices`."""


def spans(parts: Iterable[Made]) -> tuple[Span, ...]:
    """In the order in which they were started."""
    return tuple(sorted(map(_span, parts), key=lambda span: (span.started_at, span.group, span.what)))


def _span(part: Made) -> Span:
    manifest, details = part.manifest, part.manifest.details
    ended = datetime.fromisoformat(manifest.created_at)
    before = (ended - timedelta(seconds=manifest.seconds)).isoformat(timespec="milliseconds")
    return Span(
        group=part.group,
        what=part.what,
        host=str(details.get("host", "")),
        device=_device(details),
        started_at=str(details.get("started_at", before)),
        seconds=manifest.seconds,
    )


def _device(details: Mapping[str, Any]) -> str:
    if "gpu" in details:
        return f"GPU {details['gpu']}"
    if details.get("device") == "cuda":
        return str(details.get("device_name", "GPU"))
    return "CPU" if "host" in details or "device" in details else ""


def curves(store: Store, parts: Iterable[Made]) -> tuple[Curve, ...]:
    """The curves of all students that have one. Reads nothing else of these artifacts, whose weights are large."""
    students = [part for part in parts if any(file.path == HISTORY for file in part.manifest.files)]
    found = (_curve(part, json.loads(store.open_file(part.manifest, HISTORY).read_bytes())) for part in students)
    return tuple(curve for curve in found if curve.steps)


def _curve(part: Made, history: Mapping[str, Any]) -> Curve:
    every = max(1, -(-len(history["steps"]) // CURVE_POINTS))
    return Curve(
        group=part.group,
        name=part.manifest.name,
        steps=tuple(history["steps"][::every]),
        losses=tuple(history["losses"][::every]),
        held_out_steps=tuple(history.get("held_out_steps", ())),
        held_out_losses=tuple(history.get("held_out_losses", ())),
    )


def arm_costs(parts: Sequence[Made], arms: Mapping[str, Sequence[ArtifactRef]]) -> tuple[ArmCost, ...]:
    """What each arm costs that made these artifacts, in the order of `arms`."""
    known = {part.manifest.key: part.manifest for part in parts}
    seen: set[str] = set()
    costs = []
    for name, refs in arms.items():
        needed = _closure(known, [ref.key for ref in refs])
        own = needed - seen
        seen |= needed
        costs.append(
            ArmCost(
                name=name,
                seconds=sum(known[key].seconds for key in sorted(needed)),
                own_seconds=sum(known[key].seconds for key in sorted(own)),
                money=sum(_money(known[key]) for key in sorted(needed)),
            )
        )
    return tuple(costs)


def _closure(known: Mapping[str, Manifest], keys: Iterable[str]) -> set[str]:
    """The keys of everything that these artifacts rest on, and their own."""
    found: set[str] = set()
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key in known and key not in found:
            found.add(key)
            waiting += [other for _, other in lineage_of(known[key])]
    return found


def _money(manifest: Manifest) -> float:
    return float(manifest.details.get("spent", {}).get("money", 0.0))
