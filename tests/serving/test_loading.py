"""How a student is loaded to serve: at which precision, on how many threads."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from retort.errors import ConfigError
from retort.models.device import choose_device
from retort.serving.addresses import find_student
from retort.serving.student import load_student

Trained = Any


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("given", "precision"), [("fp32", "fp32"), ("bf16", "bf16"), ("auto", None), (None, None)])
def test_the_precision_is_the_evaluations_unless_it_is_given(
    given: str | None, precision: str | None, classes_student: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("RETORT_PRECISION", raising=False)
    else:
        monkeypatch.setenv("RETORT_PRECISION", given)
    loaded = load_student(find_student(classes_student.student.uri), "cpu")
    assert loaded.device.precision == (precision or choose_device("cpu", "auto", 1).precision)


def test_a_precision_that_is_none_is_refused(classes_student: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_PRECISION", "int8")
    with pytest.raises(ConfigError, match="RETORT_PRECISION = 'int8': no precision; allowed: auto, bf16, fp32"):
        load_student(find_student(classes_student.student.uri), "cpu")


@pytest.mark.parametrize(("allowed", "threads"), [("1", 1), ("1000", None), ("0", None), ("many", None)])
def test_a_containers_share_of_the_cores_is_kept(
    allowed: str, threads: int | None, classes_student: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    loaded = load_student(find_student(classes_student.student.uri), "cpu")
    assert (loaded.device.threads, torch.get_num_threads()) == (threads or 4, threads or 4)
