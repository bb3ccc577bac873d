"""Arrays of prepared data that cannot be mapped are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.errors import DataError
from kdpipe.features.split_files import map_array


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_damaged_arrays_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "features.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"features\.npy.*damaged prepared data"):
        map_array(tmp_path / "features.npy")
