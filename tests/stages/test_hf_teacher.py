"""A Hugging Face teacher from its folder to a student, and what is refused on the way."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.tiny_hf import WINDOW_SECONDS, edit_json, tiny_speech2text, tiny_whisper, transformers

from kdpipe.checkpoint import load_model
from kdpipe.config import load_recipe
from kdpipe.corpus.manifest import read_manifest
from kdpipe.errors import (
    ConfigError,
    InputNotFoundError,
    MismatchError,
    ModelFormatError,
    OutputConflictError,
)
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.models.foreign.hf import SpokenText
from kdpipe.stages.cached_targets import open_targets
from kdpipe.stages.hf_card import HF_FOLDER, is_hf_teacher, read_hf_card
from kdpipe.stages.hf_teacher import Respelling, spoken_targets
from kdpipe.stages.import_hf import import_hf
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.report import write_report
from kdpipe.stages.report_posteriors import PosteriorSettings
from kdpipe.stages.store_teacher import recompute_sample, repair_store
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import require_streams, train_student
from kdpipe.store import open_store, store_info
from kdpipe.testing import TINY_RECIPE, random_model, tiny_recipe
from kdpipe.text.spoken import SpokenStyle
from kdpipe.text.tokenizer import Tokenizer
from kdpipe_cli.main import main

SETTINGS = DumpSettings(nbest=4, beam=5, batch_frames=900)
NO_FRAMES = ["student.stages.0.beta_frame=0", "student.stages.1.beta_frame=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Lower case and a comma: both have to be respelled for the data's tokenizer.
    return tiny_whisper(tmp_path_factory.mktemp("hf") / "tiny", "abcdef,", seed=8)


@pytest.fixture(scope="module")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "teacher"
    assert import_hf(folder, out, "en").made
    return out


@pytest.fixture(scope="module")
def store(tiny_data: PreparedData, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "train.zarr"
    assert teacher_dump(tiny_data.folder, "train", teacher, out, SETTINGS, Shard(), "cpu")
    return out


def test_importing_copies_and_describes(folder: Path, teacher: Path) -> None:
    card = read_hf_card(teacher)
    assert (card.name, card.model_type, card.language) == ("tiny", "whisper", "en")
    assert set(card.files) == {item.name for item in (teacher / HF_FOLDER).iterdir()}
    again = import_hf(folder, teacher, "en")
    assert not again.made
    assert "WhisperForConditionalGeneration" in again.summary
    assert any(f"longer than {WINDOW_SECONDS} s" in note for note in again.notes)
    with pytest.raises(OutputConflictError, match="language"):
        import_hf(folder, teacher, "de")


def test_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    import_hf(folder, tmp_path / "t", "en")
    (tmp_path / "t" / HF_FOLDER / "generation_config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match="not the file that was imported"):
        read_hf_card(tmp_path / "t")


def test_pickled_weights_become_safetensors(folder: Path, teacher: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "pickled")
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    import_hf(copy, tmp_path / "t", "en")
    ours, theirs = (
        safetensors.torch.load_file(place / HF_FOLDER / "model.safetensors")
        for place in (tmp_path / "t", teacher)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list((tmp_path / "t" / HF_FOLDER).glob("*.bin"))


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path(sys.argv[0] + ".boom"),))


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "bomb")
    (copy / "model.safetensors").unlink()
    torch.save({"weight": _Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(ModelFormatError, match="would run code"):
        import_hf(copy, tmp_path / "t", "en")
    assert not Path(sys.argv[0] + ".boom").exists()
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(InputNotFoundError, match="no weights"):
        import_hf(copy, tmp_path / "u", "en")


def test_damaged_pickled_weights_are_named(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "damaged")
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x02X\x01\x00\x00\x00\xff.")
    with pytest.raises(ModelFormatError, match="it is damaged"):
        import_hf(copy, tmp_path / "t", "en")


def test_code_in_the_folder_is_neither_copied_nor_run(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "code")
    (copy / "evil.py").write_text("raise SystemExit('ran')\n")
    edit_json(copy / "config.json", auto_map={"AutoModelForSpeechSeq2Seq": "evil.Evil"})
    import_hf(copy, tmp_path / "t", "en")
    assert not list((tmp_path / "t").rglob("*.py"))
    edit_json(copy / "config.json", model_type="evil")
    with pytest.raises(ModelFormatError, match="'evil' is no speech-to-text model"):
        import_hf(copy, tmp_path / "u", "en")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    transformers()
    with pytest.raises(InputNotFoundError, match="Hugging Face model"):
        import_hf(tmp_path, tmp_path / "t")


def test_the_store_holds_text_in_the_datas_tokens(tiny_data: PreparedData, store: Path) -> None:
    opened = open_store(store)
    assert opened.header.streams == ("nbest",)
    assert opened.header.decode["text_case"] == "upper"
    assert (opened.header.decode["language"], opened.header.fidelity) == ("en", None)
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    lists = [opened[utterance].nbest for utterance in opened]
    assert any(len(nbest) > 1 for nbest in lists)
    for nbest in filter(None, lists):
        assert sum(hypothesis.posterior for hypothesis in nbest) == pytest.approx(1, abs=1e-5)
        assert len({hypothesis.tokens for hypothesis in nbest}) == len(nbest)
        for hypothesis in nbest:
            assert tokenizer.decode(hypothesis.tokens).isupper()
            assert (hypothesis.attention, hypothesis.ctc) == (hypothesis.joint, 0.0)
    info = store_info(store)
    assert (info["streams"], info["frames"], info["hours"]) == (["nbest"], 0, None)
    assert sum(info["status"].values()) == len(opened) == 24


def test_shards_resume_and_repair_give_the_same_content(
    tiny_data: PreparedData, teacher: Path, store: Path, tmp_path: Path
) -> None:
    sharded = tmp_path / "sharded.zarr"
    told: list[str] = []
    done = [
        teacher_dump(
            tiny_data.folder, "train", teacher, sharded, SETTINGS, Shard(index, 2), "cpu",
            tell=told.append,
        )
        for index in (1, 1, 0)
    ]  # fmt: skip
    assert done == [False, False, True]
    digest = open_store(store).digest
    assert open_store(sharded).digest == digest
    assert any("merged" in line or "left out" in line for line in told)
    shard = sorted((sharded / "records" / "c").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[20] ^= 0x40
    shard.write_bytes(content)
    assert len(repair_store(sharded, tiny_data.folder, teacher, "cpu")) == 1
    assert open_store(sharded).digest == digest


def test_the_teacher_agrees_with_its_store(
    tiny_data: PreparedData, teacher: Path, store: Path, tmp_path: Path, folder: Path
) -> None:
    found = recompute_sample(store, tiny_data.folder, teacher, 5, 0, "cpu")
    assert (found.utterances, found.best_agrees) == (5, 1.0)
    assert found.nbest_distance < 1e-3
    assert found.within(0.01)
    import_hf(folder, tmp_path / "german", "de")
    with pytest.raises(OutputConflictError, match="language"):
        teacher_dump(
            tiny_data.folder, "train", tmp_path / "german", store, SETTINGS, Shard(), "cpu"
        )
    other = tiny_whisper(tmp_path / "other", "abcdef", seed=1)
    import_hf(other, tmp_path / "teacher", "en")
    with pytest.raises(MismatchError, match="teacher's weights"):
        recompute_sample(store, tiny_data.folder, tmp_path / "teacher", 2, 0, "cpu")


def test_speech_beyond_the_window_is_not_heard(tiny_data: PreparedData, tmp_path: Path) -> None:
    folder = tiny_whisper(tmp_path / "hf", "abcdef", window_seconds=1)
    import_hf(folder, tmp_path / "t", "en")
    out = tmp_path / "s.zarr"
    told: list[str] = []
    teacher_dump(
        tiny_data.folder, "dev", tmp_path / "t", out, SETTINGS, Shard(), "cpu", tell=told.append
    )
    durations = {u.id: u.duration for u in tiny_data.split("dev").utterances}
    long = {utterance for utterance, seconds in durations.items() if seconds > 1}
    assert 0 < len(long) < len(durations)
    opened = open_store(out)
    assert {u for u in opened if opened[u].status == "too-long"} == long
    assert f"utterances longer than the teacher's window: {len(long)}" in told


def test_posterior_settings_are_refused(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    for change in ({"ctc_weight": 0.5}, {"top_k": 8}):
        settings = replace(SETTINGS, **change)
        with pytest.raises(ConfigError, match="gives text alone"):
            teacher_dump(
                tiny_data.folder, "dev", teacher, tmp_path / "s.zarr", settings, Shard(), "cpu"
            )
    own = random_model(tiny_data, tmp_path / "own", "ar")
    settings = replace(SETTINGS, text_case="lower")
    with pytest.raises(ConfigError, match="the data's own tokens"):
        teacher_dump(tiny_data.folder, "dev", own, tmp_path / "s.zarr", settings, Shard(), "cpu")


def test_more_hypotheses_than_beams_are_refused_to_a_new_store(
    tiny_data: PreparedData, teacher: Path, store: Path, tmp_path: Path
) -> None:
    def dump(out: Path) -> bool:
        settings = replace(SETTINGS, nbest=6)
        return teacher_dump(tiny_data.folder, "train", teacher, out, settings, Shard(), "cpu")

    with pytest.raises(ConfigError, match="ends with 5 at most") as refusal:
        dump(tmp_path / "s.zarr")
    assert refusal.value.remedy == "Use --nbest 5 or --beam 6"
    assert not (tmp_path / "s.zarr").exists()
    # An older version's store may be begun so: it is held against its own settings.
    with pytest.raises(OutputConflictError, match="nbest: 4 -> 6"):
        dump(store)


def test_a_beam_of_one_dumps_the_greedy_text(
    tiny_data: PreparedData, teacher: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "s.zarr", replace(SETTINGS, beam=1, nbest=1)
    assert teacher_dump(tiny_data.folder, "dev", teacher, out, settings, Shard(), "cpu")
    opened = open_store(out)
    assert opened.header.decode["beam"] == 1
    lists = [opened[utterance].nbest for utterance in opened]
    assert {len(nbest) for nbest in lists} == {1}
    assert all(hypothesis.joint < 0 for (hypothesis,) in lists)
    assert recompute_sample(out, tiny_data.folder, teacher, 3, 0, "cpu").best_agrees == 1.0


def test_it_is_a_teacher_and_nothing_else(teacher: Path) -> None:
    assert is_hf_teacher(teacher)
    with pytest.raises(ModelFormatError, match="gives text alone"):
        load_model(teacher)


def test_spellings_of_the_same_tokens_are_one(tiny_data: PreparedData) -> None:
    tokenizer = Tokenizer.load(tiny_data.tokenizer)
    rules = Respelling(tokenizer, SpokenStyle(case="upper"))
    found = [
        SpokenText(" 7 abc", -0.5, True),
        SpokenText(" abc", -1.0, True),
        SpokenText(" Abc.", -2.0, True),
        SpokenText(" fed", -2.5, True),
        SpokenText("...", -3.0, True),
        SpokenText(" abcabcabc", -3.5, True),
        SpokenText(" abcab", -4.0, False),
    ]
    nbest, counts, first = spoken_targets(found, frames=8, respelling=rules)
    assert [tokenizer.decode(h.tokens) for h in nbest] == ["ABC", "FED"]
    joint = np.logaddexp(-1.0, -2.0)
    assert nbest[0].joint == pytest.approx(joint)
    total = np.exp(joint) + np.exp(-2.5)
    assert nbest[0].posterior == pytest.approx(np.exp(joint) / total)
    assert +counts == {
        "unknown-token": 1, "merged": 1, "empty": 1, "unalignable": 1, "unfinished": 1,
    }  # fmt: skip
    assert first == "unknown-token"


def test_text_fits_features_of_another_frame_shift(
    tiny_data: PreparedData, store: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(tiny_data.folder.parent / "train" / "manifest.jsonl")
    prepare({"train": manifest}, tmp_path / "d", PrepareSettings(frame_shift_ms=5.0), workers=0)
    other = PreparedData.open(tmp_path / "d")
    assert other.split("train").manifest_digest != tiny_data.split("train").manifest_digest
    opened = open_targets(str(store), other, Tokenizer.load(other.tokenizer), allow_partial=False)
    assert len(opened) == 24


def test_frame_losses_are_refused_by_the_keys_to_set(
    tiny_data: PreparedData, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    with pytest.raises(ConfigError, match="has no frames and tokens, only nbest") as refusal:
        train_student(tiny_data.folder, tiny_recipe(), out, str(store), 0, "cpu")
    assert refusal.value.key == "student.stages.0.beta_frame"
    overrides = [part for part in refusal.value.remedy.split() if "=" in part]
    assert overrides == NO_FRAMES
    require_streams(open_store(store).header, load_recipe("demo", [*TINY_RECIPE, *overrides]))
    assert not out.exists()


def test_a_student_learns_from_text_alone(
    tiny_data: PreparedData, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    recipe = tiny_recipe(*NO_FRAMES)
    assert train_student(tiny_data.folder, recipe, out, str(store), 0, "cpu")
    first, last = [r for r in read_jsonl(out / "train.jsonl") if r["type"] == "epoch"]
    terms = {"encoder_sequence", "decoder_sequence"}
    assert not terms & set(first)
    assert terms <= set(last)
    assert all(float(str(last[term])) > 0 for term in terms)
    assert not {"encoder_frame", "decoder_frame"} & set(last)
    (lineage,) = load_model(out).card.lineage
    assert lineage.teacher_name == "tiny"


def test_the_commands(
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tiny_speech2text(tmp_path / "s2t", "abcdef", seed=2)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["kdpipe", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        assert stopped.value.code == 0, captured.err
        return captured.out

    out = call("import-teacher", "--from", "hf", str(folder), "--out", f"{tmp_path}/t", "--json")
    assert json.loads(out)["imported"] is True
    store = f"{tmp_path}/dev.zarr"
    where = ("--teacher", f"{tmp_path}/t", "--data", str(tiny_data.folder))
    dump = ("--split", "dev", "--out", store, "--beam", "3", "--nbest", "2")
    assert "complete" in call("teacher-dump", *where, *dump, "--text-case", "upper")
    assert "agrees" in call("store", "verify", store, "--recompute", "2", *where)


def test_a_report_shows_the_store_of_text(teacher: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    shutil.copytree(teacher, tmp_path / "exp" / "teacher")
    shutil.copytree(store, tmp_path / "exp" / "train.zarr")
    report = write_report([tmp_path / "exp"], tmp_path / "report.html", (), PosteriorSettings())
    assert report.bytes
    assert "of text alone" in (tmp_path / "report.html").read_text()


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
