"""From a path to mapped memory, whatever the backend and however far the store is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import InputNotFoundError
from kdpipe.store.hdf5_backend import open_hdf5
from kdpipe.store.image import StoreImage, map_file
from kdpipe.store.index import Index, build_index
from kdpipe.store.journal import Ledger, read_ledger, read_working_header, shard_path
from kdpipe.store.layout import COLUMNS
from kdpipe.store.paths import backend_of, store_state, unless_finished, working_folder
from kdpipe.store.schema import StoreHeader
from kdpipe.store.zarr_backend import open_zarr

__all__ = ["image_of_ledger", "ledger_rows", "open_image", "open_working"]


def open_image(path: Path) -> StoreImage:
    """Map a store of either backend, finished or not."""
    state = store_state(path)
    if state == "absent":
        raise InputNotFoundError(path, "teacher store", "Check the path, or run teacher-dump")
    if state == "partial":
        image = unless_finished(path, lambda: open_working(path))
        if image is not None:
            return image
    return open_zarr(path) if backend_of(path) == "zarr" else open_hdf5(path)


def open_working(path: Path) -> StoreImage:
    """A store under construction as it stands; its index is built in memory."""
    working = working_folder(path)
    header, shard_bytes = read_working_header(working)
    return image_of_ledger(path, working, header, read_ledger(working), shard_bytes)


def image_of_ledger(
    path: Path,
    working: Path,
    header: StoreHeader,
    ledger: Ledger,
    shard_bytes: int,
    index: Index | None = None,
) -> StoreImage:
    """The shards of a working folder as far as `ledger` acknowledges them.

    `index` is built from the ledger unless it is given.
    """
    if index is None:
        index, _ = build_index(ledger.ids, ledger_rows(ledger))
    records = {
        number: map_file(shard_path(working, number))[:length]
        for number, (length, _) in ledger.shards.items()
        if shard_path(working, number).is_file()
    }
    total = sum(length for length, _ in ledger.shards.values())
    return StoreImage(path, "zarr", header, None, index, records, shard_bytes, total)


def ledger_rows(ledger: Ledger) -> NDArray[np.uint32]:
    """All table rows of a ledger, (n, 12)."""
    return np.concatenate([np.zeros((0, len(COLUMNS)), "<u4"), *ledger.rows])
