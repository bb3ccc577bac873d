"""Imported models against what their own toolkit computed, from audio to hypotheses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdpipe.batching import Batch
from kdpipe.checkpoint import ModelBundle, load_model, read_card
from kdpipe.corpus.manifest import read_manifest
from kdpipe.errors import ConfigError, DataError, MismatchError, OutputConflictError
from kdpipe.features.audio import read_audio
from kdpipe.features.cmvn import UtteranceCmvn
from kdpipe.features.prepared import PreparedData
from kdpipe.files import read_jsonl
from kdpipe.models import Encoded
from kdpipe.search.ctc_greedy import ctc_greedy
from kdpipe.search.joint_beam import joint_beam_search
from kdpipe.stages.decode import Runtime, decode_audio, decode_split, waveform_batch
from kdpipe.stages.import_espnet import import_espnet
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.stages.recognise import SearchSettings, recognise
from kdpipe.stages.teacher_dump import DumpSettings, Shard, teacher_dump
from kdpipe.stages.train_student import train_student
from kdpipe.store import open_store
from kdpipe.testing import tiny_manifest, tiny_recipe

from ..espnet_files import base_config, experiment, saved, weights_of

AR = ["espnet-ar-conformer", "espnet-ar-legacy", "espnet-ar-transformer"]
MASK_CTC = "espnet-maskctc"
TOLERANCE = 1e-3
SEARCHES: dict[str, dict[str, Any]] = {
    "nbest": {"beam": 10, "ctc_weight": 0.3},
    "nbest_beam4_ctc05": {"beam": 4, "ctc_weight": 0.5},
    "nbest_att": {"beam": 10, "ctc_weight": 0.0},
}
Case = tuple[dict[str, Any], dict[str, Tensor], Batch]


@pytest.fixture(scope="module")
def imported(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four golden models, imported."""
    out = tmp_path_factory.mktemp("imported")
    for name in [*AR, MASK_CTC]:
        assert import_espnet(shared / "golden" / name, out / name).made
    return out


def cases(shared: Path, bundle: ModelBundle) -> list[Case]:
    """What is expected of each utterance, the peer's arrays, and our batch from its audio."""
    folder = shared / "golden" / bundle.card.name
    found = []
    for record in json.loads((folder / "expected.json").read_text(encoding="utf-8")):
        waveform = read_audio(shared / "corpora" / "an4" / record["audio_filepath"])
        with np.load(folder / f"{record['id']}.npz") as stored:
            arrays = {name: torch.from_numpy(stored[name]) for name in stored}
        found.append((record, arrays, waveform_batch(bundle, [waveform])))
    return found


def encode(bundle: ModelBundle, batch: Batch) -> Encoded:
    with torch.no_grad():
        return bundle.model.encode(batch.features, batch.feature_lengths)


def close(found: Tensor, stored: Tensor) -> bool:
    return found.shape == stored.shape and torch.allclose(found, stored, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [*AR, MASK_CTC])
def test_posteriors_from_audio(name: str, imported: Path, shared: Path) -> None:
    bundle = load_model(imported / name)
    sos = bundle.tokenizer.sos_eos_id
    for record, arrays, batch in cases(shared, bundle):
        assert close(batch.features[0], arrays["normalized"])
        encoded = encode(bundle, batch)
        inputs = record["mlm_input"] if name == MASK_CTC else [sos, *record["reference"]]
        lengths = torch.tensor([len(inputs)])
        with torch.no_grad():
            ctc = bundle.model.ctc_log_probs(encoded.hidden)[0]
            logits = bundle.model.decoder_logits(encoded, torch.tensor([inputs]), lengths)[0]
        assert close(encoded.hidden[0], arrays["encoder_out"])
        assert close(ctc, arrays["ctc_logp"])
        stored = arrays["mlm_logp" if name == MASK_CTC else "decoder_logp"]
        assert close(logits.log_softmax(1), stored)


@pytest.mark.parametrize("name", AR)
def test_nbest_from_audio(name: str, imported: Path, shared: Path) -> None:
    bundle = load_model(imported / name)
    records = [record for record, _, _ in cases(shared, bundle)]
    files = [shared / "corpora" / "an4" / record["audio_filepath"] for record in records]
    encoded = encode(bundle, waveform_batch(bundle, [read_audio(file) for file in files]))
    for key, settings in SEARCHES.items():
        lists = joint_beam_search(bundle.model, encoded, nbest=10, **settings)
        for found, record in zip(lists, records, strict=True):
            assert [list(h.tokens) for h in found] == [h["tokens"] for h in record[key]]
            for ours, theirs in zip(found, record[key], strict=True):
                assert abs(ours.score - theirs["score"]) < TOLERANCE
                assert bundle.tokenizer.decode(ours.tokens) == theirs["text"].strip()


@pytest.mark.parametrize("name", [*AR, MASK_CTC])
def test_tokens_of_texts(name: str, imported: Path, shared: Path) -> None:
    bundle = load_model(imported / name)
    for record, _, _ in cases(shared, bundle):
        assert bundle.tokenizer.encode(record["text"]) == record["reference"]


def fill_as_espnet(
    bundle: ModelBundle, encoded: Encoded, tokens: Sequence[int], passes: int
) -> list[int]:
    """ESPnet's filling: floor(masks / passes) a pass by logit, what is left in the last.

    It counts passes where ours counts tokens; with as many passes as masks or more, one a pass.
    """
    mask = bundle.tokenizer.mask_id
    filled = torch.tensor([list(tokens)])
    masks = int((filled == mask).sum())
    passes = passes if masks >= passes else masks
    for number in range(passes):
        places = torch.nonzero(filled[0] == mask)[:, 0]
        with torch.no_grad():
            logits = bundle.model.decoder_logits(encoded, filled, torch.tensor([filled.shape[1]]))[
                0, places
            ]
        scores, words = logits.max(1)
        last = number == passes - 1
        chosen = torch.arange(len(places)) if last else scores.topk(masks // passes)[1]
        filled[0, places[chosen]] = words[chosen]
    return filled[0].tolist()


def test_mask_ctc_from_audio(imported: Path, shared: Path) -> None:
    bundle = load_model(imported / MASK_CTC)
    for record, _, batch in cases(shared, bundle):
        encoded = encode(bundle, batch)
        with torch.no_grad():
            log_probs = bundle.model.ctc_log_probs(encoded.hidden)
        greedy = ctc_greedy(log_probs, encoded.lengths)[0]
        assert list(greedy.tokens) == [item["token"] for item in record["ctc_greedy"]]
        theirs = [item["confidence"] for item in record["ctc_greedy"]]
        np.testing.assert_allclose(greedy.confidences, theirs, atol=TOLERANCE)
        at_once = SearchSettings("mask-ctc", beam=1, tokens_per_iteration=10_000)
        assert list(recognise(bundle.model, batch, at_once)[0][0].tokens) == record["maskctc_n1"]
        pairs = zip(greedy.tokens, greedy.confidences, strict=True)
        masked = [bundle.tokenizer.mask_id if c < 0.99 else t for t, c in pairs]
        for passes in (1, 3, 10):
            found = fill_as_espnet(bundle, encoded, masked, passes)
            assert found == record[f"maskctc_n{passes}"]


def test_decoding_files_uses_the_models_own_features(
    imported: Path, shared: Path, tmp_path: Path
) -> None:
    records = json.loads((shared / "golden" / AR[1] / "expected.json").read_text(encoding="utf-8"))
    files = [shared / "corpora" / "an4" / record["audio_filepath"] for record in records]
    decode_audio(imported / AR[1], files, tmp_path / "out", SearchSettings(), Runtime("cpu"))
    lines = (tmp_path / "out" / "hyp.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [record["nbest"][0]["text"].strip() for record in records]
    assert [json.loads(line)["text"] for line in lines] == texts


def chords_teacher(folder: Path, normalise: str) -> Path:
    """A random ESPnet teacher that spells chords, with 40 bands every 8 ms."""
    config = base_config(
        token_list=["<blank>", "<unk>", "<space>", *"ABCDEF", "<sos/eos>"],
        frontend_conf={"n_mels": 40, "hop_length": 128},
        normalize=normalise,
        normalize_conf={"norm_vars": True},
    )
    more = {"normalize.mean": torch.full((40,), -5.0), "normalize.std": torch.full((40,), 3.0)}
    if normalise == "utterance_mvn":
        config["normalize_conf"] = {"norm_vars": True}
        more = {}
    weights = weights_of(config)
    weights["ctc.ctc_lo.weight"] *= 4.0
    return experiment(folder, config, **{"valid.acc.ave.pth": saved({**weights, **more})})


@pytest.mark.parametrize("normalise", ["global_mvn", "utterance_mvn"])
def test_the_pipeline_behind_an_imported_teacher(normalise: str, tmp_path: Path) -> None:
    """Other bands, hops and normalisation than ours, down to the student's own decoding."""
    source = chords_teacher(tmp_path / "asr_chords", normalise)
    teacher, data, store = tmp_path / "teacher", tmp_path / "data", tmp_path / "t.zarr"
    import_espnet(source, teacher)
    manifest = tiny_manifest(tmp_path / "chords", 6, 0)
    chords = read_manifest(manifest)
    splits = {"train": chords, "dev": chords[:2]}
    assert prepare(splits, data, PrepareSettings(like=teacher), workers=0)
    prepared = PreparedData.open(data)
    assert prepared.feature_digest == read_card(teacher).feature_digest
    assert prepared.split("train").features(0).shape[1] == 40
    assert isinstance(prepared.cmvn, UtteranceCmvn) == (normalise == "utterance_mvn")
    assert teacher_dump(
        data, "train", teacher, store, DumpSettings(nbest=2, beam=2), Shard(), "cpu"
    )
    assert open_store(store).header.frame_shift_seconds == pytest.approx(0.032)
    student = tmp_path / "student"
    recipe = tiny_recipe("student.training.precision=float32")
    assert train_student(data, recipe, student, str(store), 0, "cpu")
    bundle = load_model(student)
    assert bundle.filterbank == load_model(teacher).filterbank
    assert bundle.tokenizer.fingerprint == load_model(teacher).tokenizer.fingerprint
    settings, runtime = SearchSettings("ctc"), Runtime("cpu")
    decode_split(student, data, "dev", tmp_path / "d", settings, runtime)
    decode_audio(student, [u.audio for u in chords[:2]], tmp_path / "a", settings, runtime)
    found = [
        [line["text"] for line in read_jsonl(tmp_path / out / "hyp.jsonl")] for out in ("d", "a")
    ]
    assert found[0] == found[1]


def test_other_features_are_refused_with_the_remedy(tmp_path: Path, tiny_folder: Path) -> None:
    teacher = tmp_path / "teacher"
    import_espnet(chords_teacher(tmp_path / "asr_chords", "utterance_mvn"), teacher)
    with pytest.raises(MismatchError) as caught:
        decode_split(teacher, tiny_folder, "test", tmp_path / "d", SearchSettings(), Runtime("cpu"))
    for word in ("kaldi-fbank here", "espnet-filterbank there", f"prepare --like {teacher}"):
        assert word in str(caught.value)
    with pytest.raises(MismatchError, match=f"prepare --like {teacher}"):
        teacher_dump(
            tiny_folder, "train", teacher, tmp_path / "s.zarr", DumpSettings(), Shard(), "cpu"
        )


def test_features_with_other_settings_are_named(tmp_path: Path) -> None:
    chords = read_manifest(tiny_manifest(tmp_path / "chords", 2, 0))
    teachers = []
    for number, changes in enumerate([{}, {"fmin": 80.0}]):
        folder = chords_teacher(tmp_path / f"asr_{number}", "utterance_mvn")
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        for key, value in changes.items():
            text = text.replace("frontend_conf:", f"frontend_conf:\n  {key}: {value}")
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        import_espnet(folder, tmp_path / f"teacher_{number}")
        teachers.append(tmp_path / f"teacher_{number}")
    prepare({"dev": chords}, tmp_path / "data", PrepareSettings(like=teachers[0]), workers=0)
    with pytest.raises(MismatchError, match=r"fmin 0\.0 here, fmin 80\.0 there"):
        decode_split(
            teachers[1], tmp_path / "data", "dev", tmp_path / "d", SearchSettings(), Runtime("cpu")
        )


def test_other_normalisation_and_channel_are_named(tmp_path: Path) -> None:
    chords = read_manifest(tiny_manifest(tmp_path / "chords", 2, 0))
    teachers = {}
    for name in ("global_mvn", "utterance_mvn"):
        teachers[name] = tmp_path / name
        import_espnet(chords_teacher(tmp_path / f"asr_{name}", name), teachers[name])
    like = PrepareSettings(like=teachers["global_mvn"])
    prepare({"train": chords}, tmp_path / "data", like, workers=0)
    first = PrepareSettings(like=teachers["global_mvn"], channel="first")
    prepare({"train": chords}, tmp_path / "first", first, workers=0)
    for data, teacher, said in (
        ("data", "utterance_mvn", "global CMVN .* here, utterance CMVN .* there"),
        ("first", "global_mvn", "channel .* first here, mix there"),
    ):
        with pytest.raises(MismatchError, match=said):
            teacher_dump(
                tmp_path / data, "train", teachers[teacher], tmp_path / "s.zarr", DumpSettings(),
                Shard(), "cpu",
            )  # fmt: skip


def test_again_and_something_else(tmp_path: Path) -> None:
    source, out = experiment(tmp_path / "asr_one", base_config()), tmp_path / "teacher"
    first = import_espnet(source, out)
    assert first.made
    assert "autoregressive conformer" in first.summary
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not import_espnet(source, out).made
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert set(read_card(out).source["files"]) == {
        "config.yaml", "valid.acc.ave.pth", "feats_stats.npz",
    }  # fmt: skip
    other = experiment(tmp_path / "asr_two", base_config(version="202402"))
    with pytest.raises(OutputConflictError, match=r"files\.config\.yaml"):
        import_espnet(other, out)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputConflictError, match="not of this command"):
        import_espnet(source, tmp_path / "notes")


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    config = base_config(token_type="bpe", bpemodel="bpe.model")
    source = experiment(tmp_path / "asr_one", config, **{"bpe.model": b"pieces"})
    with pytest.raises(DataError, match=r"bpe\.model"):
        import_espnet(source, tmp_path / "out" / "teacher")
    unsupported = experiment(tmp_path / "asr_two", base_config())
    text = (unsupported / "config.yaml").read_text(encoding="utf-8")
    (unsupported / "config.yaml").write_text(text.replace("conformer", "branchformer"))
    with pytest.raises(ConfigError, match="encoder = 'branchformer'"):
        import_espnet(unsupported, tmp_path / "out" / "teacher")
    assert not (tmp_path / "out").exists()


def test_features_computed_beforehand_are_taken_for_kaldis(tmp_path: Path) -> None:
    config = base_config(
        frontend=None, frontend_conf={}, input_size=80, normalize=None, normalize_conf={}
    )
    config["normalize_conf"].clear()
    config["frontend_conf"].clear()
    done = import_espnet(experiment(tmp_path / "asr_one", config), tmp_path / "teacher")
    assert any("Kaldi's 80-dimensional filterbank" in note for note in done.notes)
    bundle = load_model(tmp_path / "teacher")
    assert bundle.card.feature_type == "kaldi-fbank"
    features = torch.randn(5, 80)
    assert torch.equal(bundle.cmvn.apply(features), features)
