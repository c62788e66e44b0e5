"""The optimizer over flat buffers, with fp32 masters, is plain AdamW up to what bf16 rounds away."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from retort.config import StoppingConfig, TrainingConfig
from retort.models.device import Device
from retort.store import Store
from retort.students import accumulation
from retort.students import training as trainings
from retort.students.accumulation import Gradients
from retort.students.checkpoints import StoredCheckpoint
from retort.students.generative_data import Pair, Seq2SeqTrainingData, TrainingPairs
from retort.students.optimizer import FlatAdamW, Optimizer, Parameters, PlainAdamW

TRAINING = TrainingConfig(epochs=1, learning_rate=3e-3, batch_tokens=512, weight_decay=0.1)
CPU = Device("cpu", "fp32", 1)
RATE = 3e-3


def new_data() -> Seq2SeqTrainingData:
    torch.manual_seed(0)
    config = T5Config(vocab_size=200, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, dropout_rate=0.0)
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 20, size=(24, 2))
    pairs = TrainingPairs(
        Pair(generator.integers(4, 190, size=s), generator.integers(4, 190, size=t)) for s, t in sizes
    )
    return Seq2SeqTrainingData(T5ForConditionalGeneration(config), pairs, pad=0, start=0, columns=slice(None))


def trained(data: Seq2SeqTrainingData) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in data.model.named_parameters() if parameter.requires_grad}


def flat(data: Seq2SeqTrainingData, dtype: torch.dtype) -> FlatAdamW:
    return FlatAdamW(data.model, trained(data), TRAINING, dtype)


def steps(data: Seq2SeqTrainingData, optimizer: Optimizer, number: int, parts: int = 1) -> list[float]:
    gradients, losses = Gradients(data, optimizer, CPU, parts), []
    for _ in range(number):
        losses.append(float(gradients.add(np.arange(24))))
        optimizer.step(RATE)
    return losses


@pytest.mark.parametrize("parts", [1, 3])
def test_flat_fp32_is_torchs_adamw_with_clipped_gradients(parts: int) -> None:
    plain, other = new_data(), new_data()
    ours = flat(other, torch.float32)
    assert steps(other, ours, 12, parts) == pytest.approx(steps(plain, PlainAdamW(trained(plain), TRAINING), 12), 1e-5)
    ours.close()
    torch.testing.assert_close(dict(other.model.state_dict()), dict(plain.model.state_dict()), rtol=1e-3, atol=1e-4)


def test_a_process_without_a_row_of_a_batch_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = new_data()
    optimizer = flat(data, torch.bfloat16)
    gradients = Gradients(data, optimizer, CPU, 1)
    gradients.add(np.arange(24))
    assert optimizer.gradients[0].any()
    optimizer.step(RATE)
    monkeypatch.setattr(accumulation, "share_of", lambda rows: rows[:0])
    assert gradients.add(np.arange(24)) == 0
    assert not optimizer.gradients[0].any(), "not those of the step before"


@pytest.mark.parametrize("parts", [1, 3])
def test_bf16_weights_with_fp32_masters_follow_fp32(parts: int) -> None:
    """Within 3 % at each of 40 steps, in which the loss falls to less than half."""
    plain, other = new_data(), new_data()
    expected = steps(plain, PlainAdamW(trained(plain), TRAINING), 40)
    assert expected[-1] < expected[0] / 2
    found = steps(other, flat(other, torch.bfloat16), 40, parts)
    assert found == pytest.approx(expected, rel=0.03)


def test_updates_too_small_for_bf16_add_up_in_the_masters() -> None:
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(weight.weight)
    optimizer = FlatAdamW(weight, dict(weight.named_parameters()), TRAINING, torch.bfloat16)
    for _ in range(100):
        weight.weight.grad.fill_(1.0)
        optimizer.collect()
        optimizer.step(1e-4)
    # Each step is a thirtieth of what bf16 can tell from 1.
    assert float(optimizer.weights["weight"]) == pytest.approx(0.99 - 100 * 1e-4 * 0.1, abs=1e-4)
    assert weight.weight.item() == pytest.approx(0.99, abs=4e-3)
    assert weight.weight.dtype == torch.bfloat16


def test_closing_gives_fp32_weights_back_and_frozen_ones_unchanged(tmp_path: Path) -> None:
    data = new_data()
    data.model.shared.weight.requires_grad_(False)
    table = data.model.shared.weight.detach().clone()
    optimizer = flat(data, torch.bfloat16)
    assert {parameter.dtype for parameter in data.model.parameters()} == {torch.bfloat16}
    steps(data, optimizer, 2)
    masters = {name: weight.clone() for name, weight in optimizer.weights.items()}
    optimizer.close()
    assert torch.equal(data.model.shared.weight, table)
    assert all(torch.equal(data.model.get_parameter(name), weight) for name, weight in masters.items())
    assert {parameter.dtype for parameter in data.model.parameters()} == {torch.float32}
    data.model.save_pretrained(tmp_path)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(dict(again.state_dict()), dict(data.model.state_dict()), rtol=0, atol=0)


def saved(optimizer: Optimizer, path: Path) -> dict[str, Tensor]:
    weights = {f"weight.{name}": weight.contiguous() for name, weight in optimizer.weights.items()}
    save_file({**weights, **optimizer.state()}, path)
    return load_file(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_holds_the_masters_and_goes_on_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    whole, begun, resumed = new_data(), new_data(), new_data()
    steps(whole, straight := flat(whole, dtype), 6)
    steps(begun, first := flat(begun, dtype), 3)
    state = saved(first, tmp_path / "state.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    second = flat(resumed, dtype)
    second.restore(state)
    steps(resumed, second, 3)
    for name, weight in straight.weights.items():
        assert torch.equal(second.weights[name], weight), name


class Evicted(Exception):
    """A worker is gone."""


def test_a_training_with_masters_is_resumed_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TRAINING.model_copy(
        update={"epochs": 8, "batch_tokens": 256, "stopping": StoppingConfig(by="distillation_loss", patience=100)}
    )

    def on_a_gpu(
        model: torch.nn.Module, trained: Parameters, training: TrainingConfig, device: Device, *_: object
    ) -> FlatAdamW:
        return FlatAdamW(model, trained, training, torch.bfloat16)

    def evict(done: int, total: int, note: str) -> None:
        if done == total * 2 // 3:
            raise Evicted

    monkeypatch.setattr(trainings, "_optimizer", on_a_gpu)
    rate = settings.learning_rate
    monkeypatch.setattr(trainings, "_learning_rates", lambda *_: lambda step: rate if step <= 20 else 30 * rate)
    whole, held_out = new_data(), new_data()
    held_out.model = whole.model
    history = trainings.fit(whole.model, whole, settings, seed=0, device=CPU, held_out=held_out)
    assert history.kept_step < history.steps[-1], "rates that high spoil the last epochs"
    checkpoint = StoredCheckpoint(Store(str(tmp_path)), "k" * 64, seconds_between=0)
    begun = new_data()
    held_out.model = begun.model
    options = {"checkpoint": checkpoint, "held_out": held_out}
    with pytest.raises(Evicted):
        trainings.fit(begun.model, begun, settings, seed=0, device=CPU, progress=evict, **options)
    assert checkpoint.load() is not None
    resumed = new_data()
    held_out.model = resumed.model
    again = trainings.fit(resumed.model, resumed, settings, seed=0, device=CPU, **options)
    assert again.held_out_losses == history.held_out_losses
    torch.testing.assert_close(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
    with torch.no_grad():
        loss = float(resumed.model.eval() and held_out.loss(np.arange(24))) / held_out.units(np.arange(24))
    assert loss == pytest.approx(min(history.held_out_losses), rel=1e-2), "fp32 weights that were held as bf16"


def test_the_state_has_the_form_of_the_plain_one(tmp_path: Path) -> None:
    """So a checkpoint of a GPU is read whatever the version that wrote it."""
    plain, other = new_data(), new_data()
    steps(plain, one := PlainAdamW(trained(plain), TRAINING), 3)
    steps(other, flat_one := flat(other, torch.float32), 3)
    state = flat_one.state()
    assert state.keys() == one.state().keys()
    for name, tensor in one.state().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_model_that_mixes_precisions_is_cast_instead() -> None:
    data = new_data()
    norm = data.model.encoder.final_layer_norm
    inside = norm.forward
    norm.forward = lambda states: inside(states).float()
    optimizer = flat(data, torch.bfloat16)
    gradients = Gradients(data, optimizer, Device("cpu", "bf16", 1), 1)
    with pytest.warns(UserWarning, match="without bf16 throughout"):
        loss = float(gradients.add(np.arange(24)))
    assert math.isfinite(loss)
    assert gradients.device.precision == "bf16"
