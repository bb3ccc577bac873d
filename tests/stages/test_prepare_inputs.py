from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdpipe.corpus.manifest import write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import ConfigError, InputNotFoundError, TooManyRejectedError
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_json, read_jsonl, write_json
from kdpipe.stages import prepare_worker
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.prepare_inputs import Corpus, SplitNames, read_splits


def manifest(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    write_manifest(path, [Utterance(path.stem, path.parent / "a.wav", 1.0, "A")])
    return str(path)


def ids(names: SplitNames, corpus: Corpus | None = None) -> dict[str, list[str]]:
    return {name: [u.id for u in found] for name, found in read_splits(names, corpus).items()}


def test_manifests_are_joined_and_further_test_sets_named_by_their_file(tmp_path: Path) -> None:
    t1, t2, d, x, y = (manifest(tmp_path / f"{n}.jsonl") for n in ("t1", "t2", "d", "x", "other"))
    assert ids(SplitNames((t1, t2), (d,), (x, y))) == {
        "train": ["t1", "t2"],
        "dev": ["d"],
        "test": ["x"],
        "other": ["other"],
    }


@pytest.mark.parametrize("name", ["train", "test", "no name"])
def test_a_test_set_that_cannot_have_its_name_is_refused(tmp_path: Path, name: str) -> None:
    first, second = manifest(tmp_path / "a.jsonl"), manifest(tmp_path / f"sub/{name}.jsonl")
    with pytest.raises(ConfigError):
        read_splits(SplitNames((first,), (), (first, second)), None)


def test_no_test_set_is_taken_for_training(tmp_path: Path) -> None:
    first, second = manifest(tmp_path / "a.jsonl"), manifest(tmp_path / "train.jsonl")
    with pytest.raises(ConfigError, match="its name is taken"):
        read_splits(SplitNames(test=(first, second)), None)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    for name in ("train_a", "train_b", "valid", "test_x", "test_y", "extra"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        soundfile.write(folder / "a.wav", np.zeros(1600), 16000)
        (folder / "wav.scp").write_text(f"{name} a.wav\n", encoding="utf-8")
    return Corpus("kaldi", tmp_path / "data")


def test_a_corpus_is_split_by_the_names_it_has(corpus: Corpus) -> None:
    assert ids(SplitNames(), corpus) == {
        "train": ["train_a", "train_b"],
        "dev": ["valid"],
        "test": ["test_x"],
        "test_y": ["test_y"],
    }


def test_what_is_held_out_of_training_is_not_trained_on(corpus: Corpus) -> None:
    (corpus.root / "train_a").rename(corpus.root / "train_nodev")
    (corpus.root / "train_b").rename(corpus.root / "train_dev")
    found = read_splits(SplitNames(), corpus)
    assert [u.id for u in found["train"]] == ["train_a"]
    assert [u.id for u in found["dev"]] == ["train_b", "valid"]


def test_a_corpus_is_split_as_asked(corpus: Corpus) -> None:
    assert ids(SplitNames(("extra",), (), ("test_y",)), corpus) == {
        "train": ["extra"],
        "test": ["test_y"],
    }
    with pytest.raises(InputNotFoundError, match="There is: extra, test_x"):
        read_splits(SplitNames(("train_c",)), corpus)


def test_a_corpus_without_telling_names_wants_them(corpus: Corpus) -> None:
    with pytest.raises(InputNotFoundError, match="--train"):
        read_splits(SplitNames(), Corpus("kaldi", corpus.root / "extra"))


def test_another_tokenizer_than_the_one_to_be_like_is_refused(tmp_path: Path) -> None:
    for like_that in ({"tokenizer": "bpe"}, {"vocab_size": 30}):
        with pytest.raises(ConfigError, match="like"):
            dataclasses.replace(PrepareSettings(like=tmp_path), **like_that)


def test_frame_shifts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not whole samples of 16 kHz"):
        PrepareSettings(frame_shift_ms=0.0)
    with pytest.raises(ConfigError, match="Leave --frame-shift out"):
        PrepareSettings(frame_shift_ms=7.5, like=tmp_path)


def test_what_no_search_takes_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "a.wav", noise, 16000)
    train = [Utterance("a", tmp_path / "a.wav", 1.0, "ONE")]
    monkeypatch.setattr(prepare_worker, "MAX_FRAMES", 23)
    assert prepare({"train": train}, tmp_path / "fits", PrepareSettings(), workers=0)
    monkeypatch.setattr(prepare_worker, "MAX_FRAMES", 22)
    with pytest.raises(TooManyRejectedError) as caught:
        prepare({"train": train}, tmp_path / "out", PrepareSettings(), workers=0)
    assert caught.value.reasons == {"too-long": 1}
    listed = list(read_jsonl(tmp_path / "out" / "rejected.jsonl"))
    assert [record["detail"] for record in listed] == ["23 encoder frames, more than 22"]


def noise(folder: Path, names: str) -> list[Utterance]:
    """An utterance a letter, each with its audio."""
    samples = np.random.default_rng(0).normal(0, 0.1, 16000)
    for name in names:
        soundfile.write(folder / f"{name}.wav", samples, 16000)
    return [Utterance(name, folder / f"{name}.wav", 1.0, "ONE") for name in names]


@pytest.mark.parametrize("reason", ["missing-file", "duplicate-id"])
def test_the_rejected_are_counted_at_every_speed(tmp_path: Path, reason: str) -> None:
    train = noise(tmp_path, "abcdefghij")
    if reason == "missing-file":
        train[9].audio.unlink()
    else:
        train[9] = train[0]
    settings = PrepareSettings(speeds=(0.9, 1.0, 1.1))
    with pytest.raises(TooManyRejectedError) as caught:
        prepare({"train": train}, tmp_path / "out", settings, workers=0, max_rejected=0.09)
    assert (caught.value.rejected, caught.value.total) == (3, 30)
    assert caught.value.reasons == {reason: 3}
    listed = [record["id"] for record in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert listed == [f"{speed}{train[9].id}" for speed in ("sp0.9-", "", "sp1.1-")]
    assert prepare({"train": train}, tmp_path / "out", settings, workers=0, max_rejected=0.1)


def test_the_usual_frame_shift_is_the_same_given_or_not(tmp_path: Path) -> None:
    splits, out = {"train": noise(tmp_path, "a")}, tmp_path / "out"
    assert prepare(splits, out, PrepareSettings(frame_shift_ms=10.0), workers=0)
    assert not prepare(splits, out, PrepareSettings(), workers=0)
    record = read_json(out / "run.json")
    assert isinstance(record, dict)
    del record["settings"]["frame_shift_ms"]
    write_json(out / "run.json", record)
    for shift in (None, 10.0):
        assert not prepare(splits, out, PrepareSettings(frame_shift_ms=shift), workers=0)


def test_speeds_without_training_speech_are_refused(tmp_path: Path) -> None:
    splits = {"train": noise(tmp_path, "a")}
    prepare(splits, tmp_path / "data", PrepareSettings(), workers=0)
    settings = PrepareSettings(speeds=(0.9, 1.0), like=tmp_path / "data")
    with pytest.raises(ConfigError, match="only a training split"):
        prepare({"test": splits["train"]}, tmp_path / "test", settings, workers=0)
    assert prepare(splits, tmp_path / "like", settings, workers=0)
    assert PreparedData.open(tmp_path / "like").settings["speed"] == [0.9, 1.0]
