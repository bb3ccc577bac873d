"""`kdpipe store`: answers, exit codes and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.store.contract import make_header, write_targets

from kdpipe.errors import StoreIncompleteError
from kdpipe.store import finish, open_store
from kdpipe_cli.store import command

# The keys of `store info --json` that others rely on.
PROMISED = {
    "format_version": None,
    "backend": None,
    "complete": None,
    "utterances": None,
    "hours": None,
    "bytes": None,
    "mb_per_hour": None,
    "digest": None,
    "teacher": {"name", "sha256"},
    "tokenizer": {"fingerprint", "vocab_size", "blank", "sos", "eos"},
    "subsampling": None,
    "frame_shift_seconds": None,
    "nbest": None,
    "top_k": None,
    "min_prob": None,
    "fidelity": None,
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_targets(tmp_path / "s.zarr", make_header(), range(6))
    finish(tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_info_has_the_promised_keys(store: Path, tmp_path: Path) -> None:
    write_targets(tmp_path / "partial.h5", make_header(), range(3))
    for path, complete in ((store, True), (tmp_path / "partial.h5", False)):
        content = json.loads(run("info", "--json", path).stdout)
        assert set(PROMISED) <= set(content)
        for key, inner in PROMISED.items():
            assert inner is None or set(content[key]) == inner
        assert content["complete"] is complete
        assert content["hours"] > 0
    assert "teacher.name" in run("info", store).stdout


def test_verify_exits_as_promised(store: Path, tmp_path: Path) -> None:
    assert run("verify", store).exit_code == 0
    shard = store / "records/c/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    result = run("verify", store)
    assert result.exit_code == 1
    assert "records/c/0" in result.stdout
    assert "utt-00000" in result.stdout
    assert json.loads(run("verify", "--json", store).stdout)["sound"] is False
    assert run("verify", tmp_path / "absent.zarr").exit_code == 2


def test_convert_copy_merge_diff_card(store: Path, tmp_path: Path) -> None:
    digest = open_store(store).digest
    assert digest is not None
    assert digest in run("convert", store, tmp_path / "s.h5").stdout
    assert digest in run("convert", store, tmp_path / "c.zarr", "--compact", "--level", 1).stdout
    assert digest in run("copy", tmp_path / "s.h5", tmp_path / "copy.h5").stdout
    assert digest in run("merge", store, tmp_path / "s.h5", "--out", tmp_path / "m.zarr").stdout
    averaged = run("merge", store, tmp_path / "s.h5", "--average", "--out", tmp_path / "avg.zarr")
    assert averaged.exit_code == 0
    assert json.loads(run("diff", "--json", store, tmp_path / "s.h5").stdout)["same_content"]
    assert run("card", store, "--out", tmp_path / "card.md").exit_code == 0
    assert digest in (tmp_path / "card.md").read_text()
    assert "# Teacher store s.zarr" in run("card", store).stdout


@pytest.mark.parametrize("target", ["s3://bucket/t.zarr", "file:///tmp/t.zarr"])
def test_a_url_is_no_folder_of_that_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    for arguments in (("convert", store, target), ("merge", store, "--out", target)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "is a URL; `kdpipe store copy`" in result.stderr
    assert set(tmp_path.iterdir()) == before


def test_a_card_does_not_take_the_stores_place(tmp_path: Path) -> None:
    write_targets(tmp_path / "s.h5", make_header(), range(3))
    finish(tmp_path / "s.h5")
    result = run("card", tmp_path / "s.h5", "--out", tmp_path / "." / "s.h5")
    assert result.exit_code == 2
    assert len(list(open_store(tmp_path / "s.h5"))) == 3


def test_errors_reach_the_user(tmp_path: Path) -> None:
    write_targets(tmp_path / "partial.zarr", make_header(), range(3))
    result = run("convert", tmp_path / "partial.zarr", tmp_path / "x.h5")
    assert isinstance(result.exception, StoreIncompleteError)


@pytest.mark.parametrize("name", sorted(command.commands))
def test_every_help_has_an_example(name: str) -> None:
    assert "Example" in run(name, "--help").stdout
