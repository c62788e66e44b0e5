"""What a GPU records is what it would launch. Recording needs a GPU; what surrounds it is tested anywhere."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForTokenClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from retort.config import TrainingConfig
from retort.models.device import Device
from retort.students.acceleration import use_fused_norms
from retort.students.encoder import EncodedRow, Encoder
from retort.students.generative_data import CausalTrainingData, Pair, Seq2SeqTrainingData, TrainingPairs
from retort.students.training import TrainingRows, UnitTrainingData, fit
from retort.students.training_data import PaddedTrainingData

ALL = slice(None)
ROWS = np.arange(48)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU")
TRAINING = TrainingConfig(epochs=4, batch_tokens=512, learning_rate=1e-3)


@dataclass(frozen=True)
class PadsWithZero:
    """What data need of a tokenizer."""

    pad_token_id: int = 0


def pairs() -> TrainingPairs:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 40, size=(48, 2))
    return TrainingPairs(Pair(generator.integers(4, 190, size=s), generator.integers(4, 190, size=t)) for s, t in sizes)


def t5(dropout: float) -> PaddedTrainingData:
    config = T5Config(vocab_size=200, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, dropout_rate=dropout)
    return Seq2SeqTrainingData(new(T5ForConditionalGeneration, config), pairs(), pad=0, start=0, columns=ALL)


def bart(dropout: float) -> PaddedTrainingData:
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    widths = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 200, "d_model": 32}
    config = BartConfig(**sizes, **widths, dropout=dropout, attention_dropout=0.0)
    return Seq2SeqTrainingData(new(BartForConditionalGeneration, config), pairs(), pad=0, start=0, columns=ALL)


def causal(dropout: float) -> PaddedTrainingData:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=200, hidden_size=32, intermediate_size=64, attention_dropout=dropout, **sizes)
    return CausalTrainingData(new(Qwen2ForCausalLM, config), pairs(), pad=0, columns=ALL, packs=True)


def tagger(dropout: float) -> PaddedTrainingData:
    sizes = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 7}
    config = BertConfig(
        intermediate_size=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        **sizes,
    )
    generator = np.random.default_rng(1)
    positions = [np.arange(0, len(pair.source), 2, dtype=np.int32) for pair in pairs()]
    rows = [EncodedRow(pair.source.astype(np.int32), own) for pair, own in zip(pairs(), positions, strict=True)]
    encoder = Encoder(new(BertForTokenClassification, config), PadsWithZero(), "token-classification", 64)
    return UnitTrainingData(encoder, TrainingRows(rows, [generator.integers(0, 7, len(own)) for own in positions]))


def new(architecture: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return architecture(config)


KINDS = pytest.mark.parametrize("make", [t5, bart, causal, tagger])
Make = Callable[[float], PaddedTrainingData]


@KINDS
def test_padding_to_a_multiple_changes_no_loss(make: Make) -> None:
    data = make(0.0)
    inputs = data.inputs(ROWS, 8)
    assert all(tensor.shape[1] % 8 == 0 for tensor in inputs.values())
    torch.testing.assert_close(data.objective(inputs), data.loss(ROWS), rtol=1e-5, atol=1e-3)


def test_a_fused_norm_is_the_norm() -> None:
    data = t5(0.0)
    expected = data.loss(ROWS)
    use_fused_norms(data.model)
    torch.testing.assert_close(data.loss(ROWS), expected)


def trained(data: PaddedTrainingData, precision: str) -> tuple[list[float], dict[str, Tensor]]:
    device = Device("cuda", precision, 1)
    history = fit(data.model, data, TRAINING, seed=0, device=device)
    return history.losses, {name: weight.detach().cpu() for name, weight in data.model.named_parameters()}


@GPU
@KINDS
def test_recorded_passes_train_as_launched_ones(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, weights = trained(make(0.0), "fp32")
    monkeypatch.setattr(PaddedTrainingData, "is_recordable", False)
    monkeypatch.setattr(Seq2SeqTrainingData, "is_recordable", False)
    monkeypatch.setattr(CausalTrainingData, "is_recordable", False)
    launched_losses, launched = trained(make(0.0), "fp32")
    assert losses == pytest.approx(launched_losses, rel=1e-4)
    # A key's bias moves all scores of a query alike, so its gradient is what rounding leaves, and Adam scales it up.
    weights, launched = ({n: w for n, w in own.items() if not n.endswith("key.bias")} for own in (weights, launched))
    torch.testing.assert_close(weights, launched, rtol=1e-3, atol=1e-4)


@GPU
@KINDS
def test_recorded_training_twice_gives_the_same_weights(make: Make) -> None:
    """With dropout, whose random numbers a replay draws anew."""
    one, other = trained(make(0.1), "bf16"), trained(make(0.1), "bf16")
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)
    assert len(set(one[0])) > 1


@GPU
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_model_that_cannot_be_recorded_trains_all_the_same(dropout: float) -> None:
    data = t5(dropout)
    forward = data.model.forward

    def asks(*args: object, **options: object) -> object:
        output = forward(*args, **options)
        float(output.logits.detach().sum())
        return output

    data.model.forward = asks
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        losses, _ = trained(data, "fp32")
    # With dropout, a failed recording has drawn random numbers.
    assert losses == pytest.approx(trained(t5(dropout), "fp32")[0], rel=0.2 if dropout else 1e-4)
