"""Which part of a dump this process takes."""

from __future__ import annotations

import click
import pytest

from kdpipe_cli.teacher_dump import _shard


def test_all_of_it_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert _shard("") == (0, 1)
    assert _shard("3/8") == (3, 8)


def test_torchruns_rank_and_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _shard("") == (1, 2)
    assert _shard("0/4") == (0, 4)


def test_half_of_torchruns_settings_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "3")
    assert _shard("") == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(click.BadParameter):
        _shard("")


@pytest.mark.parametrize("text", ["3", "3/3", "a/b", "-1/2", "1/"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        _shard(text)
