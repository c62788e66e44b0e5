"""Tiny students in stores of their own."""

from typing import Any

import pytest

from trained_student import Trained, train


@pytest.fixture(scope="session")
def slots_student(tiny_slots: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train({**tiny_slots, "store": {"root": str(tmp_path_factory.mktemp("slots-served"))}})


@pytest.fixture(scope="session")
def classes_student(tiny_classes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train({**tiny_classes, "store": {"root": str(tmp_path_factory.mktemp("classes-served"))}})
