"""One output folder, one command, one set of settings."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from kdpipe.errors import BusyOutputError, DataError, OutputConflictError, OutputWriteError
from kdpipe.stages.claim import claimed, mark_complete, settings_changes

SETTINGS = {"command": "decode", "beam": 10, "recipe": {"epochs": 3}}


def test_a_new_folder_is_claimed_and_resumed_and_found_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for expected in (False, False):
        with claimed(out, SETTINGS) as complete:
            assert complete is expected
    mark_complete(out, SETTINGS)
    with claimed(out, SETTINGS) as complete:
        assert complete is True


def test_a_changed_setting_is_named(tmp_path: Path) -> None:
    with claimed(tmp_path, SETTINGS):
        pass
    with (
        pytest.raises(OutputConflictError) as caught,
        claimed(tmp_path, {**SETTINGS, "recipe": {"epochs": 4}}),
    ):
        pass
    assert caught.value.changes == ("recipe.epochs: 3 -> 4",)


def test_a_folder_with_other_files_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputConflictError), claimed(tmp_path, SETTINGS):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_two_processes_at_once_are_refused(tmp_path: Path) -> None:
    with (
        claimed(tmp_path, SETTINGS),
        pytest.raises(BusyOutputError),
        claimed(tmp_path, SETTINGS),
    ):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_left_as_it_was(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputWriteError, match="no locks"), claimed(tmp_path / "out", SETTINGS):
        pass
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match=r"run\.json"), claimed(tmp_path, SETTINGS):
        pass


def test_changes_list_new_and_lost_settings() -> None:
    assert settings_changes({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]


def test_settings_that_change_no_result_may_change(tmp_path: Path) -> None:
    def training(workers: int, log_steps: int, rate: float = 0.1) -> dict[str, object]:
        section = {"workers": workers, "log_steps": log_steps, "learning_rate": rate}
        return {"teacher": {"training": section}}

    with claimed(tmp_path, training(4, 50)):
        pass
    with claimed(tmp_path, training(0, 1)) as complete:
        assert not complete
    with pytest.raises(OutputConflictError) as caught, claimed(tmp_path, training(0, 1, 0.2)):
        pass
    assert caught.value.changes == ("teacher.training.learning_rate: 0.1 -> 0.2",)
