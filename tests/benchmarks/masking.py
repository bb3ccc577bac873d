"""What a Mask-CTC student masks, and how well its decoder fills masks, on the dev split.

    python tests/benchmarks/masking.py --data DATA MODEL ...

Prints the share of greedy CTC's tokens below each p_thr, and the accuracy of the decoder where a
share of the reference's tokens is masked at random and the others are shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kdpipe.batching import Batch, collate
from kdpipe.checkpoint import load_model
from kdpipe.features.prepared import PreparedData
from kdpipe.losses import apply_masks
from kdpipe.models import Encoded, RecognitionModel
from kdpipe.models.lengths import valid_positions
from kdpipe.search.ctc_greedy import ctc_greedy

THRESHOLDS = (0.3, 0.5, 0.7, 0.9, 0.99)
SHARES = (0.05, 0.2, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    data = PreparedData.open(arguments.data)
    split = data.split("dev")
    batch = collate(split, data.cmvn, range(len(split)))
    for path in arguments.models:
        model = load_model(path).model
        with torch.inference_mode():
            encoded = model.encode(batch.features, batch.feature_lengths)
            doubtful = [f"{p:g}: {masked_share(model, encoded, p):.3f}" for p in THRESHOLDS]
            right = [f"{s:g}: {accuracy(model, encoded, batch, s):.3f}" for s in SHARES]
        print(path.name, "masked at p_thr", *doubtful, "| right where masked", *right)


def masked_share(model: RecognitionModel, encoded: Encoded, threshold: float) -> float:
    """Share of greedy CTC's tokens that are less confident than `threshold`."""
    found = ctc_greedy(model.ctc_log_probs(encoded.hidden), encoded.lengths)
    confidences = [each for hypothesis in found for each in hypothesis.confidences]
    return sum(each < threshold for each in confidences) / len(confidences)


def accuracy(model: RecognitionModel, encoded: Encoded, batch: Batch, share: float) -> float:
    """Share of masked reference tokens that the decoder's best class names."""
    classes, tokens = model.config.vocab_size, batch.tokens
    draws = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1))
    masks = (draws < share) & valid_positions(batch.token_lengths, tokens.shape[1])
    shown = apply_masks(tokens, masks, classes)
    best = model.decoder_logits(encoded, shown, batch.token_lengths)[..., :classes].argmax(-1)
    return float((best == tokens)[masks].float().mean())


if __name__ == "__main__":
    main()
