"""Slides that several tests make: a picture, a pyramid of it, and damage to its tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from napari_peka.core.geometry import Rect
from napari_peka.io.slide import Slide, open_slide

HALF_UM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def picture(h: int = 600, w: int = 700) -> np.ndarray:
    """Smooth enough for JPEG, different in y, x and colour, so that a swap shows."""
    y, x = np.mgrid[:h, :w]
    r = 128 + 100 * np.sin(y / 37) * np.cos(x / 53)
    return np.stack([r, 255 * y / h, 255 * x / w], -1).astype(np.uint8)


def halved(image: np.ndarray) -> np.ndarray:
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)


def write_pyramid(path: Path, image: np.ndarray, *, subifds: bool, levels: int = 3, **options: object) -> None:
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        options = {"photometric": "rgb", "tile": (128, 128), **options}
        tif.write(image, subifds=levels - 1 if subifds else None, **options)
        options.pop("resolution", None)
        options.pop("resolutionunit", None)
        for _ in range(levels - 1):
            image = halved(image)
            tif.write(image, subfiletype=1, **options)


def reference(image: np.ndarray, rect: Rect, shape: tuple[int, int], background: int = 255) -> np.ndarray:
    """Antialiased bilinear resampling, written plainly: a triangle around each output pixel's centre."""

    def weights(start: float, length: float, n: int, size: int, pad: int) -> np.ndarray:
        step = length / n
        centres = start + (np.arange(n) + 0.5) * step
        pixels = np.arange(-pad, size + pad) + 0.5
        k = np.maximum(0, 1 - np.abs(pixels - centres[:, None]) / max(1.0, step))
        return k / k.sum(1, keepdims=True)

    pad = 200
    wide = np.pad(image.astype(float), ((pad, pad), (pad, pad), (0, 0)), constant_values=background)
    wy = weights(rect.y, rect.h, shape[0], image.shape[0], pad)
    wx = weights(rect.x, rect.w, shape[1], image.shape[1], pad)
    return np.einsum("ij,jkc,lk->ilc", wy, wide, wx, optimize=True)


def exact_slide(folder: Path) -> Slide:
    path = folder / "exact.tif"
    rng = np.random.default_rng(0)
    tifffile.imwrite(
        path, rng.integers(0, 256, (151, 173, 3), np.uint8), photometric="rgb", tile=(64, 64),
        compression="deflate", **HALF_UM,
    )  # fmt: skip
    return open_slide(path)


def damage(path: Path, page: int, tile: int, how: str) -> None:
    with tifffile.TiffFile(path) as tif:
        offset, n = tif.pages[page].dataoffsets[tile], tif.pages[page].databytecounts[tile]
    data = bytearray(path.read_bytes())
    if how == "hole":
        data[offset + n // 2 : offset + n // 2 + n // 3] = bytes(n // 3)
    elif how == "noise":
        noise = np.random.default_rng(1).integers(0, 256, n - n // 3, np.uint8).tobytes()
        data[offset + n // 3 : offset + n] = noise
    else:
        data[offset : offset + n] = bytes(n)
    path.write_bytes(data)


def patch_tag(path: Path, name: str, entry: bytes, *, at: int = 2) -> None:
    """Overwrite a tag of the first page: what follows its number is type, count and value, ten bytes in all."""
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].tags[name].offset
    data = bytearray(path.read_bytes())
    data[offset + at : offset + at + len(entry)] = entry
    path.write_bytes(data)
