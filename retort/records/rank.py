"""The place of a process among those that train one student together."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` processes on one machine; by default the only one."""

    number: int = 0
    """From 0. The first one alone writes checkpoints, reports progress and makes the artifact."""
    size: int = 1
    rendezvous: str = ""
    """Path of a file, which does not exist yet, through which they find each other."""
    gpus: tuple[str, ...] = ()
    """The GPUs of all of them, as entries of CUDA_VISIBLE_DEVICES."""

    @property
    def is_first(self) -> bool:
        return self.number == 0


ALONE = Rank()
"""The rank of a process that works alone."""
