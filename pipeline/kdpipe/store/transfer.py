"""Copying finished stores from and to any fsspec URL, checked on arrival; a second run resumes."""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import google_crc32c
import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import (
    DependencyError,
    InputNotFoundError,
    KdpipeError,
    OutputConflictError,
    StoreDamageError,
    StoreFormatError,
    StoreIncompleteError,
    StoreWriteError,
)
from kdpipe.files import sync_folder
from kdpipe.store.check import verify_store
from kdpipe.store.compact import unpack_table
from kdpipe.store.hdf5_backend import Extents, parse_user_block
from kdpipe.store.journal import read_ledger
from kdpipe.store.layout import COLUMNS
from kdpipe.store.paths import backend_of, store_state, working_folder
from kdpipe.store.schema import StoreHeader
from kdpipe.store.zarr_backend import MAX_METADATA, TABLE_FILE, parse_root

__all__ = ["RemoteStore", "copy_store", "is_url", "local_path", "open_remote", "remote_table"]

PIECE_BYTES = 1 << 22

Advance = Callable[[int], object]


def is_url(path: str | Path) -> bool:
    """Whether a store is named by a URL such as s3://bucket/train.zarr."""
    return "://" in str(path)


def local_path(path: str | Path) -> Path | None:
    """The path that is meant when it is on this machine; None for a URL elsewhere."""
    text = str(path)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if is_url(text) else Path(text)


@dataclass(frozen=True)
class RemoteStore:
    """A finished store anywhere: its metadata, and the size and CRC-32C of all its files.

    `files` are in the order of copying; the one that completes the store comes last, its name
    is "" for HDF5, where it is the only one. Its checksum takes reading it all: there is no file
    where `open_remote` was not asked for that.
    """

    url: str
    system: Any
    root: str
    header: StoreHeader
    digest: str
    profile: str
    utterances: int
    total_bytes: int
    files: dict[str, tuple[int, int]]

    def place(self, name: str) -> str:
        """Where a file of the store is in its file system."""
        return posixpath.join(self.root, name) if name else self.root


def open_remote(url: str | Path, checksums: bool = False) -> RemoteStore:
    """Read a store's metadata from a path or URL; with `checksums` those of all its files.

    Raises `InputNotFoundError`, `StoreFormatError`, `StoreDamageError`, or `DependencyError`
    when the protocol needs a package that is not installed.
    """
    text = str(url)
    with _reached(text, writing=False):
        system, root = fsspec.core.url_to_fs(text)
        root = root.rstrip("/")
        if backend_of(Path(root)) == "hdf5":
            return _remote_hdf5(text, system, root, checksums)
        content = _read_small(system, posixpath.join(root, "zarr.json"))
    store, header, files = parse_root(content, text, ours=False)
    listed = {**files, "zarr.json": (len(content), google_crc32c.value(content))}
    return RemoteStore(
        text, system, root, header, store["digest"], store["profile"], int(store["utterances"]),
        sum(size for size, _ in listed.values()), listed,
    )  # fmt: skip


def remote_table(remote: RemoteStore) -> NDArray[np.uint32]:
    """The index table (n, 12) of a finished store anywhere, and nothing else of it.

    Raises what `open_remote` raises.
    """
    hdf5 = backend_of(Path(remote.root)) == "hdf5"
    with _reached(remote.url, writing=False):
        content, checksum = (_hdf5_table if hdf5 else _zarr_table)(remote)
    if google_crc32c.value(content) != checksum:
        raise StoreDamageError(remote.url, "table", "its checksum does not fit")
    if remote.profile == "compact":
        content = unpack_table(remote.url, content, remote.utterances)
    if len(content) != 4 * len(COLUMNS) * remote.utterances:
        raise StoreDamageError(remote.url, "table", "its length does not fit")
    return np.frombuffer(content, "<u4").reshape(-1, len(COLUMNS))


def _zarr_table(remote: RemoteStore) -> tuple[bytes, int]:
    if TABLE_FILE not in remote.files:
        raise StoreFormatError(remote.url, "lists no table", "Copy the store again")
    size, checksum = remote.files[TABLE_FILE]
    with remote.system.open(remote.place(TABLE_FILE), "rb") as handle:
        return handle.read(size + 1), checksum


def _hdf5_table(remote: RemoteStore) -> tuple[bytes, int]:
    with remote.system.open(remote.root, "rb") as handle:
        _, _, _, extents = parse_user_block(handle.read, remote.url)
        offset, size, checksum = extents["table"]
        handle.seek(offset)
        return handle.read(size), checksum


def _read_small(system: Any, place: str) -> bytes:
    with system.open(place, "rb") as handle:
        content: bytes = handle.read(MAX_METADATA + 1)
    return content


def _remote_hdf5(url: str, system: Any, root: str, checksums: bool) -> RemoteStore:
    files = {}
    with system.open(root, "rb") as handle:
        store, header, block, extents = parse_user_block(handle.read, url)
        if checksums:
            handle.seek(0)
            files[""] = (int(store["bytes"]), _hdf5_checksum(handle, url, store, block, extents))
    return RemoteStore(
        url, system, root, header, store["digest"], "mapped", int(store["utterances"]),
        int(store["bytes"]), files,
    )  # fmt: skip


def _hdf5_checksum(
    handle: Any, url: str, store: dict[str, Any], block: int, extents: Extents
) -> int:
    """CRC-32C of a whole HDF5 store; every part must be what its user block says."""
    (whole,) = _extended(handle, url, block, 0)
    structure, position = 0, block
    for (offset, size, wanted), name in sorted((place, name) for name, place in extents.items()):
        if size:
            whole, structure = _extended(handle, url, offset - position, whole, structure)
            whole, found = _extended(handle, url, size, whole, 0)
            position = offset + size
            if found != wanted:
                raise StoreDamageError(url, name, "its checksum does not fit")
    whole, structure = _extended(handle, url, int(store["bytes"]) - position, whole, structure)
    if structure != store["structure_crc32c"]:
        raise StoreDamageError(url, "HDF5 structure", "its checksum does not fit")
    if handle.read(1):
        raise StoreDamageError(url, "file", f"has more than {store['bytes']} bytes")
    return whole


def _extended(handle: Any, url: str, size: int, *checksums: int) -> list[int]:
    """CRC-32Cs, each with the next `size` bytes of a file added."""
    extended = list(checksums)
    while size:
        piece = handle.read(min(size, PIECE_BYTES))
        if not piece:
            raise StoreDamageError(url, "file", f"is cut short by {size} bytes or more")
        extended = [google_crc32c.extend(checksum, piece) for checksum in extended]
        size -= len(piece)
    return extended


def copy_store(
    source: str | Path,
    target: str | Path,
    advance: Advance = lambda size: None,
    digest: str | None = None,
) -> str:
    """Copy a finished store as it is; returns its digest. `advance` is told bytes as they go.

    Every file is read back and checked where it arrives; the file that makes the store whole
    comes last. What a broken-off copy has brought over whole is not brought again. On this
    machine the copy appears when its content was checked too; a whole copy in the place is
    checked and left as it is, and an empty folder is copied into. Raises `OutputConflictError`
    when anything else is in the place, `StoreDamageError` when the source is not what it should
    be (with `digest`, the store of that digest), `StoreWriteError` when the target cannot be
    written.
    """
    _refuse_partial(source)
    remote = open_remote(source, checksums=True)
    if digest not in (None, remote.digest):
        raise StoreDamageError(source, "digest", "changed while the store was read")
    if backend_of(Path(remote.root)) != backend_of(Path(str(target).rstrip("/"))):
        raise StoreFormatError(
            target, "a copy has the suffix of its source", "Use store convert for another backend"
        )
    local = local_path(target)
    if local is not None:
        return _copy_here(remote, local, advance)
    with _reached(str(target), writing=True):
        system, root = fsspec.core.url_to_fs(str(target))
        _refuse_another_there(remote, str(target), system, root.rstrip("/"))
        for name in remote.files:
            _bring(
                remote, name, system, posixpath.join(root.rstrip("/"), name).rstrip("/"), advance
            )
    return remote.digest


def _refuse_partial(source: str | Path) -> None:
    origin = local_path(source)
    if origin is not None and store_state(origin) == "partial":
        raise StoreIncompleteError(origin, len(read_ledger(working_folder(origin)).ids))


def _copy_here(remote: RemoteStore, target: Path, advance: Advance) -> str:
    """Copy to this machine: the store appears under its name when it is whole."""
    if _is_taken(remote, target):
        _require_whole(remote, target)
        return remote.digest
    if working_folder(target) != target and working_folder(target).exists():
        raise OutputConflictError(target, (), "is under construction")
    system = fsspec.filesystem("file")
    partial = target.with_name(f".{target.stem}.copying{target.suffix}")
    with _reached(str(target), writing=True):
        _remove_others(partial, remote)
        for name in remote.files:
            place = partial / name if name else partial
            place.parent.mkdir(parents=True, exist_ok=True)
            _bring(remote, name, system, str(place), advance)
        _require_sound(remote, partial)
        partial.rename(target)
        sync_folder(target.parent)
    return remote.digest


def _remove_others(partial: Path, remote: RemoteStore) -> None:
    """What a broken-off copy of another store left must not become a part of this one."""
    files = [place for place in partial.rglob("*") if place.is_file()]
    if {place.relative_to(partial).as_posix() for place in files} - set(remote.files):
        shutil.rmtree(partial)


def _require_sound(remote: RemoteStore, copy: Path) -> None:
    """What arrived must be what the digest says: so far it was checked by the source's word."""
    findings = verify_store(copy).findings
    if findings:
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
        raise StoreDamageError(remote.url, findings[0].part, findings[0].problem, findings[0].ids)


def _is_taken(remote: RemoteStore, target: Path) -> bool:
    """Whether anything is in the place of the copy; an empty folder gives way to a Zarr store."""
    if "" not in remote.files and target.is_dir():
        return any(target.iterdir())
    return target.exists()


def _require_whole(remote: RemoteStore, target: Path) -> None:
    """Only a whole copy of the same store may pass for one that is made already."""
    _refuse_another(remote, str(target))
    if not verify_store(target).sound:
        raise OutputConflictError(target, (), "holds a damaged copy of the same store")


def _refuse_another_there(remote: RemoteStore, target: str, system: Any, root: str) -> None:
    """Elsewhere a copy that was broken off lacks the file that comes last, and is resumed."""
    name = list(remote.files)[-1]
    system.invalidate_cache()
    if system.exists(posixpath.join(root, name) if name else root):
        _refuse_another(remote, target)


def _refuse_another(remote: RemoteStore, target: str) -> None:
    """Only the same store may be in the place of the copy."""
    try:
        there = open_remote(target).digest
    except (StoreFormatError, StoreDamageError, InputNotFoundError):
        there = ""
    if there != remote.digest:
        found = f"digest {there[:16]}, not {remote.digest[:16]}" if there else "no finished store"
        raise OutputConflictError(Path(target), (), f"holds something else ({found})")


def _bring(remote: RemoteStore, name: str, system: Any, place: str, advance: Advance) -> None:
    """Bring one file over and check it there, unless it is there already."""
    size, checksum = remote.files[name]
    if _arrived(system, place, size, checksum):
        advance(size)
        return
    with system.open(place, "wb") as sink:
        found = _checksum(_source_pieces(remote, name), advance, sink)
    if found != checksum:
        raise StoreDamageError(remote.url, name or "file", "its checksum does not fit")
    if not _arrived(system, place, size, checksum):
        raise StoreWriteError(place, "arrived damaged", "Run the same command again")


def _source_pieces(remote: RemoteStore, name: str) -> Iterator[bytes]:
    """A file of the source; what goes wrong with it is the source's."""
    with _reached(remote.url, writing=False):
        try:
            with remote.system.open(remote.place(name), "rb") as handle:
                yield from _pieces(handle)
        except FileNotFoundError as error:
            raise StoreDamageError(remote.url, name or "file", "is missing") from error


def _pieces(handle: Any) -> Iterator[bytes]:
    while piece := handle.read(PIECE_BYTES):
        yield piece


def _arrived(system: Any, place: str, size: int, checksum: int) -> bool:
    """Whether a file is at `place` and is what it should be, read back."""
    system.invalidate_cache()
    try:
        if int(system.size(place)) != size:
            return False
        with system.open(place, "rb") as handle:
            return _checksum(_pieces(handle), lambda size: None) == checksum
    except FileNotFoundError:
        return False


def _checksum(pieces: Iterable[bytes], advance: Advance, sink: Any = None) -> int:
    """CRC-32C of all pieces, written to `sink` on the way."""
    checksum = 0
    for piece in pieces:
        checksum = google_crc32c.extend(checksum, piece)
        if sink is not None:
            sink.write(piece)
        advance(len(piece))
    return checksum


@contextmanager
def _reached(url: str, writing: bool) -> Iterator[None]:
    """Turn whatever a file system's own library raises into one of our errors."""
    try:
        yield
    except (KdpipeError, TypeError, AttributeError):
        raise
    except ImportError as error:
        package = error.name or str(error)
        raise DependencyError(package, url.partition(":")[0], f"reaching {url}") from error
    except FileNotFoundError as error:
        raise InputNotFoundError(url, "teacher store", "Check the path or URL") from error
    except Exception as error:  # every protocol's library has errors of its own
        problem = f"cannot be {'written' if writing else 'read'} ({error})"
        remedy = "Check address, credentials and space, then run the same command again"
        kind = StoreWriteError if writing else StoreFormatError
        raise kind(url, problem, remedy) from error
