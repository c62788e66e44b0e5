"""`retort.students.interpolation`."""

import pytest
import torch

from retort.students.interpolation import interpolated


@pytest.mark.parametrize(("share", "expected"), [(1.0, 5.0), (0.75, 4.0), (0.5, 3.0)])
def test_weights_end_between_those_before_and_after(share: float, expected: float) -> None:
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    torch.nn.init.constant_(model.weight, 1.0)
    torch.nn.init.constant_(model.bias, 1.0)
    with interpolated(model, share):
        torch.nn.init.constant_(model.weight, 5.0)
        torch.nn.init.constant_(model.bias, 5.0)
    assert model.weight.tolist() == [[expected, expected]]
    assert model.bias.tolist() == [5.0], "what is not trained is left as it is"
    assert model.weight.requires_grad
