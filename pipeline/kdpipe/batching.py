"""Batches: utterances of like length, padded features, and the teacher's targets beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdpipe.features.cmvn import AnyCmvn
from kdpipe.features.prepared import PreparedUtterance

__all__ = [
    "Batch",
    "BatchSource",
    "batch_loader",
    "collate",
    "length_buckets",
    "pad_tokens",
    "sorted_batches",
]


@runtime_checkable
class BatchSource(Protocol):
    """Utterances by position: a prepared split, or a choice from one with other labels."""

    @property
    def frame_counts(self) -> NDArray[np.int64]:
        """(N,) feature frames of every utterance."""

    @property
    def feature_dim(self) -> int:
        """F, values a frame."""

    def utterance(self, index: int) -> PreparedUtterance:
        """One utterance with its tokens."""

    def features(self, index: int) -> NDArray[np.float16]:
        """(T, F) features of one utterance, CMVN not applied."""


@dataclass(frozen=True)
class Batch:
    """Utterances padded to a common length.

    `features` is (B, T, F) after CMVN, `tokens` (B, L) without sos/eos; both are padded with
    0 beyond their lengths. `audio_seconds` is the speech in the batch.
    """

    ids: tuple[str, ...]
    features: Float[Tensor, "B T F"]
    feature_lengths: Int[Tensor, " B"]
    tokens: Int[Tensor, "B L"]
    token_lengths: Int[Tensor, " B"]
    audio_seconds: float

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch(
            self.ids,
            self.features.to(device, non_blocking=True),
            self.feature_lengths.to(device, non_blocking=True),
            self.tokens.to(device, non_blocking=True),
            self.token_lengths.to(device, non_blocking=True),
            self.audio_seconds,
        )

    def pin_memory(self) -> Batch:
        """Called by DataLoader so that copies to a GPU overlap with computing."""
        return Batch(
            self.ids,
            self.features.pin_memory(),
            self.feature_lengths.pin_memory(),
            self.tokens.pin_memory(),
            self.token_lengths.pin_memory(),
            self.audio_seconds,
        )


def length_buckets(
    lengths: Sequence[int], batch_frames: int, max_utterances: int, seed: int, epoch: int
) -> list[list[int]]:
    """Group utterances of like length into batches, in a random order fixed by seed and epoch.

    A batch holds at most `batch_frames` frames with its padding counted, and at most
    `max_utterances`; an utterance longer than that is a batch of its own. Lengths are
    jittered by 5% before sorting, so that neighbours change from epoch to epoch.
    """
    random = np.random.default_rng((seed, epoch))
    array = np.asarray(lengths, dtype=np.float64)
    order = np.argsort(array * random.uniform(0.95, 1.05, len(array)), kind="stable")
    batches = _cut([int(i) for i in order], lengths, batch_frames, max_utterances)
    return [batches[i] for i in random.permutation(len(batches))]


def sorted_batches(
    lengths: Sequence[int], batch_frames: int, max_utterances: int
) -> list[list[int]]:
    """The same cut without randomness, longest first: for dumping and decoding.

    Longest first means that a batch too large for memory fails at once, not hours later.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return _cut(order, lengths, batch_frames, max_utterances)


def _cut(
    order: Sequence[int], lengths: Sequence[int], batch_frames: int, max_utterances: int
) -> list[list[int]]:
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for index in order:
        grown = max(longest, lengths[index])
        if current and (
            grown * (len(current) + 1) > batch_frames or len(current) >= max_utterances
        ):
            batches.append(current)
            current, grown = [], lengths[index]
        current.append(index)
        longest = grown
    return [*batches, current] if current else batches


def pad_tokens(sequences: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"]]:
    """Pad token sequences with 0; also their lengths. L is at least 1."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    longest = max(1, int(lengths.max())) if len(sequences) else 1
    padded = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return padded, lengths


def collate(split: BatchSource, cmvn: AnyCmvn, indices: Sequence[int]) -> Batch:
    """Read utterances of `split` into one batch, CMVN applied."""
    utterances = [split.utterance(i) for i in indices]
    lengths = torch.tensor([u.num_frames for u in utterances], dtype=torch.int64)
    features = np.zeros((len(indices), int(lengths.max()), split.feature_dim), dtype=np.float32)
    for row, index, utterance in zip(features, indices, utterances, strict=True):
        raw = split.features(index).astype(np.float32)
        row[: utterance.num_frames] = cmvn.apply_array(raw)
    tokens, token_lengths = pad_tokens([u.tokens for u in utterances])
    return Batch(
        tuple(u.id for u in utterances),
        torch.from_numpy(features),
        lengths,
        tokens,
        token_lengths,
        sum(u.duration for u in utterances),
    )


class _BatchDataset(Dataset[Batch]):
    """One item is one whole batch: workers then ship one tensor, not many small ones."""

    def __init__(self, split: BatchSource, cmvn: AnyCmvn, batches: Sequence[Sequence[int]]) -> None:
        self.split = split
        self.cmvn = cmvn
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return collate(self.split, self.cmvn, self.batches[index])


def batch_loader(
    split: BatchSource,
    cmvn: AnyCmvn,
    batches: Sequence[Sequence[int]],
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the batches in order, read ahead by `workers` processes (0: in this one)."""
    dataset = _BatchDataset(split, cmvn, batches)
    loader: DataLoader[Batch] = DataLoader(
        dataset, batch_size=None, num_workers=workers, pin_memory=pin_memory
    )
    return iter(loader)
