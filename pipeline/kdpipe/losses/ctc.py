"""CTC likelihood of references and of N-best lists (Graves et al. 2006).

The dynamic programme touches only the classes that a label sequence holds, so a whole N-best
list costs a gather of (T', N (L + 1)) log-probs and no copy of the (T', V) posteriors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kdpipe.errors import AlignmentError
from kdpipe.losses.reduction import UtteranceLoss, at_least_float32, length_mask

__all__ = [
    "BLANK_ID",
    "check_alignable",
    "ctc_loss",
    "ctc_negative_log_likelihood",
    "required_frames",
]

BLANK_ID = 0


def required_frames(
    tokens: Int[Tensor, "*rows L"], lengths: Int[Tensor, "*rows"]
) -> Int[Tensor, "*rows"]:
    """Fewest encoder frames that can carry each sequence: one a token, one more between equals."""
    inside = length_mask(lengths, tokens.shape[-1])[..., 1:]
    repeats = (tokens[..., 1:] == tokens[..., :-1]) & inside
    return lengths + repeats.sum(dim=-1)


def ctc_negative_log_likelihood(
    log_probs: Float[Tensor, "B T V"],
    frame_lengths: Int[Tensor, "B"],
    tokens: Int[Tensor, "B N L"],
    token_lengths: Int[Tensor, "B N"],
) -> Float[Tensor, "B N"]:
    """-log P(tokens | X) in nats of every hypothesis, summed over all its alignments.

    `log_probs` are normalised over the V classes, blank first. Tokens past a length may hold
    anything. The exact gradient flows to the log-probs of the labels and of blank.

    Raises:
        AlignmentError: a sequence needs more frames than its utterance has.
    """
    check_alignable(tokens, token_lengths, frame_lengths)
    B, N, L = tokens.shape
    labels = tokens.masked_fill(~length_mask(token_lengths, L), BLANK_ID)
    emissions = _label_emissions(at_least_float32(log_probs), labels)
    frames = frame_lengths.repeat_interleave(N)
    targets = _first_occurrence(labels).reshape(B * N, L) + 1
    losses = F.ctc_loss(
        emissions, targets, frames, token_lengths.reshape(B * N), blank=0, reduction="none"
    )
    return (losses - _softmax_gradient_correction(emissions, frames)).reshape(B, N)


def check_alignable(
    tokens: Int[Tensor, "*rows L"],
    token_lengths: Int[Tensor, "*rows"],
    frame_lengths: Int[Tensor, "B"],
) -> None:
    """Raise `AlignmentError` naming the utterances whose tokens do not fit their frames.

    An infinite loss zeroed in silence would hide bad data, so there is no such option.
    """
    needed = required_frames(tokens, token_lengths).reshape(len(frame_lengths), -1).amax(dim=1)
    short = needed > frame_lengths
    if bool(short.any()):
        rows = short.nonzero().flatten()
        raise AlignmentError(rows.tolist(), needed[rows].tolist(), frame_lengths[rows].tolist())


def ctc_loss(
    log_probs: Float[Tensor, "B T V"],
    frame_lengths: Int[Tensor, "B"],
    tokens: Int[Tensor, "B L"],
    token_lengths: Int[Tensor, "B"],
) -> UtteranceLoss:
    """L_ctc of the reference (Eq. 1), per token.

    Raises:
        AlignmentError: a sequence needs more frames than its utterance has.
    """
    total = ctc_negative_log_likelihood(
        log_probs, frame_lengths, tokens.unsqueeze(1), token_lengths.unsqueeze(1)
    ).squeeze(1)
    return UtteranceLoss(total, token_lengths.to(total.dtype))


def _label_emissions(
    log_probs: Float[Tensor, "B T V"], labels: Int[Tensor, "B N L"]
) -> Float[Tensor, "T H S"]:
    """Log-probs of blank and of each hypothesis's own labels: (T, B N, 1 + L)."""
    B, T, _ = log_probs.shape
    classes = F.pad(labels, (1, 0), value=BLANK_ID)
    _, N, S = classes.shape
    index = classes.reshape(B, 1, N * S).expand(B, T, N * S)
    return log_probs.gather(2, index).transpose(0, 1).reshape(T, B * N, S)


def _first_occurrence(labels: Int[Tensor, "B N L"]) -> Int[Tensor, "B N L"]:
    """Position at which each label first occurs in its sequence.

    CTC treats equal neighbours specially, so equal labels must share one class.
    """
    equal = labels.unsqueeze(-1) == labels.unsqueeze(-2)
    return equal.to(torch.uint8).argmax(dim=-1)


def _softmax_gradient_correction(
    emissions: Float[Tensor, "T H S"], frames: Int[Tensor, "H"]
) -> Float[Tensor, "H"]:
    """Zero in value; its gradient makes that of torch's CTC the true one.

    torch returns p - gamma, right only where a log-softmax over the same classes follows; the
    derivative by a log-prob is -gamma. Here the softmax is over all V classes, so p is taken off.
    """
    probs = emissions.exp()
    inside = length_mask(frames, emissions.shape[0]).t().unsqueeze(-1)
    return ((probs - probs.detach()) * inside).sum(dim=(0, 2))
