"""Stores from elsewhere, and compact ones, brought once to where they can be mapped."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.store.convert import convert_store
from kdpipe.store.paths import backend_of, is_compact, store_state
from kdpipe.store.transfer import copy_store, local_path, open_remote

__all__ = ["cache_folder", "mappable_path"]


def cache_folder() -> Path:
    """$KDPIPE_CACHE, or `kdpipe` in the user's cache folder."""
    chosen = os.environ.get("KDPIPE_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kdpipe"


def mappable_path(path: str | Path) -> Path:
    """Where a store can be mapped: in its place, or staged into the cache by content digest.

    Processes that start together stage a store once: the others wait.
    """
    local = local_path(path)
    if local is not None and not is_compact(local):
        return local
    remote = open_remote(path)
    folder = cache_folder() / "stores"
    suffix = ".h5" if backend_of(Path(remote.root)) == "hdf5" else ".zarr"
    staged = folder / f"{remote.digest}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder / f"{remote.digest}.lock"):
        if store_state(staged) == "complete":
            return staged
        if remote.profile == "mapped":
            copy_store(path, staged)
        elif local is not None:
            convert_store(local, staged)
        else:
            brought = folder / f"{remote.digest}-compact.zarr"
            copy_store(path, brought)
            convert_store(brought, staged)
            shutil.rmtree(brought)
    return staged


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
