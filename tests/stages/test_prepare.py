from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kdpipe.corpus.manifest import write_manifest
from kdpipe.corpus.utterance import Utterance
from kdpipe.errors import (
    ConfigError,
    DataError,
    InputNotFoundError,
    OutputConflictError,
    OutputWriteError,
    TooManyRejectedError,
)
from kdpipe.features.audio import read_audio
from kdpipe.features.cmvn import Cmvn
from kdpipe.features.filterbank import KaldiFilterbank
from kdpipe.features.prepared import PreparedData, PreparedSplit
from kdpipe.files import read_jsonl
from kdpipe.parallel import WorkerPool
from kdpipe.stages import prepare_split
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.text.tokenizer import Tokenizer

WORDS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX"]
DEFAULT = PrepareSettings()
Speech = Callable[..., Utterance]


@pytest.fixture
def speech(tmp_path: Path) -> Speech:
    """Make a noise recording and its record: speech(id, seconds=1.0, text="ONE")."""

    def make(
        name: str, seconds: float = 1.0, text: str | None = "ONE", rate: int = 16000
    ) -> Utterance:
        generator = np.random.default_rng(sum(name.encode()))
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, generator.normal(0, 0.1, int(seconds * rate)), rate)
        return Utterance(name, path, seconds, text, "speaker")

    return make


@pytest.fixture
def splits(speech: Speech) -> dict[str, list[Utterance]]:
    train = [speech(f"t{i}", 0.6 + 0.1 * i, WORDS[i % 6]) for i in range(8)]
    dev = [speech(f"d{i}", 0.7, WORDS[i]) for i in range(3)]
    return {"train": train, "dev": dev}


def run(
    splits: dict[str, list[Utterance]],
    out: Path,
    settings: PrepareSettings = DEFAULT,
    **options: float,
) -> PreparedData:
    prepare(splits, out, settings, workers=0, **options)
    return PreparedData.open(out)


def contents(folder: Path) -> dict[str, bytes]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_everything_is_there(splits: dict[str, list[Utterance]], tmp_path: Path) -> None:
    data = run(splits, tmp_path / "out")
    tokenizer = Tokenizer.load(data.tokenizer)
    assert data.splits == ["train", "dev"]
    for name, utterances in splits.items():
        split = data.split(name)
        assert len(split) == len(split.utterances) == len(utterances)
        assert list(split.ids) == [u.id for u in utterances]
        for i, (found, given) in enumerate(zip(split.utterances, utterances, strict=True)):
            assert (found.id, found.text, found.speaker) == (given.id, given.text, given.speaker)
            assert (found.audio, found.speed) == (given.audio, 1.0)
            assert found.duration == pytest.approx(given.duration)
            assert list(found.tokens) == tokenizer.encode(given.text or "")
            expected = KaldiFilterbank().log_mel(read_audio(given.audio)).half().numpy()
            np.testing.assert_array_equal(split.features(i), expected)
            assert found.num_frames == len(expected) == split.frame_counts[i]
            assert split.token_counts[i] == len(found.tokens)
            assert split.index(given.id) == i


def test_features_are_views_of_one_mapped_file(
    splits: dict[str, list[Utterance]], tmp_path: Path
) -> None:
    split = run(splits, tmp_path / "out").split("train")
    first, second = split.features(0), split.features(1)
    assert not first.flags.owndata
    assert not first.flags.writeable
    start = first.__array_interface__["data"][0]
    assert second.__array_interface__["data"][0] == start + first.nbytes
    plain = np.load(tmp_path / "out/train/features.npy", mmap_mode="r")
    assert plain.shape == (split.frame_counts.sum(), 80)


def test_cmvn_is_of_the_training_split_alone(
    splits: dict[str, list[Utterance]], tmp_path: Path
) -> None:
    data = run(splits, tmp_path / "out")
    split = data.split("train")
    assert isinstance(data.cmvn, Cmvn)
    frames = np.concatenate([split.features(i) for i in range(len(split))]).astype(np.float64)
    np.testing.assert_allclose(data.cmvn.mean.numpy(), frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.cmvn.std.numpy(), frames.std(0), rtol=1e-5)


def test_speed_perturbation_is_in_train_only(
    splits: dict[str, list[Utterance]], tmp_path: Path
) -> None:
    data = run(splits, tmp_path / "out", PrepareSettings(speeds=(0.9, 1.0, 1.1)))
    train = data.split("train")
    assert list(train.ids)[:4] == ["sp0.9-t0", "t0", "sp1.1-t0", "sp0.9-t1"]
    assert len(data.split("dev")) == 3
    slow, plain, fast = train.utterances[:3]
    assert (slow.speed, plain.speed, fast.speed) == (0.9, 1.0, 1.1)
    assert slow.tokens == plain.tokens == fast.tokens
    assert slow.duration == pytest.approx(plain.duration / 0.9, abs=1e-3)
    for i, entry in enumerate(train.utterances[:3]):
        expected = KaldiFilterbank().log_mel(data.waveform(entry)).half().numpy()
        np.testing.assert_array_equal(train.features(i), expected)


def test_segments_of_one_recording(speech: Speech, tmp_path: Path) -> None:
    whole = speech("long", 3.0, "ONE")
    parts = [
        dataclasses.replace(whole, id=f"p{i}", offset=float(i), duration=1.0, segment=True)
        for i in range(3)
    ]
    data = run({"train": parts}, tmp_path / "out")
    split = data.split("train")
    waveform = read_audio(whole.audio)
    for i, entry in enumerate(split.utterances):
        expected = waveform[16000 * i : 16000 * (i + 1)]
        assert torch.equal(data.waveform(entry), expected)
        np.testing.assert_array_equal(
            split.features(i), KaldiFilterbank().log_mel(expected).half().numpy()
        )


def test_text_is_normalised_as_asked(speech: Speech, tmp_path: Path) -> None:
    splits = {"train": [speech("a", text=" one\ttwo "), speech("b", text="Two  ONE")]}
    kept = run(splits, tmp_path / "kept").split("train")
    assert [u.text for u in kept.utterances] == ["one two", "Two ONE"]
    upper = run(splits, tmp_path / "upper", PrepareSettings(text_case="upper")).split("train")
    assert [u.text for u in upper.utterances] == ["ONE TWO", "TWO ONE"]
    joined = run(splits, tmp_path / "joined", PrepareSettings(text_spaces="remove")).split("train")
    assert [u.text for u in joined.utterances] == ["onetwo", "TwoONE"]


def write_wav(path: Path, samples: object, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, np.asarray(samples, dtype=np.float32), 16000, subtype=subtype)
    return path


def bad_utterances(speech: Speech, folder: Path) -> list[tuple[Utterance, str]]:
    """One utterance for every reason to reject, with the reason."""
    good = speech("good")
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    junk = folder / "junk.wav"
    junk.write_bytes(b"RIFF but no audio")
    samples = {
        "empty-audio": [],
        "silent-audio": np.full(16000, 0.25),
        "not-finite-audio": np.where(np.arange(16000) == 77, np.nan, noise),
        "not-finite-audio-2": noise * 1e30,
    }
    waves = [
        (
            dataclasses.replace(good, id=r, audio=write_wav(folder / f"{r}.wav", s)),
            r.removesuffix("-2"),
        )
        for r, s in samples.items()
    ]
    return [
        *waves,
        (good, "duplicate-id"),
        (dataclasses.replace(good, id="m", audio=folder / "none.wav"), "missing-file"),
        (dataclasses.replace(good, id="u", audio=junk), "undecodable"),
        (dataclasses.replace(good, id="l", duration=1.03), "duration-mismatch"),
        (dataclasses.replace(good, id="s", duration=0.97), "duration-mismatch"),
        (dataclasses.replace(good, id="o", offset=0.5, segment=True), "duration-mismatch"),
        (dataclasses.replace(good, id="b", offset=5.0, segment=True), "empty-audio"),
        (speech("short", 0.09, "ON"), "too-many-tokens"),
        (dataclasses.replace(good, id="n", text=None), "no-text"),
        (dataclasses.replace(good, id="e", text=" \n"), "empty-text"),
        # 1 s: 98 frames, 23 encoder frames.
        (dataclasses.replace(good, id="c", text="EO" * 12), "too-many-tokens"),
        (dataclasses.replace(good, id="r", text="E" * 13), "too-many-tokens"),
        (speech("tiny", 0.06, "O"), "too-short"),
    ]


def test_every_unusable_utterance_is_listed_with_its_reason(speech: Speech, tmp_path: Path) -> None:
    first = run({"train": [speech("n", text="ONE")]}, tmp_path / "first")
    bad = [*bad_utterances(speech, tmp_path), (speech("x", text="OQEZ"), "unknown-token")]
    full, close = speech("full", text="EO" * 11 + "N"), speech("close", 1.0)
    train = [speech("good"), full, dataclasses.replace(close, duration=1.019)]
    train += [utterance for utterance, _ in bad]
    settings = PrepareSettings(like=first.folder)
    data = run({"train": train}, tmp_path / "out", settings, max_rejected=0.99)
    rejected = list(read_jsonl(tmp_path / "out/rejected.jsonl"))
    assert {r["id"]: r["reason"] for r in rejected} == {u.id: reason for u, reason in bad}
    assert {r["split"] for r in rejected} == {"train"}
    assert {r["detail"] for r in rejected if r["id"] == "x"} == {"Q Z"}
    assert len(data.split("train")) == 3
    assert data.settings["splits"]["train"]["rejected"]["duration-mismatch"] == 3
    assert data.rejected_count("train") == len(bad)


def test_texts_that_nobody_can_learn_are_scored(speech: Speech, tmp_path: Path) -> None:
    """Left out of dev and test they would make a model look better than it is."""
    unlearnable = {"too-many-tokens", "unknown-token"}
    bad = bad_utterances(speech, tmp_path)
    scored = {utterance.id for utterance, reason in bad if reason in unlearnable}
    test = [speech("good"), *(utterance for utterance, _ in bad), speech("x", text="OQEZ")]
    splits = {"train": [speech("good")], "test": test}
    data = run(splits, tmp_path / "out", max_rejected=0.99)
    assert set(data.split("test").ids) == {"good", *scored, "x"}
    assert len(scored) == 3
    rejected = {r["id"]: r["reason"] for r in read_jsonl(tmp_path / "out/rejected.jsonl")}
    assert rejected == {u.id: reason for u, reason in bad if reason not in unlearnable}
    (odd,) = [u for u in data.split("test").utterances if u.id == "x"]
    assert odd.text == "OQEZ"
    assert Tokenizer.load(data.tokenizer).unk_id in odd.tokens


def test_too_many_rejected_fail_with_counts_and_a_list(speech: Speech, tmp_path: Path) -> None:
    train = [speech(f"t{i}") for i in range(8)]
    train += [
        dataclasses.replace(train[0], id=f"m{i}", audio=tmp_path / "no.wav") for i in range(2)
    ]
    with pytest.raises(TooManyRejectedError) as caught:
        run({"train": train}, tmp_path / "out", max_rejected=0.1)
    assert caught.value.reasons == {"missing-file": 2}
    assert len(list(read_jsonl(tmp_path / "out/rejected.jsonl"))) == 2
    with pytest.raises(InputNotFoundError):
        PreparedData.open(tmp_path / "out")
    assert len(run({"train": train}, tmp_path / "out", max_rejected=0.2).split("train")) == 8


def test_mended_audio_is_looked_at_again(speech: Speech, tmp_path: Path) -> None:
    train = [speech(f"t{i}") for i in range(3)]
    moved = train[1].audio.rename(tmp_path / "away.wav")
    with pytest.raises(TooManyRejectedError):
        run({"train": train}, tmp_path / "out")
    moved.rename(train[1].audio)
    assert list(run({"train": train}, tmp_path / "out").split("train").ids) == ["t0", "t1", "t2"]


def test_mended_audio_whose_header_could_not_be_read_goes_on(
    speech: Speech, tmp_path: Path
) -> None:
    """An importer's durations are the headers': they are no setting of the folder."""
    good = [dataclasses.replace(speech(f"t{i}"), measured=True) for i in range(3)]
    moved = good[1].audio.rename(tmp_path / "away.wav")
    lost = [*good[:1], dataclasses.replace(good[1], duration=0.0), *good[2:]]
    with pytest.raises(TooManyRejectedError):
        run({"train": lost}, tmp_path / "out")
    moved.rename(good[1].audio)
    assert list(run({"train": good}, tmp_path / "out").split("train").ids) == ["t0", "t1", "t2"]


def test_a_split_without_any_usable_utterance_fails(speech: Speech, tmp_path: Path) -> None:
    with pytest.raises(TooManyRejectedError):
        run(
            {"train": [speech("t")], "dev": [speech("d", text="")]},
            tmp_path / "o",
            max_rejected=1.0,
        )


def test_the_same_command_again_is_complete(
    splits: dict[str, list[Utterance]], tmp_path: Path
) -> None:
    assert prepare(splits, tmp_path / "out", DEFAULT, workers=0)
    before = contents(tmp_path / "out")
    assert not prepare(splits, tmp_path / "out", DEFAULT, workers=1, max_rejected=0.5)
    assert contents(tmp_path / "out") == before


def test_changed_settings_and_utterances_are_refused_by_name(
    splits: dict[str, list[Utterance]], tmp_path: Path
) -> None:
    run(splits, tmp_path / "out")
    for field, value in {"speeds": (0.9, 1.0), "tokenizer": "bpe", "channel": "first"}.items():
        with pytest.raises(OutputConflictError, match=field.removesuffix("s")):
            run(splits, tmp_path / "out", dataclasses.replace(DEFAULT, **{field: value}))  # type: ignore[arg-type]
    fewer = {**splits, "dev": splits["dev"][:2]}
    with pytest.raises(OutputConflictError, match=r"splits\.dev: '3 utterances.*'2 utterances"):
        run(fewer, tmp_path / "out")


def test_results_do_not_depend_on_workers(
    splits: dict[str, list[Utterance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_split, "CHUNK_UTTERANCES", 3)
    one = run(splits, tmp_path / "one")
    prepare(splits, tmp_path / "two", DEFAULT, workers=2)
    two = PreparedData.open(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.feature_digest == two.feature_digest
    assert one.split("train").manifest_digest == two.split("train").manifest_digest


class StopAfterError(Exception):
    """Stands for a power cut."""


def stop_after(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WorkerPool.map

    def interrupted(
        pool: WorkerPool, function: Callable[[object], object], items: Sequence[object]
    ) -> object:
        for number, result in enumerate(whole(pool, function, items)):
            if number == jobs:
                raise StopAfterError
            yield result

    monkeypatch.setattr(WorkerPool, "map", interrupted)


@pytest.mark.parametrize("jobs", [0, 1, 2])
@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_run_resumes_to_the_same_files(
    splits: dict[str, list[Utterance]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
    torn: bool,
) -> None:
    monkeypatch.setattr(prepare_split, "CHUNK_UTTERANCES", 3)
    run(splits, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stop_after(jobs, patch)
        with pytest.raises(StopAfterError):
            run(splits, tmp_path / "broken")
    if torn:
        # Features and part of a line reached the disk, the rest of the line did not.
        with (tmp_path / "broken/train/features.npy.part").open("ab") as handle:
            handle.write(b"half a chunk")
        with (tmp_path / "broken/train/journal.jsonl").open("ab") as handle:
            handle.write(b'{"stop": 6, "acc')
    run(splits, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


def test_interrupted_while_finishing(
    splits: dict[str, list[Utterance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(splits, tmp_path / "unbroken")
    with monkeypatch.context() as patch:

        def power_cut(folder: Path, records: object) -> None:
            raise StopAfterError

        patch.setattr(prepare_split, "write_index", power_cut)
        with pytest.raises(StopAfterError):
            run(splits, tmp_path / "broken")
    run(splits, tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


# Stands still, with workers at work, when the first chunk is in the journal.
SCRIPT = """
import sys, time
from pathlib import Path
from kdpipe.corpus.manifest import read_manifest
from kdpipe.stages import prepare_split
from kdpipe.stages.prepare import PrepareSettings, prepare

advance = prepare_split._advance

def stand_still(*arguments):
    advance(*arguments)
    time.sleep(600)

if __name__ == "__main__":
    prepare_split._advance = stand_still
    splits = {"train": read_manifest(Path(sys.argv[1]))}
    prepare(splits, Path(sys.argv[2]), PrepareSettings(), workers=2)
"""


def spawned_by(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(child) for child in children.read_text().split()} if children.exists() else set()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_killed_it_resumes_and_leaves_no_process_behind(
    speech: Speech, tmp_path: Path, repository: Path
) -> None:
    short = [speech(f"t{i}") for i in range(8)]
    train = [dataclasses.replace(short[i % 8], id=f"u{i}") for i in range(100)]
    write_manifest(tmp_path / "train.jsonl", train)
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "train.jsonl"), str(out)],
        env={**os.environ, "PYTHONPATH": str(repository / "pipeline")},
    )
    journal = out / "train/journal.jsonl"
    try:
        wait_until(lambda: journal.is_file() and journal.stat().st_size > 0)
        workers = spawned_by(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(workers) >= 2
    wait_until(lambda: not any(is_running(pid) for pid in workers))
    assert journal.read_text(encoding="utf-8").count('"stop"') == 1
    assert len(run({"train": train}, out).split("train")) == 100


def is_running(pid: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_unlabelled_speech(speech: Speech, tmp_path: Path) -> None:
    splits = {"train": [speech("a"), speech("b", text=None)]}
    with pytest.raises(TooManyRejectedError):
        run(splits, tmp_path / "strict")
    data = run(splits, tmp_path / "out", PrepareSettings(allow_unlabelled=True))
    labelled, unlabelled = data.split("train").utterances
    assert (labelled.text, unlabelled.text, unlabelled.tokens) == ("ONE", None, ())
    with pytest.raises(DataError, match="no training text"):
        run(
            {"train": [speech("c", text=None)]},
            tmp_path / "x",
            PrepareSettings(allow_unlabelled=True),
        )


def test_like_takes_tokenizer_and_cmvn_from_another_folder(
    splits: dict[str, list[Utterance]], speech: Speech, tmp_path: Path
) -> None:
    first = run(splits, tmp_path / "first")
    settings = PrepareSettings(like=tmp_path / "first", allow_unlabelled=True)
    for extra in ({"test": [speech("x", text="TWO")]}, {"train": [speech("y", text=None)]}):
        second = run(extra, tmp_path / f"like-{next(iter(extra))}", settings)
        assert second.feature_digest == first.feature_digest
        assert second.settings["tokenizer"] == first.settings["tokenizer"]


def test_another_frame_shift(splits: dict[str, list[Utterance]], tmp_path: Path) -> None:
    first = run(splits, tmp_path / "first", PrepareSettings(frame_shift_ms=7.5))
    bank = KaldiFilterbank(0.0075)
    assert first.filterbank == bank
    found = first.split("dev")
    expected = bank.log_mel(first.waveform(found.utterances[0])).half().numpy()
    np.testing.assert_array_equal(found.features(0), expected)
    # What is made like it has its frames; data of the usual shift is other data.
    settings = PrepareSettings(like=tmp_path / "first")
    like = run({"dev": splits["dev"]}, tmp_path / "like", settings)
    np.testing.assert_array_equal(like.split("dev").features(0), expected)
    assert like.feature_digest == first.feature_digest
    assert run(splits, tmp_path / "usual").feature_digest != first.feature_digest
    with pytest.raises(OutputConflictError, match=r"frame_shift_ms: 7\.5 -> None"):
        run(splits, tmp_path / "first")


def test_like_needs_both_files(splits: dict[str, list[Utterance]], tmp_path: Path) -> None:
    run(splits, tmp_path / "first")
    for name in ("cmvn.safetensors", "tokenizer.model"):
        (tmp_path / "first" / name).unlink()
        with pytest.raises(InputNotFoundError, match=name.split(".")[0]):
            run(splits, tmp_path / "out", PrepareSettings(like=tmp_path / "first"))
    assert not (tmp_path / "out").exists()


def test_impossible_commands(splits: dict[str, list[Utterance]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training split"):
        run({"dev": splits["dev"]}, tmp_path / "out")
    for speeds in ((), (0.1,), (1.0, 1.0), (0.987,), (float("nan"),)):
        with pytest.raises(ConfigError, match="speed"):
            PrepareSettings(speeds=speeds)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").touch()
    with pytest.raises(OutputConflictError):
        run(splits, tmp_path / "other")


def test_a_full_disk_is_said(
    splits: dict[str, list[Utterance]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: object, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_split, "_append", full)
    with pytest.raises(OutputWriteError, match="No space left"):
        run(splits, tmp_path / "out")


def test_reading_by_position_and_id(splits: dict[str, list[Utterance]], tmp_path: Path) -> None:
    data = run(splits, tmp_path / "out")
    split = data.split("train")
    assert split.utterances[-1].id == "t7"
    assert [u.id for u in split.utterances[2:4]] == ["t2", "t3"]
    for bad in (8, -9):
        with pytest.raises(IndexError):
            split.utterances[bad]
    for missing in ("t", "t8", "t00", "é"):
        with pytest.raises(KeyError):
            split.index(missing)
    with pytest.raises(InputNotFoundError, match="train, dev"):
        data.split("test")
    copy: PreparedSplit = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(copy.features(3), split.features(3))


@pytest.mark.parametrize("name", ["features.npy", "tokens.npy", "utterances.jsonl", "ids.npy"])
def test_damaged_data_is_refused(
    splits: dict[str, list[Utterance]], tmp_path: Path, name: str
) -> None:
    data = run(splits, tmp_path / "out")
    path = tmp_path / "out/train" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError):
        data.split("train")


def test_foreign_and_mixed_folders_are_refused(
    splits: dict[str, list[Utterance]], tmp_path: Path
) -> None:
    with pytest.raises(InputNotFoundError):
        PreparedData.open(tmp_path)
    run(splits, tmp_path / "a")
    run({"train": splits["dev"]}, tmp_path / "b")
    (tmp_path / "b/cmvn.safetensors").write_bytes((tmp_path / "a/cmvn.safetensors").read_bytes())
    with pytest.raises(DataError, match="cmvn"):
        PreparedData.open(tmp_path / "b")
    (tmp_path / "a/data.json").write_text('{"format_version": 99}', encoding="utf-8")
    with pytest.raises(DataError, match="format 99"):
        PreparedData.open(tmp_path / "a")
