from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from kdpipe.corpus.manifest import write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import ConfigError, InputNotFoundError
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
