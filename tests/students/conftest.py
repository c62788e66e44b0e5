"""Tiny models: more threads than one only wait for each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tiny_encoder: Path, tiny_t5: Path, tiny_causal: Path) -> dict[str, Path]:
    """Models for trainings in processes of their own, which have no fixtures."""
    return {"encoder": tiny_encoder, "t5": tiny_t5, "causal": tiny_causal}
