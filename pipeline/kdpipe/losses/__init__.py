"""Losses of teacher and student: tensors in, one value an utterance out.

Token ids and lengths are int64. Everything runs in float32 also under bf16 autocast. One step of
a student, with `joint` scores and sparse teacher rows joined to the batch:

    log_probs = class_log_probs(model.ctc_logits(hidden), V)
    masks = draw_masks(token_lengths, generator, tokens.shape[1])
    logits = model.decoder_logits(encoded, apply_masks(tokens, masks, V), token_lengths)
    terms = {
        "ctc": ctc_loss(log_probs, frame_lengths, tokens, token_lengths),
        "mlm": masked_lm_loss(logits, tokens, masks, smoothing),
        "encoder_frame": encoder_frame_loss(log_probs, frame_lengths, teacher_frames),
        "decoder_frame": decoder_frame_loss(
            class_log_probs(logits, V), masks, token_lengths, teacher_tokens
        ),
    }
    if "encoder_sequence" in weights.needed:
        selection = usable_hypotheses(nbest, nbest_lengths, frame_lengths, present)
        posteriors = nbest_posteriors(joint, selection.usable)
        terms["encoder_sequence"] = encoder_sequence_loss(
            log_probs, frame_lengths, nbest, nbest_lengths, posteriors
        )
        hypotheses = flatten_hypotheses(nbest, nbest_lengths, posteriors)
        ...  # masks and logits of hypotheses.tokens, over the memory of hypotheses.utterances
        terms["decoder_sequence"] = decoder_sequence_loss(logits, masks, hypotheses, B, V)
    values = combine(reduce_terms(terms, "unit"), weights)
    values["total"].backward()
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
    join_losses,
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
    tempered_divergence,
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
    "join_losses",
    "length_mask",
    "masked_lm_loss",
    "nbest_posteriors",
    "reduce_terms",
    "required_frames",
    "select_rows",
    "sparse_cross_entropy",
    "sparse_entropy",
    "tempered_divergence",
    "truncate_rows",
    "usable_hypotheses",
]
