"""One tiny corpus and its prepared data, shared by the stage tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.corpus.manifest import read_manifest
from kdpipe.features.prepared import PreparedData
from kdpipe.stages.prepare import PrepareSettings, prepare
from kdpipe.testing import tiny_manifest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared chord utterances: 24 to train on, 6 each for dev and test."""
    folder = tmp_path_factory.mktemp("tiny")
    sizes = {"train": 24, "dev": 6, "test": 6}
    manifests = {
        name: read_manifest(tiny_manifest(folder / name, size, seed))
        for seed, (name, size) in enumerate(sizes.items())
    }
    prepare(manifests, folder / "data", PrepareSettings(), workers=0)
    return folder / "data"


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path) -> PreparedData:
    return PreparedData.open(tiny_folder)
