"""Retort's side of the vLLM teacher, with a fake engine that speaks the same protocol."""

import itertools
import os
import signal
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from retort.config import VllmConfig
from retort.errors import ChildOutOfMemory, ConfigError, TeacherUnavailable
from retort.teachers.requests import Completion, CompletionRequest, Prompt, Turn
from retort.teachers.vllm.client import VllmClient, open_vllm
from retort.teachers.vllm.engine import failures
from vllm_teacher import gone

FAKE = Path(__file__).with_name("fake_python.py")
SHARED = (Turn("system", "Label it."),)


def opened(attempt: int = 0, **changes: Any) -> AbstractContextManager[VllmClient]:
    config = VllmConfig.model_validate({"kind": "vllm", "model": "fake", "python": str(FAKE), **changes})
    return open_vllm(config, attempt, "fake", None)


def new_request(number: int, samples: tuple[int, ...] = (0,)) -> CompletionRequest:
    return CompletionRequest(number.to_bytes(16, "big"), Prompt(SHARED, f"row {number}"), samples=samples)


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")


def test_each_gpu_has_an_engine_and_its_share() -> None:
    with opened() as client:
        found = list(client.ask(new_request(number, samples=(0, 1)) for number in range(200)))
        assert client.facts["num_gpus"] == client.facts["num_engines"] == 2
        pids = [engine.pid for engine in client.engines]
    completions = [completion for completion in found if isinstance(completion, Completion)]
    assert (
        Counter((completion.key, completion.sample) for completion in completions).total() == len({*completions}) == 400
    )
    shares = Counter(completion.text for completion in completions)
    assert shares.keys() == {"4", "5"}
    assert min(shares.values()) > 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_copies_on_one_gpu_share_its_memory_and_start_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_START_SECONDS", "0.3")
    with opened(copies_per_gpu=3, memory_share=0.6) as client:
        found = list(client.ask(new_request(number) for number in range(200)))
        assert (client.facts["num_gpus"], client.facts["num_engines"]) == (2, 6)
        assert client.facts["options"]["memory_share"] == pytest.approx(0.2)
        began = {gpu: [one.facts["began"] for one in client.engines if one.place.gpus == (gpu,)] for gpu in "45"}
        assert client.engines[-1].title == "the vLLM engine (GPU 5, copy 3)"
    assert len({completion.key for completion in found}) == len(found) == 200
    assert {one.text for one in found if isinstance(one, Completion)} == {"4", "5", "4 copy", "5 copy"}
    assert all(later - earlier >= 0.3 for own in began.values() for earlier, later in itertools.pairwise(own))


def test_copies_that_wait_for_an_engine_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "out of memory")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(ChildOutOfMemory, match=r"GPU [45]\).*CUDA out of memory"), opened(copies_per_gpu=2):
        pass
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_copies_have_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "context")
    with pytest.raises(ConfigError, match=r"copies_per_gpu = 3 engines has a part"), opened(copies_per_gpu=3):
        pass


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "groups"),
    [(2, 1, ["0,1", "2,3"]), (1, 2, ["0,1", "2,3"]), (2, 2, ["0,1,2,3"]), (1, 3, ["0,1,2"])],
)
def test_an_engine_takes_a_group_of_gpus(
    tensor_parallel: int, pipeline_parallel: int, groups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    with opened(tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel) as client:
        completions = list(client.ask(new_request(number) for number in range(40)))
        assert {one.text for one in completions if isinstance(one, Completion)} == set(groups)
        assert client.facts["num_gpus"] == sum(len(group.split(",")) for group in groups)
        options = client.facts["options"]
    assert (options["tensor_parallel"], options["pipeline_parallel"]) == (tensor_parallel, pipeline_parallel)


def test_a_quantization_reaches_the_engine() -> None:
    with opened(quantization="fp8") as client:
        assert client.facts["options"]["quantization"] == "fp8"


@pytest.mark.parametrize(
    ("visible", "sizes", "sentence"),
    [
        ("0,1,2", {"tensor_parallel": 4}, r"teacher\.tensor_parallel = 4: 3 GPUs can be used; allowed: 1 to 3"),
        (
            "0,1,2",
            {"tensor_parallel": 2, "pipeline_parallel": 2},
            r"teacher\.tensor_parallel = 2 with teacher\.pipeline_parallel = 2: their product is 4, and 3 GPUs",
        ),
        ("", {}, r"teacher\.python = .*this machine shows none; `make teacher`"),
        ("-1", {}, "this machine shows none"),
    ],
)
def test_too_few_gpus(visible: str, sizes: dict[str, int], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=sentence), opened(**sizes):
        pass


def test_a_retry_takes_less() -> None:
    with opened(attempt=2, max_sequences=6, memory_share=0.5, tensor_parallel=2) as client:
        options = client.facts["options"]
    assert options["memory_share"] == pytest.approx(0.5 * 0.81)
    assert (options["max_sequences"], options["halvings"]) == (1, 2)


def test_out_of_memory_where_only_the_log_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "out of memory")
    with pytest.raises(ChildOutOfMemory, match=r"GPU [45].*CUDA out of memory"), opened():
        pass


def test_a_context_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "context")
    with (
        pytest.raises(ConfigError, match=r"teacher\.max_length: vLLM refuses it: ValueError: To serve"),
        opened(),
    ):
        pass


def test_an_engine_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "dies")
    with opened(tensor_parallel=2) as client:
        answering, found = client.ask(new_request(number) for number in range(100)), []
        with pytest.raises(TeacherUnavailable, match=r"ended with exit code 7; its last words: .*while it lasted"):
            found += answering
        assert len(found) == 4


def test_an_engine_that_is_killed() -> None:
    with opened(tensor_parallel=2) as client:
        answering = client.ask(map(new_request, itertools.count()))
        found = [next(answering) for _ in range(20)]
        os.kill(client.engines[0].pid, signal.SIGKILL)
        with pytest.raises(TeacherUnavailable, match="SIGKILL"):
            found += answering
        assert len({answer.key for answer in found}) == len(found)
    assert gone(client.engines[0].pid)


def test_an_engine_that_hangs() -> None:
    with opened(tensor_parallel=2, stall_seconds=3) as client:
        answering = client.ask(map(new_request, itertools.count()))
        next(answering)
        os.kill(client.engines[0].pid, signal.SIGSTOP)
        stopped = time.monotonic()
        with pytest.raises(TeacherUnavailable, match=r"hung.*teacher\.stall_seconds = 3"):
            list(answering)
        assert 0.5 < time.monotonic() - stopped < 50
    assert gone(client.engines[0].pid)


def test_an_engine_that_gives_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "spins")
    with (
        opened(stall_seconds=1) as client,
        pytest.raises(TeacherUnavailable, match=r"hung.*teacher\.stall_seconds = 1"),
    ):
        list(client.ask(iter([new_request(0)])))


def test_a_caller_may_take_its_time() -> None:
    with opened(stall_seconds=0.6, tensor_parallel=2) as client:
        answering = client.ask(new_request(number) for number in range(20))
        found = [next(answering)]
        for _ in range(2):
            time.sleep(1.0)
            found.append(next(answering))
        assert len([*found, *answering]) == 20


def test_an_engine_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", "silent")
    begun = time.monotonic()
    with pytest.raises(TeacherUnavailable, match=r"not ready after teacher\.start_seconds = 0\.5"):
        opened(start_seconds=0.5).__enter__()
    assert time.monotonic() - begun < 50, "the engine sleeps for 60 s"


def test_leaving_early_and_asking_again() -> None:
    with opened() as client:
        answering = client.ask(new_request(number) for number in range(100))
        next(answering)
        answering.close()
        keys = {completion.key for completion in client.ask(new_request(number) for number in range(1000, 1040))}
        assert keys == {new_request(number).key for number in range(1000, 1040)}


def test_what_is_shared_is_sent_once_and_forgotten() -> None:
    """Rows that are demonstrations themselves have shared turns of their own."""
    with opened() as client:
        asked = (
            CompletionRequest(number.to_bytes(16, "big"), Prompt((Turn("system", str(number // 2)),), "row"))
            for number in range(200)
        )
        assert len(list(client.ask(asked))) == 200


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "ValueError: Free memory on device (3.1/79.2 GiB) on startup is less than desired GPU memory utilization",
            "out-of-memory",
        ),
        ("Model architectures ['BertModel'] are not supported for now.", "model"),
        ("This model does not support `--runner generate`.", "model"),
        ("ValueError: No available memory for the cache blocks. Try increasing gpu_memory_utilization", "config"),
        ("EngineDeadError: EngineCore encountered an issue.", "engine"),
        ("NotImplementedError: Pipeline parallelism is not supported for this model.", "config"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    assert failures.classify(text)[0] == reason
