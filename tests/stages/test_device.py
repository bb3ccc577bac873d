"""Which device a process computes on."""

from __future__ import annotations

import pytest
import torch

from kdpipe.errors import DeviceError
from kdpipe.stages.device import pick_device


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError):
        pick_device("cuda")


@pytest.mark.parametrize(("rank", "expected"), [(None, 0), ("0", 0), ("3", 3), ("9", 1)])
def test_each_process_of_torchrun_has_its_own_gpu(
    rank: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    for name in ("auto", "cuda"):
        assert pick_device(name) == torch.device("cuda", expected)
    assert pick_device("cpu") == torch.device("cpu")
