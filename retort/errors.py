"""Every error that Retort raises on purpose.

RetortError                  exit 1: a valid command failed
├── UserError                exit 2: one sentence that says what is wrong, where, and what is allowed; never retried
│   ├── ConfigError          the YAML file or an override
│   └── DataError            a data file, a completion file, a label
│       └── RowFault         one row; a row of the pool is set aside instead
├── StoreError               exit 1: object storage
│   ├── StoreUnavailable     refuses or unreachable; may recover, so it is retried
│   └── DamagedArtifact      a file's size or digest differs from the manifest
├── TrackingUnavailable      exit 1: MLflow refuses or is unreachable; may recover, so it is retried
├── TeacherUnavailable       exit 1: an engine or endpoint died or is unreachable; may recover, so it is retried
├── StageFailed              exit 1: a stage cannot produce a result (too few labels parsed ...)
│   └── BudgetSpent          the teacher's budget is used up; the next run continues
├── GateRefused              exit 3: the gate said no, and nothing was promoted
└── ChildError               exit 1: a supervised child process ended without a result
    ├── ChildKilled          by a signal, usually for lack of memory; retried with half the micro-batch
    ├── ChildOutOfMemory     the device ran out of memory; retried with half the micro-batch
    ├── ChildTimedOut        stopped by Retort after its time was up
    └── ChildCrashed         an unexpected exception; its traceback goes to the log

Command-line exit codes: 0 success, 1 failure, 2 the config or the data is wrong, 3 the gate said no.
"""


class RetortError(Exception):
    """Base of all errors here; `str(error)` is one human-readable sentence."""

    exit_code = 1


class UserError(RetortError):
    """The config or the data is wrong, so a retry cannot help."""

    exit_code = 2


class ConfigError(UserError):
    """A field of the configuration is unknown, missing, of the wrong type or out of range."""


class DataError(UserError):
    """A data file cannot be read, or its content is invalid."""


class RowFault(DataError):
    """One row of a data file cannot be used."""

    def __init__(self, told: str, reason: str = "unreadable", raw: str = "") -> None:
        """`reason` is a short code to count; `raw` is what can be shown of a value that cannot be read."""
        super().__init__(told)
        self.reason, self.raw = reason, raw


class StoreError(RetortError):
    """An operation of the artifact store failed."""


class StoreUnavailable(StoreError):
    """A bucket or a hub refuses or cannot be reached."""


class DamagedArtifact(StoreError):
    """A stored file differs from what its manifest says."""


class TrackingUnavailable(RetortError):
    """The tracking server or database refuses or cannot be reached."""


class StageFailed(RetortError):
    """A stage ran but cannot produce a usable result."""


class BudgetSpent(StageFailed):
    """The teacher's budget is used up. What it has answered is kept, and the next run continues from there."""


class GateRefused(RetortError):
    """The gate does not let a student become the champion."""

    exit_code = 3


class TeacherUnavailable(RetortError):
    """An engine or an endpoint died, hangs or cannot be reached. What it has answered is kept."""


class ChildError(RetortError):
    """A supervised child process ended without a result."""


class ChildKilled(ChildError):
    """The child was ended by a signal that Retort did not send."""


class ChildOutOfMemory(ChildError):
    """The device ran out of memory."""


class ChildTimedOut(ChildError):
    """Retort stopped the child because its time was up."""


class ChildCrashed(ChildError):
    """The child raised an exception that is not a RetortError."""


def first_line(error: Exception) -> str:
    """A library's error in one line, for a sentence of ours: its message's first line, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


RETRYABLE = (StoreUnavailable, TrackingUnavailable, TeacherUnavailable, ChildKilled, ChildOutOfMemory)
"""Errors that a retry may fix. Retrying any other would only waste time."""
