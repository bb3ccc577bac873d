from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# An extension that fails to load once, as one built for another torch does, whether or not the
# torchaudio installed here is whole.
BROKEN_EXTENSION = """
import importlib.abc, sys

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchaudio._extension":
            raise {error}("libc10_cuda.so: cannot open shared object file")

sys.meta_path.insert(0, Broken())
import torch
from kdpipe.features.torchaudio_compat import kaldi_fbank, resample
waveform = torch.randn(1, 16000)
assert kaldi_fbank(waveform, num_mel_bins=80).shape == (98, 80)
assert resample(waveform, 8000, 16000).shape == (1, 32000)
"""


def run_with_broken_extension(repository: Path, error: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", BROKEN_EXTENSION.format(error=error)],
        env={"PYTHONPATH": str(repository / "pipeline")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_features_work_where_the_extension_cannot_load(repository: Path) -> None:
    done = run_with_broken_extension(repository, "OSError")
    assert done.returncode == 0, done.stderr


def test_other_import_failures_are_not_hidden(repository: Path) -> None:
    done = run_with_broken_extension(repository, "KeyError")
    assert "KeyError" in done.stderr
