"""Which device a process computes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kdpipe.errors import DeviceError
from kdpipe.stages.device import pick_device


def cudnn_attention() -> bool:
    return bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """What a test tells CUDA is taken back."""
    attention, rounding = cudnn_attention(), torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.enable_cudnn_sdp(attention)
    torch.backends.cudnn.allow_tf32 = rounding


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
    assert not cudnn_attention()
    assert not torch.backends.cudnn.allow_tf32
    assert pick_device("cpu") == torch.device("cpu")
