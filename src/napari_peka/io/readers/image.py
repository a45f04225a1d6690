"""Plain JPEG and PNG. The whole picture is decoded once, at the first read, and kept."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from napari_peka.io.readers import jpeg
from napari_peka.io.readers.base import (
    KnownDamage,
    Reader,
    Refused,
    UInt8Array,
    Unsuitable,
    eight_bit,
    multichannel,
    over,
)

#: beyond this the decoded picture would not fit into the memory of a common machine
MAX_PIXELS = 2_000_000_000
_TAIL = 1 << 16
#: rows that are converted at once
_BAND = 512


class ImageReader(Reader):
    """JPEG and PNG through Pillow. Their dpi say how to print them, not how they were scanned: no resolution.

    Raises
    ------
    Refused
        If the file is neither.
    Unsuitable
        If it is cut short or above 2 gigapixels.
    """

    name = "pillow"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as f:
            head = f.read(8)
            f.seek(max(0, path.stat().st_size - _TAIL))
            tail = f.read()
        if head[:3] == b"\xff\xd8\xff":
            self.vendor, ended = "jpeg", b"\xff\xd9" in tail
        elif head == b"\x89PNG\r\n\x1a\n":
            self.vendor, ended = "png", b"IEND" in tail
        else:
            raise Refused("neither JPEG nor PNG")
        self._lock = threading.Lock()
        self._pixels: UInt8Array | None = None
        self._failures = 0
        with self._open() as image:
            self._mode, (w, h) = image.mode, image.size
            # for a PNG without EXIF Pillow would decode the picture to look behind it
            turned = "exif" in image.info and image.getexif().get(0x0112, 1) != 1
        self.level_shapes = [(h, w)]
        if h * w > MAX_PIXELS:
            raise Unsuitable(f"{h:,} × {w:,} px are too many for {self.vendor.upper()}; save it as a pyramidal TIFF")
        if not ended:
            raise Unsuitable("it is truncated: its end is missing; copy it again")
        if self._mode in ("F", "LAB", "HSV"):
            raise multichannel(1 if self._mode == "F" else 3)
        if self._mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"):
            self.warnings.append("it is greyscale: shown as grey RGB; models expect H&E colours")
        if self._mode.startswith("I"):
            self.warnings.append("16-bit pixels: read as their full range, 0 to 65,535")
        if turned:
            self.warnings.append("its camera says that it should be turned (EXIF); it is read as stored")

    def _open(self) -> Any:
        # the plug-ins' classes, not Image.open: its limit against decompression bombs (179 megapixels) is a
        # global of the process; ours is checked in __init__
        from PIL import JpegImagePlugin, PngImagePlugin

        try:
            if self.vendor == "jpeg":
                return JpegImagePlugin.JpegImageFile(str(self.path))
            return PngImagePlugin.PngImageFile(str(self.path))
        except (SyntaxError, OSError, ValueError) as e:
            raise Refused(str(e) or "its header is broken") from e

    def read(self, level: int, y: int, x: int, h: int, w: int) -> UInt8Array:
        """Return uint8 ``(h, w, 3)``."""
        with self._lock:
            if self._failures > 1:
                raise KnownDamage("it is truncated or damaged")
            if self._pixels is None:
                with self._open() as image:
                    try:
                        self._pixels = self._rgb(image)
                    except ValueError:
                        self._failures += 1
                        raise
            return self._pixels[y : y + h, x : x + w].copy()

    def thumbnail(self, max_px: int) -> UInt8Array | None:
        """Return a JPEG at an eighth, a quarter or half its size, without decoding the rest."""
        h, w = self.level_shapes[0]
        if self._pixels is not None or self.vendor != "jpeg" or max(h, w) < 2 * max_px:
            return None
        scale = max_px / max(h, w)
        size = max(1, round(w * scale)), max(1, round(h * scale))
        with self._open() as image:
            image.draft("RGB" if image.mode == "RGB" else None, size)
            from PIL import Image

            small = Image.fromarray(self._rgb(image))
        # draft rounds up to whole blocks of eight: the picture ends a fraction of a pixel before its edge
        return np.asarray(small.resize(size, Image.Resampling.BILINEAR))

    def _rgb(self, image: Any) -> UInt8Array:
        # Pillow notices a cut stream, but not all wrong bytes inside a JPEG: like every viewer, it shows them. It also
        # misses a hole before the end marker, and fills the rest of the picture with one colour: that is looked for
        if self.vendor == "jpeg":
            jpeg.check_structure(jpeg.first_picture(self.path.read_bytes()))
        try:
            image.load()
        except (OSError, SyntaxError) as e:
            raise ValueError(f"it is truncated or damaged: {e}") from e
        if self.vendor == "jpeg":
            end = np.asarray(image.crop((0, image.height - 1, image.width, image.height)))
            if (end == end[:1, :1]).all():
                jpeg.remainder(self.path.read_bytes())  # raises; 3.5 s for a picture of 92 megapixels
        out = np.empty((image.height, image.width, 3), np.uint8)
        # converted as a whole, the picture would be in memory four times
        for top in range(0, image.height, _BAND):
            stop = min(top + _BAND, image.height)
            out[top:stop] = self._colours(image.crop((0, top, image.width, stop)))
        return out

    def _colours(self, image: Any) -> UInt8Array:
        if image.mode.startswith("I"):
            wide = np.asarray(image)
            return np.repeat(eight_bit(np.clip(wide, 0, 65535).astype(np.uint16))[..., None], 3, axis=2)
        if "A" in image.mode or "transparency" in image.info:
            pixels = np.asarray(image.convert("RGBA"))
            return over(pixels[..., :3], pixels[..., 3], self.background)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))

    def fresh(self) -> None:
        """Forget the decoded picture."""
        with self._lock:
            self._pixels = None

    def close(self) -> None:
        """Forget the decoded picture."""
        self.fresh()
        self._failures = 0
