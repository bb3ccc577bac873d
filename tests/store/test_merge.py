"""Joining and averaging stores, and comparing them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.store.contract import VOCABULARY, dense_log_probs, make_header, make_targets

from kdpipe.errors import MismatchError, StoreFormatError
from kdpipe.store import (
    SparsePosterior,
    StoreHeader,
    StoreWriter,
    TeacherIdentity,
    finish,
    open_store,
    sparsify,
)
from kdpipe.store import merge as module
from kdpipe.store.check import verify_store
from kdpipe.store.compare import compare_stores
from kdpipe.store.compatible import check_compatible
from kdpipe.store.merge import average_stores, join_stores, mean_targets
from kdpipe.store.pairs import kl_between, mean_posterior

HEADER = make_header()


def make_store(path: Path, seeds: range, header: StoreHeader = HEADER, shift: int = 0) -> Path:
    """Utterances `seeds`; with `shift`, other posteriors for the same references."""
    with StoreWriter(path, header) as writer:
        for seed in seeds:
            targets = make_targets(seed, header)
            if shift:
                targets = replace(targets, frames=other_frames(len(targets.frames), seed + shift))
            writer.add(targets)
    finish(path)
    return path


def other_frames(rows: int, seed: int) -> SparsePosterior:
    dense = dense_log_probs(np.random.default_rng((9, seed)), rows, blank=True)
    return sparsify(dense, HEADER.top_k, HEADER.min_prob)


def spread(posterior: SparsePosterior) -> np.ndarray:
    """Dense probabilities (n, V), the tail spread evenly over the unlisted classes."""
    dense = np.zeros((len(posterior), VOCABULARY))
    start = 0
    for row, count in enumerate(posterior.counts.tolist()):
        dense[row] = posterior.tail[row] / max(VOCABULARY - count, 1)
        listed = posterior.ids[start : start + count]
        dense[row, listed] = np.exp(posterior.log_probs[start : start + count])
        start += count
    return dense


def test_joining_disjoint_stores(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a.zarr", range(12))
    second = make_store(tmp_path / "b.h5", range(8, 20))
    whole = make_store(tmp_path / "whole.zarr", range(20))
    digest = join_stores([first, second], tmp_path / "ab.h5")
    assert digest == open_store(whole).digest
    joined = open_store(tmp_path / "ab.h5")
    assert joined.header.lineage == (open_store(first).digest, open_store(second).digest)
    assert verify_store(tmp_path / "ab.h5").sound


def test_what_was_merged_before_stays_and_what_others_made_is_refused(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a.zarr", range(4))
    second = make_store(tmp_path / "b.zarr", range(4), shift=3)
    third = make_store(tmp_path / "c.zarr", range(4, 6))
    for merge, source in ((join_stores, third), (average_stores, second)):
        target = tmp_path / f"{merge.__name__}.zarr"
        digest, told = merge([first, source], target), list[int]()
        assert merge([first, source], target, told.append) == digest
        assert told == []
        with pytest.raises(StoreFormatError, match="of other stores"):
            merge([source, first], target)


@pytest.mark.parametrize("average", [True, False], ids=["average", "join"])
def test_a_merge_that_was_begun_goes_on_with_its_own_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: bool
) -> None:
    seeds = range(3) if average else range(3, 6)
    a = make_store(tmp_path / "a.zarr", range(3))
    b = make_store(tmp_path / "b.zarr", seeds, shift=1)
    other = make_store(tmp_path / "other.zarr", seeds, shift=2)
    merge, target = average_stores if average else join_stores, tmp_path / "m.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(module, "finish", lambda path: "")
        merge([a, b], target)
    with pytest.raises(StoreFormatError, match="begun with other stores"):
        merge([a, other], target)
    assert merge([a, b], target) == merge([a, b], tmp_path / "again.zarr")


def test_every_sources_licence_binds_the_merged_store(tmp_path: Path) -> None:
    licences = ("CC BY 4.0", "", "internal")
    stores = [
        make_store(tmp_path / f"{n}.zarr", range(n, n + 1), replace(HEADER, licence=licence))
        for n, licence in enumerate(licences)
    ]
    join_stores(stores, tmp_path / "m.zarr")
    assert open_store(tmp_path / "m.zarr").header.licence == "CC BY 4.0 + not stated + internal"
    join_stores([stores[0]], tmp_path / "one.zarr")
    assert open_store(tmp_path / "one.zarr").header.licence == "CC BY 4.0"


def test_joining_other_splits_is_recorded(tmp_path: Path) -> None:
    other = replace(HEADER, split="extra", manifest_digest="45" * 32)
    stores = [
        make_store(tmp_path / "a.zarr", range(3)),
        make_store(tmp_path / "b.zarr", range(3, 6), other),
    ]
    join_stores(stores, tmp_path / "ab.zarr")
    header = open_store(tmp_path / "ab.zarr").header
    assert header.split == "train+extra"
    assert header.manifest_digest not in (HEADER.manifest_digest, other.manifest_digest)


def test_joining_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a.zarr", range(4))
    other_floor = make_store(tmp_path / "b.zarr", range(4, 8), make_header(min_prob=0.01))
    with pytest.raises(MismatchError, match="min_prob"):
        join_stores([first, other_floor], tmp_path / "out.zarr")
    contradicting = make_store(tmp_path / "c.zarr", range(3, 8), shift=1)
    with pytest.raises(MismatchError, match="utt-00003"):
        join_stores([first, contradicting], tmp_path / "out.zarr")


def test_mean_and_divergence_against_dense_arithmetic() -> None:
    first, second = other_frames(30, 1), other_frames(30, 2)
    dense = spread(first), spread(second)
    expected = (dense[0] * np.log(dense[0] / dense[1])).sum(axis=1)
    np.testing.assert_allclose(kl_between(first, second, VOCABULARY), expected, rtol=1e-6)
    mean = mean_posterior((first, second), VOCABULARY, VOCABULARY, 0.0)
    np.testing.assert_allclose(spread(mean), (dense[0] + dense[1]) / 2, rtol=1e-5, atol=1e-9)
    cut = mean_posterior((first, second), VOCABULARY, 4, 1e-2)
    again = sparsify(np.log((dense[0] + dense[1]) / 2).astype(np.float32), 4, 1e-2)
    np.testing.assert_array_equal(cut.ids, again.ids)
    np.testing.assert_allclose(cut.tail, again.tail, rtol=1e-4)


def test_averaging_teachers(tmp_path: Path) -> None:
    other = replace(HEADER, teacher=TeacherIdentity("second", "99" * 32))
    first = make_store(tmp_path / "a.zarr", range(6))
    second = make_store(tmp_path / "b.zarr", range(6), other, shift=1)
    average_stores([first, second], tmp_path / "mean.zarr")
    mean = open_store(tmp_path / "mean.zarr")
    assert mean.header.teacher.name == "average of conformer, second"
    assert len(mean) == 6
    for utterance in mean:
        versions = [open_store(first)[utterance], open_store(second)[utterance]]
        targets = mean[utterance]
        expected = np.mean([spread(version.frames) for version in versions], axis=0)
        assert np.abs(spread(targets.frames) - expected).max() < 0.03
        assert sum(h.posterior for h in targets.nbest) == pytest.approx(1, abs=1e-5)
        assert targets.nbest[0].posterior >= targets.nbest[-1].posterior
    shorter = replace(versions[0], reference=(5,))
    with pytest.raises(MismatchError, match="reference"):
        mean_targets([versions[0], shorter], HEADER)
    fewer = make_store(tmp_path / "c.zarr", range(5), other)
    with pytest.raises(MismatchError, match="set of utterances"):
        average_stores([first, fewer], tmp_path / "out.zarr")


def test_a_mean_with_hypotheses_does_not_say_that_there_are_none(tmp_path: Path) -> None:
    for name, status, empty in (("a", "no-nbest", True), ("b", "short-nbest", False)):
        with StoreWriter(tmp_path / f"{name}.zarr", HEADER) as writer:
            targets = replace(make_targets(0, HEADER), status=status)
            writer.add(replace(targets, nbest=()) if empty else targets)
        finish(tmp_path / f"{name}.zarr")
    average_stores([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "m.zarr")
    found = open_store(tmp_path / "m.zarr")["utt-00000"]
    assert (found.status, len(found.nbest)) == ("short-nbest", 10)


def test_comparing_stores(tmp_path: Path) -> None:
    first = make_store(tmp_path / "a.zarr", range(10))
    second = make_store(tmp_path / "b.h5", range(2, 12), make_header(min_prob=2e-3), shift=1)
    report = compare_stores(first, second)
    assert (report["common"], report["only_first"], report["only_second"]) == (8, 2, 2)
    assert report["settings"] == {"min_prob": [1e-3, 2e-3]}
    assert report["frame_kl"] > 0.1 > report["token_kl"]
    assert report["one_best_agreement"] == 1.0
    assert report["token_agreement"] == 1.0 > report["frame_agreement"]
    same = compare_stores(first, first)
    assert same["same_content"]
    assert same["frame_kl"] == pytest.approx(0, abs=1e-6)


def test_whether_a_store_fits_a_student() -> None:
    check_compatible(HEADER, HEADER.tokenizer.fingerprint, VOCABULARY, 4, HEADER.feature_digest)
    with pytest.raises(MismatchError, match="tokenizer must agree: mine here, cdcd"):
        check_compatible(HEADER, tokenizer_fingerprint="mine")
    with pytest.raises(MismatchError, match="subsampling must agree: 2 here, 4 there"):
        check_compatible(HEADER, subsampling=2)
