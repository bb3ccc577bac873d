"""Stores that claim far more than they hold are refused before memory or time runs out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numcodecs.zstd import Zstd
from tests.store.contract import make_header, make_targets, write_targets

from kdpipe.errors import StoreDamageError, StoreFormatError
from kdpipe.store import StoreWriter, finish, open_store
from kdpipe.store.check import verify_store
from kdpipe.store.compact import compact_blocks, open_compact
from kdpipe.store.convert import convert_store
from kdpipe.store.image import sealed_json
from kdpipe.store.layout import COLUMN, COLUMNS
from kdpipe.store.record import pack_record

HEADER = make_header()
COUNT = 20


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    write_targets(tmp_path / "s.zarr", HEADER, range(COUNT))
    finish(tmp_path / "s.zarr")
    convert_store(tmp_path / "s.zarr", tmp_path / "c.zarr", compact=True, level=1)
    return tmp_path / "c.zarr"


def test_chunks_that_lie_on_each_other(compact: Path) -> None:
    stream = compact / "scores/c/0/0"
    content = bytearray(stream.read_bytes())
    content[-4 - 16 * 16 : -4] = bytes(content[-4 - 16 * 16 : -4 - 16 * 15]) * 16
    stream.write_bytes(content)
    with pytest.raises(StoreFormatError, match="overlap"):
        list(compact_blocks(open_compact(compact)))


def test_an_index_that_compresses_better_than_checksums_can(compact: Path) -> None:
    count = 10**6
    bomb = bytes(Zstd(19).encode(np.zeros(48 * count, np.uint8)))
    (compact / "table/c/0/0").write_bytes(bomb)
    root = json.loads((compact / "zarr.json").read_text())
    store = root["attributes"]["kdpipe_store"]
    store.update(checksum="00000000", utterances=count)
    store["files"]["table/c/0/0"][0] = len(bomb)
    (compact / "zarr.json").write_bytes(sealed_json(json.dumps(root).encode()))
    with pytest.raises(StoreFormatError, match="table/c/0/0 claims 48000000 bytes"):
        open_compact(compact)


def test_ids_that_lie_on_each_other(compact: Path) -> None:
    size, place = 4 * len(COLUMNS), 4 * COLUMN["id_end"]
    table = compact / "table/c/0/0"
    rows = bytearray(Zstd().decode(table.read_bytes()))
    for row in range(1, COUNT, 2):
        rows[row * size + place : row * size + place + 4] = bytes(4)
    content = bytes(Zstd(1).encode(bytes(rows)))
    table.write_bytes(content)
    root = json.loads((compact / "zarr.json").read_text())
    store = root["attributes"]["kdpipe_store"]
    store.update(checksum="00000000")
    store["files"]["table/c/0/0"][0] = len(content)
    (compact / "zarr.json").write_bytes(sealed_json(json.dumps(root).encode()))
    with pytest.raises(StoreFormatError, match="ids that end before they begin"):
        open_compact(compact)


def test_more_classes_than_the_header_says(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s.zarr", replace(make_header(), top_k=2)) as writer:
        header = replace(writer.header, top_k=HEADER.top_k)
        writer.add_record(pack_record(make_targets(0, header), header))
    finish(tmp_path / "s.zarr")
    assert not verify_store(tmp_path / "s.zarr").sound
    with pytest.raises(StoreDamageError, match="more classes than the 2"):
        open_store(tmp_path / "s.zarr")["utt-00000"]


def test_a_record_beyond_reason(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.store.compact.MAX_RECORD", 1000)
    with pytest.raises(StoreFormatError, match="a record of more than 1000 bytes"):
        open_compact(compact)
    with pytest.raises(StoreFormatError, match="a record of more than 1000 bytes"):
        convert_store(compact.with_name("s.zarr"), compact.with_name("d.zarr"), compact=True)


def test_streams_too_small_for_the_records(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.store.compact.MAX_RATIO", 1)
    monkeypatch.setattr("kdpipe.store.compact.SLACK_BYTES", 0)
    assert "records claim" in verify_store(compact).findings[0].problem
    with pytest.raises(StoreFormatError, match="records claim"):
        convert_store(compact, compact.with_name("back.zarr"))


def test_a_record_over_many_chunks(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdpipe.store.compact.PLANE_BYTES", 8)
    source = compact.with_name("s.zarr")
    digest = convert_store(source, compact.with_name("small.zarr"), compact=True, level=1)
    assert convert_store(compact.with_name("small.zarr"), compact.with_name("d.zarr")) == digest


def test_more_hypotheses_than_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    with StoreWriter(path, make_header(nbest=3)) as writer:
        for seed, nbest in enumerate((3, 10)):
            header = replace(writer.header, nbest=nbest)
            writer.add_record(pack_record(make_targets(seed, header), header))
    finish(path)
    (found,) = verify_store(path).findings
    assert (found.problem, found.ids) == (
        "more hypotheses than the 3 of the header",
        ("utt-00001",),
    )


def test_hypotheses_of_too_many_tokens(compact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(compact.with_name("s.zarr"))
    monkeypatch.setattr("kdpipe.store.ragged.MAX_TOKENS", 10)
    with pytest.raises(StoreDamageError, match=r"hypotheses of \d+ tokens"):
        store.read_batch(store.ids)
