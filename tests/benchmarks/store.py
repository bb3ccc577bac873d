"""Size, speed and memory of the teacher store, each beside its baseline in the same run.

    python tests/benchmarks/store.py --json OUT            # the rows of make bench, a minute
    python tests/benchmarks/store.py --full --json OUT     # everything in docs/results/store.md

Times are CPU times of this process (medians of interleaved runs): other work on the machine
changes them less than it changes wall time, and ratios less still.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numcodecs.zstd import Zstd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.store_error import kept_errors  # noqa: E402
from tests.benchmarks.store_memory import memory_rows  # noqa: E402
from tests.benchmarks.store_synthetic import (  # noqa: E402
    SyntheticTeacher,
    sparse_targets,
    synthetic_header,
)
from tests.benchmarks.store_tiles import tile_store  # noqa: E402

from kdpipe.store import StoreWriter, finish, open_store, sparsify, store_info  # noqa: E402
from kdpipe.store.convert import convert_store, open_any  # noqa: E402
from kdpipe.store.layout import SECTIONS, Widths, addresses, section_sizes  # noqa: E402

BATCH = 32
HOURS_960 = 960.0
Row = dict[str, Any]


def row(name: str, value: float, unit: str, baseline: float | None, conditions: str) -> Row:
    """One line of the benchmark's JSON."""
    ratio = value / baseline if baseline else None
    return {
        "name": name,
        "value": round(value, 4),
        "unit": unit,
        "baseline": None if baseline is None else round(baseline, 4),
        "ratio": None if ratio is None else round(ratio, 4),
        "conditions": conditions,
    }


def write_synthetic(path: Path, count: int) -> None:
    """A store of synthetic utterances at default settings, fidelity measured on 1 in 50."""
    teacher, header = SyntheticTeacher(), synthetic_header()
    with StoreWriter(path, header) as writer:
        for number in range(count):
            dense = teacher.utterance(number)
            sample = (dense.frames, dense.tokens) if number % 50 == 0 else None
            writer.add(sparse_targets(dense, header), sample)
    finish(path)


def size_rows(store: Path, folder: Path) -> list[Row]:
    """Megabytes per hour of speech, all three streams, beside dense and fixed top-16."""
    convert_store(store, folder / "compact.zarr", compact=True)
    convert_store(store, folder / "size.h5")
    others = dense_sizes(150)
    dense = others["dense fp32"][0]
    what = "synthetic 5000-class posteriors (see tests/benchmarks/store_synthetic.py), all streams"
    rows = [
        row("store_mb_per_hour", _mb(store), "MB/h", dense, f"{what}; baseline dense fp32"),
        row("store_mb_per_hour_hdf5", _mb(folder / "size.h5"), "MB/h", dense, "HDF5, the same"),
        row(
            "store_mb_per_hour_compact",
            _mb(folder / "compact.zarr"),
            "MB/h",
            others["dense fp32"][1],
            "compact profile (zstd 19); baseline dense fp32, zstd 3",
        ),
    ]
    for name, (raw, compressed) in others.items():
        slug = name.replace(" ", "_").replace("-", "_")
        rows.append(row(f"size_{slug}", raw, "MB/h", None, f"{name}, posteriors alone"))
        rows.append(row(f"size_{slug}_zstd", compressed, "MB/h", None, f"{name}, zstd"))
    return rows


def _mb(store: Path) -> float:
    return float(store_info(store)["mb_per_hour"])


def dense_sizes(count: int) -> dict[str, tuple[float, float]]:
    """MB per hour, raw and compressed, of other ways to keep the posteriors of both streams."""
    teacher = SyntheticTeacher()
    sums = {"dense fp32": [0, 0], "top-16 uint16 + fp16": [0, 0]}
    seconds = 0.0
    for number in range(count):
        dense = teacher.utterance(number)
        seconds += len(dense.frames) / 25
        for log_probs in (dense.frames, dense.tokens):
            top = sparsify(log_probs, 16, 0.0)
            fixed = [top.ids.astype("<u2").tobytes(), top.log_probs.astype("<f2").tobytes()]
            planes = [np.frombuffer(b, "u1").reshape(-1, 2).T.tobytes() for b in fixed]
            _count(sums["dense fp32"], [log_probs.tobytes()], 3)
            _count(sums["top-16 uint16 + fp16"], planes, 9)
    return {k: (v[0] / 1e6 / seconds * 3600, v[1] / 1e6 / seconds * 3600) for k, v in sums.items()}


def _count(sums: list[int], contents: Sequence[bytes], level: int) -> None:
    for content in contents:
        sums[0] += len(content)
        sums[1] += len(Zstd(level).encode(content))


def error_rows() -> list[Row]:
    """KL and gradient errors of each way to keep CTC posteriors, for two students."""
    teacher = SyntheticTeacher()
    dense = np.concatenate([teacher.utterance(number).frames for number in range(8)])
    rows = []
    for stage, kl in (("mid", 0.27), ("near", 0.004)):
        for name, error in kept_errors(dense, teacher.embedding, kl).items():
            condition = f"{name}; student at KL {kl}"
            rows.append(row(f"kl_error_{stage}", error.kl, "nat", None, condition))
            rows.append(row(f"gradient_error_{stage}", error.gradient, "of RMS", None, condition))
            rows.append(row(f"gradient_bias_{stage}", error.bias, "of norm", None, condition))
            if stage == "mid":
                rows.append(row("classes_per_frame", error.classes, "", None, condition))
    return rows


Reader = Callable[[Sequence[str]], object]


def microseconds(readers: dict[str, Reader], ids: Sequence[str], rounds: int) -> dict[str, float]:
    """CPU time per utterance of each reader over shuffled batches, interleaved; medians."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    random = np.random.default_rng(0)
    for _ in range(rounds):
        chosen = [ids[i] for i in random.integers(0, len(ids), 16 * BATCH)]
        for name, read in readers.items():
            started = time.process_time()
            for start in range(0, len(chosen), BATCH):
                read(chosen[start : start + BATCH])
            times[name].append((time.process_time() - started) / len(chosen) * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def memmap_reader(store: Path, plain: bool = False) -> Reader:
    """The baseline: np.memmap of the shard files, offsets and lengths known beforehand; the 12
    sections of the batch joined to 12 flat arrays. No look-up of ids but a dict, no checks.
    With `plain` the maps are viewed as ordinary arrays, which are quicker to slice."""
    image = open_any(store)
    sizes = section_sizes(image.index.table, Widths.of(image.header))
    ends = np.cumsum(sizes, axis=1)
    stride = json.loads((store / "zarr.json").read_text())["attributes"]["kdpipe_store"]
    shards = {
        int(path.name): np.asarray(mapped) if plain else mapped
        for path in (store / "records/c").iterdir()
        for mapped in [np.memmap(path, np.uint8, "r")]
    }
    numbers, offsets = np.divmod(addresses(image.index.table), stride["shard_bytes"])
    bounds = np.concatenate((np.zeros((len(ends), 1), np.int64), ends), axis=1) + offsets[:, None]
    places = {name: position for position, name in enumerate(open_store(store))}

    def read(ids: Sequence[str]) -> object:
        chosen = [places[name] for name in ids]
        columns = bounds[chosen].T.tolist()
        files = [shards[number] for number in numbers[chosen].tolist()]
        return [
            np.concatenate(
                [f[a:b] for f, a, b in zip(files, columns[n], columns[n + 1], strict=True)]
            )
            for n in range(len(SECTIONS))
        ]

    return read


def zarr_reader(store: Path) -> Reader:
    """Ordinary zarr-python: records[start:stop] for every utterance."""
    image = open_any(store)
    records: Any = zarr.open_group(store=str(store), mode="r")["records"]
    sizes = section_sizes(image.index.table, Widths.of(image.header)).sum(axis=1).tolist()
    starts = addresses(image.index.table).tolist()
    places = {name: position for position, name in enumerate(open_store(store))}

    def read(ids: Sequence[str]) -> object:
        return [records[starts[p] : starts[p] + sizes[p]] for p in (places[name] for name in ids)]

    return read


def group_reader(path: Path, store: Path, count: int) -> Reader:
    """HDF5 with one group per utterance: the same sparse targets as ordinary datasets."""
    opened = open_store(store)
    with h5py.File(path, "w") as file:
        for name in opened.ids[:count]:
            targets = opened[name]
            group = file.create_group(name)
            for stream in ("frames", "tokens"):
                posterior = getattr(targets, stream)
                for part in ("counts", "ids", "log_probs", "tail"):
                    group[f"{stream}_{part}"] = getattr(posterior, part)
            group["reference"] = np.asarray(targets.reference, np.int32)
            group["nbest"] = np.concatenate([np.asarray(h.tokens) for h in targets.nbest])
            group["scores"] = np.asarray([h.joint for h in targets.nbest])
    file = h5py.File(path, "r")

    def read(ids: Sequence[str]) -> object:
        return [[dataset[...] for dataset in file[name].values()] for name in ids]

    return read


def section_reader(store: Path) -> Reader:
    """Our reading as far as the baseline goes: looked up, checked, 12 flat arrays joined."""
    opened = open_store(store)
    return opened.read_sections


def access_rows(stores: dict[int, Path], folder: Path, rounds: int, slow: bool) -> list[Row]:
    """Random access at several sizes of store."""
    rows = []
    for count, store in stores.items():
        opened = open_store(store)
        ids = opened.ids
        readers: dict[str, Reader] = {
            "memmap": memmap_reader(store),
            "plain": memmap_reader(store, plain=True),
            "read": section_reader(store),
            "decoded": opened.read_batch,
        }
        found = microseconds(readers, ids, rounds)
        what = f"shuffled batches of {BATCH}, {count} utterances, warm, CPU time"
        name = "store_read_us_per_utt" + ("" if count == min(stores) else f"_{count}")
        rows.append(row(name, found["read"], "us", found["memmap"], f"{what}; baseline np.memmap"))
        name = name.replace("store_read", "store_read_plain")
        viewed = f"{what}; baseline np.memmap viewed as ordinary arrays"
        rows.append(row(name, found["read"], "us", found["plain"], viewed))
        name = name.replace("read_plain", "decode")
        decoded = f"read, checked and decoded to flat arrays; {what}; baseline np.memmap"
        rows.append(row(name, found["decoded"], "us", found["memmap"], decoded))
        if slow and count == min(stores):
            some = ids[:2000]
            groups = group_reader(folder / "groups.h5", store, len(some))
            other = microseconds({"zarr": zarr_reader(store), "groups": groups}, some, 3)
            rows.append(row("zarr_python_us_per_utt", other["zarr"], "us", found["memmap"], what))
            rows.append(row("h5_groups_us_per_utt", other["groups"], "us", found["memmap"], what))
    return rows


def open_rows(store: Path, compact: Path, folder: Path) -> list[Row]:
    """Opening a 960-hour store, reading its first batch, and expanding its compact form."""
    hours = float(store_info(store)["hours"])
    opening = []
    for _ in range(9):
        started = time.process_time()
        opened = open_store(store)
        opening.append((time.process_time() - started) * 1e3)
    what = f"{len(opened)} utterances, {hours:.0f} h"
    rows = [row("store_open_ms", statistics.median(opening), "ms", None, f"mapped, {what}")]
    started = time.process_time()
    convert_store(compact, folder / "expanded.zarr")
    seconds = time.process_time() - started
    note = f"compact to mapped, checksums and digest checked, written and synced; {what}"
    rows.append(row("store_expand_seconds", seconds, "s", None, note))
    files = sum(1 for path in store.rglob("*") if path.is_file())
    rows.append(row("store_files", files, "files", None, what))
    return rows


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--full", action="store_true", help="large stores, baselines, memory")
    parser.add_argument("--base", type=int, default=600, help="synthetic utterances to tile")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = folder / "base.zarr"
        write_synthetic(base, options.base)
        rows += size_rows(base, folder)
        stores = {10_000: folder / "10k.zarr"}
        tile_store(base, stores[10_000], 10_000)
        if options.full:
            stores[1_000_000] = folder / "1m.zarr"
            tile_store(base, stores[1_000_000], 1_000_000)
        rows += access_rows(stores, folder, 15, options.full)
        if options.full:
            stores.pop(1_000_000)
            rows += error_rows()
            count = round(HOURS_960 / float(store_info(base)["hours"]) * options.base)
            tile_store(base, folder / "960h.zarr", count)
            tile_store(base, folder / "960h-compact.zarr", count, compact_level=3)
            rows += open_rows(folder / "960h.zarr", folder / "960h-compact.zarr", folder)
            rows += memory_rows(base, folder)
    for entry in rows:
        print(
            f"{entry['name']:32} {entry['value']:>12} {entry['unit']:8} ratio {entry['ratio']}"
            f"  {entry['conditions']}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
