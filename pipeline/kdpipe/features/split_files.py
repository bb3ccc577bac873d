"""The files of one prepared split: how they are named, written and read.

features.npy         (frames, 80) float16, C order, all utterances one after the other
frame_offsets.npy    (N+1,) int64: utterance i has the frames offsets[i]..offsets[i+1]-1
tokens.npy           flat int32, token_offsets.npy (N+1,) int64: the same for token ids
ids.npy              (N,) fixed-width UTF-8 bytes, id_order.npy (N,) int64 sorts them
utterances.jsonl     the other fields, one line an utterance, line_offsets.npy (N+1,) int64
rejected.jsonl       what could not be used; split.json, written last: counts and digests

All arrays are ordinary .npy files that `np.load(..., mmap_mode="r")` maps.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DataError
from kdpipe.files import atomic_write_bytes

__all__ = ["FEATURES", "feature_header", "map_array", "write_index"]

FEATURES = "features.npy"
INDEX_ARRAYS = ("frame_offsets", "token_offsets", "tokens", "ids", "id_order", "line_offsets")


def feature_header(frames: int, dim: int) -> bytes:
    """The .npy header of a (frames, dim) float16 file; as long for any number of frames."""
    header = io.BytesIO()
    description = {"descr": "<f2", "fortran_order": False, "shape": (frames, dim)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def write_index(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write every file but the features from the utterances' records.

    A record has `id`, `num_frames`, `tokens` and whatever else belongs in utterances.jsonl.
    """
    ids = np.array([record["id"].encode("utf-8") for record in records], dtype=np.bytes_)
    tokens = [token for record in records for token in record["tokens"]]
    lines = [_line(record) for record in records]
    arrays: dict[str, NDArray[Any]] = {
        "frame_offsets": _offsets(record["num_frames"] for record in records),
        "token_offsets": _offsets(len(record["tokens"]) for record in records),
        "tokens": np.array(tokens, dtype=np.int32),
        "ids": ids,
        "id_order": np.argsort(ids, kind="stable").astype(np.int64),
        "line_offsets": _offsets(len(line) for line in lines),
    }
    atomic_write_bytes(folder / "utterances.jsonl", b"".join(lines))
    for name in INDEX_ARRAYS:
        _write_array(folder / f"{name}.npy", arrays[name])


def _offsets(lengths: Iterable[int]) -> NDArray[np.int64]:
    """Where each of consecutive pieces starts, and the end: (N+1,)."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def _line(record: Mapping[str, Any]) -> bytes:
    kept = {k: v for k, v in record.items() if k not in ("num_frames", "tokens")}
    return json.dumps(kept, ensure_ascii=False).encode("utf-8") + b"\n"


def _write_array(path: Path, array: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    atomic_write_bytes(path, content.getvalue())


def map_array(path: Path) -> NDArray[Any]:
    """Map a .npy file read-only, as a plain array."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            str(path),
            f"damaged prepared data ({getattr(error, 'strerror', None) or error})",
            "Run kdpipe prepare again to a new --out",
        ) from error
    # A view without the memmap class: slicing it is several times as fast.
    return np.asarray(mapped)
