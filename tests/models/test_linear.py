"""Matrix products and their gradients against PyTorch's, on both paths."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.models import linear as module
from kdpipe.models.derived import DerivedWeights, packed_linear
from kdpipe.models.linear import linear


@pytest.fixture(params=[True, False], ids=["oneDNN", "fallback"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(module, "SMALL_PRODUCT", 1)
    if not request.param:
        monkeypatch.setattr(module, "_works", lambda: False)
    return bool(request.param)


def gradients(function: object, *tensors: Tensor) -> list[Tensor]:
    assert callable(function)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    (output * torch.arange(1.0, output.numel() + 1).view_as(output)).sum().backward()
    return [output, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 5), (0, 5)])
@pytest.mark.parametrize("outputs", [3, 9])
def test_matches_pytorch(path: bool, shape: tuple[int, ...], outputs: int) -> None:
    torch.manual_seed(0)
    tensors = torch.randn(shape), torch.randn(outputs, 5), torch.randn(outputs)
    for found, expected in zip(
        gradients(linear, *tensors), gradients(F.linear, *tensors), strict=True
    ):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(linear(*tensors), F.linear(*tensors), atol=1e-5)


def test_no_bias_and_strided_inputs(path: bool) -> None:
    inputs, weight = torch.randn(5, 4, 6).transpose(0, 1), torch.randn(6, 3).t()
    assert torch.allclose(linear(inputs, weight, None), F.linear(inputs, weight), atol=1e-5)


def test_packed_weights_give_the_same(path: bool) -> None:
    inputs, layer, kept = torch.randn(2, 4, 6), torch.nn.Linear(6, 9), DerivedWeights()
    with torch.inference_mode():
        for _ in range(2):
            expected = layer(inputs)
            assert torch.allclose(packed_linear(kept, layer, inputs), expected, atol=1e-5)
            layer.weight.mul_(2.0)
    assert torch.allclose(packed_linear(kept, layer, inputs), layer(inputs), atol=1e-5)


def test_what_is_kept_is_neither_copied_nor_pickled(path: bool) -> None:
    inputs, layer, kept = torch.randn(2, 4, 6), torch.nn.Linear(6, 9), DerivedWeights()
    with torch.inference_mode():
        expected = packed_linear(kept, layer, inputs)
        for copied in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
            assert torch.allclose(packed_linear(copied, layer, inputs), expected, atol=1e-5)


def test_other_types_fall_back() -> None:
    inputs, weight = torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(linear(inputs, weight, None), F.linear(inputs, weight))
