"""Read a rectangle of a level and bring it to another size, exact to sub-pixels, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from napari_peka.io.readers.base import UInt8Array

#: pixels of a level that are in memory at once
BAND_PX = 32_000_000


@dataclass(frozen=True)
class Source:
    """Where pixels come from.

    Parameters
    ----------
    read
        ``read(level, y, x, h, w)``, uint8 ``(h, w, 3)``; paints what lies outside the level.
    level
        Level to read.
    shape
        Height and width of the level.
    covers
        Height and width of the whole slide in the level's pixels; a last pixel that the level was cut short of
        is a copy of the one before.
    """

    read: Callable[[int, int, int, int, int], UInt8Array]
    level: int
    shape: tuple[int, int]
    covers: tuple[float, float]

    def region(self, y0: int, x0: int, y1: int, x1: int) -> UInt8Array:
        """Return rows `y0` to `y1` and columns `x0` to `x1`, uint8 ``(y1 - y0, x1 - x0, 3)``."""
        pixels = self.read(self.level, y0, x0, y1 - y0, x1 - x0)
        n, cover = self.shape[0], math.ceil(self.covers[0] - 1e-9)
        if n < cover and y0 < n < y1:
            pixels[n - y0 : cover - y0] = pixels[n - y0 - 1]
        n, cover = self.shape[1], math.ceil(self.covers[1] - 1e-9)
        if n < cover and x0 < n < x1:
            pixels[:, n - x0 : cover - x0] = pixels[:, n - x0 - 1, None]
        return pixels


def resample(
    source: Source, box: tuple[float, float, float, float], shape: tuple[int, int], *, rim: bool = True
) -> UInt8Array:
    """Resample a box of a level to `shape`; the box's edges become the edges of the result.

    Parameters
    ----------
    source
        The level.
    box
        ``(y0, x0, y1, x1)`` in pixels of the level; fractions are fine.
    shape
        Height and width of the result.
    rim
        Whether what lies outside the slide weighs in at its edge; not wanted for an overview.

    Returns
    -------
    uint8 ``(*shape, 3)``
    """
    y0, x0, y1, x1 = (_tidy(v) for v in box)
    if (y1 - y0, x1 - x0) == shape and y0 == int(y0) and x0 == int(x0):
        return source.region(int(y0), int(x0), int(y1), int(x1))
    step = (y1 - y0) / shape[0]
    per_row = (x1 - x0 + 4) * max(step, 1.0)
    band = max(1, int(BAND_PX / per_row))
    parts = []
    for row in range(0, shape[0], band):
        stop = min(shape[0], row + band)
        part = (y0 + row * step, x0, y0 + stop * step, x1)
        parts.append(_resize(source, part, (stop - row, shape[1]), rim))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _resize(source: Source, box: tuple[float, float, float, float], shape: tuple[int, int], rim: bool) -> UInt8Array:
    from PIL import Image

    y0, x0, y1, x1 = box
    # pixels outside the box weigh in, so that neighbouring blocks meet without a seam
    pad_y = math.ceil(max(1.0, (y1 - y0) / shape[0])) + 1
    pad_x = math.ceil(max(1.0, (x1 - x0) / shape[1])) + 1
    top, left = math.floor(y0) - pad_y, math.floor(x0) - pad_x
    low, right = math.ceil(y1) + pad_y, math.ceil(x1) + pad_x
    if not rim:
        top, left = max(top, 0), max(left, 0)
        low = min(low, max(source.shape[0], math.ceil(source.covers[0] - 1e-9)))
        right = min(right, max(source.shape[1], math.ceil(source.covers[1] - 1e-9)))
    pixels = source.region(top, left, low, right)
    image = Image.fromarray(pixels)
    # bilinear: a triangle as wide as two pixels of the result, so it antialiases; it does not ring
    resized = image.resize(
        (shape[1], shape[0]), Image.Resampling.BILINEAR, box=(x0 - left, y0 - top, x1 - left, y1 - top)
    )
    return np.asarray(resized)


def _tidy(value: float) -> float:
    """Take off what floating point has added to a whole number."""
    whole = round(value)
    return float(whole) if abs(value - whole) < 1e-6 else value
