"""Stores without some of the streams: what they say of themselves and whom they join."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store.contract import make_header, make_targets

from kdpipe.errors import DataError, MismatchError, StoreFormatError
from kdpipe.store import StoreWriter, UtteranceTargets, finish, open_store, store_info
from kdpipe.store.check import verify_store
from kdpipe.store.compare import compare_stores
from kdpipe.store.convert import convert_store
from kdpipe.store.encode import EMPTY_POSTERIOR
from kdpipe.store.merge import average_stores, join_stores
from kdpipe.store.schema import STATUSES, StoreHeader, header_from_json, header_to_json
from kdpipe.store.summary import store_card

NBEST_ONLY = make_header(streams=("nbest",))


def text_only(seed: int, status: str = "ok") -> UtteranceTargets:
    """Made-up targets of a teacher that gives text alone."""
    targets = make_targets(seed, NBEST_ONLY)
    return replace(
        targets, frames=EMPTY_POSTERIOR, tokens=EMPTY_POSTERIOR, reference=(), status=status
    )


def make_store(path: Path, seeds: range, header: StoreHeader = NBEST_ONLY) -> Path:
    with StoreWriter(path, header) as writer:
        for seed in seeds:
            has_all = header.streams != NBEST_ONLY.streams
            writer.add(make_targets(seed, header) if has_all else text_only(seed))
    finish(path)
    return path


def test_the_header_of_a_whole_store_is_as_before() -> None:
    content = header_to_json(make_header())
    assert "streams" not in content
    assert "streams" not in make_header().identity()
    assert header_from_json(content, "s") == make_header()


def test_the_header_names_what_is_there() -> None:
    content = json.loads(json.dumps(header_to_json(NBEST_ONLY)))
    assert content["streams"] == ["nbest"]
    assert header_from_json(content, "s") == NBEST_ONLY
    assert NBEST_ONLY.identity_digest() != make_header().identity_digest()
    for wrong in (["nbest", "frames"], [], ["words"], ["nbest", "nbest"]):
        with pytest.raises(StoreFormatError, match="streams"):
            header_from_json({**content, "streams": wrong}, "s")


@pytest.mark.parametrize("name", ["s.zarr", "s.h5", "c.zarr"])
def test_a_store_of_text_alone(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source.zarr"
    with StoreWriter(source, NBEST_ONLY) as writer:
        for seed, status in enumerate(STATUSES):
            writer.add(text_only(seed, status))
    finish(source)
    path = tmp_path / name
    convert_store(source, path, compact=name.startswith("c"), level=3)
    store = open_store(path)
    assert store.header.streams == ("nbest",)
    for seed, status in enumerate(STATUSES):
        found = store[f"utt-{seed:05d}"]
        assert (found.nbest, found.status) == (text_only(seed).nbest, status)
        assert (len(found.frames), len(found.tokens), found.reference) == (0, 0, ())
    assert store.lengths(store.ids).sum() == 0
    assert verify_store(path).sound
    info = store_info(path)
    assert (info["streams"], info["hours"], info["mb_per_hour"]) == (["nbest"], None, None)
    assert info["status"]["pseudo"] == 1
    assert "| Streams | nbest |" in store_card(path)


def test_what_the_header_leaves_out_is_refused(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s.zarr", NBEST_ONLY) as writer:
        with pytest.raises(DataError, match="frames, tokens where the header says"):
            writer.add(make_targets(1, NBEST_ONLY))
        assert writer.add(text_only(1))


@pytest.mark.parametrize("swap", [False, True])
def test_kinds_of_stores_do_not_mix(tmp_path: Path, swap: bool) -> None:
    text = make_store(tmp_path / "text.zarr", range(3))
    whole = make_store(tmp_path / "whole.zarr", range(3, 6), make_header())
    pair = (whole, text) if swap else (text, whole)
    for merge in (join_stores, average_stores):
        with pytest.raises(MismatchError, match="streams of"):
            merge(pair, tmp_path / "out.zarr")
    assert compare_stores(*pair)["common"] == 0


def test_stores_of_text_alone_join_and_average(tmp_path: Path) -> None:
    first, second = (
        make_store(tmp_path / "a.zarr", range(3)),
        make_store(tmp_path / "b.h5", range(5)),
    )
    join_stores([first, second], tmp_path / "joined.zarr")
    assert open_store(tmp_path / "joined.zarr").digest is not None
    assert len(open_store(tmp_path / "joined.zarr")) == 5
    average_stores([first, first], tmp_path / "mean.zarr")
    mean = open_store(tmp_path / "mean.zarr")
    assert mean.header.streams == ("nbest",)
    assert [h.tokens for h in mean["utt-00001"].nbest]
    assert compare_stores(first, second)["one_best_agreement"] == 1.0
