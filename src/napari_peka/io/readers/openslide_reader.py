"""Vendors' formats through the OpenSlide library.

OpenSlide is rather strict: libjpeg's warnings about damaged data are errors to it (a tile with four bytes overwritten
was noticed in 16 of 20 cases, one with a longer hole in 119 of 120; the rest is valid JPEG of another picture).
It misses data left over after the picture: with holes in JPEG of high quality, 20 of 20 went unnoticed.
It is lenient with deflate in TIFF, whose checksum libtiff ignores: `TiffReader` is preferred there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from napari_peka.io.readers.base import (
    MAX_SEGMENT_BYTES,
    WHITE,
    Claim,
    Pool,
    Reader,
    Refused,
    UInt8Array,
    Unsuitable,
    cache_bytes,
    over,
)


class OpenSlideReader(Reader):
    """SVS, NDPI, MRXS, SCN, VMS, BIF, SVSLIDE, DICOM and tiled TIFF by OpenSlide.

    Raises
    ------
    Refused
        If OpenSlide is missing or does not know the file.
    Unsuitable
        If its tiles do not fit into memory.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import openslide
        except (ImportError, OSError) as e:  # the library behind it may be missing on odd platforms
            raise Refused(f"not installed ({str(e).splitlines()[0]})") from e
        try:
            vendor = openslide.OpenSlide.detect_format(str(path))
        except openslide.OpenSlideError as e:
            raise Refused(str(e)) from e
        if vendor is None:
            raise Refused("not one of its formats")
        self._cache = openslide.OpenSlideCache(cache_bytes())  # shared by the handles

        def make() -> Any:
            handle = openslide.OpenSlide(str(path))
            handle.set_cache(self._cache)
            return handle

        self._make_cache = lambda: openslide.OpenSlideCache(cache_bytes())
        self._pool: Pool[Any] = Pool(make)
        try:
            with self._pool.lend() as slide:
                self._describe(slide, str(vendor))
        except openslide.OpenSlideError as e:
            raise Refused(str(e)) from e

    def _describe(self, slide: Any, vendor: str) -> None:
        self.vendor = vendor
        self.level_shapes = [(int(h), int(w)) for w, h in slide.level_dimensions]
        self._downsamples = [float(d) for d in slide.level_downsamples]
        props = slide.properties
        for i in range(len(self.level_shapes)):
            h, w = (int(props.get(f"openslide.level[{i}].tile-{side}", 0)) for side in ("height", "width"))
            if h * w * 4 > MAX_SEGMENT_BYTES:  # OpenSlide would ask for that memory, and end the process without it
                raise Unsuitable(
                    f"it claims tiles of {h:,} × {w:,} px; it is damaged, or must be saved with smaller ones"
                )
        self.associated = tuple(slide.associated_images)
        colour = props.get("openslide.background-color", "")
        if re.fullmatch("[0-9A-Fa-f]{6}", colour):
            self.background = (int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16))
        else:
            self.background = WHITE
        try:
            mpp = float(props["openslide.mpp-y"]), float(props["openslide.mpp-x"])
        except (KeyError, ValueError):
            return
        # for a plain TIFF OpenSlide only repeats its resolution tag
        source = "tiff resolution tag" if vendor == "generic-tiff" else f"openslide {vendor}"
        self.claims = [Claim(mpp, source)]

    def read(self, level: int, y: int, x: int, h: int, w: int) -> UInt8Array:
        """Return uint8 ``(h, w, 3)``."""
        d = self._downsamples[level]
        # OpenSlide takes whole level-0 positions and interpolates between the level's pixels where they do not meet
        # its grid (a level of 312 px below 2500): the nearest one errs by half a level-0 pixel at most
        at = round(x * d), round(y * d)
        with self._pool.lend() as slide:
            pixels = np.asarray(slide.read_region(at, level, (w, h)))
        return over(pixels[..., :3], pixels[..., 3], self.background)

    def associated_image(self, name: str) -> UInt8Array:
        """Return label, macro or thumbnail, uint8 ``(h, w, 3)``."""
        with self._pool.lend() as slide:
            pixels = np.asarray(slide.associated_images[name].convert("RGBA"))
        return over(pixels[..., :3], pixels[..., 3], self.background)

    def fresh(self) -> None:
        """Reopen: an OpenSlide handle that failed once fails for ever."""
        self._pool.clear()
        self._cache = self._make_cache()

    def close(self) -> None:
        """Close all handles."""
        self._pool.close()
