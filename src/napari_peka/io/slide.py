"""A whole-slide image of any format: open it, know its µm, read any rectangle at any resolution.

Frame of reference: ``(y, x)``; positions are level-0 pixels whose edges are whole numbers. xy turns into yx here
and in the readers below, nowhere else.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from napari_peka.core.errors import MissingResolution, SettingError, SlideError, Undecodable
from napari_peka.core.geometry import Rect
from napari_peka.io.fingerprint import fingerprint
from napari_peka.io.lazy import LazyLevel, levels_of
from napari_peka.io.readers.base import Claim, KnownDamage, Reader, UInt8Array, cache_bytes
from napari_peka.io.readers.choose import candidates, fastest
from napari_peka.io.resample import Source, filled, in_parts, resample, shrink_for

#: µm per pixel that a microscope's scan can have
PLAUSIBLE_MPP = (0.1, 2.0)
#: µm per pixel that a person may give: an overview has a few; 10 and more are a magnification taken for it
ALLOWED_MPP = (0.05, 9.0)
#: y and x may differ by this share
_ANISOTROPY = 0.05
#: pixels of an overview that are given up together when a part of the slide cannot be decoded
_LEAST_PART = 16
_ENDINGS = (".ome.tiff", ".ome.tif", ".ome.zarr")


@dataclass(frozen=True)
class Resolution:
    """µm per level-0 pixel (y, x), and who says so."""

    mpp: tuple[float, float]
    source: str


def open_slide(path: str | Path, *, mpp: float | tuple[float, float] | None = None) -> Slide:
    """Open a slide; nothing is decoded yet.

    Parameters
    ----------
    path
        File, or folder of an OME-Zarr.
    mpp
        µm per level-0 pixel, one number or (y, x); overrides what the file says.

    Raises
    ------
    SlideError
        If no reader opens it; the message names each reader and its reason.
    SettingError
        If `mpp` is no number between 0.01 and 100, or ``$NAPARI_PEKA_SLIDE_MEMORY`` no number of MiB.
    """
    return Slide(path, mpp=mpp)


class Slide:
    """An open slide. Safe for threads; can be pickled (it is opened again); use it in a ``with`` block or `close`.

    Attributes
    ----------
    path
        Where it is.
    shape
        Height and width of level 0.
    level_shapes
        Height and width of each level, finest first.
    downsamples
        Level-0 pixels per pixel of each level.
    resolution
        µm per pixel and who says so; None when nobody does, or nobody credibly.
    vendor
        Maker or format.
    warnings
        What a person should know, a sentence each.
    background
        Colour (r, g, b) where nothing was scanned.
    associated
        Names of images beside the slide; they may show a patient's name and are never read unasked.
    """

    def __init__(self, path: str | Path, *, mpp: float | tuple[float, float] | None = None) -> None:
        self._override = _checked_mpp(mpp)
        cache_bytes()  # a wrong wish is told as such, not as a reader's reason to refuse the file
        self.path = Path(path)
        self._readers = candidates(self.path)
        self._pixels: Reader | None = None
        self._lock = threading.Lock()
        self._thumbnail: tuple[int, UInt8Array] | None = None
        first = self._readers[0]
        self.level_shapes = list(first.level_shapes)
        self.shape = self.level_shapes[0]
        self._factors = [_factors(self.shape, s) for s in self.level_shapes]
        self.downsamples = [(y + x) / 2 for y, x in self._factors]
        self.vendor, self.background, self.associated = first.vendor, first.background, first.associated
        self._claims = [c for r in self._readers for c in r.claims]
        self.resolution, about = _resolve(self._override, self._claims)
        # a reader that is asked for its pixels only has nothing to say about metadata
        self.warnings = [*first.warnings, *about]

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The file's name without its ending (``a.ome.tif`` is ``a``)."""
        low = self.path.name.lower()
        for ending in _ENDINGS:
            if low.endswith(ending) and len(low) > len(ending):
                return self.path.name[: -len(ending)]
        return self.path.stem

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over size and samples of the content: the same for a copy, cheap for gigabytes."""
        return fingerprint(self.path)

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per level-0 pixel (y, x).

        Raises
        ------
        MissingResolution
            If it is not known.
        """
        if self.resolution is None:
            said = (
                "; ".join(dict.fromkeys(_doubt(c) or "" for c in self._claims)) or "says nothing about its µm per pixel"
            )
            raise MissingResolution(f"{self.path.name} {said}; give it with --mpp or mpp=")
        return self.resolution.mpp

    @property
    def reader(self) -> str:
        """Name of the reader whose pixels are used."""
        return self._reader().name

    def info(self) -> dict[str, Any]:
        """Return what there is to know, fit for JSON."""
        return {
            "shape": list(self.shape),
            "mpp": None if self.resolution is None else list(self.resolution.mpp),
            "mpp_source": None if self.resolution is None else self.resolution.source,
            "levels": [{"shape": list(s), "downsample": d} for s, d in zip(self.level_shapes, self.downsamples)],
            "vendor": self.vendor,
            "reader": self.reader,
            "warnings": list(self.warnings),
            "associated": list(self.associated),
        }

    def associated_image(self, name: str) -> UInt8Array:
        """Return label, macro or thumbnail, uint8 ``(h, w, 3)``.

        Raises
        ------
        SlideError
            If there is none of that name, or it cannot be decoded.
        """
        if name not in self.associated:
            has = ", ".join(self.associated) or "none"
            raise SlideError(f"{self.path.name} has no associated image {name!r}; it has: {has}")
        try:
            return self._readers[0].associated_image(name)
        except Exception as e:
            raise Undecodable(f"the {name} of {self.path.name} cannot be decoded: {e}") from e

    # -- pixels ----------------------------------------------------------------------------------------------

    def read_level(self, level: int, y: int, x: int, h: int, w: int) -> UInt8Array:
        """Return pixels of one level; what lies outside the slide has the background's colour.

        Parameters
        ----------
        level, y, x, h, w
            Level, and whole pixels of that level.

        Returns
        -------
        uint8 ``(h, w, 3)``

        Raises
        ------
        Undecodable
            If a part of it cannot be decoded, not even with a fresh handle.
        """
        return self._read_within(1, self.level_shapes[level], level, y, x, h, w)

    def _read_within(
        self, shrink: int, shape: tuple[int, int], level: int, y: int, x: int, h: int, w: int
    ) -> UInt8Array:
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + h, shape[0]), min(x + w, shape[1])
        if (y0, x0, y1, x1) == (y, x, y + h, x + w) and h > 0 and w > 0:
            return self._read(level, y, x, h, w, shrink)
        out = np.empty((h, w, 3), np.uint8)
        out[:] = self.background
        if y1 > y0 and x1 > x0:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._read(level, y0, x0, y1 - y0, x1 - x0, shrink)
        return out

    def read_block(self, rect: Rect, mpp: float | None = None) -> UInt8Array:
        """Return a rectangle at any resolution; its edges are the edges of the result.

        Read from the coarsest level that is not coarser than asked, then resampled with antialiasing. Tiles that can be
        decoded smaller for less are, where that comes out the same within a grey value or two.

        Parameters
        ----------
        rect
            Level-0 pixels; fractions and parts outside the slide are fine.
        mpp
            µm per pixel of the result. None: level-0 pixels, for which no resolution need be known.

        Returns
        -------
        uint8 ``(round(rect.h * slide_mpp_y / mpp), round(rect.w * slide_mpp_x / mpp), 3)``

        Raises
        ------
        MissingResolution
            If `mpp` is given and that of the slide is not known.
        Undecodable
            If a part of it cannot be decoded.
        """
        if mpp is None:
            return self._resample(rect, (max(1, round(rect.h)), max(1, round(rect.w))), 1.0)
        if not (mpp > 0 and math.isfinite(mpp)):
            raise SettingError(f"mpp must be a positive number of µm per pixel, got {mpp}")
        own = self.mpp
        shape = max(1, round(rect.h * own[0] / mpp)), max(1, round(rect.w * own[1] / mpp))
        return self._resample(rect, shape, min(mpp / own[0], mpp / own[1]))

    def thumbnail(self, max_px: int = 1024) -> UInt8Array:
        """Return the whole slide with its longer side at most `max_px`, uint8 ``(h, w, 3)``.

        Parts that cannot be decoded get the colours around them, so that tissue is looked for there as well and its
        tiles are tried and counted; `warnings` then says so.

        Raises
        ------
        Undecodable
            If more than half of it cannot be decoded.
        """
        if self._thumbnail is None or self._thumbnail[0] != max_px:
            self._thumbnail = (max_px, self._overview(max_px))
        return self._thumbnail[1].copy()

    def _overview(self, max_px: int) -> UInt8Array:
        try:
            quick = self._readers[0].thumbnail(max_px)
        except Exception as e:
            raise Undecodable(f"{self.path.name} cannot be decoded: {e}") from e
        if quick is not None:
            return quick
        scale = max(1.0, max(self.shape) / max_px)
        shape = max(1, round(self.shape[0] / scale)), max(1, round(self.shape[1] / scale))
        try:
            return self._resample(Rect(0, 0, *self.shape), shape, scale, rim=False)
        except Undecodable:
            step = self.shape[0] / shape[0], self.shape[1] / shape[1]

            def draw(y0: int, x0: int, y1: int, x1: int) -> UInt8Array:
                rect = Rect(y0 * step[0], x0 * step[1], (y1 - y0) * step[0], (x1 - x0) * step[1])
                return self._resample(rect, (y1 - y0, x1 - x0), scale, rim=False)

            image, missing = in_parts(draw, shape, _LEAST_PART)
            if missing.mean() > 0.5:
                raise
            note = "parts of it cannot be decoded; its overview shows there what is around them"
            self.warnings += [] if note in self.warnings else [note]
            return filled(image, missing)

    @cached_property
    def pyramid(self) -> list[LazyLevel]:
        """Levels for a viewer, finest first, each ``(h, w, 3)`` uint8 and read where it is sliced.

        Below the file's own levels smaller ones are made up, so that a large flat image stays responsive.
        """
        return levels_of(self)

    def _resample(self, rect: Rect, shape: tuple[int, int], downsample: float, *, rim: bool = True) -> UInt8Array:
        # a downsample of 4.0001 still serves a request for 4
        fits = [i for i, f in enumerate(self._factors) if max(f) <= downsample * 1.001]
        level = max(fits, key=lambda i: self.downsamples[i], default=0)
        fy, fx = self._factors[level]
        box = (rect.y / fy, rect.x / fx, rect.y1 / fy, rect.x1 / fx)
        shrink = shrink_for(self._reader().shrinks(level), box, shape)
        box = (box[0] / shrink, box[1] / shrink, box[2] / shrink, box[3] / shrink)
        covers = self.shape[0] / fy / shrink, self.shape[1] / fx / shrink
        h, w = (-(-n // shrink) for n in self.level_shapes[level])
        read = self.read_level if shrink == 1 else partial(self._read_within, shrink, (h, w))
        source = Source(read, level, (h, w), covers, self.full_width(level), soften=shrink > 1)
        return resample(source, box, shape, rim=rim)

    def full_width(self, level: int) -> bool:
        """Return whether a level is stored in whole rows, so that these are cheapest to read."""
        return self._reader().full_width(level)

    def _reader(self) -> Reader:
        with self._lock:
            if self._pixels is None:
                self._pixels = fastest(self._readers)
            return self._pixels

    def _read(self, level: int, y: int, x: int, h: int, w: int, shrink: int = 1) -> UInt8Array:
        reader = self._reader()
        for attempt in range(2):
            try:
                if shrink > 1:
                    return reader.read_shrunk(level, y, x, h, w, shrink)
                return reader.read(level, y, x, h, w)
            except MemoryError:
                raise
            except Exception as e:
                if attempt or isinstance(e, KnownDamage):
                    raise Undecodable(
                        f"{self.path.name}: level {level}, rows {y} to {y + h}, columns {x} to {x + w} cannot be "
                        f"decoded ({reader.name}: {e})"
                    ) from e
                reader.fresh()
        raise AssertionError("unreachable")

    # -- life ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all files. A closed slide that is read again opens them again."""
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path), self._override)

    def __repr__(self) -> str:
        return f"<Slide {self.path.name} {self.shape[0]} × {self.shape[1]} px, {self.vendor}>"


def _reopen(path: str, mpp: tuple[float, float] | None) -> Slide:
    return Slide(path, mpp=mpp)


def _checked_mpp(mpp: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if mpp is None:
        return None
    pair = mpp if isinstance(mpp, Sequence) else (mpp, mpp)
    try:
        y, x = (float(v) for v in pair)
    except (TypeError, ValueError):
        raise SettingError(f"mpp must be one number or (y, x), in µm per pixel, got {mpp!r}") from None
    if not (ALLOWED_MPP[0] <= y <= ALLOWED_MPP[1] and ALLOWED_MPP[0] <= x <= ALLOWED_MPP[1]):
        raise SettingError(
            f"mpp must lie between {ALLOWED_MPP[0]:g} and {ALLOWED_MPP[1]:g} µm per pixel, got {mpp!r}; "
            "not the magnification is meant: 20× is about 0.5, 40× about 0.25"
        )
    return y, x


def _doubt(claim: Claim) -> str | None:
    """Return why a claim is not believed, or None when it is."""
    y, x = claim.mpp
    said = f"claims {y:.4g} µm/px" if f"{y:.4g}" == f"{x:.4g}" else f"claims {y:.4g} × {x:.4g} µm/px (y, x)"
    if not all(PLAUSIBLE_MPP[0] <= v <= PLAUSIBLE_MPP[1] for v in (y, x)):
        return f"{said}, outside {PLAUSIBLE_MPP[0]}-{PLAUSIBLE_MPP[1]} ({claim.source})"
    if abs(y - x) > _ANISOTROPY * max(y, x):
        return f"{said}, which differ by more than 5 % ({claim.source})"
    return None


def _resolve(override: tuple[float, float] | None, claims: list[Claim]) -> tuple[Resolution | None, list[str]]:
    if override is not None:
        given = Resolution(override, "given")
        return given, [text for text in (_contradicted(override, claims), _unusual(override)) if text]
    doubts: list[str] = []
    for claim in claims:
        doubt = _doubt(claim)
        if doubt is None:
            return Resolution(claim.mpp, claim.source), list(dict.fromkeys(doubts))
        doubts.append(f"it {doubt}: not believed")
    return None, list(dict.fromkeys(doubts))


def _contradicted(given: tuple[float, float], claims: list[Claim]) -> str | None:
    """Return a warning when the file credibly says another resolution than the one that was given."""
    claim = next((c for c in claims if _doubt(c) is None), None)
    if claim is None or all(abs(g - c) <= _ANISOTROPY * c for g, c in zip(given, claim.mpp)):
        return None
    return (
        f"{_pair(given)} µm/px were given, but the file says {_pair(claim.mpp)} ({claim.source}); "
        "with a wrong one the map is wrong"
    )


def _unusual(given: tuple[float, float]) -> str | None:
    if all(PLAUSIBLE_MPP[0] <= v <= PLAUSIBLE_MPP[1] for v in given):
        return None
    return f"{_pair(given)} µm/px were given, which no scan of a slide has ({PLAUSIBLE_MPP[0]}-{PLAUSIBLE_MPP[1]})"


def _pair(mpp: tuple[float, float]) -> str:
    y, x = (f"{v:.4g}" for v in mpp)
    return y if y == x else f"{y} × {x} (y, x)"


def _factors(base: tuple[int, int], level: tuple[int, int]) -> tuple[float, float]:
    """Return level-0 pixels per pixel of a level (y, x).

    A level of 312 px below 2500 was halved three times: its factor is 8, not 8.01, and the difference would
    shift what is read by pixels at the far edge.
    """
    ratios = base[0] / level[0], base[1] / level[1]
    whole = round(sum(ratios) / 2)
    if whole >= 1 and all(abs(b / whole - n) < 1 for b, n in zip(base, level)):
        return float(whole), float(whole)
    return ratios
