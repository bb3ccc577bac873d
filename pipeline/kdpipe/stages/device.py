"""Where to compute, and what the process must be told for it."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from kdpipe.errors import DeviceError

__all__ = ["keep_freed_memory", "pick_device"]

# glibc's malloc.h: mallopt(M_MMAP_THRESHOLD, ...), mallopt(M_TRIM_THRESHOLD, ...).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT_BYTES = 32 << 20


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU when there is one; asking for one that is not there is an error.

    Of several GPUs the process takes the one of LOCAL_RANK, which torchrun sets, or the first.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    _choose_cuda_kernels()
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", rank % torch.cuda.device_count())


def _choose_cuda_kernels() -> None:
    """Leave out kernels that are slow, or wrong, for speech in batches of many lengths."""
    # cuDNN's attention plans anew for every length, keeps all plans, and with a mask its
    # gradients can be NaN (PyTorch's issue 196678); flash and memory-efficient attention remain.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Convolutions in float32 would keep ten bits of a factor; under bf16 nothing changes.
    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let glibc reuse freed tensors of up to 32 MiB instead of returning them to the kernel.

    Training frees and asks for the same sizes at every step; without this a tenth of a CPU
    run goes into page faults. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
