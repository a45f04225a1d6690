"""Do spots lie on the tissue, and does another orientation of the image fit better? And affines from point pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.core.raster import Raster
from napari_peka.io.slide import Slide

FloatArray = npt.NDArray[np.float64]

#: side of the thumbnail on which tissue is looked for: what find_tissue uses, so it is made once
THUMBNAIL_PX = 1024
#: mean optical density above that of glass at which tissue begins: Otsu's threshold, kept between these, so that a
#: picture full of tissue is not cut in half
_DENSITY = (0.03, 0.12)
#: share of a spot's square on tissue from which the spot counts as on tissue
_ON = 0.3
#: another orientation is said to fit better when its score is higher by this, and it has so many more spots on tissue
#: or so much more correlation: two smooth patterns that have nothing in common correlate by 0.2 one time in ten
_CLEARLY, _MORE_ON, _MORE_CORRELATED = 0.15, 0.05, 0.4
#: what a correlation of 1 between counts and density weighs against all spots on tissue
_WEIGHT = 0.5
#: a point pair that is missed by less is met: what is left is the rounding of numbers
EXACT_PX = 1e-3
#: fewer spots tell nothing
_FEWEST = 20


@dataclass(frozen=True)
class Orientation:
    """How well the spots fit the image in one orientation of its frame.

    Parameters
    ----------
    name
        What was done to the spots' coordinates.
    on_tissue
        Share of the spots that lie on tissue, 0 to 1.
    correlation
        Spearman's correlation of the spots' total counts with the optical density under them, -1 to 1; NaN when one
        of them is constant.
    """

    name: str
    on_tissue: float
    correlation: float

    @property
    def score(self) -> float:
        """Share on tissue plus half the correlation where it is positive."""
        return self.on_tissue + _WEIGHT * max(0.0, float(np.nan_to_num(self.correlation)))


@dataclass(frozen=True)
class Registration:
    """How well spots and tissue agree, as given and for the other seven flips and swaps.

    Parameters
    ----------
    orientations
        All eight; the first is "as given".
    n_spots
        How many spots were looked at.
    """

    orientations: tuple[Orientation, ...]
    n_spots: int

    @property
    def given(self) -> Orientation:
        """The orientation that the files say."""
        return self.orientations[0]

    @property
    def best(self) -> Orientation:
        """The orientation with the highest score where it is clearly better, else the given one."""
        given, rival = self.given, max(self.orientations, key=lambda o: o.score)
        clearly = rival.score > given.score + _CLEARLY and (
            rival.on_tissue > given.on_tissue + _MORE_ON
            or np.nan_to_num(rival.correlation) > max(0.0, np.nan_to_num(given.correlation)) + _MORE_CORRELATED
        )
        return rival if clearly and self.n_spots >= _FEWEST else given

    @property
    def warnings(self) -> list[str]:
        """What a person should know, a sentence each."""
        said = []
        off = round((1 - self.given.on_tissue) * self.n_spots)
        if off:
            said.append(f"{off:,} of {self.n_spots:,} spots lie off the tissue that the image shows")
        if self.best is not self.given:
            said.append(
                f"with {self.best.name} {self.best.on_tissue:.0%} of the spots lie on tissue and their counts follow "
                f"its density with r = {self.best.correlation:.2f}; as given it is {self.given.on_tissue:.0%} and r = "
                f"{self.given.correlation:.2f}: the image may be flipped or its axes swapped, or another section's"
            )
        return said


def check_registration(slide: Slide, centre_yx: FloatArray, totals: FloatArray, spot_px: float) -> Registration:
    """Measure how spots and tissue agree for all eight orientations of the image's frame.

    Parameters
    ----------
    slide
        The image.
    centre_yx
        Centres of the spots, level-0 px, ``(n, 2)``.
    totals
        Their total counts, ``(n,)``.
    spot_px
        Diameter of a spot, level-0 px.
    """
    return TissueFit(slide).check(centre_yx, totals, spot_px)


class TissueFit:
    """Where an image has tissue, looked for once: to ask again and again how well spots lie on it.

    Parameters
    ----------
    slide
        The image.
    """

    def __init__(self, slide: Slide) -> None:
        density, tissue = tissue_density(slide.thumbnail(THUMBNAIL_PX))
        self._shape = slide.shape
        self._scale = slide.shape[0] / density.shape[0], slide.shape[1] / density.shape[1]
        self._mask, self._dark = Raster(tissue, self._scale), Raster(density, self._scale)

    def check(self, centre_yx: FloatArray, totals: FloatArray, spot_px: float) -> Registration:
        """Measure how spots and tissue agree; see :func:`check_registration`."""
        # narrower than a pixel of the thumbnail a spot would be read from between the pixels
        side = max(spot_px, *self._scale)
        frames = orientations(centre_yx, self._shape)
        yx = np.concatenate([yx for _, yx in frames])  # all at once: the raster is summed up anew for each call
        rects = np.column_stack([yx - side / 2, np.full_like(yx, side)])
        on = (self._mask.fraction(rects) >= _ON).reshape(len(frames), -1)
        under = self._dark.fraction(rects).reshape(len(frames), -1)
        found = [
            Orientation(name, float(on[i].mean()), spearman(totals, under[i])) for i, (name, _) in enumerate(frames)
        ]
        return Registration(tuple(found), len(centre_yx))


def orientations(centre_yx: FloatArray, shape: tuple[int, int]) -> list[tuple[str, FloatArray]]:
    """Return the spots under the eight flips and swaps of an image's frame of `shape` (h, w), the given one first."""
    found = []
    for swapped in (False, True):
        base = centre_yx[:, ::-1] if swapped else centre_yx
        for flip_y in (False, True):
            for flip_x in (False, True):
                yx = base.copy()
                if flip_y:
                    yx[:, 0] = shape[0] - yx[:, 0]
                if flip_x:
                    yx[:, 1] = shape[1] - yx[:, 1]
                parts = ["x and y swapped"] * swapped + ["y flipped"] * flip_y + ["x flipped"] * flip_x
                found.append((", ".join(parts) or "as given", yx))
    return found


def tissue_density(image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return optical density above that of glass, float32 ``(h, w)``, and where it is tissue, bool ``(h, w)``.

    Parameters
    ----------
    image
        Overview of a slide, uint8 ``(h, w, 3)``.

    Notes
    -----
    Density is the mean over the colours of -log10(value / glass), where glass is the brightest colour that a
    hundredth of the picture has. Otsu's threshold parts tissue from glass.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    glass = np.percentile(image.reshape(-1, 3), 99, axis=0)
    value = np.maximum(image.astype(np.float32), 1)
    density = np.maximum(-np.log10(value / np.maximum(glass, 1)), 0).mean(2).astype(np.float32)
    smooth = gaussian_filter(density, max(1.0, max(density.shape) / 500))
    threshold = float(threshold_otsu(smooth)) if np.ptp(smooth) > 0 else np.inf
    return density, np.asarray(smooth > np.clip(threshold, *_DENSITY))


def spearman(a: FloatArray, b: FloatArray) -> float:
    """Return Spearman's rank correlation; NaN when one of them is constant or there are fewer than three."""
    from scipy.stats import rankdata

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


class AffineFit(NamedTuple):
    """An affine and how well it fits its point pairs."""

    affine: FloatArray
    """float64 ``(2, 3)``: ``(x, y) @ affine[:, :2].T + affine[:, 2]``."""
    residual: float
    """Root mean square distance between the mapped points and where they should be, px of the target."""

    @property
    def exact(self) -> bool:
        """Whether it meets its point pairs, as three always do, or none were given."""
        return not self.residual > EXACT_PX

    def said(self, mpp: float | None = None) -> str:
        """Return the residual in px and, with the target's µm per pixel, in µm."""
        um = "" if mpp is None else f" ({self.residual * mpp:.3g} µm)"
        return f"the affine misses its point pairs by {self.residual:.3g} px{um}, root mean square"


def fit_affine(points_from: Any, points_to: Any) -> AffineFit:
    """Fit an affine to point pairs by least squares.

    Parameters
    ----------
    points_from
        (x, y) as the section's files have them, ``(n, 2)``, three or more that are not on one line.
    points_to
        (x, y) of the same points in level-0 pixels, ``(n, 2)``.

    Returns
    -------
    AffineFit
        ``(affine, residual)``. Three pairs are always met exactly: only a fourth one shows an error.

    Raises
    ------
    SectionError
        If there are fewer than three pairs, not as many on both sides, or they lie on one line.
    """
    a, b = (np.asarray(p, np.float64) for p in (points_from, points_to))
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != 2 or len(a) < 3:
        raise SectionError(
            f"an affine needs three or more pairs of (x, y), got points of shape {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise SectionError("an affine needs finite points")
    centre, spread = a.mean(0), a - a.mean(0)
    sizes = np.linalg.svd(spread, compute_uv=False)
    if sizes[1] <= 1e-6 * sizes[0]:
        raise SectionError("the points of an affine lie on one line; choose three that make a triangle")
    linear = np.linalg.lstsq(spread, b - b.mean(0), rcond=None)[0].T
    affine = np.column_stack([linear, b.mean(0) - linear @ centre])
    away = a @ affine[:, :2].T + affine[:, 2] - b
    return AffineFit(affine, float(np.sqrt((away**2).sum(1).mean())))


def read_affine(given: Any) -> AffineFit:
    """Return an affine that was given as numbers, or as the path of a JSON file.

    Parameters
    ----------
    given
        ``[[a, b, c], [d, e, f]]``, from the files' (x, y) to level-0 (x, y), or a path. The file holds the same list,
        or ``{"affine": [[…], […]]}``, or point pairs ``{"from": [[x, y], …], "to": [[x, y], …]}``.

    Raises
    ------
    SectionError
        If it is neither, or the affine maps everything onto a line.
    """
    where = ""
    if isinstance(given, (str, Path)):
        where = f" in {given}"
        try:
            given = json.loads(Path(given).read_text("utf-8"))
        except OSError as e:
            raise SectionError(f"the affine{where} cannot be read: {e.strerror or e}") from e
        except ValueError as e:
            raise SectionError(f"the affine{where} is not JSON ({e})") from e
    if isinstance(given, dict):
        if {"from", "to"} <= set(given):
            return fit_affine(given["from"], given["to"])
        given = given.get("affine", given)
    try:
        affine = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        affine = np.empty(0)
    if affine.shape != (2, 3) or not np.isfinite(affine).all():
        raise SectionError(f"an affine is [[a, b, c], [d, e, f]] or point pairs {{from, to}}, got {given!r}{where}")
    if abs(np.linalg.det(affine[:, :2])) < 1e-12:
        raise SectionError(f"the affine {affine.tolist()} maps everything onto a line")
    return AffineFit(affine, float("nan"))
