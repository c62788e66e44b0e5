"""Two processes that train one student together, on the CPU, against one process that trains it alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from joint_training import (
    KINDS,
    ONE_ROW,
    SavedOnce,
    assert_learned_alike,
    assert_nearly_equal,
    assert_resumed_alike,
    lines,
    main,
    of_student,
    of_watched,
    result_of,
    student_of,
)
from retort.store import Store

UNUSED = "0"
"""The weight of `Lines` that nothing reads."""


@pytest.fixture(scope="module")
def joint(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes have left the results of all trainings."""
    folder = tmp_path_factory.mktemp("joint")
    torch.set_num_threads(1)
    lines(SavedOnce(Store(str(folder / "store")), "1" * 64, 13), dropout=0)
    spawn(main, (folder, folders), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def start_of(kind: str, folders: dict[str, Path]) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in student_of(kind, folders).model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind: str, joint: Path, folders: dict[str, Path]) -> None:
    alone = of_student(kind, folders)
    assert alone["losses"][-1] < 0.8 * alone["losses"][0]
    assert_learned_alike(start_of(kind, folders), alone, result_of(joint, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_is_a_micro_batch_to_the_bit(kind: str, joint: Path, folders: dict[str, Path]) -> None:
    halves, together = of_student(kind, folders, micro_batches=2), result_of(joint, kind)
    assert all(torch.equal(own, together[name]) for name, own in halves.items() if name != "losses")


@pytest.mark.parametrize("name", [*KINDS, "one row a step", "dropout", "no memory in one", "watched"])
def test_both_processes_have_the_same_weights(name: str, joint: Path) -> None:
    first, second = result_of(joint, name, 0), result_of(joint, name, 1)
    assert all(torch.equal(own, second[key]) for key, own in first.items())


def test_a_process_without_a_row_waits_for_the_other(joint: Path, folders: dict[str, Path]) -> None:
    alone = of_student("encoder", folders, training=ONE_ROW)
    assert_learned_alike(start_of("encoder", folders), alone, result_of(joint, "one row a step"))


def test_dropout_differs_between_processes_and_a_resumed_training_repeats_it(joint: Path) -> None:
    whole, resumed = result_of(joint, "dropout"), result_of(joint, "dropout, resumed")
    assert all(torch.equal(own, resumed[key]) for key, own in whole.items())
    assert not any(torch.equal(own, whole[key]) for key, own in lines().items() if key != UNUSED)


def test_a_checkpoint_resumes_on_another_number_of_processes(joint: Path) -> None:
    assert_resumed_alike(joint)


def test_one_process_alone_may_run_out_of_memory(joint: Path) -> None:
    assert_nearly_equal(result_of(joint, "no memory in one"), lines(dropout=0))


def test_held_out_rows_end_the_training_of_both(joint: Path) -> None:
    assert_nearly_equal(result_of(joint, "watched"), of_watched())
