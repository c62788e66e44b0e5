"""What labeling by the teachers cost, and how good they are as far as is known."""

from collections.abc import Iterator

from retort.metrics.format import percent, seconds_text, shortened
from retort.records.base import ArtifactRef
from retort.report.mckd.summary import TeacherFacts
from retort.store import Manifest, Store


def teacher_facts(store: Store, labels: ArtifactRef) -> tuple[TeacherFacts, ...]:
    """Facts about each teacher behind `labels`. Those that are not LLMs have only their facts as ensemble members, and
    what was salvaged from recorded completions."""
    manifest = store.manifest_of(labels)
    if members := manifest.details.get("members"):
        keys = manifest.fingerprint["inputs"]["members"]
        found = [store.find("pseudolabels", key) for key in keys]
        return tuple(
            _facts(f"teacher-{index}", manifest_of_member, member)
            for index, (manifest_of_member, member) in enumerate(zip(found, members, strict=True))
        )
    return (_facts("teacher", manifest, {}),) if "spent" in manifest.details or "salvaged" in manifest.counts else ()


def _facts(name: str, manifest: Manifest | None, member: dict[str, object]) -> TeacherFacts:
    lines = [*_membership(member)]
    metrics: dict[str, float] = {}
    if manifest is not None and "spent" in manifest.details:
        lines = [*_identity(manifest), *lines, *_spent(manifest), *_salvaged(manifest), *_calibration(manifest)]
        metrics = {**{key: float(value) for key, value in manifest.details["spent"].items()}, **manifest.metrics}
    elif manifest is not None:
        lines += _salvaged(manifest)
    return TeacherFacts(name=name, lines=tuple(lines), metrics=metrics)


def _membership(member: dict[str, object]) -> Iterator[tuple[str, str]]:
    if not member:
        return
    yield "kind", str(member["kind"])
    if member["labelled_accuracy"] is not None:
        yield "right units on the labeled set", f"{percent(float(str(member['labelled_accuracy'])))} %"
    yield "weight of its vote", f"{float(str(member['weight'])):.3f}"
    agreement = member["agreement"]
    assert isinstance(agreement, list)
    yield "rows labeled as by teacher 0, 1, ...", ", ".join(f"{percent(share)} %" for share in agreement)


def _identity(manifest: Manifest) -> Iterator[tuple[str, str]]:
    params, engine = manifest.fingerprint["params"], manifest.details.get("engine", {})
    known = {key: str(value) for key, value in params["identity"].items() if value not in (None, False)}
    yield "teacher", ", ".join(f"{key} {shortened(value, 40)}" for key, value in known.items())
    shown = {key: engine[key] for key in _ENGINE if engine.get(key) not in (None, "")}
    if shown:
        yield "engine", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())


_ENGINE = ("vllm", "version", "dtype", "num_gpus", "num_engines", "max_model_len", "batch_invariant")


def _spent(manifest: Manifest) -> Iterator[tuple[str, str]]:
    spent, rows = manifest.details["spent"], max(1, manifest.counts["asked"])
    completions = int(spent["completions"])
    yield "rows of the pool", f"{manifest.counts['asked']:,}, {manifest.rows:,} with a label"
    if not completions:
        yield "asked for these labels", "nothing: the ledger had every completion"
        return
    prompt, cached = int(spent["prompt_tokens"]), int(spent["cached_tokens"])
    yield "completions asked for", f"{completions:,}, and {int(spent['refusals']):,} questions refused"
    yield (
        "prompt tokens",
        f"{prompt:,}, of them {percent(cached / max(1, prompt))} % found in the server's prefix cache",
    )
    yield "completion tokens", f"{int(spent['completion_tokens']):,}"
    per_row = (prompt + spent["completion_tokens"]) / rows
    yield (
        "cost",
        f"{spent['money']:.4f} of money, {spent['money'] / rows:.6f} and {per_row:.1f} tokens for a row of the pool",
    )
    rate = completions / spent["asking_seconds"] if spent["asking_seconds"] else 0.0
    start = f", after a start of {seconds_text(spent['start_seconds'])}" if spent["start_seconds"] >= 1 else ""
    yield "time", f"{seconds_text(spent['asking_seconds'])}{start}; {rate:.1f} completions/s"
    engine = manifest.details.get("engine", {})
    if retries := engine.get("retries"):
        yield (
            "retries",
            f"{retries:,}; the server answered nothing for {seconds_text(engine['waited_seconds'])} meanwhile",
        )
    for sentence in manifest.details.get("damaged", []):
        yield "ledger", sentence


def _salvaged(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if salvaged := manifest.counts.get("salvaged"):
        yield "completions that said more than the label, or had brackets amiss", f"{salvaged:,}, salvaged"
    if cut := manifest.counts.get("cut"):
        yield "of these, labels for more words than the completion has", f"{cut:,}, with a confidence below 1"


def _calibration(manifest: Manifest) -> Iterator[tuple[str, str]]:
    metrics = manifest.metrics
    if "calibration_temperature" not in metrics:
        return
    before, after = metrics["calibration_error_before"], metrics["calibration_error_after"]
    yield (
        "expected calibration error on the labeled set",
        f"{percent(before)} % before, {percent(after)} % after calibration on these rows "
        f"(calibration temperature {metrics['calibration_temperature']:.2f})",
    )
    if "outside_mass" in metrics:
        yield "probability outside the labels", f"{percent(metrics['outside_mass'])} %, mean over the pool"
