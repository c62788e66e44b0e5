"""Promotes a challenger that passed the gate to champion, and rolls back.

MLflow cannot compare and swap an alias. So the tags are written first, then the champion is read again, and finally the
alias is set and read back. Of two concurrent promotions one wins, and either leaves a champion that can be rolled back.
"""

import getpass
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from retort.config import RecipeConfig, TrackingConfig
from retort.errors import ConfigError, GateRefused
from retort.records.base import Record
from retort.tracking import mlflow_runs as runs
from retort.tracking.address import tracking_uri
from retort.tracking.registry import CHALLENGER, CHAMPION, ModelVersion, aliased_version, reigning_version, versions

OUTCOME, COMPARED_WITH, REASONS = "gate.outcome", "gate.champion", "gate.reasons"
REPLACED, FORCED_BECAUSE = "promotion.replaced", "promotion.forced_because"
PROMOTED_AT, PROMOTED_BY = "promotion.at", "promotion.by"
ROLLED_BACK = ROLLED_BACK_AT, ROLLED_BACK_BY, ROLLED_BACK_BECAUSE = "rollback.at", "rollback.by", "rollback.because"
REASON_CHARACTERS = 10, 1000
"""Shortest and longest allowed reason."""


class Promotion(Record):
    """What happened to a model's alias `champion`."""

    model: str
    version: str
    """The version that is the champion now."""
    outcome: Literal["promoted", "forced", "reigns", "rolled-back"]
    """reigns: it already was the champion, and nothing was changed."""
    replaced: str | None
    """The previous champion's version; None if there was none or nothing was changed."""
    reasons: tuple[str, ...]
    """The gate's reasons in sentences, or a person's."""

    @property
    def sentence(self) -> str:
        """A sentence for people."""
        subject = f"version {self.version} of '{self.model}'"
        if self.outcome == "reigns":
            return f"{subject} is the champion already"
        how = {"promoted": "is the champion", "forced": "is the champion by force", "rolled-back": "reigns again"}
        after = f"in place of version {self.replaced}" if self.replaced else "the first"
        return f"{subject} {how[self.outcome]}, {after}"


def promote(config: RecipeConfig, *, forced_because: str | None = None) -> Promotion:
    """Make the challenger the champion, if it passed the gate against the current champion.

    `forced_because` is a reason for the records, and skips the gate. Raises GateRefused, ConfigError,
    TrackingUnavailable.
    """
    if config.tracking is None:
        raise ConfigError("tracking is not given: without a model registry there is nothing to promote in")
    reason = None if forced_because is None else _checked_reason(forced_because)
    uri, model = tracking_uri(config.tracking), config.name
    challenger, champion = _challenger(uri, model), reigning_version(uri, model)
    before = champion.version if champion else None
    if challenger.version == before:
        return Promotion(model=model, version=before, outcome="reigns", replaced=None, reasons=())
    if reason is None:
        _check_verdict(challenger, before)
    story = {REPLACED: before, PROMOTED_AT: _now(), PROMOTED_BY: _who(), FORCED_BECAUSE: reason}
    _move_alias(uri, challenger.version, before, challenger, story | dict.fromkeys(ROLLED_BACK))
    return Promotion(
        model=model,
        version=challenger.version,
        outcome="promoted" if reason is None else "forced",
        replaced=before,
        reasons=_reasons(challenger) if reason is None else (reason,),
    )


def rollback(tracking_address: str, model: str, reason: str) -> Promotion:
    """Make the version that the champion replaced the champion again. A second call goes back one more version.

    `tracking_address` may contain `${VAR}`. Raises ConfigError, GateRefused, TrackingUnavailable.
    """
    because = _checked_reason(reason)
    uri = tracking_uri(TrackingConfig(uri=tracking_address))
    champion = reigning_version(uri, model)
    if champion is None:
        raise ConfigError(f"no version of '{model}' is the champion; registered models: {_models(uri)}")
    replaced = _before(champion, versions(uri, model))
    if replaced is None:
        raise ConfigError(
            f"version {champion.version} of '{model}' replaced none that could reign again: there is nothing to go "
            "back to"
        )
    story: dict[str, str | None] = {ROLLED_BACK_AT: _now(), ROLLED_BACK_BY: _who(), ROLLED_BACK_BECAUSE: because}
    _move_alias(uri, replaced, champion.version, champion, story)
    gone = champion.version
    return Promotion(model=model, version=replaced, outcome="rolled-back", replaced=gone, reasons=(because,))


def _before(champion: ModelVersion, known: Sequence[ModelVersion]) -> str | None:
    """The version that the champion replaced, skipping versions that were rolled back since."""
    by_number = {version.version: version for version in known}
    passed, number = {champion.version}, champion.tags.get(REPLACED)
    while number in by_number and number not in passed:
        if ROLLED_BACK_AT not in by_number[number].tags:
            return number
        passed.add(number)
        number = by_number[number].tags.get(REPLACED)
    return None


def _challenger(uri: str, model: str) -> ModelVersion:
    found = aliased_version(uri, model, CHALLENGER)
    if found is None:
        raise ConfigError(f"no version of '{model}' is the challenger: `retort run CONFIG` registers one")
    return found


def _check_verdict(challenger: ModelVersion, champion: str | None) -> None:
    """Raises GateRefused unless the challenger passed the gate against the current champion."""
    tags, who = challenger.tags, f"version {challenger.version} of '{challenger.model}'"
    outcome, compared_with = tags.get(OUTCOME), tags.get(COMPARED_WITH) or None
    if outcome is None:
        raise GateRefused(f"{who} has no verdict of the gate: run again")
    if ROLLED_BACK_AT in tags:
        raise GateRefused(
            f"{who} was rolled back at {tags[ROLLED_BACK_AT]} ({tags.get(ROLLED_BACK_BECAUSE, '')}); "
            "`--force --reason TEXT` promotes it again"
        )
    if compared_with != champion:
        compared = f"version {compared_with}" if compared_with else "no champion"
        reigns = f"version {champion} reigns" if champion else "nobody reigns"
        raise GateRefused(f"{who} was compared with {compared}, but {reigns} now: run again")
    if outcome not in ("passed", "first"):
        raise GateRefused(f"{who} did not pass the gate ({outcome}): {' '.join(_reasons(challenger))}")


def _move_alias(
    uri: str, target: str, champion: str | None, tagged: ModelVersion, story: Mapping[str, str | None]
) -> None:
    """Move the alias from version `champion` to `target`, and record it in the tags `story` of the version `tagged`.

    Raises GateRefused if somebody else moved the alias in the meantime; the tags are then removed again.
    """
    model = tagged.model
    with runs.connected(uri) as client:
        runs.tag_version(client, model, tagged.version, story)
        if _reigns(uri, model) == champion:
            runs.set_alias(client, model, CHAMPION, target)
        now = _reigns(uri, model)
        if now != target:
            runs.tag_version(client, model, tagged.version, dict.fromkeys(story))
            moved = f"version {now} of '{model}' was made the champion" if now else f"'{model}' lost its champion"
            raise GateRefused(f"{moved} at the same moment: look at it, and try again")


def _reigns(uri: str, model: str) -> str | None:
    champion = reigning_version(uri, model)
    return champion.version if champion else None


def _models(uri: str) -> str:
    return ", ".join(sorted({version.model for version in versions(uri)})) or "none"


def _reasons(challenger: ModelVersion) -> tuple[str, ...]:
    """The gate's reasons, one per line of the tag."""
    return tuple(challenger.tags.get(REASONS, "").splitlines())


def _checked_reason(reason: str) -> str:
    """Raises ConfigError if the reason is too short or too long."""
    text, (least, most) = " ".join(reason.split()), REASON_CHARACTERS
    if not least <= len(text) <= most:
        raise ConfigError(f"the reason has {len(text)} characters: say why in {least} to {most}, for the records")
    return text


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _who() -> str:
    """$RETORT_USER if set, otherwise user@host."""
    if named := os.environ.get("RETORT_USER"):
        return named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, a user id may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
