"""The encoder: padding, short inputs, BatchNorm over real frames, gradients, kept weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdpipe.models import RecognitionModel, linear, subsampled_lengths, subsampling
from kdpipe.models.encoder import ConformerLayer

TinyModel = Callable[..., RecognitionModel]

FAMILIES: list[dict[str, object]] = [
    {},
    {"positions": "relative-legacy"},
    {"positions": "absolute"},
    {"macaron": False},
    {"convolution": False},
    {"encoder": "transformer", "positions": "absolute", "activation": "relu"},
]


def batch_of(lengths: list[int], bands: int = 20) -> tuple[Tensor, Tensor]:
    torch.manual_seed(len(lengths))
    return torch.randn(len(lengths), max(lengths), bands), torch.tensor(lengths)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_utterance_alone_equals_itself_in_a_batch(
    tiny_model: TinyModel, family: dict[str, object]
) -> None:
    model = tiny_model(**family)
    features, lengths = batch_of([61, 7, 30, 8])
    features[1, 7:] = 1e4
    with torch.inference_mode():
        together = model.encode(features, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = model.encode(features[row : row + 1, :length], lengths[row : row + 1])
            frames = int(alone.lengths)
            assert together.lengths[row] == frames == subsampled_lengths(length)
            assert torch.allclose(together.hidden[row, :frames], alone.hidden[0], atol=1e-5)
            assert not together.hidden[row, frames:].any()


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4), extra=st.integers(0, 9))
def test_any_lengths_and_any_padding(tiny_model: TinyModel, lengths: list[int], extra: int) -> None:
    model = tiny_model()
    features = torch.randn(len(lengths), max(lengths) + extra, 20)
    with torch.inference_mode():
        together = model.encode(features, torch.tensor(lengths))
        assert together.hidden.isfinite().all()
        for row, length in enumerate(lengths):
            alone = model.encode(features[row : row + 1, :length], torch.tensor([length]))
            frames = subsampled_lengths(length)
            assert alone.hidden.shape[1] == frames
            assert torch.allclose(together.hidden[row, :frames], alone.hidden[0], atol=1e-4)


@pytest.mark.parametrize("frames", [0, 1, 6])
def test_too_short_inputs_give_an_empty_hidden(tiny_model: TinyModel, frames: int) -> None:
    model = tiny_model()
    encoded = model.encode(torch.randn(2, frames, 20), torch.tensor([frames, 0]))
    assert encoded.hidden.shape == (2, 0, 16)
    assert encoded.lengths.tolist() == [0, 0]
    assert model.ctc_log_probs(encoded.hidden).shape == (2, 0, 11)


def test_empty_utterance_in_a_training_batch_gives_finite_gradients(
    tiny_model: TinyModel,
) -> None:
    model = tiny_model().train()
    features, lengths = batch_of([40, 3, 8])
    torch.autograd.backward(model.encode(features, lengths).hidden.square().sum())
    gradients = [p.grad for n, p in model.named_parameters() if n.startswith("encoder")]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_batch_norm_counts_real_frames_alone(tiny_model: TinyModel) -> None:
    """Two equal utterances, one padded to the other's length or not: the same statistics."""
    model = tiny_model(dropout=0.0, positional_dropout=0.0).train()
    features, _ = batch_of([31])
    longer = torch.cat([features, torch.randn(1, 20, 20)], 1)
    padded, bare = copy.deepcopy(model), copy.deepcopy(model)
    one = padded.encode(longer, torch.tensor([31]))
    other = bare.encode(features, torch.tensor([31]))
    frames = subsampled_lengths(31)
    assert torch.allclose(one.hidden[:, :frames], other.hidden, atol=1e-5)
    for name, buffer in padded.named_buffers():
        assert torch.allclose(buffer, dict(bare.named_buffers())[name], atol=1e-6), name
    for total in (one.hidden.sum(), other.hidden.sum()):
        torch.autograd.backward(total)
    for name, parameter in padded.encoder.named_parameters():
        expected = dict(bare.encoder.named_parameters())[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert torch.allclose(parameter.grad, expected, atol=1e-4), name


def test_evaluation_folds_batch_norm_exactly(tiny_model: TinyModel) -> None:
    model = tiny_model()
    layer = model.encoder.encoders[0]
    assert isinstance(layer, ConformerLayer)
    module = layer.conv_module
    features = torch.randn(2, 13, 16)
    with torch.no_grad():
        found = module(features, None)
        expanded = module.pointwise_conv1(features.transpose(1, 2))
        mixed = module.depthwise_conv(torch.nn.functional.glu(expanded, 1))
        active = torch.nn.functional.silu(module.norm(mixed))
        expected = module.pointwise_conv2(active).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-6)


def test_gradients_reach_every_parameter(tiny_model: TinyModel) -> None:
    model = tiny_model(dropout=0.1).train()
    encoded = model.encode(*batch_of([50, 33]))
    tokens = torch.randint(0, 11, (2, 6))
    logits = model.decoder_logits(encoded, tokens, torch.tensor([6, 4]))
    loss = logits.logsumexp(2).sum() + model.ctc_log_probs(encoded.hidden)[..., 0].sum()
    torch.autograd.backward(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or "linear_k.bias" in name, name


@pytest.mark.parametrize("smallest", [1, 10**9])
def test_training_and_inference_paths_agree(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, smallest: int
) -> None:
    monkeypatch.setattr(linear, "SMALL_PRODUCT", smallest)
    model = tiny_model()
    features, lengths = batch_of([50, 33])
    with_gradient = model.encode(features, lengths).hidden
    with torch.inference_mode():
        without = model.encode(features, lengths).hidden
    assert torch.allclose(with_gradient, without, atol=1e-5)


@pytest.mark.parametrize("change", ["optimiser", "load", "norm", "in place"])
def test_kept_weights_follow_the_parameters(tiny_model: TinyModel, change: str) -> None:
    model = tiny_model()
    features, lengths = batch_of([50, 33])
    with torch.inference_mode():
        model.encode(features, lengths)
    if change == "optimiser":
        optimiser = torch.optim.Adam(model.parameters(), 0.1, fused=True)
        torch.autograd.backward(model.encode(features, lengths).hidden.sum())
        optimiser.step()
    elif change == "load":
        model.load_state_dict(tiny_model(seed=5).state_dict())
    elif change == "norm":
        model.train().encode(features, lengths)
        model.eval()
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    fresh = tiny_model(seed=9)
    fresh.load_state_dict(model.state_dict())
    with torch.inference_mode():
        found, expected = model.encode(features, lengths), fresh.encode(features, lengths)
    assert torch.allclose(found.hidden, expected.hidden, atol=1e-6)


def test_bfloat16_autocast_stays_close(tiny_model: TinyModel) -> None:
    model = tiny_model()
    features, lengths = batch_of([50, 33])
    exact = model.ctc_log_probs(model.encode(features, lengths).hidden)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encode(features, lengths)
        rough = model.ctc_log_probs(encoded.hidden)
        model.decoder_logits(encoded, torch.ones(2, 3, dtype=torch.long), torch.tensor([3, 2]))
    assert rough.dtype == torch.float32
    assert torch.allclose(exact, rough, atol=0.15)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.backward(model.encode(features, lengths).hidden.float().sum())


@pytest.mark.parametrize("frames", [1, 4, 15])
def test_pieces_of_a_long_input_fit_together(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    model = tiny_model()
    features, lengths = batch_of([61, 30])
    with torch.inference_mode():
        whole = model.encode(features, lengths).hidden
        monkeypatch.setattr(subsampling, "FRAMES_AT_ONCE", 2 * frames)
        pieces = model.encode(features, lengths).hidden
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_subsampling_and_its_gradients_match_pytorch(tiny_model: TinyModel) -> None:
    module = tiny_model().encoder.embed
    features = torch.randn(3, 33, 20)
    results = []
    for plain in (False, True):
        module.zero_grad()
        inputs = features.clone().requires_grad_()
        if plain:
            maps = module.conv(inputs.unsqueeze(1))
            output = module.out(maps.transpose(1, 2).flatten(2))
        else:
            output = module(inputs)
        torch.autograd.backward(output.square().sum())
        gradients = [parameter.grad for parameter in module.parameters()]
        results.append([output.detach(), inputs.grad, *gradients])
    for found, expected in zip(*results, strict=True):
        assert found is not None
        assert expected is not None
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
