"""The loss computed together with the output layer is the loss of the logits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from retort.models.device import Device
from retort.students import head as heads
from retort.students.generative_data import CausalTrainingData, Pair, TrainingPairs, at_places, starts_of
from retort.students.head import TokenLoss, head_cross_entropy, head_of
from retort.students.losses import cross_entropy

GPU = Device("cuda", "fp32", 1)
"""The model stays where it is."""


def tensors(bias: bool) -> tuple[Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(40, 8, requires_grad=True), torch.nn.Linear(8, 30, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("columns", [slice(None), slice(10, 25)])
@pytest.mark.parametrize("chunk", [2**27, 100])
def test_loss_and_gradients_are_those_of_the_logits(
    bias: bool, columns: slice, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "CHUNK_VALUES", chunk)
    hidden, head = tensors(bias)
    places = torch.randperm(40)[:21]
    targets, weights = torch.randint(0, 15, (21,)), torch.rand(21)
    expected = (cross_entropy(head(hidden)[:, columns][places], targets) * weights).sum()
    wanted = torch.autograd.grad(expected / 7, [hidden, *head.parameters()])
    filled = (torch.nn.functional.pad(own, (0, 3)) for own in (targets, weights))
    places = torch.nn.functional.pad(places, (0, 3), value=40)
    loss = head_cross_entropy(hidden, head, columns, *filled, places, TokenLoss())
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss / 7, [hidden, *head.parameters()]), wanted)
    with torch.no_grad():
        filled = (torch.nn.functional.pad(own, (0, 3)) for own in (targets, weights))
        torch.testing.assert_close(head_cross_entropy(hidden, head, columns, *filled, places, TokenLoss()), loss)


def qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=200, hidden_size=32, intermediate_size=64, **sizes))


@pytest.mark.parametrize("weigh", [False, True])
def test_a_causal_students_loss_with_its_head(weigh: bool) -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 40, size=(48, 2))
    pairs = [
        Pair(generator.integers(4, 190, size=s), generator.integers(4, 190, size=t), weight=1 + weigh * number / 9)
        for number, (s, t) in enumerate(sizes)
    ]
    data = CausalTrainingData(qwen(), TrainingPairs(pairs), pad=0, columns=slice(0, 195), packs=True)
    expected = data.loss(np.arange(48))
    expected.backward()
    wanted = {name: weight.grad.clone() for name, weight in data.model.named_parameters()}
    data.model.zero_grad()
    data.prepare(GPU)
    assert data.kernels, "the head was found"
    inputs = data.inputs(np.arange(48), 8)
    assert inputs["targets"].shape == inputs["places"].shape
    assert inputs["targets"].numel() < 0.8 * inputs["ids"].numel()
    loss = data.objective(inputs)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    found = {name: weight.grad for name, weight in data.model.named_parameters()}
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # sums of some hundred tokens' gradients


def test_logits_that_are_not_just_the_heads_are_left_alone() -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    bart = BartForConditionalGeneration(
        BartConfig(**sizes, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=200, d_model=32)
    )
    ids = torch.arange(4)[None]
    assert head_of(bart, lambda: bart(input_ids=ids, decoder_input_ids=ids).logits) is None
    model = qwen()
    assert head_of(model, lambda: model(input_ids=ids).logits) is model.lm_head
    assert head_of(model, lambda: model(input_ids=ids).logits.tanh()) is None
    assert "forward" not in vars(model.lm_head), "nothing is left behind"


def test_places_are_rounded_up_so_that_shapes_recur() -> None:
    targets = torch.full((2, 64), -100)
    targets[0, 5:20] = torch.arange(15)
    targets[1, 0] = 7
    found = at_places({"targets": targets})
    assert found["places"].tolist() == [[*range(5, 20), 64]]
    assert found["targets"].tolist() == [[*range(15), 7]]
    targets[1, 1] = 8
    found = at_places({"targets": targets})
    assert found["places"].shape == (1, 24)
    assert found["places"][0, 17:].unique().tolist() == [128]
    assert found["weights"].sum() == 17


def test_starts_of_packed_rows_count_the_padding_as_a_row() -> None:
    starts = starts_of([[3, 4], [8]], 8)
    assert starts.dtype == torch.int32
    assert starts.shape == (1, 64)
    assert starts[0, :6].tolist() == [0, 3, 7, 8, 16, 16]
    assert starts[0, 6:].unique().tolist() == [16]


def attends_apart(query: Tensor, key: Tensor, value: Tensor, starts: list[int], window: int | None) -> Tensor:
    """Row by row; a position sees `window` positions, itself the last."""
    parts = []
    for row in (slice(start, end) for start, end in pairwise(starts)):
        seen = torch.ones(row.stop - row.start, row.stop - row.start, dtype=torch.bool, device=query.device).tril()
        mask = seen if window is None else seen.triu(1 - window)
        own = (part[:, :, row] for part in (query, key, value))
        parts.append(torch.nn.functional.scaled_dot_product_attention(*own, attn_mask=mask, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")
@pytest.mark.parametrize("window", [None, 8])
def test_packed_rows_attend_within_themselves_and_so_do_their_gradients(window: int | None) -> None:
    from retort.students.attention import packed_attention

    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, 48, 64, device="cuda").bfloat16().requires_grad_() for heads in (4, 2, 2)]
    exact = [part.detach().float().requires_grad_() for part in inputs]
    starts = torch.tensor([0, 5, 40, 48, 48], dtype=torch.int32, device="cuda")
    options = {"scaling": 64**-0.5, "cu_seq_lens_q": starts, "max_length_q": 48, "sliding_window": window}
    found, _ = packed_attention(torch.nn.Identity(), *inputs, None, **options)
    expected = attends_apart(*exact, [0, 5, 40, 48], window)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((found.float() * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), exact)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.float(), other, rtol=5e-2, atol=5e-2)
