"""What a slide reader is, and the parts that readers share.

Frame of reference: ``(y, x)`` in whole pixels of one level; level 0 is the finest.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError

UInt8Array = npt.NDArray[np.uint8]
T = TypeVar("T")

WHITE = (255, 255, 255)
#: names the MiB of decoded parts that one open slide keeps in memory; blocks meet at their edges alone, so that few are
#: enough for a prediction (the window, in which the same parts are looked at again, asks for more)
MEMORY_ENVIRONMENT = "NAPARI_PEKA_SLIDE_MEMORY"
_MEMORY_MIB = 32
#: segments of a row whose bytes may be fetched at once: they are in memory together
_TOGETHER = 32
#: a segment that decodes to more cannot be read piecewise
MAX_SEGMENT_BYTES = 4 << 30


def cache_bytes() -> int:
    """Return how many bytes of decoded parts a slide that is opened now keeps in memory.

    Raises
    ------
    SettingError
        If ``$NAPARI_PEKA_SLIDE_MEMORY`` is no number of MiB.
    """
    said = os.environ.get(MEMORY_ENVIRONMENT) or str(_MEMORY_MIB)
    if not said.isdecimal():
        raise SettingError(f"the environment variable {MEMORY_ENVIRONMENT} must be MiB from 0 up, got {said!r}")
    return int(said) << 20


class Refused(Exception):
    """A reader cannot open this file; its text is the reason. Another reader may."""


class Unsuitable(Refused):
    """The file was understood and is not something to predict on, or is damaged: no other reader is asked."""


class Truncated(Unsuitable):
    """The file is shorter than its own table of contents says."""


class KnownDamage(ValueError):
    """Decoding has failed here twice already; a third try would only cost time."""


@dataclass(frozen=True)
class Claim:
    """What a file says about its resolution, believed or not.

    Parameters
    ----------
    mpp
        µm per level-0 pixel (y, x).
    source
        Where the file says so.
    """

    mpp: tuple[float, float]
    source: str


class Pool(Generic[T]):
    """Handles that are lent to one thread at a time, so that no handle is ever shared.

    A handle under which something failed is closed, never lent again: OpenSlide's errors are sticky.

    Parameters
    ----------
    make
        Opens a handle; it must have ``close()``.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: list[T] = []
        self._lock = threading.Lock()
        self._closed = False
        # a slide that nobody closes is closed with its last reference; the list outlives the pool for that
        weakref.finalize(self, _close_all, self._free)

    @contextmanager
    def lend(self) -> Iterator[T]:
        """Lend a handle for the time of a ``with`` block."""
        with self._lock:
            handle = self._free.pop() if self._free else None
        if handle is None:
            handle = self._make()
        try:
            yield handle
        except BaseException:
            handle.close()  # type: ignore[attr-defined]
            raise
        with self._lock:
            if not self._closed:
                self._free.append(handle)
                return
        handle.close()  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Close the handles that nobody uses; the next loan opens a fresh one."""
        with self._lock:
            free = list(self._free)
            self._free.clear()
        _close_all(free)

    def close(self) -> None:
        """Close all handles; those lent are closed when they come back."""
        self._closed = True
        self.clear()


def _close_all(handles: list[Any]) -> None:
    while handles:
        handles.pop().close()


class SegmentCache:
    """Decoded segments, least recently used out first, bounded in bytes; safe for threads."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit, self._size = cache_bytes() if limit is None else limit, 0
        self._items: OrderedDict[Hashable, UInt8Array] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._items

    def get(self, key: Hashable, make: Callable[[], UInt8Array]) -> UInt8Array:
        """Return the segment of that key, decoding it by ``make()`` when it is not kept."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
            making = self._making.setdefault(key, threading.Lock())
        # a slide in one strip is a gigabyte: threads wait for the one that decodes it, or each would hold its own
        with making:
            with self._lock:
                if key in self._items:
                    return self._items[key]
            try:
                value = make()
                self._keep(key, value)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        return value

    def _keep(self, key: Hashable, value: UInt8Array) -> None:
        with self._lock:
            if key not in self._items:
                self._items[key] = value
                self._size += value.nbytes
            # one segment above the limit is kept, or a slide in one strip would be decoded for every read
            while self._size > self._limit and len(self._items) > 1:
                self._size -= self._items.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self._size = 0


class Reader(ABC):
    """One way to read one file. Opening it parses metadata and decodes nothing.

    Attributes
    ----------
    level_shapes
        Height and width of each level, finest first.
    claims
        What the file says about its resolution, the most trustworthy first.
    vendor
        Maker or format, in a word or two.
    background
        Colour (r, g, b) where there is nothing.
    associated
        Names of the images beside the slide (label, macro, thumbnail).
    warnings
        What a person should know, a sentence each.
    """

    #: how the reader is called in messages
    name: str = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.level_shapes: list[tuple[int, int]] = []
        self.claims: list[Claim] = []
        self.vendor = ""
        self.background: tuple[int, int, int] = WHITE
        self.associated: tuple[str, ...] = ()
        self.warnings: list[str] = []

    @property
    def surest(self) -> bool:
        """Whether this reader notices damage that others would pass as pixels; it is then preferred to a faster one."""
        return False

    @abstractmethod
    def read(self, level: int, y: int, x: int, h: int, w: int) -> UInt8Array:
        """Return uint8 ``(h, w, 3)``; the rectangle lies inside the level. Any exception: not decodable."""

    def shrinks(self, level: int) -> tuple[int, ...]:
        """Return the whole parts of a level's size at which it can be decoded for less than the whole takes."""
        return ()

    def read_shrunk(self, level: int, y: int, x: int, h: int, w: int, shrink: int) -> UInt8Array:
        """Return uint8 ``(h, w, 3)`` of a level whose sides are divided by one of `shrinks`, rounded up.

        A pixel is about the mean of those that it stands for, as of a level that a scanner writes. The rectangle is in
        pixels of the smaller level and lies inside.
        """
        raise NotImplementedError

    def associated_image(self, name: str) -> UInt8Array:
        """Return an image beside the slide, uint8 ``(h, w, 3)``."""
        raise KeyError(name)

    def thumbnail(self, max_px: int) -> UInt8Array | None:
        """Return a quick overview of at most `max_px` a side, or None when there is no quicker way."""
        return None

    def full_width(self, level: int) -> bool:
        """Return whether what is decoded at once is as wide as the level: then whole rows are cheapest to read."""
        return False

    def fresh(self) -> None:  # noqa: B027
        """Drop handles, before a second try."""

    def close(self) -> None:  # noqa: B027
        """Close all handles."""


class SegmentedReader(Reader):
    """A reader of tiles, strips or chunks, each decoded as a whole and kept in a cache.

    `grids` holds the nominal height and width of a segment, one a level.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.grids: list[tuple[int, int]] = []
        self.cache = SegmentCache()
        self._failures: Counter[tuple[int, int, int]] = Counter()

    @abstractmethod
    def decode(self, level: int, row: int, col: int) -> UInt8Array:
        """Return a segment, uint8 ``(h, w, 3)``; at the lower and right edge it may be larger than needed."""

    def decoders(self, level: int, row: int, cols: Sequence[int], shrink: int) -> dict[int, Callable[[], UInt8Array]]:
        """Return what decodes segments of one row, by column; a reader may fetch their bytes together for that.

        `shrink` is 1, or one of :meth:`Reader.shrinks`.
        """
        return {col: partial(self.decode, level, row, col) for col in cols}

    def read(self, level: int, y: int, x: int, h: int, w: int) -> UInt8Array:
        """Return uint8 ``(h, w, 3)`` put together from segments."""
        return self.read_shrunk(level, y, x, h, w, 1)

    def read_shrunk(self, level: int, y: int, x: int, h: int, w: int, shrink: int) -> UInt8Array:
        """Return uint8 ``(h, w, 3)`` put together from segments that are decoded smaller."""
        sh, sw = (n // shrink for n in self.grids[level])
        out = np.empty((h, w, 3), np.uint8)
        first, stop = x // sw, (x + w - 1) // sw + 1
        for row in range(y // sh, (y + h - 1) // sh + 1):
            for start in range(first, stop, _TOGETHER):
                cols = range(start, min(start + _TOGETHER, stop))
                missing = [col for col in cols if (level, row, col, shrink) not in self.cache]
                decoders = self.decoders(level, row, missing, shrink)
                for col in cols:
                    decode = decoders.get(col) or partial(self._alone, level, row, col, shrink)
                    make = partial(self._decode, decode, (level, row, col))
                    tile = self.cache.get((level, row, col, shrink), make)
                    y0, x0 = max(y, row * sh), max(x, col * sw)
                    y1, x1 = min(y + h, (row + 1) * sh), min(x + w, (col + 1) * sw)
                    part = tile[y0 - row * sh : y1 - row * sh, x0 - col * sw : x1 - col * sw]
                    if part.shape[:2] != (y1 - y0, x1 - x0):
                        raise ValueError(f"segment ({row}, {col}) is {tile.shape[:2]} px, too small")
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return out

    def _alone(self, level: int, row: int, col: int, shrink: int) -> UInt8Array:
        """Decode a segment that another thread has pushed out of the cache just now."""
        return self.decoders(level, row, [col], shrink)[col]()

    def _decode(self, decode: Callable[[], UInt8Array], key: tuple[int, int, int]) -> UInt8Array:
        """Decode a segment, unless that has failed twice: one that is large would be tried for every tile in it."""
        if self._failures[key] > 1:
            raise KnownDamage(f"segment {key[1:]} is damaged")
        try:
            return decode()
        except (OSError, MemoryError):  # the drive's or the machine's fault, which may pass
            raise
        except Exception:
            self._failures[key] += 1
            raise

    def full_width(self, level: int) -> bool:
        """Return whether segments are strips."""
        return self.grids[level][1] >= self.level_shapes[level][1]

    def close(self) -> None:
        """Forget decoded segments, and which were damaged."""
        self.cache.clear()
        self._failures.clear()


def over(
    rgb: npt.NDArray[Any],
    alpha: npt.NDArray[Any],
    background: tuple[int, int, int],
    premultiplied: bool = False,
) -> UInt8Array:
    """Lay an image over a background colour.

    Parameters
    ----------
    rgb
        uint8 ``(h, w, 3)``.
    alpha
        uint8 ``(h, w)``; 255 is opaque.
    background
        Colour (r, g, b).
    premultiplied
        Whether `rgb` has been multiplied with alpha already.
    """
    if (alpha == 255).all():
        return np.ascontiguousarray(rgb)
    a = alpha[..., None].astype(np.float32) / 255
    front = rgb if premultiplied else rgb * a
    return np.asarray(np.clip(front + (1 - a) * np.array(background) + 0.5, 0, 255), np.uint8)


def eight_bit(pixels: npt.NDArray[Any], bits: int = 0) -> UInt8Array:
    """Bring unsigned pixels of up to 16 bits, or bool ones, to uint8.

    Parameters
    ----------
    pixels
        uint8, uint16 or bool, of either byte order.
    bits
        Bits of a sample that are used; all of them by default.

    Raises
    ------
    TypeError
        For any other type.
    """
    dtype = pixels.dtype.newbyteorder("=")
    if dtype == np.bool_:
        return np.asarray(pixels, np.uint8) * np.uint8(255)
    if dtype not in (np.uint8, np.uint16):
        raise TypeError(f"{pixels.dtype} pixels")
    full = (1 << (bits or 8 * dtype.itemsize)) - 1
    if dtype == np.uint8 and full == 255:
        return np.asarray(pixels)
    return np.asarray((pixels.astype(np.uint32) * 255 + full // 2) // full, np.uint8)


def check_type(dtype: np.dtype[Any], warnings: list[str], bits: int = 0) -> None:
    """Refuse pixels that are no photograph; warn about those that are stretched.

    Raises
    ------
    Unsuitable
        For anything but uint8, uint16 and bool.
    """
    dtype = dtype.newbyteorder("=")
    if dtype not in (np.uint8, np.uint16, np.bool_):
        raise Unsuitable(f"its pixels are {dtype}, not the 8-bit colours of a bright-field scan; export it as RGB")
    bits = bits or 8 * dtype.itemsize
    if dtype != np.bool_ and bits != 8:
        warnings.append(f"{bits}-bit pixels: read as their full range, 0 to {(1 << bits) - 1:,}")


def multichannel(n: int) -> Unsuitable:
    """Return the refusal of an image with `n` channels that are no colours."""
    return Unsuitable(f"it has {n} separate channels, as fluorescence has; a bright-field (H&E) image in RGB is needed")
