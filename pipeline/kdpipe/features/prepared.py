"""Prepared data: what `kdpipe prepare` writes and every later stage reads.

A folder with `data.json` (settings, digests, counts), `tokenizer.model`, `cmvn.safetensors`,
`rejected.jsonl` and a folder a split (see `split_files`). Opening maps the arrays and parses
nothing per utterance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.audio import Channel, read_audio
from kdpipe.features.cmvn import AnyCmvn, load_cmvn
from kdpipe.features.kinds import Filterbank, read_filterbank
from kdpipe.features.speed import perturb_speed
from kdpipe.features.split_files import FEATURES, map_array
from kdpipe.files import json_digest, read_json

__all__ = [
    "FORMAT_VERSION",
    "PreparedData",
    "PreparedSplit",
    "PreparedUtterance",
    "feature_digest",
]

FORMAT_VERSION = 1
REMAKE = "Run kdpipe prepare to a new --out"
KEYS = {"features", "feature_digest", "tokenizer", "splits"}


@dataclass(frozen=True, slots=True)
class PreparedUtterance:
    """One entry of a split.

    num_frames: T, feature frames. duration: seconds of this entry's speech, speed
    perturbation included. audio, offset and source_duration (seconds; None: to the end of the
    file) say where it was read; speed is 1.0 for speech as recorded. Unlabelled entries have
    text None and no tokens.
    """

    id: str
    num_frames: int
    tokens: tuple[int, ...]
    text: str | None
    duration: float
    speaker: str | None
    audio: Path
    offset: float
    source_duration: float | None
    speed: float


class PreparedSplit:
    """One split; random access by position or id, nothing loaded ahead."""

    def __init__(self, folder: Path, summary: Mapping[str, Any]) -> None:
        self.folder = folder
        self.summary = dict(summary)
        self.manifest_digest: str = summary["manifest_digest"]
        digest = summary.get("content_digest")  # Older data has none.
        self.content: dict[str, str] = {"content_digest": digest} if digest else {}
        self._arrays = {
            name: map_array(folder / f"{name}.npy")
            for name in ("frame_offsets", "token_offsets", "tokens", "ids", "id_order")
        }
        self._line_offsets = map_array(folder / "line_offsets.npy")
        self._features = map_array(folder / FEATURES)
        self._require_consistent()

    def __reduce__(self) -> tuple[type[PreparedSplit], tuple[Path, dict[str, Any]]]:
        return PreparedSplit, (self.folder, self.summary)

    def __len__(self) -> int:
        return len(self._line_offsets) - 1

    @property
    def utterances(self) -> Sequence[PreparedUtterance]:
        """The entries, each parsed when it is asked for."""
        return _Utterances(self)

    @cached_property
    def frame_counts(self) -> NDArray[np.int64]:
        """(N,) feature frames of every entry."""
        return np.diff(self._arrays["frame_offsets"])

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        """(N,) reference tokens of every entry."""
        return np.diff(self._arrays["token_offsets"])

    @property
    def feature_dim(self) -> int:
        """F: values a frame."""
        return int(self._features.shape[1])

    @property
    def ids(self) -> Iterator[str]:
        """The ids in order, without parsing the entries."""
        return (identifier.decode("utf-8") for identifier in self._arrays["ids"].tolist())

    def features(self, index: int) -> NDArray[np.float16]:
        """(T, F) log-mel of one entry, CMVN not applied: a read-only view of the file."""
        first, last = self._bounds("frame_offsets", index)
        view: NDArray[np.float16] = self._features[first:last]
        return view

    def tokens(self, index: int) -> tuple[int, ...]:
        """Reference token ids of one entry, without parsing it."""
        first, last = self._bounds("token_offsets", index)
        return tuple(self._arrays["tokens"][first:last].tolist())

    def index(self, utterance_id: str) -> int:
        """Position of an id; `KeyError` when the split does not have it."""
        ids, order = self._arrays["ids"], self._arrays["id_order"]
        wanted = np.bytes_(utterance_id.encode("utf-8"))
        place = int(np.searchsorted(ids, wanted, sorter=order))
        if place == len(order) or ids[order[place]] != wanted:
            raise KeyError(utterance_id)
        return int(order[place])

    def utterance(self, index: int) -> PreparedUtterance:
        """One entry by position."""
        first, last = self._bounds("frame_offsets", index)
        record = json.loads(self._line(index))
        return PreparedUtterance(
            id=record["id"],
            num_frames=last - first,
            tokens=self.tokens(index),
            text=record["text"],
            duration=record["duration"],
            speaker=record["speaker"],
            audio=Path(record["audio"]),
            offset=record["offset"],
            source_duration=record["source_duration"],
            speed=record["speed"],
        )

    @cached_property
    def _lines(self) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(self.folder / "utterances.jsonl", dtype=np.uint8, mode="r"))

    def _line(self, index: int) -> bytes:
        first, last = self._line_offsets[index], self._line_offsets[index + 1]
        return self._lines[first:last].tobytes()

    def _bounds(self, name: str, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder.name} has {len(self)} utterances, no {index}")
        array = self._arrays[name]
        return int(array[index]), int(array[index + 1])

    def _require_consistent(self) -> None:
        arrays, count = self._arrays, len(self)
        size = (self.folder / "utterances.jsonl").stat().st_size
        sound = (
            all(len(arrays[name]) == count + 1 for name in ("frame_offsets", "token_offsets"))
            and all(len(arrays[name]) == count for name in ("ids", "id_order"))
            and self._features.ndim == 2
            and len(self._features) == int(arrays["frame_offsets"][-1])
            and len(arrays["tokens"]) == int(arrays["token_offsets"][-1])
            and size == int(self._line_offsets[-1])
            and count == self.summary["utterances"]
        )
        if not sound:
            raise DataError(str(self.folder), "its files do not belong together", REMAKE)


class _Utterances(Sequence[PreparedUtterance]):
    def __init__(self, split: PreparedSplit) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    @overload
    def __getitem__(self, index: int) -> PreparedUtterance: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PreparedUtterance]: ...
    def __getitem__(self, index: int | slice) -> PreparedUtterance | Sequence[PreparedUtterance]:
        if isinstance(index, slice):
            return [self._split.utterance(i) for i in range(*index.indices(len(self)))]
        return self._split.utterance(index + len(self) if index < 0 else index)


class PreparedData:
    """A complete `kdpipe prepare` folder; made by `PreparedData.open`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], cmvn: AnyCmvn) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.cmvn = cmvn

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Open a folder that `kdpipe prepare` completed.

        Raises `InputNotFoundError` when there is none, `DataError` when it is damaged or was
        written by a newer version.
        """
        path = folder / "data.json"
        if not path.is_file():
            raise InputNotFoundError(
                folder,
                "complete prepared data",
                "Give a folder that kdpipe prepare wrote; if it was interrupted, run it again",
            )
        settings = read_json(path)
        if not isinstance(settings, dict) or "format_version" not in settings:
            raise DataError(str(path), "not a description of prepared data", REMAKE)
        if settings["format_version"] != FORMAT_VERSION:
            found = settings["format_version"]
            raise DataError(str(path), f"format {found}, not {FORMAT_VERSION}", REMAKE)
        if not set(settings) >= KEYS:
            lacking = ", ".join(sorted(KEYS - set(settings)))
            raise DataError(str(path), f"lacks {lacking}", REMAKE)
        data = cls(folder.absolute(), settings, load_cmvn(folder / "cmvn.safetensors"))
        if feature_digest(settings["features"], data.cmvn) != data.feature_digest:
            raise DataError(str(folder), "cmvn.safetensors is not the one it was made with", REMAKE)
        return data

    @property
    def tokenizer(self) -> Path:
        """The sentencepiece model."""
        return self.folder / "tokenizer.model"

    @property
    def feature_type(self) -> str:
        """Kind of features: "kaldi-fbank" or "espnet-filterbank"."""
        return str(self.settings["features"]["kind"])

    @property
    def filterbank(self) -> Filterbank:
        """How the features are computed from a waveform."""
        return read_filterbank(self.settings["features"], str(self.folder))

    @property
    def feature_digest(self) -> str:
        """Hex SHA-256 over the features' kind and settings and the CMVN."""
        return str(self.settings["feature_digest"])

    @property
    def splits(self) -> list[str]:
        """Names of the splits: train, dev, test, and further test sets."""
        return list(self.settings["splits"])

    def split(self, name: str) -> PreparedSplit:
        """Open one split; `InputNotFoundError` names those there are."""
        if name not in self.settings["splits"]:
            remedy = f"There is: {', '.join(self.splits)}"
            if name in ("train", "dev", "test"):
                remedy += f". Or prepare the data with --{name} too"
            raise InputNotFoundError(self.folder / name, "prepared split", remedy)
        return PreparedSplit(self.folder / name, self.settings["splits"][name])

    def rejected_count(self, name: str) -> int:
        """How many entries of a split could not be used."""
        return sum(self.settings["splits"][name]["rejected"].values())

    def waveform(self, utterance: PreparedUtterance) -> Float[Tensor, " samples"]:
        """The 16 kHz samples that the features of `utterance` were computed from."""
        channel: Channel = self.settings["features"]["channel"]
        return perturb_speed(
            read_audio(utterance.audio, utterance.offset, utterance.source_duration, channel),
            utterance.speed,
        )


def feature_digest(features: Mapping[str, Any], cmvn: AnyCmvn) -> str:
    """Hex SHA-256 over the features' settings and the exact CMVN."""
    return json_digest({"features": dict(features), "cmvn": cmvn.digest()})
