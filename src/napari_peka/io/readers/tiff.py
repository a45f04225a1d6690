"""TIFF, BigTIFF and OME-TIFF through tifffile and imagecodecs, decoding only the segments that are needed."""

from __future__ import annotations

import math
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from napari_peka.io.readers import jpeg
from napari_peka.io.readers.base import (
    MAX_SEGMENT_BYTES,
    Pool,
    Refused,
    SegmentedReader,
    Truncated,
    UInt8Array,
    Unsuitable,
    check_type,
    eight_bit,
    multichannel,
    over,
)
from napari_peka.io.readers.tiff_pages import claims_of, pyramid, split_sides

#: photometric interpretations of the TIFF standard
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_KNOWN = {_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CMYK, _YCBCR}
#: compressions that are JPEG streams (old-style 6 has its tables elsewhere, NDPI's headers are made up)
_JPEG = {7, 34892}
#: Aperio's JPEG 2000 whose components are YCbCr, whatever the tag says
_APERIO_YCC = 33003
#: compressions whose decoders return RGB
_OWN_COLOURS = {6, 7, 34892, 33007}
#: JPEG 2000, WebP and JPEG XR: without a checksum, and their decoders pass a hole in silence
_LENIENT = {33003, 33004, 33005, 34712, 34927, 50001, 22610, 34934}
#: as many zeros in a row are no data of theirs, but a part of a file that was never written
_HOLE = bytes(512)
#: with a checksum, which imagecodecs verifies and libtiff (behind OpenSlide) measurably does not
_CHECKED = {8, 32946, 50000}
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: height of the bands by which uncompressed images in one piece are read
_BAND = 256


class TiffReader(SegmentedReader):
    """Flat and pyramidal TIFF: levels as SubIFDs, pages or a vendor's series; tiles or strips.

    Raises
    ------
    Refused
        If the file is no TIFF, or broken.
    Unsuitable
        If it is cut short, or its pixels are no bright-field image.
    """

    name = "tifffile"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as f:
            if f.read(4) not in _MAGIC:
                raise Refused("not a TIFF")
        import tifffile

        self._identity = _identity(path.stat())
        self._pool: Pool[Any] = Pool(self._open)
        self._streams: dict[int, jpeg.Streams] = {}
        self._streams_lock = threading.Lock()
        try:
            with tifffile.TiffFile(path) as tif:
                self._describe(tif)
        except (Refused, MemoryError):
            raise
        except Exception as e:
            raise Refused(f"{type(e).__name__}: {e}") from e

    def _describe(self, tif: Any) -> None:
        series = [s for s in tif.series if (k := s.keyframe) is not None and min(k.imagelength, k.imagewidth) > 0]
        scans, sides = split_sides(series)
        if not scans:
            size = self.path.stat().st_size
            if (start := _first_directory(self.path)) >= size:
                raise Truncated(
                    f"it is truncated: {size:,} bytes long where its contents begin at {start:,}; copy it again"
                )
            raise Refused("it holds no image")
        base = max(scans, key=lambda s: s.keyframe.imagelength * s.keyframe.imagewidth)
        self._check_axes(base)
        pages = [level.pages[0] for level in base.levels]
        if elsewhere := sorted({str(p.parent.filehandle.name) for p in pages if p.parent is not tif}):
            raise Unsuitable(f"its pixels are in another file, {', '.join(elsewhere)}; save it as one file")
        others = [s.pages[0] for s in scans if s is not base] if len(pages) == 1 and not tif.is_ome else []
        self._pages = pyramid(pages, others)
        self._side = {name: s.pages[0] for name, s in sides.items()}
        self.associated = tuple(self._side)
        self.vendor = next(
            (v for v in ("svs", "ndpi", "scn", "bif", "philips", "ome", "qpi") if getattr(tif, f"is_{v}", False)),
            "tiff",
        )
        self.level_shapes = [(int(p.imagelength), int(p.imagewidth)) for p in self._pages]
        self.surest = int(self._pages[0].keyframe.compression) in _CHECKED | _LENIENT
        self._check_pages(self.path.stat().st_size)
        self.grids = [self._grid(p) for p in self._pages]
        self.claims = claims_of(tif, self._pages[0], tif.series.index(base))

    def _check_axes(self, series: Any) -> None:
        level = series.levels[0]
        sizes = dict(zip(level.axes, level.shape))
        page = level.keyframe
        if sizes.get("C", 1) > 1:
            raise multichannel(sizes["C"])
        stack = [a for a in sizes if a not in "YXSC" and sizes[a] > 1]
        if stack:
            self.warnings.append("it is a stack: only its first plane is read")
        if page.photometric in (_MINISBLACK, _MINISWHITE):
            if page.samplesperpixel > 2:
                raise multichannel(page.samplesperpixel)
            self.warnings.append("it is greyscale: shown as grey RGB; models expect H&E colours")
        elif page.photometric not in _KNOWN:
            raise Unsuitable(f"its colours are {page.photometric!s}, which cannot be turned to RGB here")

    def _check_pages(self, size: int) -> None:
        page = self._pages[0].keyframe
        if page.dtype is None:
            raise Unsuitable(f"its pixels have {page.bitspersample} bits, which no reader here knows")
        if not isinstance(page.bitspersample, int):
            raise Unsuitable(f"its samples have {page.bitspersample} bits, not the same for each; export it as RGB")
        check_type(page.dtype, self.warnings, page.bitspersample)
        if (
            page.photometric == _YCBCR
            and page.compression not in _OWN_COLOURS
            and page.subsampling not in (None, (1, 1))
        ):
            raise Refused("YCbCr with subsampled colours outside of JPEG cannot be read")
        if (tag := page.tags.get("Orientation")) and tag.value != 1:
            self.warnings.append("it says that it should be turned (TIFF orientation); it is read as stored")
        for p in self._pages:
            end = max((o + n for o, n in zip(p.dataoffsets, p.databytecounts)), default=0)
            if end > size:
                raise Truncated(f"it is truncated: {size:,} bytes long where its contents need {end:,}; copy it again")
            k = p.keyframe
            need = math.prod(-(-n // step) for n, step in zip((k.imagelength, k.imagewidth), self._grid(p)))
            need *= k.samplesperpixel if k.planarconfig == 2 else 1
            if not p.is_contiguous and (have := min(len(p.dataoffsets), len(p.databytecounts))) < need:
                raise Unsuitable(
                    f"its table of contents is damaged: it names {have:,} of {need:,} parts; copy it again"
                )
            # tifffile looks these up in the file when they are first asked for; it is closed by then
            _ = k.decode, k.jpegheader, p.jpegtables, k.is_jfif if k.compression in _JPEG else None, k.colormap
            segment = math.prod(k.chunks) * k.dtype.itemsize
            if not p.is_contiguous and segment > MAX_SEGMENT_BYTES:
                raise Unsuitable(
                    f"it is compressed in one piece of {segment / 2**30:.0f} GiB; save it as a tiled pyramidal TIFF"
                )

    @staticmethod
    def _grid(page: Any) -> tuple[int, int]:
        k = page.keyframe
        if k.is_tiled:
            return int(k.tilelength), int(k.tilewidth)
        if page.is_contiguous and k.planarconfig == 1:  # in one piece: any rows can be had
            return min(_BAND, int(k.imagelength)), int(k.imagewidth)
        return min(int(k.rowsperstrip), int(k.imagelength)), int(k.imagewidth)

    def decode(self, level: int, row: int, col: int) -> UInt8Array:
        """Return tile, strip or band of rows, uint8 ``(h, w, 3)``."""
        page = self._pages[level]
        k = page.keyframe
        sh, sw = self.grids[level]
        if page.is_contiguous and not k.is_tiled and k.planarconfig == 1:
            raw = self._rows(page, row * sh, min(sh, self.level_shapes[level][0] - row * sh))
            return self._colours(raw, k)
        cols = -(-self.level_shapes[level][1] // sw)
        rows = -(-self.level_shapes[level][0] // sh)
        index = row * cols + col
        if k.planarconfig == 2 and k.samplesperpixel > 1:
            planes = [self._segment(level, s * rows * cols + index) for s in range(k.samplesperpixel)]
            if any(p is None for p in planes):
                return np.full((sh, sw, 3), self.background, np.uint8)
            return self._colours(np.concatenate([p for p in planes if p is not None], axis=2), k)
        segment = self._segment(level, index)
        # a segment of no bytes is the format's way to say that nothing was scanned there
        return np.full((sh, sw, 3), self.background, np.uint8) if segment is None else self._colours(segment, k)

    def _rows(self, page: Any, start: int, n: int) -> np.ndarray[Any, Any]:
        k = page.keyframe
        dtype = k.dtype.newbyteorder(k.parent.byteorder)
        if k.bitspersample < 8:
            raise ValueError(f"{k.bitspersample}-bit pixels in one piece")
        stride = k.imagewidth * k.samplesperpixel * dtype.itemsize
        data = self._bytes(page.dataoffsets[0] + start * stride, n * stride)
        return np.frombuffer(data, dtype).astype(k.dtype).reshape(n, k.imagewidth, k.samplesperpixel)

    def _open(self) -> Any:
        f = self.path.open("rb")
        # where its parts lie was read when the slide was opened, and means nothing in another file of that name
        if _identity(os.fstat(f.fileno())) != self._identity:
            f.close()
            raise OSError("the file was replaced after it was opened; open it again")
        return f

    def _bytes(self, offset: int, n: int) -> bytes:
        with self._pool.lend() as f:
            f.seek(offset)
            data: bytes = f.read(n)
        if len(data) != n:
            raise ValueError(f"the file ends {n - len(data)} bytes early")
        return data

    def _segment(self, level: int, index: int, shrink: int = 1) -> np.ndarray[Any, Any] | None:
        page = self._pages[level]
        k = page.keyframe
        n = page.databytecounts[index]
        if n == 0:
            return None
        data = self._bytes(page.dataoffsets[index], n)
        if k.compression in _LENIENT and _HOLE in data:
            raise ValueError("its data have a hole of zeros")
        if k.compression in _JPEG and k.jpegheader is None:
            return self._streams_of(level).decode(data, index, shrink)
        return self._decoded(page, data, index)

    @staticmethod
    def _decoded(page: Any, data: bytes, index: int) -> np.ndarray[Any, Any]:
        k = page.keyframe
        kwargs = {}
        if k.compression in _OWN_COLOURS:
            kwargs = {"jpegtables": page.jpegtables} if k.jpegheader is None else {"jpegheader": k.jpegheader}
        pixels, _, shape = k.decode(data, index, **kwargs)
        return np.asarray(pixels).reshape(-1, *np.shape(pixels)[-2:])[: shape[1]]

    def _streams_of(self, level: int) -> jpeg.Streams:
        with self._streams_lock:
            if level not in self._streams:
                page = self._pages[level]
                used = [i for i, n in enumerate(page.databytecounts) if n]
                some = used[:: max(1, len(used) // 5)][:5]
                samples = {i: self._bytes(page.dataoffsets[i], page.databytecounts[i]) for i in some}
                self._streams[level] = jpeg.Streams(samples, page.jpegtables, partial(self._decoded, page))
            return self._streams[level]

    def _colours(self, pixels: np.ndarray[Any, Any], k: Any) -> UInt8Array:
        """Turn a segment's samples, ``(h, w, samples)``, into RGB."""
        if k.photometric == _PALETTE:
            table = eight_bit(np.asarray(k.colormap, np.uint16))
            return np.ascontiguousarray(table[:, pixels[..., 0]].transpose(1, 2, 0))
        pixels = eight_bit(pixels, k.bitspersample)
        colours = {_RGB: 3, _YCBCR: 3, _CMYK: 4}.get(int(k.photometric), 1)
        alpha_kind = int(k.extrasamples[0]) if k.extrasamples else 0  # 1 premultiplied, 2 straight, 0 unsaid
        front = pixels[..., :colours]
        if k.photometric == _MINISWHITE:
            front = 255 - front
        if colours == 1:
            front = np.repeat(front, 3, axis=2)
        elif (
            k.photometric == _CMYK
            or k.compression == _APERIO_YCC
            or (k.photometric == _YCBCR and k.compression not in _OWN_COLOURS)
        ):
            from PIL import Image

            mode = "CMYK" if k.photometric == _CMYK else "YCbCr"
            size = front.shape[1], front.shape[0]
            front = np.asarray(Image.frombytes(mode, size, front.tobytes()).convert("RGB"))
        if pixels.shape[2] > colours and alpha_kind in (1, 2):
            return over(front, pixels[..., colours], self.background, premultiplied=alpha_kind == 1)
        return np.ascontiguousarray(front)

    def associated_image(self, name: str) -> UInt8Array:
        """Return label, macro or thumbnail, uint8 ``(h, w, 3)``."""
        import tifffile

        page = self._side[name]
        with tifffile.TiffFile(self.path) as tif:
            pixels = tif.pages[page.index].asarray()
        return self._colours(pixels if pixels.ndim == 3 else pixels[..., None], page.keyframe)

    def fresh(self) -> None:
        """Reopen the file."""
        self._pool.clear()

    def close(self) -> None:
        """Close all handles and forget decoded segments."""
        super().close()
        self._pool.close()


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size


def _first_directory(path: Path) -> int:
    """Return where a TIFF says that its first directory begins, bytes."""
    with path.open("rb") as f:
        head = f.read(16)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    classic = 42 in head[2:4]
    return int.from_bytes(head[4:8] if classic else head[8:16], order)
