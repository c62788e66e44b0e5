"""What a report says about near-duplicates, leakage, suspicious labels and drift."""

from retort.artifacts.hygiene import Drift, PoolHygiene
from retort.metrics.format import p_text
from retort.steps.hygiene import LEAST_ROWS


def hygiene_lines(facts: PoolHygiene) -> list[str]:
    """What was found, a sentence for each, for reports and terminals."""
    within, leaked, suspicious, drift = facts.within, facts.leaked, facts.suspicious, facts.drift
    lines = [
        f"{within.rows:,} of the pool's {within.compared:,} rows ({within.share:.1%}) nearly repeat an earlier one.",
        f"{leaked.rows:,} of {leaked.compared:,} test rows ({leaked.share:.1%}) are nearly repeated in the pool or the "
        "labeled set" + (": these say little about new texts." if leaked.rows else "."),
    ]
    if suspicious is not None:
        lines.append(
            f"{suspicious.rows:,} of {suspicious.compared:,} labels of the teacher ({suspicious.share:.1%}) are "
            "confidently contradicted by students that were not trained on them."
        )
    if drift is not None:
        lines.append(_drift_line(drift))
    return lines


def _drift_line(drift: Drift) -> str:
    rows = f"{drift.new:,} rows are new since the last night's {drift.last:,}"
    if not drift.changes:
        return f"{rows}: too few to tell a drift (at least {LEAST_ROWS} on each side)."
    sure = [f"{one.what} ({one.size:.2f}, {p_text(one.p_value)})" for one in drift.changes if one.surely]
    return f"{rows}; drifted: {', '.join(sure)}." if sure else f"{rows}; no drift that could not be chance."
