"""Damage anywhere is found, named and mended; hostile stores end in one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from tests.store.contract import make_header, make_targets, write_targets

from kdpipe.errors import BusyOutputError, KdpipeError, StoreDamageError, StoreFormatError
from kdpipe.store import StoreWriter, check, finish, open_store, store_state
from kdpipe.store.check import verify_store
from kdpipe.store.convert import convert_store
from kdpipe.store.image import sealed_json
from kdpipe.store.layout import COLUMNS
from kdpipe.store.record import Record, pack_record
from kdpipe.store.repair import drop_utterances

HEADER = make_header()
COUNT = 24


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same finished store as s.zarr, s.h5 and compact.zarr."""
    folder = tmp_path_factory.mktemp("stores")
    write_targets(folder / "s.zarr", HEADER, range(COUNT), flush_bytes=8000)
    finish(folder / "s.zarr")
    convert_store(folder / "s.zarr", folder / "s.h5")
    convert_store(folder / "s.zarr", folder / "compact.zarr", compact=True, level=1)
    return folder


@pytest.fixture
def store(stores: Path, tmp_path: Path) -> Path:
    """A Zarr store to spoil."""
    return copy_of(stores / "s.zarr", tmp_path)


def copy_of(store: Path, folder: Path) -> Path:
    target = folder / store.name
    shutil.copytree(store, target) if store.is_dir() else shutil.copy(store, target)
    return target


def all_files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(position)
        byte = handle.read(1)[0]
        handle.seek(position)
        handle.write(bytes([byte ^ (1 << bit)]))


def flip_everywhere(path: Path, count: int, check: Callable[[Path], None]) -> None:
    """Flip random bits of random files, one at a time, each file as likely as another."""
    random = np.random.default_rng(0)
    files = all_files(path)
    for number in range(count):
        victim = files[number % len(files)]
        position, bit = int(random.integers(victim.stat().st_size)), int(random.integers(8))
        flip(victim, position, bit)
        check(victim)
        flip(victim, position, bit)


@pytest.mark.parametrize("name", ["s.zarr", "s.h5", "compact.zarr"])
def test_a_flipped_bit_anywhere_is_found(stores: Path, tmp_path: Path, name: str) -> None:
    path = copy_of(stores / name, tmp_path)
    assert verify_store(path).sound

    def check(victim: Path) -> None:
        try:
            assert not verify_store(path).sound, victim
        except StoreFormatError as error:
            pytest.fail(f"{victim} taken for no store: {error}")

    flip_everywhere(path, 40, check)
    assert verify_store(path).sound


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_damage_names_the_part_and_the_utterance(stores: Path, tmp_path: Path, name: str) -> None:
    path = copy_of(stores / name, tmp_path)
    shard = path / "records/c/0" if name == "s.zarr" else path
    needle = np.asarray(make_targets(5, HEADER).nbest[0].joint, "<f4").tobytes()
    flip(shard, shard.read_bytes().index(needle), 3)
    report = verify_store(path)
    assert report.damaged_ids == ("utt-00005",)
    assert [f.part for f in report.findings] == ["records/c/0" if name == "s.zarr" else "records"]
    with pytest.raises(StoreDamageError, match="utt-00005"):
        open_store(path)["utt-00005"]
    assert open_store(path)["utt-00004"].id == "utt-00004"


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_truncation_is_found(stores: Path, tmp_path: Path, name: str) -> None:
    path = copy_of(stores / name, tmp_path)
    for victim in all_files(path):
        content = victim.read_bytes()
        for size in (0, len(content) // 2, len(content) - 1):
            victim.write_bytes(content[:size])
            try:
                assert not verify_store(path).sound
            except StoreFormatError:
                # Without its user block an HDF5 file is no store of ours.
                assert size == 0
        victim.write_bytes(content)
    assert verify_store(path).sound


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_dropping_what_is_damaged_and_dumping_it_again(
    stores: Path, tmp_path: Path, name: str
) -> None:
    digest = open_store(stores / name).digest
    path = copy_of(stores / name, tmp_path)

    def mend(victim: Path) -> None:
        folder = tmp_path / "mended"
        folder.mkdir()
        copy = copy_of(path, folder)
        damaged = verify_store(copy).damaged_ids
        dropped = drop_utterances(copy, ["utt-00002"])
        assert "utt-00002" in dropped
        assert len(dropped) <= len(damaged) + 3
        assert store_state(copy) == "partial"
        write_targets(copy, HEADER, range(COUNT))
        assert finish(copy) == digest
        assert verify_store(copy).sound
        assert [entry.name for entry in folder.iterdir()] == [name]
        shutil.rmtree(folder)

    flip_everywhere(path, 8, mend)


def test_a_store_under_construction_is_verified_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_targets(path, HEADER, range(COUNT), flush_bytes=2000)
    whole = tmp_path / "whole.zarr"
    write_targets(whole, HEADER, range(COUNT))
    digest = finish(whole)
    assert verify_store(path).state == "partial"
    assert verify_store(path).sound
    journal = path / "journal/000000.jsonl"
    content = journal.read_bytes()
    second = content.index(b"\n", content.index(b"\n") + 1)
    for position in (second - 10, len(content) - 1):
        shutil.copytree(path, tmp_path / "copy.zarr")
        flip(tmp_path / "copy.zarr/journal/000000.jsonl", position, 0)
        report = verify_store(tmp_path / "copy.zarr")
        assert "journal/000000.jsonl line" in report.findings[0].part
        with pytest.raises(StoreDamageError, match="journal"):
            StoreWriter(tmp_path / "copy.zarr", HEADER)
        drop_utterances(tmp_path / "copy.zarr")
        write_targets(tmp_path / "copy.zarr", HEADER, range(COUNT))
        assert finish(tmp_path / "copy.zarr") == digest
        shutil.rmtree(tmp_path / "copy.zarr")
    flip(path / "records/c/0", 300, 1)
    assert len(verify_store(path).damaged_ids) == 1


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
@pytest.mark.parametrize("moment", ["read_working_header", "survey_ledger"])
def test_a_store_that_is_finished_while_it_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    path = tmp_path / name
    write_targets(path, HEADER, range(COUNT))
    step = getattr(check, moment)

    def finished_meanwhile(working: Path) -> object:
        monkeypatch.undo()
        finish(path)
        return step(working)

    monkeypatch.setattr(check, moment, finished_meanwhile)
    report = verify_store(path)
    assert (report.state, report.utterances, report.sound) == ("complete", COUNT, True)


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_nothing_is_dropped_while_a_writer_is_at_work(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with StoreWriter(path, HEADER, flush_bytes=1) as writer:
        for seed in range(3):
            writer.add(make_targets(seed, HEADER))
        with pytest.raises(BusyOutputError):
            drop_utterances(path)
        writer.add(make_targets(3, HEADER))
    assert drop_utterances(path, ["utt-00001"]) == ["utt-00001"]
    assert len(open_store(path, allow_partial=True)) == 3


def test_half_a_line_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_targets(path, HEADER, range(COUNT), flush_bytes=2000)
    journal = path / "journal/000000.jsonl"
    journal.write_bytes(journal.read_bytes()[:-100])
    report = verify_store(path)
    assert report.sound
    assert len(report.notes) == 1
    assert report.utterances < COUNT
    write_targets(path, HEADER, range(COUNT))
    finish(path)
    assert len(open_store(path)) == COUNT


def rewrite_root(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change the root metadata and seal it again, as a hostile hand would."""
    root = json.loads((path / "zarr.json").read_text())
    store = root["attributes"]["kdpipe_store"]
    store["checksum"] = "00000000"
    change(store)
    (path / "zarr.json").write_bytes(sealed_json(json.dumps(root, indent=1).encode()))


def rewrite_table(path: Path, column: int, value: int) -> None:
    """Change one column of the whole table and fit the checksum to it."""
    table = np.fromfile(path / "table/c/0/0", "<u4").reshape(-1, 12)
    table[:, column] = value
    (path / "table/c/0/0").write_bytes(table.tobytes())

    def reseal(store: dict[str, object]) -> None:
        files = store["files"]
        assert isinstance(files, dict)
        files["table/c/0/0"][1] = google_crc32c.value(table.tobytes())

    rewrite_root(path, reseal)


@pytest.mark.parametrize("value", [0, 1, 2**16, 2**32 - 1])
@pytest.mark.parametrize("column", range(12))
def test_lengths_and_offsets_that_lie(store: Path, column: int, value: int) -> None:
    rewrite_table(store, column, value)
    if (COLUMNS[column], value) in {("address_high", 0), ("status", 0)}:
        assert verify_store(store).sound
        return
    assert not verify_store(store).sound
    with pytest.raises(KdpipeError):
        open_store(store).read_batch([f"utt-{seed:05d}" for seed in range(COUNT)])


@pytest.mark.parametrize("codec", ["log8", "fp16"])
def test_records_that_lie_with_checksums_that_fit(tmp_path: Path, codec: str) -> None:
    """Whatever the bytes: a clear error, or targets within the vocabulary; never a crash."""
    header = make_header(codec=codec)
    random = np.random.default_rng(0)
    path = tmp_path / "s.zarr"
    with StoreWriter(path, header) as writer:
        for seed in range(100):
            honest = pack_record(make_targets(seed, header), writer.header)
            lengths, content = list(honest.lengths), bytearray(honest.content)
            if seed % 2:
                place = int(random.integers(len(lengths)))
                lengths[place] = max(0, lengths[place] + int(random.integers(-3, 4)))
            for _ in range(seed % 5):
                content[random.integers(len(content))] = random.integers(256)
            writer.add_record(Record(honest.id, tuple(lengths), bytes(content)))
    finish(path)
    store, refused = open_store(path), verify_store(path).damaged_ids
    assert 20 < len(refused) < len(store)
    for utterance in refused:
        with pytest.raises(StoreDamageError, match=utterance):
            store[utterance]
    for utterance in set(store) - set(refused):
        targets = store[utterance]
        assert np.isfinite(targets.frames.log_probs).all()
        assert targets.frames.ids.max(initial=0) < header.tokenizer.vocab_size


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store["header"].update(format_version=2),
        lambda store: store["header"].update(top_k="many"),
        lambda store: store["header"].update(step=float("nan")),
        lambda store: store.pop("files"),
        lambda store: store["files"].update({"../../etc/passwd": [1, 1]}),
        lambda store: store["files"].update({"table/c/0/0": [2**60, 0]}),
        lambda store: store.update(shard_bytes=0),
        lambda store: store.update(shard_bytes=-5),
        lambda store: store.update(profile="odd"),
        lambda store: store.update(utterances="x"),
        lambda store: store.update(digest=None),
    ],
)
def test_headers_that_lie(store: Path, change: Callable[[dict[str, object]], None]) -> None:
    rewrite_root(store, change)
    with pytest.raises((StoreFormatError, StoreDamageError)):
        open_store(store)


def nested(depth: int) -> dict[str, object]:
    return {"": nested(depth - 1)} if depth else {}


def rewrite_user_block(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """`rewrite_root` of an HDF5 store."""
    content = path.read_bytes()
    block = int(content[13:21])
    store = json.loads(content[22:block])
    store["checksum"] = "00000000"
    change(store)
    text = sealed_json(json.dumps(store).replace(": {", ":{").encode())
    path.write_bytes(content[:22] + text.ljust(block - 23) + b"\n" + content[block:])


@pytest.mark.parametrize(
    "change",
    [
        lambda store: store["header"].update(min_prob=10**400),
        lambda store: store["header"].update(decode=nested(400)),
        lambda store: store["header"].update(split="\ud800"),
        lambda store: store["header"].update({"\udfff": 1}),
        lambda store: store["header"]["decode"].update({"\ud800": 1}),
        lambda store: store.update(bytes=float("inf"), utterances=float("inf")),
        lambda store: (
            store.get("datasets", {}).update(ids=[float("inf"), 0, 0])
            or store.get("files", {}).update(ids=[float("inf"), 0])
        ),
    ],
)
@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_headers_beyond_reason_are_named_errors(
    stores: Path, tmp_path: Path, name: str, change: Callable[[dict[str, object]], None]
) -> None:
    path = copy_of(stores / name, tmp_path)
    (rewrite_root if name == "s.zarr" else rewrite_user_block)(path, change)
    for work in (open_store, verify_store, lambda path: convert_store(path, tmp_path / "c.zarr")):
        with pytest.raises(StoreFormatError):
            work(path)


@pytest.mark.parametrize(
    "name", ["ids/c/0\0", "table/\ud800", "records/c/\u00b2", "records/c/" + 5000 * "1"]
)
def test_file_names_beyond_reason_are_named_errors(store: Path, name: str) -> None:
    rewrite_root(store, lambda content: content["files"].update({name: [1, 1]}))  # type: ignore[attr-defined]
    with suppress(StoreFormatError):
        assert not verify_store(store).sound
    with suppress(StoreFormatError):
        open_store(store)


def test_a_journal_beyond_reason_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    write_targets(path, HEADER, range(3))
    journal = path / "journal/000000.jsonl"
    first, line = journal.read_bytes().splitlines()
    content = json.loads(line[9:])
    content["end"] = float("inf")
    text = json.dumps(content).encode()
    journal.write_bytes(b"%s\n%08x %s\n" % (first, google_crc32c.value(text), text))
    assert verify_store(path).findings[0].part == "journal/000000.jsonl line 2"


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr/zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr/zarr.json").write_text("[" * 100_000)
    for name in ("a.h5", "b.zarr", "c.zarr", "absent.zarr"):
        with pytest.raises(StoreFormatError):
            verify_store(tmp_path / name)
