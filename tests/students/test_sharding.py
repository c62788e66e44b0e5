"""Two processes, on the CPU, that train a student whose weights they divide among them, against one that has it all."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from joint_training import (
    ADAPTERS,
    KINDS,
    ONE_ROW,
    SHARDED,
    SavedOnce,
    assert_learned_alike,
    assert_nearly_equal,
    assert_resumed_alike,
    layers,
    lines,
    of_prepared,
    of_student,
    of_watched,
    result_of,
    sharded_main,
    student_of,
)
from retort.errors import ConfigError
from retort.models.device import Device
from retort.store import Store
from retort.students import sharding
from retort.students.sharding import must_shard


@pytest.fixture(scope="module")
def joint(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes have left the results of all trainings."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.set_num_threads(1)
    lines(SavedOnce(Store(str(folder / "store")), "1" * 64, 13), dropout=0)
    of_watched(SavedOnce(Store(str(folder / "store")), "b" * 64, 13))
    spawn(sharded_main, (folder, folders), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def assert_students_alike(
    kind: str, folders: dict[str, Path], alone: dict[str, Tensor], both: dict[str, Tensor]
) -> None:
    """Also that the model has the weights' old names and shapes."""
    start = {name: weight.detach() for name, weight in student_of(kind, folders).model.named_parameters()}
    assert {name: own.shape for name, own in both.items()} == {name: own.shape for name, own in alone.items()}
    assert_learned_alike(start, alone, both)


@pytest.mark.parametrize("kind", [*KINDS, ADAPTERS])
def test_processes_that_divide_a_student_learn_what_one_does(kind: str, joint: Path, folders: dict[str, Path]) -> None:
    alone = of_student(kind, folders)
    assert alone["losses"][-1] < 0.8 * alone["losses"][0]
    assert_students_alike(kind, folders, alone, result_of(joint, kind))


def test_a_divided_output_layer_computes_the_loss(joint: Path, folders: dict[str, Path]) -> None:
    assert_students_alike("causal-text", folders, of_prepared(folders), result_of(joint, "prepared"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_holds_half_of_the_weights_while_it_trains(kind: str, joint: Path) -> None:
    whole, held = result_of(joint, f"{kind}, held")["numbers"].tolist()
    assert held < 0.6 * whole


@pytest.mark.parametrize("name", SHARDED)
def test_both_processes_end_with_the_whole_model(name: str, joint: Path) -> None:
    first, second = result_of(joint, name, 0), result_of(joint, name, 1)
    assert all(torch.equal(own, second[key]) for key, own in first.items())


def test_a_process_without_a_row_takes_part(joint: Path, folders: dict[str, Path]) -> None:
    alone = of_student("encoder", folders, training=ONE_ROW)
    assert_students_alike("encoder", folders, alone, result_of(joint, "one row a step"))


def test_a_checkpoint_resumes_whole_or_divided(joint: Path) -> None:
    assert_resumed_alike(joint)


def test_the_best_weights_outlive_a_checkpoint(joint: Path) -> None:
    alone = of_watched()
    for name in ("watched", "watched, saved by one"):
        assert_nearly_equal(result_of(joint, name), alone)
    assert_nearly_equal(of_watched(SavedOnce(Store(str(joint / "store")), "c" * 64)), alone)


def test_one_process_may_run_out_of_memory_anywhere_in_a_pass(joint: Path) -> None:
    assert_nearly_equal(result_of(joint, "no memory in one"), lines(dropout=0))
    assert_nearly_equal(result_of(joint, "watched, no memory in one"), of_watched())
    for name in ("no memory in a forward pass", "no memory in a backward pass"):
        assert_nearly_equal(result_of(joint, name), layers())


@pytest.mark.parametrize(
    ("gigabytes", "ranks", "found"),
    [
        (20.1, 1, False),
        (20.1, 2, True),
        (22.3, 2, False),
        (8.0, 3, True),
        (19.9, 1, "takes 20 GB, more than 1 GPU of 19.9 GB; set it to 2 or more"),
        (8.0, 2, "takes 20 GB, more than 2 GPUs of 8 GB; set it to 3 or more"),
    ],
)
def test_a_model_is_divided_only_if_it_must_be(gigabytes: float, ranks: int, found: bool | str) -> None:
    """A billion weights, which take 20 bytes each in bf16, or 16 if they are divided."""
    with (
        mock.patch.object(sharding, "memory_bytes", return_value=gigabytes * 1e9),
        mock.patch.object(sharding, "num_ranks", return_value=ranks),
        torch.device("meta"),
    ):
        model = torch.nn.Linear(10**5, 10**4, bias=False)
        if isinstance(found, str):
            with pytest.raises(ConfigError, match=rf"^execution\.gpus_per_student: .*{found}"):
                must_shard(model, Device("cuda", "bf16", 1))
        else:
            assert must_shard(model, Device("cuda", "bf16", 1)) is found
