"""The parts of torchaudio used here, also beside a torch of another build.

torchaudio's compiled extension is tied to one build of torch (a CUDA wheel beside a CPU
torch cannot load it) and `import torchaudio` fails with it. None of what is used here
needs the extension, so when it does not load, a stand-in takes its place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["import_torchaudio", "kaldi_fbank", "resample"]

F = TypeVar("F", bound=Callable[..., Any])
EXTENSION = "torchaudio._extension"


def import_torchaudio() -> ModuleType:
    """`import torchaudio`, without its compiled extension when that does not load."""
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        _forget_partial_import()
        sys.modules[EXTENSION] = _extension_stand_in()
        return importlib.import_module("torchaudio")


def _forget_partial_import() -> None:
    for name in [n for n in sys.modules if n == "torchaudio" or n.startswith("torchaudio.")]:
        del sys.modules[name]


def _pass_through(function: F) -> F:
    return function


def _extension_stand_in() -> ModuleType:
    stand_in = ModuleType(EXTENSION)
    vars(stand_in).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=_pass_through,
    )
    return stand_in


import_torchaudio()
kaldi_fbank: Callable[..., Tensor] = importlib.import_module("torchaudio.compliance.kaldi").fbank
resample: Callable[..., Tensor] = importlib.import_module("torchaudio.functional").resample
