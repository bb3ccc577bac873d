"""`kdpipe report` on runs as the commands write them: what it finds, shows, and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest

from kdpipe.errors import DataError, InputNotFoundError
from kdpipe.features.cmvn import load_cmvn
from kdpipe.features.prepared import feature_digest
from kdpipe.files import read_jsonl, write_jsonl
from kdpipe.stages.report import gather, write_report
from kdpipe.stages.report_posteriors import PosteriorSettings
from kdpipe.stages.report_runs import find_runs, run_kind
from kdpipe.store.convert import convert_store
from kdpipe_cli.main import run

SETTINGS = PosteriorSettings(pictures=2, sample=8, device="cpu")


def test_every_part_of_a_whole_pipeline_is_on_the_page(report_runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    report = write_report([report_runs], out, (), SETTINGS)
    assert report.missing == ()
    assert report.bytes == out.stat().st_size
    page = out.read_text(encoding="utf-8")
    for name in ("teacher", "plain", "student"):
        assert f"<b>{name}</b>" in page
    score = json.loads((report_runs / "decode/student-test/score.json").read_text())
    assert f">{100 * score['wer']['rate']:.1f}<" in page
    assert f">{100 * score['cer']['rate']:.1f}<" in page


def test_the_same_runs_give_the_same_bytes(report_runs: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report([report_runs], tmp_path / name, (), SETTINGS)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_runs_are_joined_by_content_not_by_name(report_runs: Path, tmp_path: Path) -> None:
    """A renamed model is still the one that an output was decoded with."""
    shutil.copytree(report_runs / "student", tmp_path / "renamed")
    runs = [tmp_path / "renamed", report_runs / "decode" / "student-test"]
    material = gather(runs, [report_runs / "data"], SETTINGS)
    (decode,) = material.decodes
    assert decode.model == "renamed"
    assert decode.errors is not None
    assert material.models[0].parameters is not None
    without = gather(runs[1:], (), SETTINGS)
    assert without.models[0].name.startswith("model ")
    assert without.models[0].role == "student"
    assert without.decodes[0].errors is None


def test_each_kind_is_known_by_its_content(report_runs: Path) -> None:
    kinds = {"data": "data", "student": "model", "train.zarr": "store",
             "decode/student-test": "decode", "decode": None}  # fmt: skip
    for name, kind in kinds.items():
        assert run_kind(report_runs / name) == kind
    found = find_runs([report_runs, report_runs / "student"])
    assert len(found) == len({run.path.resolve() for run in found})
    assert {run.name for run in found} >= {"teacher", "plain", "student", "train.zarr", "data"}


def test_a_manifest_called_train_jsonl_is_no_model(report_runs: Path, tmp_path: Path) -> None:
    """Runs below its folder are found, as those of the demo below DIR and DIR/corpus."""
    shutil.copytree(report_runs / "student", tmp_path / "runs" / "student")
    line = {"id": "a", "audio": "a.wav", "text": "epoch"}
    for folder in (tmp_path / "runs", tmp_path / "runs" / "corpus"):
        write_jsonl(folder / "train.jsonl", [line, {"type": "epoch", "epoch": 1}])
        assert run_kind(folder) is None
    assert [(run.kind, run.name) for run in find_runs([tmp_path])] == [("model", "student")]


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (b'{"type": "step", "epoch": 1, "step": 2}\n{"type": "ep', "model"),
        (b'{"type": "epoch", "epoch": 1}\n', "model"),
        (b'{"type": "epoch", "epoch": 1}', None),
        (b'{"type": "speech", "id": "a"}\n', None),
        (b"[1]\n", None),
        (bytes(40), None),
        (b"\xff\n", None),
        (b"", None),
    ],
)
def test_a_training_log_is_known_by_its_first_whole_line(
    log: bytes, kind: str | None, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_bytes(log)
    assert run_kind(tmp_path) == kind


def test_of_a_manifest_no_more_than_a_line_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a line of any length."""
    monkeypatch.setattr("kdpipe.stages.report_runs.LONGEST_RECORD", 100)
    record = {"type": "epoch", "epoch": 1, "text": "x" * 100}
    write_jsonl(tmp_path / "train.jsonl", [record])
    assert run_kind(tmp_path) is None


def test_without_references_the_unit_is_that_of_the_hypotheses(
    report_runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "decode"
    shutil.copytree(report_runs / "decode" / "student-test", folder)
    lines = list(read_jsonl(folder / "hyp.jsonl"))
    for text, unit in (("今天天气很好", "char"), ("a word", "word")):
        write_jsonl(folder / "hyp.jsonl", [{**line, "text": text} for line in lines])
        (decode,) = gather([folder], (), SETTINGS).decodes
        assert decode.errors is None
        assert decode.unit == unit


def test_splits_of_one_name_but_of_other_speech_are_told_apart(
    report_runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(report_runs / "decode", tmp_path / "decode")
    shutil.copytree(report_runs / "decode/student-test", tmp_path / "decode/other-test")
    file = tmp_path / "decode/other-test/score.json"
    score = json.loads(file.read_text())
    file.write_text(json.dumps(score | {"utterances": 999}))
    record = json.loads((tmp_path / "decode/other-test/run.json").read_text())
    record["settings"]["data"] = "0123456789abcdef"
    (tmp_path / "decode/other-test/run.json").write_text(json.dumps(record))
    found = gather([tmp_path], [report_runs / "data"], SETTINGS).decodes
    named = {decode.name: decode.report.split for decode in found}
    assert named["student-test"] == "test (data)"
    assert named["other-test"] == "test (01234567)"
    assert {split for split in named.values() if split.startswith("dev")} == {"dev"}


def test_others_files_of_these_names_are_no_runs(report_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(report_runs / "student", tmp_path / "student")
    for name, content in (
        ("data.json", '{"rows": []}'), ("score.json", "[1]"), ("model.toml", "a = 1"),
    ):  # fmt: skip
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name[:4] / name).write_text(content)
    assert [run.name for run in find_runs([tmp_path])] == ["student"]


def test_a_store_is_compared_on_the_data_it_was_dumped_from(
    report_runs: Path, tmp_path: Path
) -> None:
    """Of two preparations of one manifest, not on the one with other features."""
    for name in ("a-other", "b-own", "c-other"):
        shutil.copytree(report_runs / "data", tmp_path / name)
        if name != "b-own":
            content = json.loads((tmp_path / name / "data.json").read_text())
            content["features"]["channel"] = "first"
            cmvn = load_cmvn(tmp_path / name / "cmvn.safetensors")
            content["feature_digest"] = feature_digest(content["features"], cmvn)
            (tmp_path / name / "data.json").write_text(json.dumps(content))
    runs = [report_runs / "student", report_runs / "train.zarr"]
    data = sorted(tmp_path.iterdir())
    assert gather(runs, data, SETTINGS).agreements
    assert not gather(runs, [data[0]], SETTINGS).agreements


def test_equal_names_are_told_apart(report_runs: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(report_runs / "student", tmp_path / parent / "student")
    assert [found.name for found in find_runs([tmp_path])] == ["a/student", "b/student"]


def test_what_is_no_run_is_refused_and_nothing_is_written(
    report_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "report.html"
    with pytest.raises(InputNotFoundError, match="no run there"):
        write_report([report_runs / "student", tmp_path / "empty"], out, (), SETTINGS)
    assert run(["report", str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    assert "no run there" in capsys.readouterr().err
    assert not out.exists()


def test_a_damaged_run_leaves_the_last_report(report_runs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "decode"
    shutil.copytree(report_runs / "decode" / "student-test", broken)
    (broken / "score.json").write_text('{"split": "test"}')
    out = tmp_path / "report.html"
    out.write_text("the last one")
    with pytest.raises(DataError, match=r"score\.json"):
        write_report([broken], out, (), SETTINGS)
    assert out.read_text() == "the last one"
    assert sorted(tmp_path.iterdir()) == [broken, out]


def test_a_score_without_hypotheses_is_named(report_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(report_runs / "decode" / "student-test", tmp_path / "decode")
    (tmp_path / "decode" / "hyp.jsonl").unlink()
    with pytest.raises(InputNotFoundError, match=r"hyp\.jsonl: no hypotheses"):
        gather([tmp_path], (), SETTINGS)


def test_arrays_that_are_no_stores_are_passed_over(report_runs: Path, tmp_path: Path) -> None:
    shutil.copytree(report_runs / "train.zarr", tmp_path / "train.zarr")
    convert_store(tmp_path / "train.zarr", tmp_path / "train.h5")
    convert_store(tmp_path / "train.zarr", tmp_path / "small.zarr", compact=True)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["features"] = [1.0]
    (tmp_path / "empty.hdf5").touch()
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    names = [store.name for store in gather([tmp_path], (), SETTINGS).stores]
    assert names == ["small.zarr", "train.h5", "train.zarr"]
    with pytest.raises(InputNotFoundError, match="no run"):
        find_runs([tmp_path / "features.h5"])


def test_a_training_that_still_runs_is_shown(tmp_path: Path) -> None:
    """No model.toml yet, and a line of the log that is only half there."""
    folder = tmp_path / "young"
    write_jsonl(folder / "train.jsonl", [{"type": "epoch", "epoch": 1, "ctc": 2.0, "total": 2.0}])
    with (folder / "train.jsonl").open("a") as log:
        log.write('{"type": "epoch", "ep')
    (model,) = gather([folder], (), SETTINGS).models
    assert len(model.epochs) == 1
    assert write_report([folder], tmp_path / "r.html", (), SETTINGS).shown == ("training",)


def test_a_student_that_does_not_fit_the_store_is_named(report_runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(report_runs / "student", other)
    card = (other / "model.toml").read_text()
    digest = card.partition('feature_digest = "')[2][:12]
    (other / "model.toml").write_text(card.replace(digest, "0" * 12))
    material = gather([other, report_runs / "train.zarr", report_runs / "data"], (), SETTINGS)
    assert material.notes == ("other is not compared with the store train.zarr: other features.",)
    alone = gather([report_runs / "student", report_runs / "train.zarr"], (), SETTINGS)
    assert "--data DATA" in alone.notes[0]


def test_the_command_says_what_it_wrote(
    report_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert run(["report", str(report_runs / "student"), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["path"] == str(out)
    assert answer["bytes"] == out.stat().st_size
    assert "training" in answer["shown"]
    assert "store" in answer["missing"]
    assert "Not on the page" in captured.err
