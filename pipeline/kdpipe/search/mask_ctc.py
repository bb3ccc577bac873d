"""Mask-CTC decoding: greedy CTC whose doubtful tokens a bidirectional decoder fills anew.

The tokens whose confidence is below a threshold are masked; the decoder fills K masks an
iteration (Eq. 5 and Sec. 2.2 of the paper), easy first or by beam search (Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdpipe.models import Encoded, MaskedDecoder, RecognitionModel
from kdpipe.search.ctc_greedy import GreedyHypothesis, ctc_greedy
from kdpipe.search.ctc_prefix import LOG_ZERO
from kdpipe.search.ctc_score import ctc_sequence_scores
from kdpipe.search.filling import Partial, fill_masks
from kdpipe.search.inputs import checked_lengths, masked_decoder, select_encoded
from kdpipe.search.settings import MaskCtcSettings, group_by_memory

__all__ = ["NarHypothesis", "mask_ctc_search"]


@dataclass(frozen=True, slots=True)
class NarHypothesis:
    """A completed Mask-CTC hypothesis; log-probabilities in nats.

    `decoder` is the sum of the filled tokens' log-posteriors (0 when nothing was masked);
    `score` is that plus the weighted CTC log-probability `ctc`, which is None unless the
    search was asked to rescore.
    """

    tokens: tuple[int, ...]
    score: float
    decoder: float
    ctc: float | None


@torch.inference_mode()
def mask_ctc_search(
    model: RecognitionModel,
    encoded: Encoded,
    *,
    beam: int = 1,
    tokens_per_iteration: int = 2,
    mask_threshold: float = 0.99,
    nbest: int = 1,
    ctc_rescoring_weight: float = 0.0,
) -> list[list[NarHypothesis]]:
    """Up to `nbest` hypotheses of every utterance, best first.

    `beam` is B, `tokens_per_iteration` K (the last iteration fills what is left, K when K
    divides the number of masks), `mask_threshold` p_thr: tokens less confident are masked.
    B = 1 is easy-first filling. Mask, blank, unk and sos/eos are never filled in. With a
    `ctc_rescoring_weight` the final beam is ranked by log-posterior plus that weight times
    the CTC log-probability. An utterance of no tokens has one empty hypothesis of score 0.
    A batch gives what each utterance gives alone.

    Raises ConfigError for settings out of range, UtteranceTooLongError beyond `MAX_FRAMES`,
    MismatchError for a model that is no Mask-CTC model or in training mode, DataError for
    frames that are not finite.
    """
    settings = MaskCtcSettings(
        beam, tokens_per_iteration, mask_threshold, nbest, ctc_rescoring_weight
    )
    decoder = masked_decoder(model)
    lengths = checked_lengths(encoded)
    results = [[NarHypothesis((), 0.0, 0.0, None)] for _ in lengths]
    for group in group_by_memory(lengths, model.config.vocab_size):
        found = _search_group(model, decoder, select_encoded(encoded, group), settings)
        for index, hypotheses in zip(group, found, strict=True):
            results[index] = hypotheses
    return results


def _search_group(
    model: RecognitionModel, decoder: MaskedDecoder, encoded: Encoded, settings: MaskCtcSettings
) -> list[list[NarHypothesis]]:
    log_probs = model.ctc_log_probs(encoded.hidden)
    greedy = ctc_greedy(log_probs, encoded.lengths)
    mask = model.config.vocab_size
    masked = [_mask_doubtful(item, settings.mask_threshold, mask) for item in greedy]
    completed = fill_masks(decoder, encoded, masked, mask, settings)
    if settings.ctc_rescoring_weight > 0.0:
        ranked = _rescore(completed, log_probs, encoded.lengths, settings.ctc_rescoring_weight)
    else:
        ranked = [
            [NarHypothesis(item.tokens, item.score, item.score, None) for item in partials]
            for partials in completed
        ]
    return [hypotheses[: settings.nbest] for hypotheses in ranked]


def _mask_doubtful(greedy: GreedyHypothesis, threshold: float, mask: int) -> tuple[int, ...]:
    return tuple(
        mask if confidence < threshold else token
        for token, confidence in zip(greedy.tokens, greedy.confidences, strict=True)
    )


def _rescore(
    completed: Sequence[Sequence[Partial]],
    log_probs: Float[Tensor, "B T V"],
    lengths: Int[Tensor, "B"],
    weight: float,
) -> list[list[NarHypothesis]]:
    """Add the weighted CTC log-probability and rank anew; equals keep their order."""
    rows = [row for row, partials in enumerate(completed) for _ in partials]
    tokens = [item.tokens for partials in completed for item in partials]
    scores = iter(ctc_sequence_scores(log_probs, lengths, rows, tokens))
    rescored = []
    for partials in completed:
        hypotheses = []
        for item in partials:
            ctc = next(scores)
            # What CTC cannot align still has a number to rank by, and to write.
            score = item.score + weight * max(ctc, LOG_ZERO)
            hypotheses.append(NarHypothesis(item.tokens, score, item.score, ctc))
        rescored.append(sorted(hypotheses, key=lambda hypothesis: -hypothesis.score))
    return rescored
