"""First weights: what went wrong with the usual ones stays mended."""

from __future__ import annotations

import torch

from kdpipe.models import ModelConfig, build_model

CONFIG = ModelConfig(
    kind="mask-ctc", vocab_size=20, dim=32, heads=2, inner=64, encoder_layers=2, decoder_layers=2,
    kernel=7,
)  # fmt: skip


def test_masked_frames_do_not_explode_the_first_gradient() -> None:
    """SpecAugment's fill is 0: whole stretches of zeros enter the first LayerNorm."""
    torch.manual_seed(0)
    model = build_model(CONFIG)
    features = torch.randn(2, 120, 80)
    features[:, 30:90] = 0.0
    hidden, _ = model.encode(features, torch.tensor([120, 120]))
    loss = -model.ctc_log_probs(hidden)[..., 0].mean()
    torch.autograd.backward(loss)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    assert norm < 100.0


def test_tokens_weigh_as_much_as_their_positions() -> None:
    torch.manual_seed(0)
    model = build_model(CONFIG)
    embedding = model.decoder.embed[0]
    assert isinstance(embedding, torch.nn.Embedding)
    scaled = embedding.weight * CONFIG.dim**0.5
    # Sinusoids have a mean square of 1/2.
    assert 0.5 < float(scaled.detach().std()) < 2.0
