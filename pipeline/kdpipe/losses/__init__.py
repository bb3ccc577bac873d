"""Losses of teacher and student: tensors in, one value an utterance out.

Everything runs in float32 also under bf16 autocast. `reduction` fixes the scales.
"""

from __future__ import annotations

from kdpipe.losses.ctc import (
    BLANK_ID,
    check_alignable,
    ctc_loss,
    ctc_negative_log_likelihood,
    required_frames,
)
from kdpipe.losses.distillation import TERMS, DistillationWeights, combine
from kdpipe.losses.joint import (
    apply_masks,
    attention_inputs,
    attention_loss,
    attention_targets,
    draw_masks,
    masked_lm_loss,
)
from kdpipe.losses.reduction import (
    Scale,
    UtteranceLoss,
    class_log_probs,
    length_mask,
    reduce_terms,
)
from kdpipe.losses.sequence import (
    FlatHypotheses,
    HypothesisSelection,
    decoder_sequence_loss,
    encoder_sequence_loss,
    flatten_hypotheses,
    nbest_posteriors,
    usable_hypotheses,
)
from kdpipe.losses.sparse_kl import (
    SparseRows,
    TailRule,
    decoder_frame_loss,
    encoder_frame_loss,
    select_rows,
    sparse_cross_entropy,
    sparse_entropy,
    truncate_rows,
)

__all__ = [
    "BLANK_ID",
    "TERMS",
    "DistillationWeights",
    "FlatHypotheses",
    "HypothesisSelection",
    "Scale",
    "SparseRows",
    "TailRule",
    "UtteranceLoss",
    "apply_masks",
    "attention_inputs",
    "attention_loss",
    "attention_targets",
    "check_alignable",
    "class_log_probs",
    "combine",
    "ctc_loss",
    "ctc_negative_log_likelihood",
    "decoder_frame_loss",
    "decoder_sequence_loss",
    "draw_masks",
    "encoder_frame_loss",
    "encoder_sequence_loss",
    "flatten_hypotheses",
    "length_mask",
    "masked_lm_loss",
    "nbest_posteriors",
    "reduce_terms",
    "required_frames",
    "select_rows",
    "sparse_cross_entropy",
    "sparse_entropy",
    "truncate_rows",
    "usable_hypotheses",
]
