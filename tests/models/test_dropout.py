"""Dropout from packed random bits: rate, scale, reproducibility, gradients."""

from __future__ import annotations

import pytest
import torch

from kdpipe.models.dropout import add_dropped, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_mean(rate: float) -> None:
    torch.manual_seed(0)
    output = dropout(torch.ones(200_003), rate, True)
    assert abs(float((output == 0).float().mean()) - rate) < 0.005
    assert abs(float(output.mean()) - 1.0) < 0.02
    assert len(set(output.tolist())) == 2


def test_evaluation_and_zero_rate_change_nothing() -> None:
    inputs = torch.randn(3, 5)
    assert dropout(inputs, 0.5, False) is inputs
    assert dropout(inputs, 0.0, True) is inputs
    assert torch.equal(add_dropped(inputs, inputs, 0.5, False, 0.5), 1.5 * inputs)


def test_follows_torch_seed_and_state() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = dropout(torch.ones(999), 0.3, True)
    torch.set_rng_state(state)
    assert torch.equal(first, dropout(torch.ones(999), 0.3, True))
    assert not torch.equal(first, dropout(torch.ones(999), 0.3, True))


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(400_000), 0.5, True).view(-1, 4).eq(0).float()
    assert torch.allclose(torch.corrcoef(dropped.T), torch.eye(4), atol=0.02)


def test_gradient_is_the_mask() -> None:
    torch.manual_seed(1)
    inputs = torch.ones(50, requires_grad=True)
    output = dropout(inputs, 0.4, True)
    torch.autograd.backward(output.sum())
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, output.detach())


def test_residual_form_adds_the_scaled_branch() -> None:
    torch.manual_seed(2)
    added = add_dropped(torch.zeros(1000), torch.ones(1000), 0.25, True, 0.5)
    assert sorted(set(added.tolist())) == pytest.approx([0.0, 0.5 / 0.75])
