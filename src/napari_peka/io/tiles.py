"""Spots' tiles, cut once and kept: training looks at each of them many times.

A section's tiles are one zarr in a cache folder, named after all that decides their pixels. It is written beside and
renamed, so it is whole or not there; another run that cuts the same tiles at the same time does no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.core.errors import StoreError, Undecodable
from napari_peka.core.geometry import Block, Rect, TileSpec, TileTable
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.cache import touch

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

Images = npt.NDArray[np.uint8]
#: tiles a file of the cache: 64 of 224 px are 9.6 MB before compression; a tile is read alone
SHARD = 64
#: bytes of pixels that are held in memory; more stay on the disk and are read by the batch
IN_MEMORY = 4 << 30
_IMAGES, _READ_OK = "images", "read_ok"


class SpotTiles:
    """Tiles of the spots of one section, in the order of the spots.

    Parameters
    ----------
    images
        uint8 ``(m, S, S, 3)``, numpy or zarr; zeros where a tile could not be decoded.
    at
        Where in `images` each spot's tile is, ``(n,)``.
    read_ok
        Whether each spot's tile could be decoded, bool ``(n,)``.
    """

    def __init__(self, images: Any, at: npt.NDArray[np.intp], read_ok: npt.NDArray[np.bool_]) -> None:
        self._images, self._at, self.read_ok = images, at, read_ok

    def __len__(self) -> int:
        return len(self._at)

    @property
    def nbytes(self) -> int:
        """Bytes of the spots' pixels."""
        return len(self) * int(np.prod(self._images.shape[1:], dtype=np.int64))

    def read(self, rows: npt.NDArray[np.integer]) -> Images:
        """Return tiles by number, uint8 ``(len(rows), S, S, 3)``."""
        if isinstance(self._images, np.ndarray):
            taken: Images = self._images[self._at[rows]]
            return taken
        out: Images = np.empty((len(rows), *self._images.shape[1:]), np.uint8)
        for i, at in enumerate(self._at[rows].tolist()):
            out[i] = self._images[at]
        return out

    def take(self, rows: npt.NDArray[np.integer]) -> SpotTiles:
        """Return the tiles of some of the spots."""
        return SpotTiles(self._images, self._at[rows], self.read_ok[rows])

    def in_memory(self) -> SpotTiles:
        """Return the same with all pixels in memory."""
        if isinstance(self._images, np.ndarray):
            return self
        return SpotTiles(self._images[:], self._at, self.read_ok)


class TileBank:
    """Tiles of several sections under one numbering: the rows of the first, then those of the second, and so on."""

    def __init__(self, sections: Sequence[SpotTiles]) -> None:
        whole = sum(s.nbytes for s in sections)
        self._sections = [s.in_memory() if whole <= IN_MEMORY else s for s in sections]
        self._first = np.cumsum([0, *(len(s) for s in sections)])
        self.read_ok = np.concatenate([s.read_ok for s in sections]) if sections else np.zeros(0, bool)

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, rows: npt.NDArray[np.integer]) -> Images:
        """Return tiles by number, in the order asked for, uint8 ``(len(rows), S, S, 3)``."""
        rows = np.asarray(rows)
        which = np.searchsorted(self._first, rows, side="right") - 1
        parts = [(i, np.flatnonzero(which == i)) for i in np.unique(which).tolist()]
        if len(parts) == 1:
            (i, _), *_ = parts
            alone: Images = self._sections[i].read(rows - self._first[i])
            return alone
        read = [(at, self._sections[i].read(rows[at] - self._first[i])) for i, at in parts]
        out: Images = np.empty((len(rows), *read[0][1].shape[1:]), np.uint8)
        for at, images in read:
            out[at] = images
        return out

    def batches(self, rows: npt.NDArray[np.integer], size: int) -> Iterator[tuple[npt.NDArray[np.integer], Images]]:
        """Yield ``(rows, tiles)`` in order, `size` at a time."""
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            yield part, self.read(part)


def spot_tiles(
    slide: Slide,
    centre_yx: npt.NDArray[np.float64],
    spec: TileSpec,
    *,
    cache: Path | None = None,
    progress: Progress = NULL,
) -> SpotTiles:
    """Cut a tile around every spot, or take them from the cache.

    Parameters
    ----------
    slide
        The section's slide.
    centre_yx
        Spots in level-0 pixels, float64 ``(n, 2)``.
    spec
        Size of the tiles.
    cache
        Folder to keep them in; None: in memory only.

    Raises
    ------
    StoreError
        If the cache cannot be written.
    """
    table, order = TileTable.spots(centre_yx, slide.mpp, spec)
    if cache is None:
        images = np.zeros((len(table), spec.size_px, spec.size_px, 3), np.uint8)
        ok = np.zeros(len(table), bool)
        for block, tiles, good in _cut(slide, table, progress):
            images[block.start : block.stop], ok[block.start : block.stop] = tiles, good
        return _in_spot_order(images, ok, order)
    path = files.make_folder(cache) / f"{slide.name}-{_key(slide, centre_yx, spec)}.zarr"
    if not path.exists():
        _write(slide, table, path, progress)
    touch(path)
    return _read(path, order)


def read_tiles(slide: Any, tiles: TileTable, block: Block) -> tuple[Images, npt.NDArray[np.bool_]]:
    """Read a block as one image and cut it; when that cannot be decoded, read its tiles one by one.

    Returns
    -------
    tiles
        uint8 ``(n, S, S, 3)``; zeros where a tile cannot be decoded.
    read_ok
        bool ``(n,)``.
    """
    size, mpp = tiles.spec.size_px, tiles.spec.mpp
    try:
        return block.cut(slide.read_block(block.rect, mpp), size), np.ones(len(block), bool)
    except Undecodable:
        pass
    images = np.zeros((len(block), size, size, 3), np.uint8)
    ok = np.zeros(len(block), bool)
    px0 = mpp / tiles.slide_mpp[0], mpp / tiles.slide_mpp[1]
    for i, (y, x) in enumerate(block.offsets_px.tolist()):
        rect = Rect(block.rect.y + y * px0[0], block.rect.x + x * px0[1], size * px0[0], size * px0[1])
        try:
            images[i] = slide.read_block(rect, mpp)
            ok[i] = True
        except Undecodable:
            continue
    return images, ok


def _cut(slide: Slide, table: TileTable, progress: Progress) -> Iterator[tuple[Block, Images, npt.NDArray[np.bool_]]]:
    progress.stage(f"cutting tiles of {slide.name}", len(table))
    for block in table.blocks():
        yield block, *read_tiles(slide, table, block)
        progress.advance(len(block))


def _write(slide: Slide, table: TileTable, path: Path, progress: Progress) -> None:
    import uuid

    import zarr

    beside = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    s = table.spec.size_px
    try:
        root = zarr.open_group(str(beside), mode="w")
        images = root.create_array(
            _IMAGES, shape=(len(table), s, s, 3), chunks=(1, s, s, 3), shards=(SHARD, s, s, 3), dtype="uint8"
        )
        ok = np.zeros(len(table), bool)
        waiting: list[Images] = []
        at = n = 0
        for block, tiles, good in _cut(slide, table, progress):  # blocks are runs of rows: shards are written whole
            ok[block.start : block.stop] = good
            waiting.append(tiles)
            n += len(block)
            while n >= SHARD:
                joined = np.concatenate(waiting)
                images[at : at + SHARD] = joined[:SHARD]
                waiting, n, at = [joined[SHARD:]], n - SHARD, at + SHARD
        if n:
            images[at : at + n] = np.concatenate(waiting)
        root.create_array(_READ_OK, data=ok)
        files.sync_tree(beside)
        if not path.exists():
            files.replace(beside, path)
    except OSError as e:
        if isinstance(e, StoreError) or path.exists():
            raise
        raise files.cannot_write(path, e) from e
    finally:
        files.remove_tree(beside)


def _read(path: Path, order: npt.NDArray[np.intp]) -> SpotTiles:
    import zarr

    try:
        root = zarr.open_group(str(path), mode="r")
        images, ok = root[_IMAGES], np.asarray(root[_READ_OK])
        if len(ok) != len(order) or images.shape[0] != len(order):
            raise ValueError(f"it holds {len(ok)} tiles, not {len(order)}")
    except Exception as e:
        raise StoreError(f"the cached tiles {path} cannot be read ({type(e).__name__}: {e}); remove them") from e
    return _in_spot_order(images, ok, order)


def _in_spot_order(images: Any, ok: npt.NDArray[np.bool_], order: npt.NDArray[np.intp]) -> SpotTiles:
    at = np.empty(len(order), np.intp)
    at[order] = np.arange(len(order))
    return SpotTiles(images, at, ok[at])


def _key(slide: Slide, centre_yx: npt.NDArray[np.float64], spec: TileSpec) -> str:
    text = json.dumps([slide.fingerprint, list(slide.mpp), spec.size_px, spec.mpp])
    return hashlib.sha256(text.encode() + np.ascontiguousarray(centre_yx, np.float64).tobytes()).hexdigest()[:16]
