"""All terms of Eq. 13 in one step, as a trainer calls them, on every device at hand."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kdpipe.losses import (
    DistillationWeights,
    FlatHypotheses,
    Scale,
    SparseRows,
    UtteranceLoss,
    class_log_probs,
    combine,
    ctc_loss,
    decoder_frame_loss,
    decoder_sequence_loss,
    draw_masks,
    encoder_frame_loss,
    encoder_sequence_loss,
    flatten_hypotheses,
    masked_lm_loss,
    nbest_posteriors,
    reduce_terms,
    truncate_rows,
    usable_hypotheses,
)

B, T, L, N, V = 3, 12, 4, 3, 8
STAGE_2 = DistillationWeights(
    alpha=0.3, beta_frame=1.0, beta_sequence=1.0, gamma_encoder=0.5, gamma_decoder=0.5
)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class Batch(NamedTuple):
    frames: Tensor
    lengths: Tensor
    tokens: Tensor
    masks: Tensor
    teacher_frames: SparseRows
    teacher_tokens: SparseRows
    nbest: Tensor
    sizes: Tensor
    posteriors: Tensor


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    frames, lengths = torch.tensor([12, 9, 10]), torch.tensor([4, 2, 3])
    tokens = torch.randint(1, V - 1, (B, L), generator=generator)
    nbest = torch.randint(1, V - 1, (B, N, L), generator=generator)
    sizes = lengths.unsqueeze(1).repeat(1, N)
    present = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    usable = usable_hypotheses(nbest, sizes, frames, present).usable

    def teacher(rows: int) -> SparseRows:
        return truncate_rows(
            (3 * torch.randn(rows, V, generator=generator)).log_softmax(dim=1), top_k=4
        )

    return Batch(
        frames,
        lengths,
        tokens,
        draw_masks(lengths, generator, L),
        teacher(int(frames.sum())),
        teacher(int((lengths + 1).sum())),
        nbest,
        sizes,
        nbest_posteriors(torch.randn(B, N, generator=generator), usable),
    )


def move(batch: Batch, device: str) -> Batch:
    def rows_to(teacher: SparseRows) -> SparseRows:
        return SparseRows(*(field.to(device) for field in teacher))

    tensors = {name: x.to(device) for name, x in batch._asdict().items() if isinstance(x, Tensor)}
    return batch._replace(
        **tensors,
        teacher_frames=rows_to(batch.teacher_frames),
        teacher_tokens=rows_to(batch.teacher_tokens),
    )


def all_terms(
    batch: Batch, frame_logits: Tensor, token_logits: Tensor, nbest_logits: Tensor
) -> dict[str, UtteranceLoss]:
    log_probs = class_log_probs(frame_logits, V)
    hypotheses: FlatHypotheses = flatten_hypotheses(batch.nbest, batch.sizes, batch.posteriors)
    masks = draw_masks(hypotheses.lengths, torch.Generator().manual_seed(2), L)
    return {
        "ctc": ctc_loss(log_probs, batch.frames, batch.tokens, batch.lengths),
        "mlm": masked_lm_loss(token_logits, batch.tokens, batch.masks, 0.1),
        "encoder_frame": encoder_frame_loss(log_probs, batch.frames, batch.teacher_frames),
        "encoder_sequence": encoder_sequence_loss(
            log_probs, batch.frames, batch.nbest, batch.sizes, batch.posteriors
        ),
        "decoder_frame": decoder_frame_loss(
            class_log_probs(token_logits, V), batch.masks, batch.lengths, batch.teacher_tokens
        ),
        "decoder_sequence": decoder_sequence_loss(
            nbest_logits[: len(hypotheses.lengths)], masks, hypotheses, B, V
        ),
    }


def student_logits(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, T, V), (B, L, V + 1), (B * N - 1, L, V + 1)]
    return [
        torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def total(batch: Batch, logits: list[Tensor], scale: Scale) -> Tensor:
    return combine(reduce_terms(all_terms(batch, *logits), scale), STAGE_2)["total"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", ["unit", "paper"])
def test_half_precision_logits_train_in_float32_on_every_device(device: str, scale: Scale) -> None:
    batch = make_batch()
    logits = student_logits(device, torch.bfloat16)
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = total(move(batch, device), logits, scale)
    expected = total(batch, [z.detach().cpu().float() for z in logits], scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach().cpu(), expected)
    for gradient in torch.autograd.grad(loss, logits):
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())


def test_a_batch_equals_its_utterances_alone() -> None:
    """Padding, flattening and ragged rows never mix utterances."""
    batch, (frame_logits, token_logits, _) = make_batch(), student_logits()
    together = all_terms(batch, *student_logits())
    frame_offsets = [0, *batch.frames.cumsum(0).tolist()]
    token_offsets = [0, *(batch.lengths + 1).cumsum(0).tolist()]
    for b in range(B):
        one = slice(b, b + 1)
        log_probs = class_log_probs(frame_logits[one], V)
        alone = {
            "encoder_frame": encoder_frame_loss(
                log_probs, batch.frames[one], rows(batch.teacher_frames, frame_offsets, b)
            ),
            "encoder_sequence": encoder_sequence_loss(
                log_probs,
                batch.frames[one],
                batch.nbest[one],
                batch.sizes[one],
                batch.posteriors[one],
            ),
            "decoder_frame": decoder_frame_loss(
                class_log_probs(token_logits[one], V),
                batch.masks[one],
                batch.lengths[one],
                rows(batch.teacher_tokens, token_offsets, b),
            ),
        }
        for name, term in alone.items():
            torch.testing.assert_close(term.total[0], together[name].total[b])
            torch.testing.assert_close(term.units[0], together[name].units[b])


def rows(teacher: SparseRows, offsets: list[int], b: int) -> SparseRows:
    """The rows of one utterance, cut by hand."""
    starts = [0, *teacher.counts.cumsum(0).tolist()]
    first, last = offsets[b], offsets[b + 1]
    entries = slice(starts[first], starts[last])
    return SparseRows(
        teacher.counts[first:last],
        teacher.ids[entries],
        teacher.log_probs[entries],
        teacher.tail[first:last],
    )


def test_descent_on_the_total_brings_every_term_down() -> None:
    batch, logits = make_batch(), student_logits()
    optimizer = torch.optim.Adam(logits, lr=0.1)
    before = reduce_terms(all_terms(batch, *logits), "unit")
    for _ in range(60):
        optimizer.zero_grad()
        total(batch, logits, "unit").backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = reduce_terms(all_terms(batch, *logits), "unit")
    for name in after:
        assert float(after[name].detach()) < 0.9 * float(before[name].detach()), name
