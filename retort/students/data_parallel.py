"""Data parallelism: several processes, each on a GPU of its own, train one student.

Each process has the whole model and makes every optimizer step. Of each batch it computes the gradients of its share of
the rows, divided by the units of the whole batch; their sum over the processes is the gradient that one process would
have computed, up to rounding. Losses on held-out rows are summed alike. So the result does not depend on the number of
processes, and a checkpoint says nothing of it: it resumes on any other.

Everything here does nothing in a process that trains alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from retort.records.rank import Rank
from retort.students.base import Checkpoint
from retort.students.batching import Indices

_PATIENCE = timedelta(days=7)
"""How long to wait for another process, which may read a bucket. One that has died is seen by whoever started it, and
all are then ended."""
_ALIGNMENT = 16
"""In elements: fused kernels read tensors that begin at a multiple of 16 bytes several values at a time."""


@contextmanager
def joined(rank: Rank) -> Iterator[None]:
    """Inside the block this process trains together with the others. All must enter it."""
    if rank.size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    place = f"file://{rank.rendezvous}"
    dist.init_process_group(backend, init_method=place, rank=rank.number, world_size=rank.size, timeout=_PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error, as it would wait for the others; the process then ends


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return num_ranks() == 1 or dist.get_rank() == 0


def share_of(rows: Indices) -> Indices:
    """This process's share of a batch; empty if the batch has fewer rows than there are processes."""
    return rows if num_ranks() == 1 else np.array_split(rows, num_ranks())[dist.get_rank()]


def summed(tensor: Tensor) -> Tensor:
    """Replaces the tensor by its sum over the processes, the same in all of them to the bit."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def of_first(value: bool) -> bool:
    """The first process's value, in all. It waits for the processes, not for their GPUs."""
    if num_ranks() == 1:
        return value
    given = torch.tensor(value)
    dist.broadcast(given, src=0)
    return bool(given)


def in_any(value: bool) -> bool:
    """Whether it is true in any process. It waits for the processes, not for their GPUs."""
    given = torch.tensor(int(value))
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return bool(given)


def same_as_first(tensors: Sequence[Tensor]) -> None:
    """Overwrites the tensors with those of the first process."""
    if num_ranks() > 1:
        for tensor in tensors:
            own = tensor.contiguous()
            dist.broadcast(own, src=0)
            tensor.copy_(own)


def seed_step(seed: int, step: int) -> None:
    """Seeds dropout for a step: each process draws other numbers, and a resumed training the same ones again, without
    the random states of all processes in its checkpoint."""
    if num_ranks() > 1:
        (own,) = np.random.SeedSequence((seed, step, dist.get_rank())).generate_state(1, np.uint64)
        torch.manual_seed(int(own))


def loaded(checkpoint: Checkpoint, *, shares_out: bool = False) -> tuple[dict[str, Tensor], str] | None:
    """What the first process loads, in every process, so that all go on from the same step. If the first one
    `shares_out` the tensors of the model afterwards, they have no content in the others, whose memory is spared."""
    saved = checkpoint.load() if is_first() else None
    if num_ranks() == 1:
        return saved
    described = [saved and ([(name, own.shape, own.dtype) for name, own in saved[0].items()], saved[1])]
    dist.broadcast_object_list(described, src=0)
    if described[0] is None:
        return None
    layout, state = described[0]
    spared = {name for name, shape, _ in layout if shares_out and shape and not name.startswith("random.")}
    tensors = (
        saved[0]
        if saved
        else {
            name: torch.empty(shape, dtype=dtype, device="meta" if name in spared else "cpu")
            for name, shape, dtype in layout
        }
    )
    same_as_first([own for name, own in tensors.items() if name not in spared])
    return tensors, state


def joint_gradients(parameters: Sequence[torch.nn.Parameter]) -> list[Tensor]:
    """Gives the parameters gradients of 0 that lie side by side in one buffer per dtype, which one call sums over the
    processes. Returns the buffers; none in a process that trains alone."""
    buffers = []
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters if num_ranks() > 1):
        own = [parameter for parameter in parameters if parameter.dtype == dtype]
        sizes = [-(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT for parameter in own]
        buffer = torch.zeros(sum(sizes), dtype=dtype, device=own[0].device)
        for parameter, part in zip(own, torch.split(buffer, sizes), strict=True):
            parameter.grad = part.as_strided(parameter.size(), parameter.stride())
        buffers.append(buffer)
    return buffers
