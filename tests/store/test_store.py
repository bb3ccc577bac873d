"""Writing, resuming, finishing and reading back, on both backends."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.store.contract import (
    assert_same_targets,
    dense_log_probs,
    make_header,
    make_targets,
    write_targets,
)

from kdpipe.errors import (
    BusyOutputError,
    DataError,
    OutputConflictError,
    StoreFormatError,
    StoreIncompleteError,
    StoreWriteError,
    UtteranceNotFoundError,
)
from kdpipe.store import StoreWriter, finish, open_store, store_state
from kdpipe.store.journal import Ledger, read_ledger
from kdpipe.store.schema import StoreHeader, header_from_json, header_to_json

SMALL_SHARDS = {"flush_bytes": 5000, "shard_bytes": 1 << 16}
CODECS = [
    ({}, 1 / 32),
    ({"codec": "fp16", "top_k": 60, "min_prob": 0.0}, 2e-2),
    ({"codec": "fp32", "top_k": 300, "min_prob": 0.0}, 1e-6),
    ({"vocab_size": 70_000, "top_k": 5}, 1 / 32),
    ({"vocab_size": 300, "top_k": 5}, 1 / 32),
    ({"id_bytes": 4}, 1 / 32),
]


@pytest.fixture(params=["s.zarr", "s.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.mark.parametrize(("changes", "tolerance"), CODECS)
def test_what_is_written_is_read_back(
    path: Path, changes: dict[str, object], tolerance: float
) -> None:
    header = make_header(**changes)
    seeds = range(3 if header.tokenizer.vocab_size > 1000 else 40)
    write_targets(path, header, seeds, **SMALL_SHARDS)
    finish(path)
    store = open_store(path)
    assert len(store) == len(seeds)
    assert list(store) == [make_targets(seed, header).id for seed in seeds]
    for seed in seeds:
        expected = make_targets(seed, header)
        assert_same_targets(store[expected.id], expected, tolerance)


def test_a_batch_is_the_utterances_joined(path: Path) -> None:
    header = make_header()
    write_targets(path, header, range(50), **SMALL_SHARDS)
    finish(path)
    store = open_store(path)
    ids = [f"utt-{seed:05d}" for seed in np.random.default_rng(0).permutation(50)[:20]]
    batch = store.read_batch(ids)
    assert batch.ids == tuple(ids)
    for rows, name in ((batch.frames, "frames"), (batch.tokens, "tokens")):
        singles = [getattr(store[utterance], name) for utterance in ids]
        for part in ("counts", "ids", "log_probs", "tail"):
            joined = np.concatenate([getattr(single, part) for single in singles])
            np.testing.assert_array_equal(getattr(rows, part), joined)
        assert np.diff(rows.offsets).tolist() == [len(single) for single in singles]
    assert store.lengths(ids)[:, 0].tolist() == np.diff(batch.frames.offsets).tolist()
    assert len(store.read_batch([])) == 0


def test_repeated_utterances_in_a_batch(path: Path) -> None:
    write_targets(path, make_header(), range(3))
    finish(path)
    batch = open_store(path).read_batch(["utt-00001", "utt-00001"])
    np.testing.assert_array_equal(
        batch.frames.utterance(0).log_probs, batch.frames.utterance(1).log_probs
    )


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    header = make_header()
    digests = set()
    for name, seeds in (("a.zarr", range(40)), ("b.h5", range(40)), ("c.zarr", range(39, -1, -1))):
        write_targets(tmp_path / name, header, seeds, **SMALL_SHARDS)
        digests.add(finish(tmp_path / name))
    two = tmp_path / "two.zarr"
    with StoreWriter(two, header, "a") as one, StoreWriter(two, header, "b") as other:
        for seed in range(40):
            (one, other)[seed % 2].add(make_targets(seed, header))
            if seed % 10 == 0:
                (other, one)[seed % 2].add(make_targets(seed, header))
    digests.add(finish(two))
    assert len(digests) == 1
    write_targets(tmp_path / "fewer.zarr", header, range(39))
    assert finish(tmp_path / "fewer.zarr") not in digests


def test_a_store_under_construction_is_read_only_on_request(path: Path) -> None:
    header = make_header()
    writer = StoreWriter(path, header)
    writer.add(make_targets(0, header))
    assert store_state(path) == "partial"
    assert len(open_store(path, allow_partial=True)) == 0
    writer.flush()
    assert writer.done_ids() == {"utt-00000"}
    store = open_store(path, allow_partial=True)
    assert_same_targets(store["utt-00000"], make_targets(0, header), 1 / 32)
    assert not store.complete
    with pytest.raises(StoreIncompleteError, match="1 utterance"):
        open_store(path)
    with pytest.raises(BusyOutputError):
        finish(path)
    writer.close()
    with pytest.raises(StoreIncompleteError):
        finish(path, expected=["utt-00000", "utt-00001"])
    finish(path, expected=["utt-00000"])
    assert open_store(path).complete


def test_resuming_skips_what_is_done(path: Path) -> None:
    header = make_header()
    write_targets(path, header, range(10))
    with StoreWriter(path, replace(header, created="later")) as writer:
        assert len(writer.done_ids()) == 10
        assert not writer.add(make_targets(3, header))
        assert writer.add(make_targets(10, header))
    digest = finish(path)
    write_targets(path.with_name(f"whole{path.suffix}"), header, range(11))
    assert finish(path.with_name(f"whole{path.suffix}")) == digest
    assert finish(path) == digest
    assert open_store(path).header.created == header.created


def test_other_settings_are_refused(path: Path) -> None:
    write_targets(path, make_header(), range(2))
    with pytest.raises(OutputConflictError, match=r"min_prob: 0\.001 then, 0\.01 now"):
        StoreWriter(path, make_header(min_prob=0.01))
    finish(path)
    with pytest.raises(StoreFormatError, match="complete"):
        StoreWriter(path, make_header())


def test_what_is_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "precious").write_text("data")
    with pytest.raises(StoreFormatError, match="no teacher store"):
        StoreWriter(tmp_path / "x.zarr", make_header())
    with pytest.raises(StoreFormatError, match=r"\.zarr or \.h5"):
        StoreWriter(tmp_path / "x.npz", make_header())


def test_an_empty_store(path: Path) -> None:
    write_targets(path, make_header(), range(0))
    finish(path)
    assert list(open_store(path)) == []


def test_absent_utterances_are_named(path: Path) -> None:
    write_targets(path, make_header(), range(3))
    finish(path)
    store = open_store(path)
    assert "utt-00001" in store
    assert "nobody" not in store
    assert store.missing(["utt-00001", "nobody"]) == ["nobody"]
    with pytest.raises(UtteranceNotFoundError, match="nobody"):
        store.read_batch(["utt-00001", "nobody"])


def test_fidelity_is_measured_while_writing(path: Path) -> None:
    header = make_header(top_k=4)
    random = np.random.default_rng(0)
    with StoreWriter(path, header) as writer:
        for seed in range(6):
            targets = make_targets(seed, header)
            shapes = (len(targets.frames), len(targets.tokens))
            dense = tuple(dense_log_probs(random, rows) for rows in shapes)
            writer.add(targets, dense if seed % 2 else None)  # type: ignore[arg-type]
    finish(path)
    fidelity = open_store(path).header.fidelity
    assert fidelity is not None
    assert fidelity.utterances == 3
    assert fidelity.frame_kl > 0


def test_targets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    header = make_header()
    good = make_targets(1, header)
    bad_ids = replace(good.frames, ids=good.frames.ids + 100)
    bad_tail = replace(good.frames, tail=good.frames.tail + 2)
    nan = replace(good.frames, log_probs=np.full_like(good.frames.log_probs, np.nan))
    wrong = [
        replace(good, frames=bad_ids),
        replace(good, frames=bad_tail),
        replace(good, frames=nan),
        replace(good, reference=(*good.reference, 5)),
        replace(good, status="fine"),
        replace(good, nbest=good.nbest * 2),
        replace(good, nbest=(replace(good.nbest[0], ctc=float("nan")),)),
        replace(good, id=""),
    ]
    with StoreWriter(tmp_path / "s.zarr", header) as writer:
        for targets in wrong:
            with pytest.raises(DataError):
                writer.add(targets)
        assert writer.add(good)


READERS = """
import multiprocessing, sys
from concurrent.futures import ThreadPoolExecutor
from kdpipe.store import open_store

def total(store):
    return [float(store[name].frames.log_probs.sum()) for name in store]

def total_of_inherited(_):
    return total(inherited)

if __name__ == "__main__":
    inherited = open_store(sys.argv[1])
    expected = total(inherited)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(total, [inherited] * 2) == [expected] * 2
            if method == "fork":
                assert pool.map(total_of_inherited, range(2)) == [expected] * 2
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(total, [inherited] * 4)) == [expected] * 4
    print(len(expected))
"""


def test_processes_and_threads_share_a_store(path: Path, tmp_path: Path) -> None:
    # In a process of its own: forking one with threads, as pytest-xdist's are, may never end.
    write_targets(path, make_header(), range(8))
    finish(path)
    (script := tmp_path / "readers.py").write_text(READERS)
    command = [sys.executable, str(script), str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.stdout.strip() == "8", answer.stderr


def test_headers_survive_json_and_nothing_else_does() -> None:
    header = make_header(lineage=("a", "b"))
    assert header_from_json(header_to_json(header), "x") == header
    for key, value in (("top_k", 0), ("codec", "mp3"), ("nbest", "10"), ("step", float("nan"))):
        with pytest.raises(StoreFormatError, match=key):
            header_from_json({**header_to_json(header), key: value}, "x")
    wrong: list[object] = [{}, None, [], {**header_to_json(header), "extra": 1}]
    for content in wrong:
        with pytest.raises(StoreFormatError):
            header_from_json(content, "x")
    newer = ("expected_utterances", "id_bytes")
    older = {k: v for k, v in header_to_json(header).items() if k not in newer}
    assert header_from_json(older, "x") == header
    with pytest.raises(StoreFormatError, match="teacher"):
        header_from_json({k: v for k, v in older.items() if k != "teacher"}, "x")
    with pytest.raises(StoreFormatError, match="Upgrade"):
        header_from_json({**header_to_json(header), "format_version": 2}, "x")
    assert isinstance(header, StoreHeader)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreWriteError, match="cannot write"):
        StoreWriter(tmp_path / "file" / "s.zarr", make_header())


def test_opening_while_another_process_finishes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_targets(path, make_header(), range(3))

    def finished_meanwhile(working: Path) -> tuple[StoreHeader, int]:
        monkeypatch.undo()
        finish(path)
        raise FileNotFoundError(working)

    monkeypatch.setattr("kdpipe.store.opening.read_working_header", finished_meanwhile)
    assert open_store(path).complete


def test_finishing_takes_nothing_from_a_reader_that_has_read_the_journals(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_targets(path, make_header(), range(3), **SMALL_SHARDS)

    def finished_after(working: Path) -> Ledger:
        monkeypatch.undo()
        ledger = read_ledger(working)
        finish(path)
        return ledger

    monkeypatch.setattr("kdpipe.store.opening.read_ledger", finished_after)
    store = open_store(path, allow_partial=True)
    assert store.complete
    assert [store[utterance].id for utterance in store] == [f"utt-{n:05d}" for n in range(3)]


def test_finishing_hides_nothing_from_a_reader_that_reads_the_journals(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_targets(path, make_header(), range(3))

    def finished_before(working: Path) -> Ledger:
        monkeypatch.undo()
        finish(path)
        return read_ledger(working)

    monkeypatch.setattr("kdpipe.store.opening.read_ledger", finished_before)
    assert len(open_store(path, allow_partial=True)) == 3


def test_sections_are_the_raw_bytes(path: Path) -> None:
    header = make_header()
    write_targets(path, header, range(4))
    finish(path)
    store = open_store(path)
    joined = store.read_sections(store.ids)
    expected = [token for seed in range(4) for token in make_targets(seed, header).reference]
    assert joined["reference"].tolist() == expected
    assert len(joined["scores"]) == 4 * header.nbest * 16
