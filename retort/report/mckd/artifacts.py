"""The artifacts that a run consists of: their groups and manifests."""

import re
from collections.abc import Iterator

from retort.records.base import ArtifactRef
from retort.records.mckd import Data, MckdResult
from retort.report.course import Made
from retort.report.mckd.summary import Timing
from retort.store import Manifest, Store
from retort.store.ancestry import ancestors


def data_refs(data: Data) -> dict[str, ArtifactRef]:
    """Rows by role. There is a `dev` role only if stages are judged on a separate set."""
    dev = {} if data.judge.key == data.labeled.key else {"dev": data.judge}
    return {"labeled": data.labeled, "unlabeled": data.unlabeled, "test": data.test, **dev}


def student_behind(store: Store, scores: ArtifactRef) -> Manifest | None:
    """The student that was scored."""
    keys = store.manifest_of(scores).fingerprint["inputs"].get("student", [])
    return store.find("students", keys[0]) if keys else None


def made(store: Store, result: MckdResult) -> list[Made]:
    """Everything that the run depends on, each artifact once, inputs before what was made from them."""
    seen: set[str] = set()
    return [
        made_in(group, manifest)
        for group, refs in groups(result)
        for ref in refs
        for manifest in ancestors(store, ref.kind, ref.key, seen)
    ]


def made_in(group: str, manifest: Manifest) -> Made:
    name = manifest.name if group == "data" else manifest.name.rpartition("/")[2]
    return Made(group, manifest, re.sub(r"-\d+$", "", name))


def timings(parts: list[Made]) -> tuple[Timing, ...]:
    """Times by group and kind of step. Siblings (`stage1/student-0`, `-1`) share one line."""
    lines: dict[tuple[str, str], list[Manifest]] = {}
    for part in parts:
        lines.setdefault((part.group, part.what), []).append(part.manifest)
    return tuple(_timing(group, what, manifests) for (group, what), manifests in lines.items())


def _timing(group: str, what: str, manifests: list[Manifest]) -> Timing:
    rates = [rate for m in manifests if (rate := m.metrics.get("examples_per_second")) is not None]
    return Timing(
        group=group,
        what=what,
        count=len(manifests),
        seconds=sum(manifest.seconds for manifest in manifests),
        examples_per_second=sum(rates) / len(rates) if rates else None,
    )


def groups(result: MckdResult) -> Iterator[tuple[str, list[ArtifactRef]]]:
    """Artifacts by group, in the order of execution."""
    yield "data", list(data_refs(result.data).values())
    teacher = [result.labels[0], *result.label_scores[:1], result.teacher_scores, result.teacher_own_scores]
    teacher += result.member_scores.values()
    yield "teacher", [ref for ref in teacher if ref is not None]
    for done in result.rounds:
        refs = [*done.students, *done.judge_scores, *done.test_scores, done.selection]
        refs += [*result.labels[done.stage : done.stage + 1], *result.label_scores[done.stage : done.stage + 1]]
        yield f"stage {done.stage}", [ref for ref in refs if ref is not None]
    if tuning := result.fine_tuning:
        refs = [tuning.selection, *tuning.students, *tuning.test_scores, tuning.labels, tuning.label_scores]
        yield "fine-tuned", [ref for ref in refs if ref is not None]
    yield "final student", [result.final_student, result.final_scores]
    for name, scores in result.baselines.items():
        yield name, [scores]
