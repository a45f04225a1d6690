"""Levels of a slide as arrays that are read where they are sliced."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.core.errors import Undecodable
from napari_peka.io.readers.base import UInt8Array
from napari_peka.io.resample import Source, in_parts, resample

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: the viewer gets made-up levels until one is at most this large; it is decoded once and kept
SMALL_LEVEL = 2048
#: a made-up level is this much smaller than the one before
STEP = 4
#: colour (r, g, b) of what cannot be decoded, which no H&E slide has
UNREADABLE = (0, 200, 0)
#: pixels that are given that colour together
_LEAST_PART = 16


def levels_of(slide: Slide) -> list[LazyLevel]:
    """Return the levels for a viewer, finest first.

    Below the file's own levels smaller ones are made up, so that a large flat image stays responsive.
    """
    levels = [LazyLevel(slide, i, s) for i, s in enumerate(slide.level_shapes)]
    own = len(levels) - 1
    while max(levels[-1].shape[:2]) > SMALL_LEVEL:
        h, w, _ = levels[-1].shape
        levels.append(LazyLevel(slide, own, (max(1, h // STEP), max(1, w // STEP))))
    return levels


class LazyLevel:
    """One level of a slide as an array that is read where it is sliced.

    It is made to be looked at: what cannot be decoded is `UNREADABLE` green, for an error would stop a viewer from
    showing the rest. Computations read with `Slide.read_block`, which raises.

    Parameters
    ----------
    slide
        The slide.
    level
        The level of the file that is read.
    shape
        Height and width; smaller than those of `level` for a level that is made up.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: Slide, level: int, shape: tuple[int, int]) -> None:
        self._slide, self._level = slide, level
        self.shape: tuple[int, int, int] = (*shape, 3)
        self._whole: UInt8Array | None = None
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Number of samples."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the level once decoded."""
        return self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        whole = self[:, :]
        return whole if dtype is None else whole.astype(dtype)

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        rows, cols, samples = _three(key)
        y, h, pick_y = _span(rows, self.shape[0])
        x, w, pick_x = _span(cols, self.shape[1])
        pixels = self._pixels(y, x, h, w) if h and w else np.empty((h, w, 3), np.uint8)
        return np.asarray(pixels[:, :, samples][:, pick_x][pick_y])

    def _pixels(self, y: int, x: int, h: int, w: int) -> UInt8Array:
        if self._slide.level_shapes[self._level] == self.shape[:2] or max(self.shape[:2]) > SMALL_LEVEL:
            return self._drawn(y, x, h, w)
        with self._lock:  # a viewer asks for its view and its overview at the same time
            if self._whole is None:
                self._whole = self._drawn(0, 0, *self.shape[:2])
            return self._whole[y : y + h, x : x + w]

    def _drawn(self, y: int, x: int, h: int, w: int) -> UInt8Array:
        try:
            return self._read(y, x, h, w)
        except Undecodable:

            def draw(y0: int, x0: int, y1: int, x1: int) -> UInt8Array:
                return self._read(y + y0, x + x0, y1 - y0, x1 - x0)

            pixels, missing = in_parts(draw, (h, w), _LEAST_PART)
            pixels[missing] = UNREADABLE
            return pixels

    def _read(self, y: int, x: int, h: int, w: int) -> UInt8Array:
        own = self._slide.level_shapes[self._level]
        if own == self.shape[:2]:
            return self._slide.read_level(self._level, y, x, h, w)
        fy, fx = own[0] / self.shape[0], own[1] / self.shape[1]
        source = Source(self._slide.read_level, self._level, own, own, self._slide.full_width(self._level))
        return resample(source, (y * fy, x * fx, (y + h) * fy, (x + w) * fx), (h, w), rim=False)


def _three(key: Any) -> tuple[Any, Any, Any]:
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        i = keys.index(Ellipsis)
        keys[i : i + 1] = [slice(None)] * (4 - len(keys))
    if len(keys) > 3:
        raise IndexError(f"a level has 3 axes, got {len(keys)} indices")
    keys += [slice(None)] * (3 - len(keys))
    return keys[0], keys[1], keys[2]


def _span(key: Any, n: int) -> tuple[int, int, Any]:
    """Return start and length of what to read, and what to take from it."""
    if isinstance(key, slice):
        start, stop, step = key.indices(n)
        picked = range(start, stop, step)
        if not picked:
            return 0, 0, slice(None)
        low = min(picked[0], picked[-1])
        return low, max(picked[0], picked[-1]) - low + 1, slice(None, None, step)
    i = int(key)
    if not -n <= i < n:
        raise IndexError(f"index {i} is outside of 0 to {n - 1}")
    return i % n, 1, 0
