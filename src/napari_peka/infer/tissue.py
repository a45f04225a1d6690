"""Thumbnail → tissue mask.

Glass is what is bright and smooth; its colour is measured, never assumed white. Tissue is what differs from the
glass and absorbs light as H&E does: green most. Grey things (dust, fiducials, black ink) absorb all colours alike,
blue and green ink absorb red most, and a smear of eosin beside a section has colour but no texture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from napari_peka.core.raster import Raster

if TYPE_CHECKING:
    from shapely import MultiPolygon

BoolArray = npt.NDArray[np.bool_]
FloatImage = npt.NDArray[np.float32]
UInt8Image = npt.NDArray[np.uint8]

#: least piece of tissue, as a share of the image
MIN_AREA = 2e-4
#: largest gap inside tissue that is closed, as a share of the image; a lumen is larger and stays a hole
_MAX_HOLE = 3e-4
#: Lab distance from glass: nothing below is tissue; everything above is, textured or not
_LEAST, _PLENTY = 5.0, 28.0
#: Lab chroma of plain glass, and of glass with a tint; a yellow lamp adds this much Lab b and hardly any a
_PLAIN, _TINTED, _YELLOW = 6.0, 14.0, 35.0
#: Lab noise of glass at most: what seems noisier is what seeped out of the tissue
_NOISE = 0.9
_WHITE = (245.0, 245.0, 245.0)


class _Resolution(Protocol):
    @property
    def mpp(self) -> tuple[float, float]: ...


class Overview(Protocol):
    """What :func:`find_tissue` needs of a slide."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of level 0."""

    @property
    def resolution(self) -> _Resolution | None:
        """µm per level-0 pixel, or None."""

    def thumbnail(self, max_px: int = 1024) -> UInt8Image:
        """Return the whole slide, uint8 ``(h, w, 3)``."""


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where the tissue is.

    Parameters
    ----------
    mask
        bool, with level-0 pixels per mask pixel.
    mpp
        µm per level-0 pixel (y, x); None when the slide does not say.
    threshold
        Lab distance from glass from which on what has texture was taken for tissue.
    """

    mask: Raster
    mpp: tuple[float, float] | None = None
    threshold: float = math.nan

    @property
    def area_mm2(self) -> float | None:
        """Area of the tissue; None when the µm per pixel are unknown."""
        if self.mpp is None:
            return None
        (sy, sx), (my, mx) = self.mask.scale_yx, self.mpp
        return float(np.count_nonzero(self.mask.data) * sy * my * sx * mx / 1e6)

    @property
    def share(self) -> float:
        """Share of the slide that is tissue, 0 to 1."""
        return float(np.mean(self.mask.data))

    def polygons(self) -> MultiPolygon:
        """Return the outlines in level-0 pixels, **x first**, valid, holes kept: exactly the mask's pixels."""
        import shapely

        # a run of tissue pixels in a row is a box; runs that are alike in rows below one another are one box
        data = self.mask.data.astype(bool)
        edge = np.diff(np.pad(data, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        row, start = np.nonzero(edge == 1)
        stop = np.nonzero(edge == -1)[1]
        order = np.lexsort((row, stop, start))
        row, start, stop = row[order], start[order], stop[order]
        same = (np.diff(start) == 0) & (np.diff(stop) == 0) & (np.diff(row) == 1)
        first = np.append(True, ~same)[: len(row)]
        last = np.append(~same, True)[: len(row)]
        (sy, sx), (oy, ox) = self.mask.scale_yx, self.mask.origin_yx
        boxes = shapely.box(
            start[first] * sx + ox, row[first] * sy + oy, stop[first] * sx + ox, (row[last] + 1) * sy + oy
        )
        parts = shapely.get_parts(shapely.union_all(boxes))
        return shapely.MultiPolygon([p for p in parts if p.geom_type == "Polygon"])


def find_tissue(
    slide: Overview, *, max_px: int = 1024, min_area: float = MIN_AREA, threshold: float | None = None
) -> Tissue:
    """Find the tissue of a slide on its thumbnail.

    Parameters
    ----------
    slide
        An open slide; its µm per pixel may be unknown.
    max_px
        Longer side of the thumbnail.
    min_area
        Least piece of tissue, as a share of the slide's area.
    threshold
        Lab distance from glass that tissue has at least; what has no texture must also be above what is found by Otsu's
        method. None: it is taken from the noise of the glass.
    """
    image = slide.thumbnail(max_px)
    data, threshold = _mask(image, min_area, threshold)
    scale = slide.shape[0] / data.shape[0], slide.shape[1] / data.shape[1]
    resolution = slide.resolution
    mpp = None if resolution is None else resolution.mpp
    return Tissue(Raster(data, scale, units="tissue"), mpp, threshold)


def tissue_mask(image: UInt8Image, *, min_area: float = MIN_AREA, threshold: float | None = None) -> BoolArray:
    """Return which pixels of an H&E overview are tissue, bool ``(h, w)``.

    Parameters
    ----------
    image
        Overview of a slide or a part of it, uint8 ``(h, w, 3)``; about 1,000 px a side is best.
    min_area
        Least piece of tissue, as a share of the image.
    threshold
        See :func:`find_tissue`.
    """
    return _mask(image, min_area, threshold)[0]


def _mask(image: UInt8Image, min_area: float, threshold: float | None) -> tuple[BoolArray, float]:
    """Return the mask and the threshold by which it was made."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an overview is uint8 (h, w, 3), got {image.dtype} {image.shape}")
    unit = max(image.shape[:2]) / 1024  # lengths below are px of a 1,024 px overview
    sigma = max(0.8, 1.5 * unit)
    smooth, scanned = _smooth(image, sigma)
    glass, flat = _without_glass(smooth, scanned, (image == 255).all(2))
    distance, texture, noise = _difference(flat, glass, sigma)
    split = _otsu(distance[scanned])
    low = max(_LEAST, 5 * noise)
    high = min(max(split, low), max(_PLENTY, low))
    if threshold is not None:
        low, high = threshold, max(threshold, high)
    mask = scanned & ((distance > high) | ((distance > low) & (texture > max(1.2, 3 * noise))))
    density = np.maximum(np.log10((glass + 1) / (np.maximum(flat, 0) + 1)), 0)
    grey, ink = _not_stain(density, unit)
    mask = _tidy(mask & ~(grey | ink), unit, min_area)
    return _drop_small(_drop_grey(mask & scanned & ~ink, density), min_area * mask.size), low


def _smooth(image: UInt8Image, sigma: float) -> tuple[FloatImage, BoolArray]:
    """Return the image without its finest grain, and where the scanner has been."""
    from scipy import ndimage

    smooth = image.astype(np.float32)
    black, rim = image.max(2) < 6, np.zeros(image.shape[:2], bool)
    rim[[0, -1]] = rim[:, [0, -1]] = True
    # a scanner's fill is large and lies at the rim; what is black elsewhere is pen or dust, and drops out as grey
    if black[rim].mean() < 0.05:
        return ndimage.gaussian_filter(smooth, (sigma, sigma, 0)), np.ones(black.shape, bool)
    fill = ndimage.binary_propagation(black & rim, mask=black)
    fill = ndimage.binary_dilation(fill, iterations=2)  # on a thumbnail its edge is half black
    smooth[fill] = 0
    weight = ndimage.gaussian_filter((~fill).astype(np.float32), sigma)[..., None]
    smooth = ndimage.gaussian_filter(smooth, (sigma, sigma, 0)) / np.maximum(weight, 1e-3)
    smooth[fill] = _WHITE
    return smooth, ~fill


def _lab(rgb: FloatImage) -> FloatImage:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(np.clip(rgb / np.float32(255), 0, 1)), np.float32)


def _without_glass(smooth: FloatImage, scanned: BoolArray, white: BoolArray) -> tuple[FloatImage, FloatImage]:
    """Return the colour of the glass and the image as if it were lit evenly."""
    step = max(1, math.isqrt(scanned.size // 90_000))
    rgb = np.ascontiguousarray(smooth[::step, ::step])
    lab = _lab(rgb)
    slope = np.hypot(*np.gradient(lab[..., 0])) / step if min(rgb.shape[:2]) > 1 else np.zeros(rgb.shape[:2])
    real, white = (scanned & ~white)[::step, ::step], white[::step, ::step]
    filled = bool(white.mean() > 0.01)
    flat = real & (slope < 0.6)
    mode = _glass(lab, flat, int(np.count_nonzero(real)), filled)
    if mode is None:
        return np.full(3, 255 if filled else _WHITE, np.float32), smooth
    near = flat & (np.abs(lab - mode).max(-1) < 4)
    glass = np.median(rgb[near], axis=0).astype(np.float32)
    off = np.hypot(lab[..., 1] - mode[1], lab[..., 2] - mode[2])
    lit = flat & (off < 5) & (lab[..., 0] > mode[0] - 30)
    if np.count_nonzero(lit) < 0.25 * lit.size:  # too little to tell uneven light from tissue
        return glass, smooth
    return glass, smooth * (glass / _surface(rgb, lit, step, smooth.shape[:2]))


def _glass(lab: FloatImage, flat: BoolArray, n_real: int, filled: bool) -> FloatImage | None:
    """Return the Lab colour of the glass, or None where hardly any is seen."""
    if not flat.any():
        return None
    light, pink, yellow = np.moveaxis(lab, -1, 0)
    chroma = np.hypot(pink, yellow)
    fits = flat & (light > np.percentile(light[flat], 99) - 25)
    plain = fits & ((chroma < _PLAIN) | ((np.abs(pink) < _PLAIN) & (yellow > 0) & (yellow < _YELLOW)))
    tinted = fits & (chroma < _TINTED)
    n_plain, n_tinted = np.count_nonzero(plain), np.count_nonzero(tinted)
    if n_tinted > 0.25 * n_real and n_plain < 0.02 * n_real:
        mode = _mode(lab[tinted])
        # as pink as pale tissue is only glass that is much the same all over
        if np.count_nonzero(tinted & (np.abs(lab - mode).max(-1) < 4)) > 0.25 * n_real:
            return mode
    # white around a scan is no glass; where the camera was overexposed it is, and what else is smooth is tissue
    return _mode(lab[plain]) if n_plain >= max(20, (0.03 if filled else 0.003) * n_real) else None


def _mode(colours: FloatImage) -> FloatImage:
    """Return the Lab colour of the glass among many smooth ones: of the common, the brightest and least pink."""
    bins = np.clip(np.round(colours / 2), -64, 63).astype(np.int64) + 64
    counts = np.bincount(bins @ (128**2, 128, 1))
    # pale tissue may be far more than the glass that is seen
    common = np.flatnonzero(counts > 0.1 * counts.max())
    kinds = 2 * np.stack([common // 128**2, common // 128 % 128, common % 128], 1) - 128
    return np.asarray(kinds[(kinds[:, 0] - np.abs(kinds[:, 1])).argmax()], np.float32)


def _surface(rgb: FloatImage, lit: BoolArray, step: int, shape: tuple[int, int]) -> FloatImage:
    """Fit a quadratic surface to the colour of the glass; never outside what was seen of it."""
    y, x = (np.stack([t**0, t, t**2]) for t in (np.linspace(-1, 1, n, dtype=np.float32) for n in shape))
    powers = [(i, j) for i in range(3) for j in range(3 - i)]
    row, col = (at[:: max(1, len(at) // 10_000)] for at in np.nonzero(lit))
    seen = rgb[row, col]
    basis = np.stack([y[i, row * step] * x[j, col * step] for i, j in powers], 1)
    keep = np.ones(len(seen), bool)
    for _ in range(3):
        fit, *_rest = np.linalg.lstsq(basis[keep], seen[keep], rcond=None)
        off = np.abs(basis @ fit - seen).max(1)
        keep = off <= max(1.0, 3 * float(np.median(off)))
    low, high = np.percentile(seen[keep], [1, 99], axis=0)
    cube = np.zeros((3, 3, 3), np.float32)
    for power, each in zip(powers, fit):
        cube[power] = each
    full = np.stack([np.clip(y.T @ cube[..., c] @ x, low[c], high[c]) for c in range(3)], -1)
    return np.asarray(np.maximum(full, 1), np.float32)


def _difference(flat: FloatImage, glass: FloatImage, sigma: float) -> tuple[FloatImage, FloatImage, float]:
    """Return the Lab distance from glass, its local variation, and its noise on glass."""
    from scipy import ndimage

    delta = _lab(flat) - _lab(glass[None, None])
    bright = np.minimum(delta[..., 0], 0)  # what is brighter than glass is no tissue
    distance = np.sqrt(bright**2 + delta[..., 1] ** 2 + delta[..., 2] ** 2)
    size = max(3, round(3 * sigma) | 1)
    # of the detail, not the slope: a smear that fades out varies widely but smoothly
    detail = distance - ndimage.gaussian_filter(distance, 1.5 * sigma, truncate=3)
    texture = np.sqrt(np.maximum(ndimage.uniform_filter(detail**2, size), 0))  # a running sum may fall below 0
    on_glass = delta[distance < 10]
    if len(on_glass) < 20:
        return distance, texture, 0.0
    spread = np.abs(on_glass[:, 0] - np.median(on_glass[:, 0]))
    return distance, texture, min(_NOISE, float(1.4826 * np.median(spread)))


def _otsu(distance: FloatImage) -> float:
    from skimage.filters import threshold_otsu

    clipped = np.minimum(distance, 60)  # the darkest nuclei must not pull the threshold up
    return float(threshold_otsu(clipped)) if clipped.size and np.ptp(clipped) > 0 else 0.0


def _not_stain(density: FloatImage, unit: float) -> tuple[BoolArray, BoolArray]:
    """Return what H&E cannot be: whatever absorbs all colours alike, and the strokes of a marker pen."""
    from scipy import ndimage

    total = density.sum(-1)
    red, green, blue = np.moveaxis(density / np.maximum(total, 1e-3)[..., None], -1, 0)
    grey = (total > 0.12) & (green < 0.38) & (blue > 0.28) & (red > 0.28)
    # blue and green pens: haematoxylin's red - green stays below 0.05, its blue above 0.19
    cold = (red - green > 0.07) | ((red - green > 0.03) & (blue < 0.185))
    rosy = (blue > 0.40) & (red < 0.16)  # red pen: more blue is absorbed than by eosin
    blot = grey | (cold & (total > 0.3))
    # blood is as rosy as a pen, but not as dark
    strong = (cold & (total > 0.3)) | (rosy & (total > 1.1)) | (grey & (total > 1.5))
    width = max(1, round(1.5 * unit))
    core = _drop_small(ndimage.binary_opening(strong, iterations=width), 150 * unit**2)
    if not core.any():
        return blot, core
    # where blue ink lies on eosin it has haematoxylin's hue, but is darker, and goes on from the stroke on glass
    core = ndimage.binary_propagation(core, mask=core | ((blue < 0.225) & (total > 1.5)))
    # a stroke fades out towards its rim, and wears the colour of what it mixes with
    around = ndimage.binary_dilation(core, iterations=max(1, round(4 * unit)))
    wide = ndimage.binary_dilation(around, iterations=max(1, round(8 * unit)))
    faint = (grey | ((cold | rosy) & (total > 0.12))) & wide
    return blot, np.asarray(around | faint)


def _tidy(mask: BoolArray, unit: float, min_area: float) -> BoolArray:
    from scipy import ndimage

    reach = max(1, round(3 * unit))
    mask = ndimage.binary_opening(mask, iterations=max(1, round(unit)))
    mask = _drop_small(mask, 0.25 * min_area * mask.size)
    padded = np.pad(mask, reach)  # closing must not eat at the rim
    mask = ndimage.binary_closing(padded, iterations=reach)[reach:-reach, reach:-reach]
    mask = ~_drop_small(~mask, _MAX_HOLE * mask.size)
    return _drop_small(mask, min_area * mask.size)


def _drop_small(mask: BoolArray, least: float) -> BoolArray:
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= least
    keep[0] = False
    return np.asarray(keep[labels])


def _drop_grey(mask: BoolArray, density: FloatImage) -> BoolArray:
    """Drop the pieces that are grey as a whole: fiducials and dust whose blurred rims have no colour of their own."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    each = np.stack([np.bincount(labels.ravel(), density[..., i].ravel(), n + 1) for i in range(3)])
    red, green, blue = each / np.maximum(each.sum(0), 1e-6)
    keep = (green - (red + blue) / 2 > 0.09) | (red - blue > 0.10)
    keep[0] = False
    return np.asarray(keep[labels])
