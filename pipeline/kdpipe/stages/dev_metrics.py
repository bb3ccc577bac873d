"""The dev split during training: greedy CTC's error rates, the curve that every model shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from kdpipe.batching import batch_loader, sorted_batches
from kdpipe.errors import DataError
from kdpipe.features.cmvn import AnyCmvn
from kdpipe.features.prepared import PreparedSplit
from kdpipe.models import RecognitionModel
from kdpipe.scoring import score_pairs, uses_spaces
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.stages.recognise import read_tokens
from kdpipe.text.tokenizer import Tokenizer

__all__ = ["dev_scorer"]


def dev_scorer(
    model: RecognitionModel,
    split: PreparedSplit,
    cmvn: AnyCmvn,
    tokenizer: Tokenizer,
    batch_frames: int,
    device: torch.device,
) -> Callable[[], Mapping[str, float]]:
    """A function that decodes `split` greedily; gives the `cer` and `wer` fractions."""
    batches = sorted_batches(split.frame_counts.tolist(), batch_frames, 512)
    references = {u.id: u.text for u in split.utterances if u.text}
    if not references:
        raise DataError(split.folder.name, "no utterance has a text", "Label some of it")

    spaces = uses_spaces(references.values())

    def score() -> Mapping[str, float]:
        model.eval()
        texts: dict[str, str] = {}
        with torch.inference_mode():
            for batch in batch_loader(split, cmvn, batches):
                moved = batch.to(device)
                encoded = model.encode(moved.features, moved.feature_lengths)
                found = ctc_greedy(model.ctc_log_probs(encoded.hidden), encoded.lengths)
                for identifier, hypothesis in zip(batch.ids, found, strict=True):
                    texts[identifier] = read_tokens(tokenizer, hypothesis.tokens)
        hypotheses = {identifier: texts[identifier] for identifier in references}
        return {
            "cer": score_pairs(references, hypotheses, "char", spaces).rate,
            "wer": score_pairs(references, hypotheses, "word").rate,
        }

    return score
