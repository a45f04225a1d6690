"""TIFF, BigTIFF and OME-TIFF through tifffile and imagecodecs, decoding only the segments that are needed."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
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
#: parts that lie at most so many bytes from each other are fetched by one read, of at most so many
_GAP, _RUN = 32 << 10, 4 << 20


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
        self._check_pages(self.path.stat().st_size)
        self.grids = [self._grid(p) for p in self._pages]
        self.claims = claims_of(tif, self._pages[0], tif.series.index(base))

    @property
    def surest(self) -> bool:
        """Whether damage is noticed that libtiff passes; of JPEG it is where that costs nothing."""
        k = self._pages[0].keyframe
        if k.compression in _JPEG and k.jpegheader is None:
            return self._streams_of(0).quick
        return int(k.compression) in _CHECKED | _LENIENT

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

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Return the parts of the size at which libjpeg decodes this level's tiles."""
        page = self._pages[level]
        k = page.keyframe
        if not (k.is_tiled and k.compression in _JPEG and k.jpegheader is None and k.planarconfig == 1):
            return ()
        if not self._streams_of(level).quick:
            return ()
        return tuple(n for n in jpeg.SHRINKS if all(side % n == 0 for side in self.grids[level]))

    def decoders(self, level: int, row: int, cols: Sequence[int], shrink: int) -> dict[int, Callable[[], UInt8Array]]:
        """Return what decodes tiles of one row; those that lie together in the file are fetched by one read."""
        page = self._pages[level]
        parts = {col: self._index(level, row, col) for col in cols}
        fetched = self._fetch(page, parts.values())
        return {col: partial(self.decode, level, row, col, shrink, fetched.get(i)) for col, i in parts.items()}

    def decode(self, level: int, row: int, col: int, shrink: int = 1, data: bytes | None = None) -> UInt8Array:
        """Return tile, strip or band of rows, uint8 ``(h, w, 3)``; `data` are its bytes where they were fetched."""
        page = self._pages[level]
        k = page.keyframe
        sh, sw = self.grids[level]
        height, width = self.level_shapes[level]
        if self._in_one_piece(page):
            raw = self._rows(page, row * sh, min(sh, height - row * sh))
            return self._colours(raw, k)
        valid = min(sh, height - row * sh), min(sw, width - col * sw)
        if shrink > 1 and valid != (sh, sw):
            # what a tile holds beyond the slide's edge is no part of the picture: it would mix into its last pixels
            from PIL import Image

            whole = self.decode(level, row, col, 1, data)[: valid[0], : valid[1]]
            return np.asarray(Image.fromarray(whole).reduce(shrink))
        index = self._index(level, row, col)
        if k.planarconfig == 2 and k.samplesperpixel > 1:
            plane = math.prod(self._counts(level))
            planes = [self._segment(level, s * plane + index) for s in range(k.samplesperpixel)]
            if any(p is None for p in planes):
                return np.full((sh, sw, 3), self.background, np.uint8)
            return self._colours(np.concatenate([p for p in planes if p is not None], axis=2), k)
        segment = self._segment(level, index, shrink, data)
        if segment is None:  # no bytes are the format's way to say that nothing was scanned there
            return np.full((sh // shrink, sw // shrink, 3), self.background, np.uint8)
        return self._colours(segment, k)

    def _counts(self, level: int) -> tuple[int, int]:
        (height, width), (sh, sw) = self.level_shapes[level], self.grids[level]
        return -(-height // sh), -(-width // sw)

    def _index(self, level: int, row: int, col: int) -> int:
        return row * self._counts(level)[1] + col

    @staticmethod
    def _in_one_piece(page: Any) -> bool:
        k = page.keyframe
        return bool(page.is_contiguous and not k.is_tiled and k.planarconfig == 1)

    def _fetch(self, page: Any, indices: Iterable[int]) -> dict[int, bytes]:
        """Read parts that lie together in the file at once; returns the bytes of those, by their number."""
        fetched: dict[int, bytes] = {}
        if self._in_one_piece(page) or page.keyframe.planarconfig == 2:
            return fetched
        runs: list[list[tuple[int, int, int]]] = []
        end = 0
        for at, n, i in sorted((page.dataoffsets[i], n, i) for i in indices if (n := page.databytecounts[i])):
            if runs and at - end <= _GAP and at + n - runs[-1][0][0] <= _RUN:
                runs[-1].append((at, n, i))
            else:
                runs.append([(at, n, i)])
            end = max(end, at + n)
        for run in runs:
            if len(run) > 1:
                start = run[0][0]
                data = self._bytes(start, max(at + n for at, n, _ in run) - start)
                fetched |= {i: data[at - start : at - start + n] for at, n, i in run}
        return fetched

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

    def _segment(
        self, level: int, index: int, shrink: int = 1, data: bytes | None = None
    ) -> np.ndarray[Any, Any] | None:
        page = self._pages[level]
        k = page.keyframe
        n = page.databytecounts[index]
        if n == 0:
            return None
        data = data or self._bytes(page.dataoffsets[index], n)
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
                self._streams[level] = jpeg.Streams(
                    samples, page.jpegtables, math.prod(self.grids[level]), partial(self._decoded, page)
                )
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
