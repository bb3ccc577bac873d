"""Every way from one backend or profile to another keeps content and digest."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tests.store.contract import make_header, write_targets

from kdpipe.errors import StoreDamageError, StoreFormatError, StoreIncompleteError
from kdpipe.store import finish, open_store
from kdpipe.store.blocks import place_records
from kdpipe.store.compact import compact_blocks, open_compact
from kdpipe.store.convert import all_blocks, convert_store, open_any
from kdpipe.store.layout import COLUMN, Widths, addresses, section_sizes

CODECS: list[dict[str, object]] = [
    {},
    {"codec": "fp32", "top_k": 300, "min_prob": 0.0},
    {"codec": "fp16", "vocab_size": 70_000, "top_k": 3, "min_prob": 0.0},
]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("changes", CODECS)
@pytest.mark.parametrize("source", ["a.zarr", "a.h5"])
def test_there_and_back(tmp_path: Path, source: str, changes: dict[str, object]) -> None:
    header = make_header(**changes)
    count = 3 if header.tokenizer.vocab_size > 1000 else 60
    write_targets(tmp_path / source, header, range(count), flush_bytes=3000, shard_bytes=1 << 18)
    digest = finish(tmp_path / source)
    chain = [source, "compact.zarr", "b.zarr", "b.h5", "c.zarr", "c.h5"]
    for before, after in itertools.pairwise(chain):
        compact = after.startswith("compact")
        assert convert_store(tmp_path / before, tmp_path / after, compact, level=3) == digest
    assert files_of(tmp_path / "b.zarr") == files_of(tmp_path / "c.zarr")
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()
    first, last = open_store(tmp_path / source), open_store(tmp_path / "c.h5")
    assert list(first) == list(last)
    batches = first.read_batch(first.ids), last.read_batch(last.ids)
    np.testing.assert_array_equal(batches[0].frames.log_probs, batches[1].frames.log_probs)
    np.testing.assert_array_equal(batches[0].nbest.tokens, batches[1].nbest.tokens)


def test_an_empty_store_converts(tmp_path: Path) -> None:
    write_targets(tmp_path / "a.zarr", make_header(), range(0))
    digest = finish(tmp_path / "a.zarr")
    for before, after in (("a.zarr", "c.zarr"), ("c.zarr", "b.h5"), ("b.h5", "d.zarr")):
        assert convert_store(tmp_path / before, tmp_path / after, after == "c.zarr") == digest


def test_records_never_cross_shards(tmp_path: Path) -> None:
    header = make_header()
    write_targets(tmp_path / "a.zarr", header, range(200))
    finish(tmp_path / "a.zarr")
    index = open_any(tmp_path / "a.zarr").index
    for shard_bytes in (4096, 1 << 16, 1 << 26):
        placed = place_records(index, header, shard_bytes)
        sizes = section_sizes(placed.table, Widths.of(header)).sum(axis=1)
        starts = addresses(placed.table)
        assert (starts // shard_bytes == (starts + sizes - 1) // shard_bytes).all()
        assert (starts[1:] >= starts[:-1] + sizes[:-1]).all()


def test_streams_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.store.compact.PLANE_BYTES", 256)
    monkeypatch.setattr("kdpipe.store.blocks.BLOCK_ROWS", 7)
    write_targets(tmp_path / "a.zarr", make_header(), range(60))
    finish(tmp_path / "a.zarr")
    convert_store(tmp_path / "a.zarr", tmp_path / "c.zarr", compact=True)
    image = open_compact(tmp_path / "c.zarr")
    blocks = zip(all_blocks(open_any(tmp_path / "a.zarr")), compact_blocks(image), strict=True)
    for ours, theirs in blocks:
        np.testing.assert_array_equal(ours.content, theirs.content)
        assert ours.names == theirs.names
        assert (ours.rows[:, COLUMN["frames"] :] == theirs.rows[:, COLUMN["frames"] :]).all()


def test_damage_is_not_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_targets(path, make_header(), range(60))
    finish(path)
    shard = path / "records" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreDamageError, match="utt-"):
        convert_store(path, tmp_path / "b.h5")
    with pytest.raises(StoreDamageError, match="utt-"):
        convert_store(path, tmp_path / "b.zarr", compact=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    write_targets(tmp_path / "a.zarr", make_header(), range(2))
    with pytest.raises(StoreIncompleteError):
        convert_store(tmp_path / "a.zarr", tmp_path / "b.h5")
    finish(tmp_path / "a.zarr")
    with pytest.raises(StoreFormatError, match="compact"):
        convert_store(tmp_path / "a.zarr", tmp_path / "b.h5", compact=True)
    convert_store(tmp_path / "a.zarr", tmp_path / "b.h5")
    write_targets(tmp_path / "c.zarr", make_header(), range(3))
    finish(tmp_path / "c.zarr")
    with pytest.raises(StoreFormatError, match="there already"):
        convert_store(tmp_path / "c.zarr", tmp_path / "b.h5")
    with pytest.raises(StoreFormatError, match="there already"):
        convert_store(tmp_path / "a.zarr", tmp_path / "c.zarr", compact=True)


@pytest.mark.parametrize(
    ("name", "compact"), [("b.h5", False), ("b.zarr", False), ("b.zarr", True)]
)
def test_what_was_converted_before_stays(tmp_path: Path, name: str, compact: bool) -> None:
    write_targets(tmp_path / "a.zarr", make_header(), range(2))
    digest = finish(tmp_path / "a.zarr")
    target = tmp_path / name
    assert convert_store(tmp_path / "a.zarr", target, compact) == digest
    made = target.stat().st_mtime_ns
    told: list[int] = []
    assert convert_store(tmp_path / "a.zarr", target, compact, advance=told.append) == digest
    assert (target.stat().st_mtime_ns, told) == (made, [])
