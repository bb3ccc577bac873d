"""Stores from elsewhere, and compact ones, brought once to where they can be mapped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kdpipe.errors import StoreDamageError, StoreFormatError, StoreWriteError
from kdpipe.files import held_lock
from kdpipe.store.convert import convert_store
from kdpipe.store.opening import open_image
from kdpipe.store.paths import backend_of, is_compact
from kdpipe.store.transfer import RemoteStore, copy_store, local_path, open_remote

__all__ = ["cache_folder", "is_staged", "mappable_path"]


def cache_folder() -> Path:
    """$KDPIPE_CACHE, or `kdpipe` in the user's cache folder."""
    chosen = os.environ.get("KDPIPE_CACHE")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kdpipe"


def is_staged(path: Path) -> bool:
    """Whether a store is a copy in the cache, which may be removed at any time."""
    return path.parent == cache_folder() / "stores"


def mappable_path(path: str | Path) -> Path:
    """Where a store can be mapped: in its place, or staged into the cache by content digest.

    Processes that start together stage a store once: the others wait. A staged store whose files
    are not whole is staged again. Raises `StoreWriteError` when the cache cannot be written.
    """
    local = local_path(path)
    if local is not None and not is_compact(local):
        return local
    remote = open_remote(path)
    suffix = ".h5" if backend_of(Path(remote.root)) == "hdf5" else ".zarr"
    staged = cache_folder() / "stores" / f"{remote.digest}{suffix}"
    # Without the lock first: a shared cache may be read by who may not write to it.
    if not _is_whole(staged, remote.digest):
        with _one_at_a_time(staged.with_suffix(".lock")):
            if not _is_whole(staged, remote.digest):
                _remove(staged)
                _stage(path, remote, local, staged)
    return staged


def _is_whole(staged: Path, digest: str) -> bool:
    """Whether a store is there, finished, with all its files of the sizes they should have."""
    try:
        return open_image(staged).digest == digest
    except (OSError, StoreFormatError, StoreDamageError):
        return False


def _stage(path: str | Path, remote: RemoteStore, local: Path | None, staged: Path) -> None:
    """Bring a store to `staged`; its content is checked against the digest that names it there."""
    if remote.profile == "mapped":
        copy_store(path, staged, digest=remote.digest)
    elif local is not None:
        convert_store(local, staged)
    else:
        brought = staged.with_name(f"{remote.digest}-compact.zarr")
        _remove(brought)
        copy_store(path, brought, digest=remote.digest)
        convert_store(brought, staged)
        shutil.rmtree(brought)


def _remove(place: Path) -> None:
    try:
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(place, error) from error


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(held_lock(lock))
        except OSError as error:
            raise _unwritable(lock.parent, error) from error
        yield


def _unwritable(place: Path, error: OSError) -> StoreWriteError:
    problem = f"the cache cannot be written ({error.strerror})"
    remedy = "Mend its rights, or set KDPIPE_CACHE to a folder of your own"
    return StoreWriteError(place, problem, remedy)
