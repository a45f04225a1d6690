"""JPEG streams of a TIFF's tiles: decoded at once at their own or a smaller scale, and whether they are whole.

libjpeg only *warns* about most damage, fills the rest with grey or goes on with wrong colours, and imagecodecs and
Pillow do not pass the warning on; simplejpeg makes an error of it, and decodes as fast (0.3 ms a tile). The parser
behind ``jpegxl_encode_jpeg``, a lossless transcoder, is strict too and costs ten decodes. Damage noticed in tiles of
quality 85 and 80 (her2st, 240 trials a kind) by the transcoder alone, by simplejpeg, and by both as :class:`Streams`
asks them:

======================  ==========  ==========  ==========
500 bytes zeroed        0.98, 0.78  0.96, 0.76  0.98, 0.82
16 bytes zeroed         0.36, 0.30  0.28, 0.38  0.43, 0.48
4 bytes overwritten     0.20, 0.15  0.32, 0.44  0.32, 0.44
64 bytes overwritten    0.53, 0.50  0.77, 0.85  0.77, 0.85
64 bytes missing        0.74, 0.56  0.75, 0.56  0.75, 0.56
cut short               1.00, 1.00  1.00, 1.00  1.00, 1.00
======================  ==========  ==========  ==========

What is missed is valid JPEG of another picture. In tiles of a real SVS all find nearly all but the overwritten ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

#: decoders of one stream may differ by rounding, mean of grey values
AGREE = 2.0
#: libjpeg decodes at these parts of the size for less than the whole takes
SHRINKS = (2, 4, 8)
#: with the usual tables no picture is coded by that many zeros
_ZEROS = bytes(6)
#: larger streams are left to the slow decoder: comparing both would take their pixels several times
_SMALL_PX = 1 << 24
#: an Adobe marker before a stream that says nothing of its colours: they are RGB
_SAYS_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
#: a marker inside the entropy-coded data that is neither a stuffed byte, a restart nor fill
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_END = b"\xff\xd9"


class DamagedJPEG(ValueError):
    """A JPEG stream has a hole or is cut short."""


class Streams:
    """The JPEG streams of one level: who decodes their dialect, and what healthy ones look like.

    Parameters
    ----------
    samples
        Some of the streams, by their number.
    tables
        Tables that the streams share; None when each has its own.
    pixels
        How many pixels a stream has. One that claims twice as many is damaged; it might claim all memory.
    slow
        ``slow(data, number)`` decodes in any dialect to ``(h, w, samples)``, without a word about damage.

    Attributes
    ----------
    quick
        Whether `decode` is as fast as `slow`, and can shrink; not in a dialect that only the latter knows.
    """

    def __init__(
        self,
        samples: Mapping[int, bytes],
        tables: bytes | None,
        pixels: int,
        slow: Callable[[bytes, int], npt.NDArray[Any]],
    ) -> None:
        self._tables, self._pixels, self._slow = tables, pixels, slow
        # tiles that bring tables of their own differ by the size of those
        self._slack = 16 if tables and len(tables) > 4 else 512
        seen = []
        for data in samples.values():
            with suppress(DamagedJPEG):
                seen.append((remainder(whole(data, tables)), data.find(_ZEROS, _first_scan(data)) >= 0))
        self._usual = min((left for left, _ in seen if left is not None), default=None)
        # tables made for one picture may code it by zeros
        self._zeros_tell = not any(zeros and not self._too_much(left) for left, zeros in seen)
        self._colours = "RGB"
        self._prefix = self._agreeing(samples)
        self.quick = self._prefix is not None

    def _agreeing(self, samples: Mapping[int, bytes]) -> bytes | None:
        """Return what to put before a stream so that the quick decoder gives the slow one's pixels; None: nothing."""
        if self._pixels > _SMALL_PX:
            return None
        pairs = []
        for number, data in samples.items():
            with suppress(Exception):  # whatever is wrong with this one, others tell the dialect
                pairs.append((data, self._slow(data, number)))
        if any(want.shape[2] == 1 for _, want in pairs):
            self._colours = "GRAY"
        for prefix in (b"", _SAYS_RGB):
            agreed = []
            for data, want in pairs:
                with suppress(DamagedJPEG):
                    got = self._quick(data, prefix)
                    agreed.append(got.shape == want.shape and np.abs(got - want.astype(np.int16)).mean() <= AGREE)
            if agreed and all(agreed):
                return prefix
        return None

    def decode(self, data: bytes, number: int, shrink: int = 1) -> npt.NDArray[Any]:
        """Return a stream's pixels, ``(h, w, samples)``; sides divided by `shrink` are rounded up.

        Raises
        ------
        DamagedJPEG
            If damage is noticed.
        """
        scan = check_structure(data)
        if self._prefix is None:
            self._check_remainder(data)
            return self._slow(data, number)
        if self._zeros_tell and data.find(_ZEROS, scan) >= 0:
            self._check_remainder(data)
        return self._quick(data, self._prefix, shrink)

    def _quick(self, data: bytes, prefix: bytes, shrink: int = 1) -> npt.NDArray[Any]:
        import simplejpeg

        stream = whole(data, self._tables)
        stream = stream[:2] + prefix + stream[2:]
        try:
            h, w, *_ = simplejpeg.decode_jpeg_header(stream)
            if h * w > 2 * self._pixels:
                raise DamagedJPEG(f"its JPEG data are damaged: they claim {h:,} × {w:,} px")
            # a least size is what this library takes for a scale
            least = {"min_height": -(-h // shrink), "min_width": -(-w // shrink)} if shrink > 1 else {}
            pixels: npt.NDArray[Any] = simplejpeg.decode_jpeg(stream, self._colours, **least)
        except DamagedJPEG:
            raise
        except ValueError as e:
            raise DamagedJPEG(f"its JPEG data are damaged: {e}") from e
        return pixels

    def _check_remainder(self, data: bytes) -> None:
        if self._usual is not None and self._too_much(remainder(whole(data, self._tables))):
            raise DamagedJPEG("its JPEG data are damaged: some are left over")

    def _too_much(self, left: int | None) -> bool:
        return left is not None and self._usual is not None and left > self._usual + self._slack


def check_structure(data: bytes) -> int:
    """Look for an end marker, for markers where none can be and for lost restart markers; quick, finds little.

    Returns
    -------
    int
        Where the entropy-coded data begin.

    Raises
    ------
    DamagedJPEG
        If the stream is cut short or has foreign bytes in it.
    """
    end = data.rfind(_END)
    if end < 0 or data[end + 2 :].strip(b"\0\xff"):
        raise DamagedJPEG("its JPEG data are truncated: the end marker is missing")
    scan = _first_scan(data)
    hit = _MARKER.search(data, scan)
    stop = hit.start() if hit else len(data)
    # a progressive stream has several scans, with tables between them
    if stop < end and data[stop + 1] not in (0xC4, 0xDA, 0xDB, 0xDD, 0xFE, 0xDC):
        raise DamagedJPEG("its JPEG data are damaged: a marker where none can be")
    # decoders go on at the next restart marker and say nothing of the rows between
    restarts = [m[0][1] & 7 for m in _RESTART.finditer(data, scan, stop)]
    if any(n != i & 7 for i, n in enumerate(restarts)):
        raise DamagedJPEG("its JPEG data are damaged: a part between two restart markers is lost")
    return scan


def _first_scan(data: bytes) -> int:
    """Return where the entropy-coded data begin. A preview inside the header has a scan of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        marker, at = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return at
    raise DamagedJPEG("its JPEG data have no image in them")


def first_picture(data: bytes) -> bytes:
    """Cut off what follows the first picture of a file: previews of cameras, programs' own data."""
    end = data.find(_END, _first_scan(data))
    return data[: end + 2] if end >= 0 else data


def whole(data: bytes, tables: bytes | None) -> bytes:
    """Return an abbreviated stream with its tables put in and what follows its end cut off."""
    end = data.rfind(_END)
    data = data[: end + 2] if end >= 0 else data
    return data[:2] + tables[2:-2] + data[2:] if tables and len(tables) > 4 else data


def remainder(data: bytes) -> int | None:
    """Return how many bytes a lossless transcoding of a complete stream needs beside the picture.

    It is the same for all healthy tiles with the same tables. It grows when the picture is complete before the
    data end, as after a hole that happened to decode; such a stream is no error to any parser.

    Returns
    -------
    int or None
        None when it cannot be tried here.

    Raises
    ------
    DamagedJPEG
        If the data are no valid stream, or end before the picture does.
    """
    import imagecodecs

    try:
        encode, error = imagecodecs.jpegxl_encode_jpeg, imagecodecs.JpegxlError
    except (AttributeError, ImportError):  # imagecodecs was built without JPEG XL
        return None
    try:
        boxes = bytes(encode(data))
    except error as e:
        raise DamagedJPEG("its JPEG data are damaged") from e
    except ImportError:
        return None
    at = 0
    while at + 8 <= len(boxes):
        size = int.from_bytes(boxes[at : at + 4], "big")
        if boxes[at + 4 : at + 8] == b"jbrd":  # what JPEG XL keeps to rebuild the very same file
            return size or len(boxes) - at
        if size < 8:
            break
        at += size
    return 0
