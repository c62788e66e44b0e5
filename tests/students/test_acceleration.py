"""What trains faster on a GPU computes the same. Tried on the CPU; compiling is traced, but nothing is generated."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from retort.config import StoppingConfig, TrainingConfig
from retort.models.device import Device
from retort.students import acceleration as accelerating
from retort.students.acceleration import CompiledLayers, acceleration, drops, layers_of, operations
from retort.students.accumulation import Gradients
from retort.students.base import History
from retort.students.early_stopping import EarlyStopping
from retort.students.generative_data import (
    CausalTrainingData,
    Pair,
    Seq2SeqTrainingData,
    TrainingPairs,
    can_attend_flat,
)
from retort.students.optimizer import PlainAdamW
from retort.students.schedule import Schedule
from retort.students.training_data import PaddedTrainingData

GPU = Device("cuda", "bf16", 1)
"""The models of this file stay on the CPU all the same."""
ROWS = np.arange(12)


def pairs() -> TrainingPairs:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 20, size=(12, 2))
    return TrainingPairs(Pair(generator.integers(4, 90, size=s), generator.integers(4, 90, size=t)) for s, t in sizes)


def t5(dropout: float = 0.0) -> Seq2SeqTrainingData:
    torch.manual_seed(0)
    config = T5Config(vocab_size=100, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=2, dropout_rate=dropout)
    return Seq2SeqTrainingData(T5ForConditionalGeneration(config), pairs(), pad=0, start=0, columns=slice(None))


def causal() -> CausalTrainingData:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=100, hidden_size=16, intermediate_size=32, **sizes))
    return CausalTrainingData(model, pairs(), pad=0, columns=slice(None), packs=True)


def one_batch(data: PaddedTrainingData, epochs: int = 1) -> Schedule:
    """All rows in one step."""
    return Schedule(data, TrainingConfig(epochs=epochs, batch_tokens=1_000_000), 0)


def computed(data: PaddedTrainingData) -> dict[str, Tensor]:
    """The loss and the gradients."""
    data.model.zero_grad()
    loss = data.loss(ROWS)
    loss.backward()
    return {"loss": loss.detach(), **{name: weight.grad.clone() for name, weight in data.model.named_parameters()}}


def implementations(model: PreTrainedModel) -> set[str]:
    return {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")}


def test_what_flash_attention_cannot_do_here_is_found_out() -> None:
    data = causal()
    assert not can_attend_flat(data.model), "on a CPU"
    assert implementations(data.model) != {"retort-packed"}


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.nn.Module.compile

    def compile_(module: torch.nn.Module, **options: Any) -> None:
        compiled(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    torch._dynamo.reset()


@pytest.mark.usefixtures("traced_only")
@pytest.mark.filterwarnings("ignore")  # the tracer's own
@pytest.mark.parametrize(("make", "layers"), [(t5, 4), (causal, 2)])
def test_compiled_layers_compute_the_same(
    make: Callable[[], PaddedTrainingData], layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    expected = computed(data)
    assert len(layers_of(data.model)) == layers
    monkeypatch.setattr(accelerating, "WORTH_COMPILING", 0.0)
    with acceleration(data.model, [data], one_batch(data), GPU) as compiled:
        assert isinstance(compiled, CompiledLayers)
        found = computed(data)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert not torch._dynamo.utils.counters["graph_break"]
        traced = dict(torch._dynamo.utils.counters["stats"])
        with compiled.paused(), torch.no_grad():
            torch.testing.assert_close(data.loss(ROWS), expected["loss"], rtol=1e-4, atol=1e-4)
        assert torch._dynamo.utils.counters["stats"] == traced
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert all(layer._compiled_call_impl is None for layer in layers_of(data.model))


@pytest.mark.usefixtures("traced_only")
@pytest.mark.filterwarnings("ignore")  # the tracer's own
def test_held_out_rows_are_measured_by_uncompiled_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerating, "WORTH_COMPILING", 0.0)
    data, history, stopping = t5(), History(), StoppingConfig(by="distillation_loss")
    schedule, training = one_batch(data), TrainingConfig(batch_tokens=1_000_000, stopping=stopping)
    with acceleration(data.model, [data], schedule, GPU) as compiled:
        loss = computed(data)["loss"]
        traced = dict(torch._dynamo.utils.counters["stats"])
        early_stopping = EarlyStopping(data, training, schedule, data.model, {}, compiled)
        assert not early_stopping.ends(1, history, Device("cpu", "fp32", 1), 1)
        assert torch._dynamo.utils.counters["stats"] == traced
    assert history.held_out_losses == [pytest.approx(float(loss) / data.units(ROWS), rel=1e-4)]


def test_a_short_training_is_not_compiled_and_a_cpus_is_left_alone() -> None:
    data = t5()
    with acceleration(data.model, [data], one_batch(data), GPU) as compiled:
        assert compiled is None
    assert data.kernels, "its loss is computed with the output layer"
    data = t5()
    with acceleration(data.model, [data], one_batch(data), Device("cpu", "bf16", 1)) as compiled:
        assert compiled is None
    assert not data.kernels
    assert not any("forward" in vars(module) for module in data.model.modules())


def test_a_model_with_dropout_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerating, "WORTH_COMPILING", 0.0)
    data = t5(dropout=0.1)
    with acceleration(data.model, [data], one_batch(data), GPU) as compiled:
        assert compiled is None


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_is_seen_where_a_model_calls_the_function(dropout: float) -> None:
    sizes = {
        f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    model = BartForConditionalGeneration(BartConfig(vocab_size=50, d_model=8, dropout=dropout, **sizes))
    assert drops(model) == (dropout > 0)


def test_operations_are_counted_from_the_first_batches() -> None:
    data = t5()
    weights = sum(parameter.numel() for parameter in data.model.parameters())
    _, tokens = data.tokens(ROWS)
    assert operations(data.model, data, one_batch(data, epochs=100)) == 6.0 * weights * tokens * 100


def test_layers_that_fail_are_launched_uncompiled_and_it_is_told_once() -> None:
    data = t5()
    expected = data.loss(ROWS).item() / data.units(ROWS)
    compiled = CompiledLayers(data.model, [])

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand many lines more")

    for layer in layers_of(data.model):
        layer._compiled_call_impl = fails
    trained = dict(data.model.named_parameters())
    optimizer = PlainAdamW(trained, TrainingConfig(epochs=1))
    gradients = Gradients(data, optimizer, Device("cpu", "fp32", 1), 1, compiled)
    with pytest.warns(UserWarning, match=r"without compiled layers.*no compiler$") as told:
        assert float(gradients.add(ROWS)) == pytest.approx(expected, rel=1e-5)
    gradients.add(ROWS)
    assert len(told) == 1
