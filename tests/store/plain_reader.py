"""Reads a store from FORMAT.md alone: zarr or h5py, numpy, and nothing of kdpipe.

python plain_reader.py STORE > targets.json
"""

import json
import math
import sys
from typing import Any

import h5py
import numpy as np
import zarr

SECTIONS = ["rows", "ids", "codes", "tails"]


def open_arrays(path: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """The header, the root, and all arrays but `records` loaded."""
    if path.endswith(".h5"):
        root = h5py.File(path, "r")
        store = json.loads(root.attrs["kdpipe_store"])
    else:
        root = zarr.open_group(store=path, mode="r")
        store = root.attrs["kdpipe_store"]
    arrays = {name: root[name][...] for name in ("table", "ids")}
    return store, root, arrays


def read_records(store: dict[str, Any], root: Any, table: Any, sections: Any) -> list[bytes]:
    """The bytes of every record, from `records` or from the streams of the compact profile."""
    if store.get("profile") != "compact":
        records = root["records"][...]
        starts = [int(row[0]) + 2**32 * int(row[1]) for row in table]
        sizes = [sum(kind.itemsize * n for _, kind, n in sections(row)) for row in table]
        return [records[s : s + n].tobytes() for s, n in zip(starts, sizes, strict=True)]
    streams: dict[str, Any] = {}
    position: dict[str, int] = {}
    out = []
    for row in table:
        pieces = []
        for name, kind, count in sections(row):
            if name not in streams:
                streams[name] = np.ascontiguousarray(root[name][...].T).tobytes()
                position[name] = 0
            size = kind.itemsize * count
            pieces.append(streams[name][position[name] : position[name] + size])
            position[name] += size
        out.append(b"".join(pieces))
    return out


def section_table(header: dict[str, Any]) -> Any:
    """A function from a table row to (name, type, count) of the sections."""
    row_kind = np.dtype("u1" if header["top_k"] < 128 else "<u2")
    by_size = 2 if header["tokenizer"]["vocab_size"] <= 65536 else 4
    id_kind = np.dtype(f"<u{header.get('id_bytes') or by_size}")
    code = np.dtype({"log8": "u1", "fp16": "<f2", "fp32": "<f4"}[header["codec"]])
    tail = np.dtype("<f4" if header["codec"] == "fp32" else "<f2")
    c = int(header["codec"] == "log8")

    def sections(row: Any) -> list[tuple[str, Any, int]]:
        f, fc, fi, t, tc, h, m = (int(value) for value in row[2:9])
        return [
            ("frame_rows", row_kind, f),
            ("frame_ids", id_kind, fi),
            ("frame_codes", code, fc - c * f),
            ("frame_tails", tail, f),
            ("token_rows", row_kind, t),
            ("token_ids", id_kind, tc),
            ("token_codes", code, tc - c * t),
            ("token_tails", tail, t),
            ("reference", id_kind, max(t - 1, 0)),
            ("spans", np.dtype("<u2"), 3 * h),
            ("middles", id_kind, m),
            ("scores", np.dtype("<f4"), 4 * h),
        ]

    return sections


def read_rows(header: dict[str, Any], part: dict[str, Any], prefix: str) -> list[Any]:
    """Rows as [[class, ...], [log-probability, ...], tail mass]."""
    flag = 128 if header["top_k"] < 128 else 2**15
    words, ids, codes, tails = (part[f"{prefix}_{name}"].tolist() for name in SECTIONS)
    rows = []
    for word, tail in zip(words, tails, strict=True):
        count = word % flag
        classes = [header["tokenizer"]["blank"]] if word >= flag else []
        while len(classes) < count:
            classes.append(ids.pop(0))
        if header["codec"] == "log8":
            below = [0.0] + [header["step"] * codes.pop(0) for _ in range(count - 1)]
            norm = math.log(sum(math.exp(-q) for q in below))
            values = [math.log(-math.expm1(tail)) - q - norm for q in below]
        else:
            values = [codes.pop(0) for _ in range(count)]
        rows.append([classes, values, math.exp(tail)])
    return rows


def read_nbest(part: dict[str, Any]) -> list[Any]:
    """Hypotheses as [tokens, scores]."""
    middles = part["middles"].tolist()
    scores = part["scores"].reshape(-1, 4).tolist()
    nbest: list[Any] = []
    for (prefix, suffix, own), score in zip(part["spans"].reshape(-1, 3), scores, strict=True):
        first = nbest[0][0] if nbest else []
        middle = [middles.pop(0) for _ in range(own)]
        nbest.append([first[:prefix] + middle + first[len(first) - suffix :], score])
    return nbest


def read_store(path: str) -> dict[str, Any]:
    """Every utterance of a store by id."""
    store, root, arrays = open_arrays(path)
    header, table = store["header"], arrays["table"]
    sections = section_table(header)
    targets, id_start = {}, 0
    for row, record in zip(table, read_records(store, root, table, sections), strict=True):
        name = arrays["ids"][id_start : row[11]].tobytes().decode()
        id_start = row[11]
        part, start = {}, 0
        for section, kind, count in sections(row):
            part[section] = np.frombuffer(record, kind, count, start)
            start += kind.itemsize * count
        targets[name] = {
            "frames": read_rows(header, part, "frame"),
            "tokens": read_rows(header, part, "token"),
            "reference": part["reference"].tolist(),
            "nbest": read_nbest(part),
        }
    return targets


if __name__ == "__main__":
    json.dump(read_store(sys.argv[1]), sys.stdout)
