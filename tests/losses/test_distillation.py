"""Scales, weights and the total."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdpipe.losses import TERMS, DistillationWeights, UtteranceLoss, combine, reduce_terms


def scalars(*names: str) -> dict[str, Tensor]:
    return {name: torch.tensor(float(i + 1)) for i, name in enumerate(names)}


def test_scales_are_means_per_unit_and_sums_per_utterance() -> None:
    term = UtteranceLoss(torch.tensor([6.0, 4.0]), torch.tensor([3.0, 1.0]))
    assert float(reduce_terms({"ctc": term}, "unit")["ctc"]) == pytest.approx((2 + 4) / 2)
    assert float(reduce_terms({"ctc": term}, "paper")["ctc"]) == pytest.approx((6 + 4) / 2)


def test_an_utterance_without_units_counts_as_zero() -> None:
    term = UtteranceLoss(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 0.0]))
    assert float(reduce_terms({"ctc": term}, "unit")["ctc"]) == pytest.approx(1.0)


def test_total_is_equation_thirteen() -> None:
    names = [name for name in TERMS if name != "attention"]
    terms = scalars(*names)
    weights = DistillationWeights(
        alpha=0.3, beta_frame=1.0, beta_sequence=2.0, gamma_encoder=0.5, gamma_decoder=0.25
    )
    ctc, mlm, enc_f, enc_s, dec_f, dec_s = (float(terms[name]) for name in names)
    expected = 0.3 * ctc + 0.7 * mlm + 0.5 * (enc_f + 2 * enc_s) + 0.25 * (dec_f + 2 * dec_s)
    combined = combine(terms, weights)
    assert float(combined["total"]) == pytest.approx(expected)
    assert {name: combined[name] for name in terms} == terms


def test_without_distillation_the_total_is_the_joint_loss() -> None:
    combined = combine(scalars("ctc", "attention"), DistillationWeights(alpha=0.3))
    assert float(combined["total"]) == pytest.approx(0.3 * 1 + 0.7 * 2)


def test_a_term_without_weight_is_logged_and_has_no_gradient() -> None:
    terms = scalars("ctc", "mlm", "encoder_frame")
    terms["encoder_frame"].requires_grad_()
    combined = combine(terms, DistillationWeights())
    assert not combined["total"].requires_grad
    assert "encoder_frame" in combined


@pytest.mark.parametrize(
    "names",
    [("mlm",), ("ctc",), ("ctc", "mlm", "attention"), ("ctc", "mlm", "typo"), ("ctc", "mlm")],
)
def test_missing_and_unknown_terms_are_refused(names: tuple[str, ...]) -> None:
    weights = DistillationWeights(beta_frame=1.0, gamma_encoder=0.5)
    with pytest.raises(KeyError, match="missing"):
        combine(scalars(*names), weights)


def test_needed_terms_follow_the_weights() -> None:
    first = DistillationWeights(beta_frame=1.0, gamma_encoder=0.5, gamma_decoder=0.3)
    assert first.needed == {"encoder_frame", "decoder_frame"}
    assert DistillationWeights().needed == frozenset()
