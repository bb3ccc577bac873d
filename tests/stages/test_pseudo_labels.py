"""Unlabelled speech from its manifest to a student: pseudo-labels, their filter, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kdpipe.batching import collate
from kdpipe.corpus.manifest import read_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import ConfigError, DataError
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_json, read_jsonl
from kdpipe.models import subsampled_lengths
from kdpipe.stages.decode import Runtime, decode_split
from kdpipe.stages.nbest_targets import as_stored, pseudo_label
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.pseudo_labels import LearnedSplit, confidence, learned_source, take_labels
from kdpipe.stages.recognise import SearchSettings
from kdpipe.stages.store_teacher import recompute_sample
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import train_student
from kdpipe.stages.train_teacher import train_teacher
from kdpipe.store import EMPTY_POSTERIOR, UtteranceTargets, open_store, store_info
from kdpipe.store.check import verify_store
from kdpipe.store.merge import average_stores
from kdpipe.testing import random_model, tiny_manifest, tiny_recipe
from kdpipe.text.tokenizer import Tokenizer

SETTINGS = DumpSettings(nbest=3, beam=3, batch_frames=2000)
LABELLED = 8


def unlabelled(utterances: list[Utterance], first: int = 0) -> list[Utterance]:
    """The same speech, without texts from the utterance number `first` on."""
    return [replace(u, text=None) if n >= first else u for n, u in enumerate(utterances)]


@pytest.fixture(scope="module")
def data(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """8 labelled and 16 unlabelled utterances, an unlabelled test set and a labelled dev set."""
    folder = tmp_path_factory.mktemp("unlabelled")
    manifests = tiny_data.folder.parent
    found = {n: read_manifest(manifests / n / "manifest.jsonl") for n in ("train", "dev", "test")}
    splits = {
        "train": unlabelled(found["train"], LABELLED),
        "dev": found["dev"],
        "test": unlabelled(found["test"]),
    }
    settings = PrepareSettings(allow_unlabelled=True, like=tiny_data.folder)
    prepare(splits, folder / "data", settings, workers=0)
    return PreparedData.open(folder / "data")


@pytest.fixture(scope="module")
def teacher(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(data, tmp_path_factory.mktemp("models") / "teacher", "ar", seed=1)


@pytest.fixture(scope="module")
def store(data: PreparedData, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "train.zarr"
    assert teacher_dump(data.folder, "train", teacher, out, SETTINGS, Shard(), "cpu")
    return out


def test_preparing_counts_what_has_no_text(data: PreparedData) -> None:
    assert data.split("train").summary["unlabelled"] == 24 - LABELLED
    assert data.split("dev").summary["unlabelled"] == 0


def test_the_best_hypothesis_is_the_reference(data: PreparedData, store: Path) -> None:
    opened, split = open_store(store), data.split("train")
    pseudo = 0
    for place, identifier in enumerate(split.ids):
        targets = opened[identifier]
        if place < LABELLED:
            assert targets.reference == split.tokens(place)
            assert targets.status in ("ok", "short-nbest")
        elif targets.status == "pseudo":
            pseudo += 1
            assert targets.reference == targets.nbest[0].tokens
            assert len(targets.tokens) == len(targets.reference) + 1
        else:
            assert targets.status in ("empty", "unalignable", "no-nbest")
            assert (targets.reference, len(targets.tokens)) == ((), 0)
        assert len(targets.frames)
    assert pseudo
    assert store_info(store)["status"]["pseudo"] == pseudo


def test_labelled_utterances_are_as_without_the_others(
    tiny_data: PreparedData, data: PreparedData, teacher: Path, store: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.zarr"
    assert tiny_data.feature_digest == data.feature_digest
    teacher_dump(tiny_data.folder, "train", teacher, plain, SETTINGS, Shard(), "cpu")
    ours, theirs = open_store(store), open_store(plain)
    assert all(ours.same_record(theirs, name) for name in list(data.split("train").ids)[:LABELLED])


def test_the_teacher_agrees_with_its_pseudo_labels(
    data: PreparedData, teacher: Path, store: Path
) -> None:
    assert verify_store(store).sound
    found = recompute_sample(store, data.folder, teacher, 8, 0, "cpu")
    assert found.within(0.01)
    assert (found.best_agrees, found.nbest_distance) == (1.0, 0.0)


def test_training_learns_the_labels_and_lists_what_it_left_out(
    data: PreparedData, store: Path, tmp_path: Path
) -> None:
    opened, split = open_store(store), data.split("train")
    sure = sorted(confidence(opened[name]) for name in split.ids if opened[name].status == "pseudo")
    limit = (sure[len(sure) // 2 - 1] + sure[len(sure) // 2]) / 2
    told: list[str] = []
    recipe = tiny_recipe(f"distillation.min_confidence={limit}")
    out = tmp_path / "student"
    assert train_student(data.folder, recipe, out, str(store), 0, "cpu", tell=told.append)
    left_out = {str(r["id"]): r for r in read_jsonl(out / "left_out.jsonl")}
    reasons = [record["reason"] for record in left_out.values()]
    assert reasons.count("low-confidence") == len(sure) // 2
    used = 24 - LABELLED - len(left_out)
    assert told[0].startswith(f"pseudo-labels: {used} used, {len(left_out)} left out")
    for name, record in left_out.items():
        status = opened[name].status
        assert record["reason"] == (status if status != "pseudo" else "low-confidence")
    last = [r for r in read_jsonl(out / "train.jsonl") if r["type"] == "epoch"][-1]
    assert {"encoder_frame", "decoder_frame", "encoder_sequence", "decoder_sequence"} <= set(last)


def test_the_learned_split_has_the_labels_for_tokens(data: PreparedData, store: Path) -> None:
    split, opened = data.split("train"), open_store(store)
    labels = take_labels(split, opened, 0.0)
    learned = learned_source(split, labels)
    assert isinstance(learned, LearnedSplit)
    count = len(learned.frame_counts)
    assert count == LABELLED + len(labels.tokens)
    batch = collate(learned, data.cmvn, range(count))
    for row, name in enumerate(batch.ids):
        tokens = tuple(batch.tokens[row, : int(batch.token_lengths[row])].tolist())
        assert tokens == opened[name].reference
        np.testing.assert_array_equal(learned.features(row), split.features(split.index(name)))
        assert int(batch.feature_lengths[row]) == learned.frame_counts[row]
    dev = data.split("dev")
    assert learned_source(dev, take_labels(dev, opened, 1.0)) is dev


def test_a_label_longer_than_the_students_frames_is_left_out(
    data: PreparedData, store: Path
) -> None:
    split, opened = data.split("train"), open_store(store)
    before = take_labels(split, opened, 0.0)
    place, label = max(before.tokens.items(), key=lambda item: len(item[1]))
    needed = len(label) + sum(a == b for a, b in pairwise(label))
    counts = split.frame_counts.copy()
    vars(split)["frame_counts"] = counts
    counts[place] = 4 * needed + 3
    assert subsampled_lengths(int(counts[place])) == needed
    assert take_labels(split, opened, 0.0).tokens == before.tokens
    counts[place] -= 1
    after = take_labels(split, opened, 0.0)
    assert set(before.tokens) - set(after.tokens) == {place}
    (left,) = set(after.left_out) - set(before.left_out)
    assert (left.id, left.reason) == (list(split.ids)[place], "unalignable")


def test_an_averaged_store_has_no_confidence_to_filter_by(
    data: PreparedData, store: Path, tmp_path: Path
) -> None:
    average_stores([store, store], tmp_path / "mean.zarr")
    mean, split = open_store(tmp_path / "mean.zarr"), data.split("train")
    assert take_labels(split, mean, 0.0).tokens == take_labels(split, open_store(store), 0.0).tokens
    with pytest.raises(ConfigError, match="min_confidence"):
        take_labels(split, mean, 0.1)


def test_confidence_is_a_mean_over_tokens() -> None:
    nbest = as_stored([((3, 4), -1.0, -2.0, -1.5), ((3,), -3.0, -3.0, -3.0)])
    targets = UtteranceTargets("u", EMPTY_POSTERIOR, EMPTY_POSTERIOR, (), nbest, "pseudo")
    assert confidence(targets) == pytest.approx(math.exp(-0.5))
    assert confidence(replace(targets, reference=(3,))) == pytest.approx(math.exp(-1.5))
    assert confidence(replace(targets, nbest=())) == 0.0


def test_what_is_no_label() -> None:
    assert pseudo_label([], 10) == ((), "no-nbest")
    assert pseudo_label([(), (3,)], 10) == ((), "empty")
    assert pseudo_label([(3, 3), (3,)], 2) == ((), "unalignable")
    assert pseudo_label([(3, 4), (3,)], 2) == ((3, 4), "pseudo")


def test_unlabelled_speech_needs_a_teacher(data: PreparedData, store: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16 of 24 have no text") as refusal:
        train_student(data.folder, tiny_recipe(), tmp_path / "s", None, 0, "cpu")
    assert "--targets" in refusal.value.remedy
    with pytest.raises(DataError, match="16 of 24 have no text"):
        train_teacher(data.folder, tiny_recipe(), tmp_path / "t", 0, "cpu")
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "t").exists()


def test_nothing_left_to_learn_is_an_error(
    data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "test.zarr"
    teacher_dump(data.folder, "test", teacher, out, SETTINGS, Shard(), "cpu")
    with pytest.raises(DataError, match="confidence 1 or more"):
        take_labels(data.split("test"), open_store(out), 1.0)


def test_decoding_speech_without_texts_gives_no_rates(data: PreparedData, tmp_path: Path) -> None:
    student = random_model(data, tmp_path / "student", "mask-ctc")
    out = tmp_path / "out"
    decode_split(student, data.folder, "test", out, SearchSettings(beam=1), Runtime("cpu"))
    assert len(list(read_jsonl(out / "hyp.jsonl"))) == 6
    score = read_json(out / "score.json")
    assert isinstance(score, dict)
    assert (score["wer"], score["cer"], score["utterances"]) == (None, None, 6)


def test_a_dev_split_without_texts_measures_nothing(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    found = read_manifest(tiny_data.folder.parent / "dev" / "manifest.jsonl")
    settings = PrepareSettings(allow_unlabelled=True, like=tiny_data.folder)
    prepare({"train": found, "dev": unlabelled(found)}, tmp_path / "d", settings, workers=0)
    with pytest.raises(DataError, match="dev: no utterance has a text"):
        train_student(tmp_path / "d", tiny_recipe(), tmp_path / "s", None, 0, "cpu")


def test_lines_without_a_text_key(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path / "train", 4, 0)
    records = list(read_jsonl(manifest))
    texts: list[dict[str, object]] = [{}, {"text": None}, {"text": "  "}, {"text": "ABC"}]
    with manifest.open("w") as lines:
        for record, text in zip(records, texts, strict=True):
            del record["text"]
            lines.write(json.dumps({**record, **text}) + "\n")
    settings = PrepareSettings(allow_unlabelled=True)
    prepare({"train": read_manifest(manifest)}, tmp_path / "d", settings, 0, max_rejected=0.5)
    data = PreparedData.open(tmp_path / "d")
    split = data.split("train")
    assert [u.text for u in split.utterances] == [None, None, "ABC"]
    assert split.summary["rejected"] == {"empty-text": 1}
    assert split.summary["unlabelled"] == 2
    assert Tokenizer.load(data.tokenizer).encode("ABC") == list(split.tokens(2))
    assert torch.equal(torch.tensor(split.token_counts), torch.tensor([0, 0, 3]))
