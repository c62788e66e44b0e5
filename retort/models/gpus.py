"""Which GPUs this machine has for us, without loading torch."""

import os
import subprocess
from functools import cache
from pathlib import Path

SHARED_GPUS = "RETORT_GPUS"
"""The environment variable with the number of GPUs that containers without a common file system share."""
_LIST_SECONDS = 60.0


def usable_gpus() -> list[str]:
    """The GPUs that steps may be given, as entries of CUDA_VISIBLE_DEVICES."""
    shared = num_shared()
    gpus = visible_gpus() or list(map(str, range(shared)))
    return gpus[:shared] if shared else gpus


def num_shared() -> int:
    return int(os.environ.get(SHARED_GPUS, "0"))


def visible_gpus() -> list[str]:
    """The usable GPUs as entries of CUDA_VISIBLE_DEVICES, which is respected if it is set. Like CUDA, it ignores what
    follows an entry that is no GPU."""
    uuids = _installed()
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return [str(index) for index in range(len(uuids))]
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    bad = next((at for at, name in enumerate(names) if _is_no_gpu(name, uuids)), len(names))
    found: dict[str, str] = {}
    for name in names[:bad]:
        found.setdefault(identity(name), name)
    return list(found.values())


def identity(entry: str) -> str:
    """The UUID of the GPU that an entry of CUDA_VISIBLE_DEVICES names, by its index or the start of its UUID; the entry
    itself if the driver does not list it."""
    uuids = _installed()
    if entry.isdigit():
        return uuids[int(entry)] if int(entry) < len(uuids) else entry
    return next((uuid for uuid in uuids if uuid.startswith(entry)), entry)


def _is_no_gpu(entry: str, uuids: list[str]) -> bool:
    """A driver that lists nothing, as in a container without nvidia-smi, proves nothing."""
    return entry.startswith("-") or bool(uuids and entry.isdigit() and int(entry) >= len(uuids))


@cache
def _installed() -> list[str]:
    """UUIDs of the GPUs by index, where CUDA_DEVICE_ORDER is PCI_BUS_ID or all GPUs are equal."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_LIST_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):  # no GPU, or a container without the tool
        return [f"gpu-{number}" for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]
