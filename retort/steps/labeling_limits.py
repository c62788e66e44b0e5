"""The least share of a pool's rows that must get a label."""

from collections import Counter

from retort.errors import StageFailed


def check_success(least: float, labeled: int, counts: Counter[str]) -> None:
    """Raises StageFailed if less than the share `least` of the rows have a label. `counts` has the failed rows by
    reason, and all rows as `asked`."""
    asked = counts["asked"]
    if labeled < least * asked:
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common() if reason != "asked")
        raise StageFailed(
            f"only {labeled} of {asked} rows got a label ({labeled / asked:.1%}), below "
            f"teacher.min_success_ratio = {least:g}; reasons: {reasons}"
        )
