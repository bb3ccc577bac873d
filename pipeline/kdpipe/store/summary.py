"""What a store is, in numbers: for `store info`, the demo's results and the card."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.store.compact import CompactImage, open_compact
from kdpipe.store.layout import COLUMN, LENGTH_COLUMNS
from kdpipe.store.opening import open_image
from kdpipe.store.paths import Backend, backend_of, is_compact
from kdpipe.store.schema import STATUSES, StoreHeader
from kdpipe.store.transfer import local_path, open_remote, remote_table

__all__ = ["store_card", "store_info"]

ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class _Extent:
    """What a store says of itself without its records; `table` is (n, 12)."""

    header: StoreHeader
    digest: str | None
    backend: Backend
    profile: str
    total_bytes: int
    table: NDArray[np.uint32]


def store_info(path: Path | str) -> dict[str, Any]:
    """Identity, extent and size of a store, as plain JSON types; `hours` is of speech.

    `mb_per_hour` counts every byte of the store in units of 10^6. Of a store elsewhere only its
    metadata and its table are read. Raises `StoreFormatError`, `InputNotFoundError` or, for a URL,
    what `open_remote` raises.
    """
    local = local_path(path)
    extent = _extent_there(str(path)) if local is None else _extent_here(local)
    header = extent.header
    totals = _totals(extent.table)
    hours = None
    if "frames" in header.streams:
        hours = totals["frames"] * header.frame_shift_seconds / 3600
    return {
        "format_version": header.format_version,
        "backend": extent.backend,
        "profile": extent.profile,
        "complete": extent.digest is not None,
        "utterances": len(extent.table),
        "expected_utterances": header.expected_utterances,
        "hours": hours,
        "bytes": extent.total_bytes,
        "mb_per_hour": _per_hour(extent.total_bytes / 1e6, hours),
        "digest": extent.digest,
        "teacher": dataclasses.asdict(header.teacher),
        "tokenizer": dataclasses.asdict(header.tokenizer),
        "feature_digest": header.feature_digest,
        "cmvn_digest": header.cmvn_digest,
        "manifest_digest": header.manifest_digest,
        "split": header.split,
        "subsampling": header.subsampling,
        "frame_shift_seconds": header.frame_shift_seconds,
        "decode": header.decode,
        "streams": list(header.streams),
        "nbest": header.nbest,
        "top_k": header.top_k,
        "min_prob": header.min_prob,
        "codec": header.codec,
        "step": header.step,
        **totals,
        "fidelity": dataclasses.asdict(header.fidelity) if header.fidelity else None,
        "score_definitions": header.score_definitions,
        "licence": header.licence,
        "created": header.created,
        "kdpipe_version": header.kdpipe_version,
        "lineage": list(header.lineage),
    }


def _extent_here(path: Path) -> _Extent:
    image = open_compact(path) if is_compact(path) else open_image(path)
    profile = "compact" if isinstance(image, CompactImage) else "mapped"
    return _Extent(
        image.header, image.digest, backend_of(path), profile, image.total_bytes,
        image.index.table,
    )  # fmt: skip


def _extent_there(url: str) -> _Extent:
    remote = open_remote(url)
    backend, table = backend_of(Path(remote.root)), remote_table(remote)
    return _Extent(remote.header, remote.digest, backend, remote.profile, remote.total_bytes, table)


def _per_hour(megabytes: float, hours: float | None) -> float | None:
    if hours is None:
        return None
    return megabytes / hours if hours else 0.0


def _totals(table: NDArray[np.uint32]) -> dict[str, Any]:
    """Frames, tokens, hypotheses and statuses of all utterances."""
    sums = np.zeros(len(LENGTH_COLUMNS), np.int64)
    statuses = np.zeros(len(STATUSES) + 1, np.int64)
    for start in range(0, len(table), ROWS_AT_ONCE):
        rows = table[start : start + ROWS_AT_ONCE]
        sums += rows[:, COLUMN["frames"] : COLUMN["crc32c"]].sum(axis=0, dtype=np.int64)
        codes = np.minimum(rows[:, COLUMN["status"]], len(STATUSES))
        statuses += np.bincount(codes, minlength=len(statuses))
    length = dict(zip(LENGTH_COLUMNS, sums.tolist(), strict=True))
    names = zip((*STATUSES, "unknown"), statuses.tolist(), strict=True)
    return {
        "frames": length["frames"],
        "tokens": length["tokens"],
        "hypotheses": length["hypotheses"],
        "classes_per_frame": length["frame_classes"] / max(length["frames"], 1),
        "classes_per_token": length["token_classes"] / max(length["tokens"], 1),
        "status": {name: count for name, count in names if count},
    }


def store_card(path: Path | str) -> str:
    """A page about a store for people who get it (Markdown)."""
    info = store_info(path)
    fidelity = info["fidelity"]
    kept = (
        "measured on no utterance"
        if fidelity is None
        else (
            f"KL(teacher || store) {fidelity['frame_kl']:.2g} nat a frame,"
            f" {fidelity['token_kl']:.2g} nat a token ({fidelity['utterances']} utterances)"
        )
    )
    rows = {
        "Teacher": f"{info['teacher']['name']}, weights sha256 `{info['teacher']['sha256']}`",
        "Corpus": f"split `{info['split']}`, manifest `{info['manifest_digest']}`",
        "Licence": info["licence"] or "not stated: ask whoever made the store",
        "Extent": f"{info['utterances']} utterances{_hours(info)}, {info['frames']} frames,"
        f" {info['tokens']} token positions, {info['hypotheses']} hypotheses{_progress(info)}",
        "Streams": ", ".join(info["streams"]),
        "Status": ", ".join(f"{name} {count}" for name, count in info["status"].items()),
        "Size": f"{info['bytes'] / 1e6:.2f} MB{_megabytes_per_hour(info)}"
        f" ({info['backend']}, {info['profile']})",
        "Tokenizer": f"{info['tokenizer']['vocab_size']} classes, fingerprint"
        f" `{info['tokenizer']['fingerprint']}`",
        "Features": f"`{info['feature_digest']}`, CMVN `{info['cmvn_digest']}`",
        "Frames": f"every {info['frame_shift_seconds'] * 1000:g} ms"
        f" (subsampling {info['subsampling']})",
        "Kept": f"classes with p >= {info['min_prob']:g}, at most {info['top_k']}, and the mass of"
        f" the others; codec {info['codec']}, step {info['step']:g} nat",
        "Classes": f"{info['classes_per_frame']:.2f} a frame,"
        f" {info['classes_per_token']:.2f} a token",
        "N-best": f"{info['nbest']}; "
        + ", ".join(f"{key} {value}" for key, value in info["decode"].items()),
        "Fidelity": kept,
        "Made": f"{info['created']}, kdpipe {info['kdpipe_version']}, format"
        f" {info['format_version']}",
        "Made from": ", ".join(f"`{digest}`" for digest in info["lineage"]) or "the teacher",
        "Digest": f"`{info['digest']}`",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    scores = "\n".join(f"- `{name}`: {text}" for name, text in info["score_definitions"].items())
    return CARD.format(name=Path(path).name, table=table, scores=scores)


def _hours(info: dict[str, Any]) -> str:
    return "" if info["hours"] is None else f", {info['hours']:.2f} hours of speech"


def _megabytes_per_hour(info: dict[str, Any]) -> str:
    return "" if info["mb_per_hour"] is None else f", {info['mb_per_hour']:.2f} MB per hour"


def _progress(info: dict[str, Any]) -> str:
    """How far a store under construction is."""
    if info["complete"]:
        return ""
    total = info["expected_utterances"]
    return f" (still being written, of {total})" if total else " (still being written)"


CARD = """# Teacher store {name}

What a speech recogniser said about a corpus: of its CTC posteriors at every encoder frame
(frames), its decoder posteriors at every reference token (tokens) and its n-best hypotheses
(nbest), the streams below.

| | |
|---|---|
{table}

Scores of a hypothesis:
{scores}

## Use
```python
import kdpipe

store = kdpipe.open_store("{name}")
targets = store[next(iter(store))]
targets.nbest, targets.frames, targets.tokens
```
```
kdpipe store verify {name}
kdpipe train-student --data DATA --recipe NAME --targets {name} --out STUDENT
```
The student needs the same tokenizer, features and subsampling; kdpipe checks that. The format is
plain Zarr or HDF5 and described in FORMAT.md of kdpipe.
"""
