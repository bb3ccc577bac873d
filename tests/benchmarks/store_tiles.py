"""Large stores at little cost: the utterances of a small one again and again under new ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdpipe.store.blocks import Block, block_digests, mapped_blocks
from kdpipe.store.compact import write_compact
from kdpipe.store.convert import whole_folder
from kdpipe.store.image import StoreImage
from kdpipe.store.index import ContentDigest, Index, hashes_of, lookup_of
from kdpipe.store.layout import COLUMN
from kdpipe.store.opening import open_image
from kdpipe.store.record import record_checksum
from kdpipe.store.zarr_backend import write_zarr

__all__ = ["tile_store"]


def tile_store(source: Path, target: Path, count: int, compact_level: int | None = None) -> None:
    """Write `count` utterances, copies of those of `source`, as a mapped or compact store."""
    image = open_image(source)
    rows, names, digest = [], [], ContentDigest(image.header)
    for block in _tiles(image, count):
        rows.append(block.rows)
        names.extend(block.names)
        digest.update(block_digests(block))
    table = np.concatenate(rows)
    table[:, COLUMN["id_end"]] = np.cumsum([len(name) for name in names])
    index = Index(table, np.frombuffer(b"".join(names), np.uint8), lookup_of(hashes_of(names)))
    total = digest.hexdigest()
    with whole_folder(target) as folder:
        if compact_level is None:
            write_zarr(folder, image.header, total, index, _tiles(image, count))
        else:
            write_compact(
                folder, image.header, digest.hexdigest(), index, _tiles(image, count), compact_level
            )


def _tiles(image: StoreImage, count: int) -> Iterator[Block]:
    """Blocks of the tiled store: ids begin with the number of the copy, so they are in order."""
    first = copy = 0
    while first < count:
        for block in mapped_blocks(image):
            keep = min(len(block.rows), count - first)
            if keep:
                yield _renamed(block, keep, copy, first)
            first += keep
        copy += 1


def _renamed(block: Block, keep: int, copy: int, first: int) -> Block:
    rows = np.array(block.rows[:keep])
    names = [b"%05d-%s" % (copy, name) for name in block.names[:keep]]
    content = block.content[: block.ends[keep - 1]]
    tile = Block(first, rows, names, content, block.ends[:keep])
    rows[:, COLUMN["crc32c"]] = [
        record_checksum(head + name, record)
        for head, name, record in zip(tile.heads(), names, tile.records(), strict=True)
    ]
    return tile
