"""Every error that Retort raises on purpose.

RetortError                  exit 1: something failed that was asked for rightly
├── UserError                exit 2: one sentence saying what, where, and what is allowed; never retried
│   ├── ConfigError          the YAML file or an override
│   └── DataError            a data file, a completion file, a label
├── StoreError               exit 1: object storage
│   ├── StoreUnavailable     refused or unreachable; heals, so it is retried
│   └── DamagedArtifact      a file's size or digest is not the manifest's
├── TrackingUnavailable      exit 1: MLflow refuses or cannot be reached; heals, so it is retried
├── TeacherUnavailable       exit 1: an engine or endpoint died or cannot be reached; heals, so it is retried
├── StageFailed              exit 1: a stage cannot give a result (too few labels parsed ...)
│   └── BudgetSpent          the teacher's budget is used up; the next run goes on
├── GateRefused              exit 3: the gate said no, and nothing was promoted
└── ChildError               exit 1: a supervised child process ended without a result
    ├── ChildKilled          by a signal, most often for memory; retried with half the micro-batch
    ├── ChildOutOfMemory     the device's memory was too small; retried with half the micro-batch
    ├── ChildTimedOut        ended by us after its time was up
    └── ChildCrashed         an unexpected exception; its traceback goes to the log

Command-line exit codes: 0 done, 1 failed, 2 the config or the data is wrong, 3 the gate said no.
"""


class RetortError(Exception):
    """Base of every error here; `str(error)` is one sentence for people."""

    exit_code = 1


class UserError(RetortError):
    """The config or the data is wrong: nothing heals by itself."""

    exit_code = 2


class ConfigError(UserError):
    """A field of the configuration is unknown, missing, of the wrong type or out of range."""


class DataError(UserError):
    """A data file cannot be read or breaks its contract."""


class StoreError(RetortError):
    """The artifact store cannot do what was asked."""


class StoreUnavailable(StoreError):
    """The bucket refuses or cannot be reached."""


class DamagedArtifact(StoreError):
    """A stored file differs from what its manifest says."""


class TrackingUnavailable(RetortError):
    """The tracking server or database refuses or cannot be reached."""


class StageFailed(RetortError):
    """A stage ran and cannot give a usable result."""


class BudgetSpent(StageFailed):
    """The teacher's budget is used up: what came is kept, and the next run goes on."""


class GateRefused(RetortError):
    """A student may not become the champion."""

    exit_code = 3


class TeacherUnavailable(RetortError):
    """An engine or an endpoint died, hangs or cannot be reached: what was answered is kept."""


class ChildError(RetortError):
    """A supervised child process ended without a result."""


class ChildKilled(ChildError):
    """The child was ended by a signal that we did not send."""


class ChildOutOfMemory(ChildError):
    """The device ran out of memory."""


class ChildTimedOut(ChildError):
    """The child was ended because its time was up."""


class ChildCrashed(ChildError):
    """The child raised something that is not one of our errors."""


RETRYABLE = (StoreUnavailable, TrackingUnavailable, TeacherUnavailable, ChildKilled, ChildOutOfMemory)
"""What a retry can heal; everything else would only burn time again."""
