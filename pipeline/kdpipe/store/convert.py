"""From one backend or profile to another, without loss: records are moved, never decoded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.errors import KdpipeError, StoreFormatError, StoreIncompleteError
from kdpipe.files import sync_folder
from kdpipe.store.blocks import Block, checked, mapped_blocks
from kdpipe.store.compact import (
    LEVEL,
    CompactImage,
    compact_blocks,
    open_compact,
    write_compact,
)
from kdpipe.store.hdf5_backend import write_hdf5
from kdpipe.store.image import StoreImage
from kdpipe.store.opening import open_image
from kdpipe.store.paths import backend_of, is_compact, store_state
from kdpipe.store.writer import write_failure
from kdpipe.store.zarr_backend import write_zarr

__all__ = ["all_blocks", "convert_store", "open_any", "whole_folder"]


def open_any(path: Path) -> StoreImage | CompactImage:
    """Map a store of any backend and profile."""
    return open_compact(path) if is_compact(path) else open_image(path)


def all_blocks(image: StoreImage | CompactImage) -> Iterator[Block]:
    """All records of a store in order of ids, unchecked."""
    return compact_blocks(image) if isinstance(image, CompactImage) else mapped_blocks(image)


def convert_store(
    source: Path,
    target: Path,
    compact: bool = False,
    level: int = LEVEL,
    advance: Callable[[int], object] = lambda utterances: None,
) -> str:
    """Write `source` again at `target` (.zarr or .h5, Zarr also compact); returns the digest.

    Every record and the content digest are checked on the way. Memory does not grow with the
    store but for its index; the target appears when it is whole, and stays where it was written
    before. `advance` is told how many utterances are done. Raises `StoreDamageError`,
    `StoreFormatError` or `StoreIncompleteError`.
    """
    image = open_any(source)
    if image.digest is None:
        raise StoreIncompleteError(source, len(image.index))
    if store_state(target) == "complete" and is_compact(target) is compact:
        made = open_any(target)
        if made.digest == image.digest:
            return made.digest
    if store_state(target) != "absent" or target.exists():
        raise StoreFormatError(target, "is there already", "Remove it, or give another path")
    if compact and backend_of(target) == "hdf5":
        raise StoreFormatError(target, "HDF5 has no compact profile", "Name it .zarr")
    blocks = _counted(checked(all_blocks(image), source, image.header, image.digest), advance)
    try:
        _write(target, image, blocks, level if compact else None)
    except KdpipeError:
        raise
    except OSError as error:
        raise write_failure(target, error) from error
    return image.digest


def _write(
    target: Path, image: StoreImage | CompactImage, blocks: Iterator[Block], level: int | None
) -> None:
    """Write a whole store; compact when a `level` of zstd is given."""
    assert image.digest is not None
    content = (image.header, image.digest, image.index, blocks)
    if backend_of(target) == "hdf5":
        write_hdf5(target, *content)
        return
    with whole_folder(target) as folder:
        if level is None:
            write_zarr(folder, *content)
        else:
            write_compact(folder, *content, level)


def _counted(blocks: Iterator[Block], advance: Callable[[int], object]) -> Iterator[Block]:
    for block in blocks:
        yield block
        advance(len(block.rows))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when all went well, and goes when it did not."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)
