"""What was set aside of a pool: rows that cannot be used."""

from retort.records.base import Record


class AsideRow(Record):
    """A row of the pool that cannot be used."""

    place: str
    """File and line, or file and row."""
    reason: str
    detail: str
    """One human-readable sentence, with the place."""
    raw: str
    """The row as it was, shortened for people."""


class SetAside(Record):
    """The rows of a pool that cannot be used."""

    read: int
    """Rows of the source, good and bad."""
    reasons: dict[str, int]
    """Rows by reason, the most frequent first."""
    first: tuple[AsideRow, ...]
    """The first rows of each reason, by reason and then in the order of the source."""

    @property
    def rows(self) -> int:
        return sum(self.reasons.values())

    @property
    def text(self) -> str:
        """How many, and why."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.items())
        return f"{self.rows:,} of {self.read:,} rows ({self.rows / self.read:.2%}) cannot be used: {reasons}"

    @property
    def places(self) -> str:
        """The first places of each reason."""
        found: dict[str, list[str]] = {}
        for row in self.first:
            found.setdefault(row.reason, []).append(row.place)
        return "; ".join(f"{reason}: {', '.join(places)}" for reason, places in found.items())

    def excess(self, most: float) -> str | None:
        """A sentence if the share of these rows is more than `most`, else None."""
        if self.rows <= most * self.read:
            return None
        allowed = f"data.max_bad_share = {most:g} allows no more than {int(most * self.read):,}"
        return f"{self.text}; {allowed}; {self.beginning}"

    @property
    def beginning(self) -> str:
        """What is wrong with the first row of each of the most frequent reasons."""
        by_reason = {row.reason: row.detail for row in reversed(self.first)}
        return f"the first: {'; '.join(by_reason[reason] for reason in list(self.reasons)[:3])}"
