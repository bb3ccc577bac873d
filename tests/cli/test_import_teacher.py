"""`kdpipe import-teacher` as a user meets it, and files that mean harm."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from kdpipe.checkpoint import load_model
from kdpipe_cli.main import run

from ..espnet_files import Evil, base_config, experiment, packed, saved


def import_teacher(*arguments: str | Path) -> int:
    return run(["import-teacher", "--from", "espnet2", *map(str, arguments)])


def test_folder_zip_and_unpacked_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = packed(tmp_path / "asr.zip", base_config())
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "snapshot")
    sources = [experiment(tmp_path / "asr_one", base_config()), archive, tmp_path / "snapshot"]
    for number, source in enumerate(sources):
        out = tmp_path / f"teacher-{number}"
        assert import_teacher(source, "--out", out) == 0
        said = capsys.readouterr()
        assert "6 tokens (char), espnet-filterbank, global CMVN" in said.out
        assert load_model(out).card.name == "asr_one"
        assert import_teacher(source, "--out", out, "--json") == 0
        assert json.loads(capsys.readouterr().out)["imported"] is False


def test_config_and_weights_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("asr_one", "asr_two"):
        experiment(tmp_path / "exp" / name, base_config())
    out = tmp_path / "teacher"
    assert import_teacher(tmp_path / "exp", "--out", out) == 1
    said = capsys.readouterr().err
    assert "asr_one/config.yaml, asr_two/config.yaml" in said
    assert "--config" in said
    chosen = ["--config", "asr_two/config.yaml", "--weights", "valid.acc.ave.pth"]
    assert import_teacher(tmp_path / "exp", "--out", out, *chosen) == 0
    assert load_model(out).card.name == "asr_two"


def test_mask_ctc_models_come_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = experiment(tmp_path / "asr_nar", base_config(model="maskctc", decoder="mlm"))
    assert import_teacher(source, "--out", tmp_path / "student") == 0
    said = capsys.readouterr()
    assert "Mask-CTC" in said.out
    assert "decode it as a student" in said.err


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"encoder": "e_branchformer"}, "encoder = 'e_branchformer'"),
        ({"frontend": "s3prl"}, "frontend = 's3prl'"),
        ({"encoder_conf": {"block_size": 40}}, "encoder_conf.block_size = 40"),
        ({"token_type": "phn"}, "token_type = 'phn'"),
    ],
)
def test_what_is_not_supported(
    changes: dict[str, object], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = experiment(tmp_path / "asr_one", base_config())
    with (source / "config.yaml").open("w", encoding="utf-8") as file:
        json.dump(base_config(**changes), file)
    assert import_teacher(source, "--out", tmp_path / "teacher") == 1
    said = capsys.readouterr().err
    assert key in said
    assert "kdpipe reads Conformer and Transformer encoders" in said
    assert not (tmp_path / "teacher").exists()


def test_files_that_would_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "ran"
    attacks: dict[str, bytes] = {
        "valid.acc.ave.pth": saved({"encoder.x": Evil(marker)}),
        "config.yaml": f"token_list: !!python/object/apply:os.system ['touch {marker}']".encode(),
    }
    for name, content in [*attacks.items(), ("valid.acc.ave.pth", pickle.dumps(Evil(marker)))]:
        source = experiment(tmp_path / "asr_one", base_config(), **{name: content})
        assert import_teacher(source, "--out", tmp_path / "teacher") == 1
        assert name in capsys.readouterr().err
        with zipfile.ZipFile(packed(tmp_path / "asr.zip", base_config()), "a") as archive:
            archive.writestr(f"other/{name}", content)
        key = "--config" if name == "config.yaml" else "--weights"
        chosen = [key, f"other/{name}", "--weights", "exp/asr_one/valid.acc.ave_10best.pth"]
        chosen = chosen[: 2 if key == "--weights" else 4]
        assert import_teacher(tmp_path / "asr.zip", "--out", tmp_path / "teacher", *chosen) == 1
        assert name in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "teacher").exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "the attack itself must work, or this test shows nothing"


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import-teacher", str(tmp_path), "--out", str(tmp_path / "t")]) == 2
    assert "--from" in capsys.readouterr().err
    arguments = ["--from", "hf", str(tmp_path), "--out", str(tmp_path / "t"), "--config", "x"]
    assert run(["import-teacher", *arguments]) == 2
    assert "--config" in capsys.readouterr().err
    assert import_teacher(tmp_path / "nowhere", "--out", tmp_path / "t") == 1
    assert "no experiment folder or packed model there" in capsys.readouterr().err
