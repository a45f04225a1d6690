"""The image to which positions belong: found, opened, its µm per pixel known, checked against the array's pitch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError, SlideError
from napari_peka.io.sections.base import Found, Platform
from napari_peka.io.sections.grid import Grid, fit_grid, layout_of, neighbour_grid
from napari_peka.io.slide import ALLOWED_MPP, PLAUSIBLE_MPP, Resolution, Slide, open_slide

if TYPE_CHECKING:
    import pandas as pd

FloatArray = npt.NDArray[np.float64]

#: a pitch this much off the platform's: image and coordinates do not belong together
PITCH_TOLERANCE = 0.05
#: a diameter may be off by this factor: Space Ranger's is that of a "theoretical" spot of 65 µm, not of the 55 µm one
_DIAMETER_FACTOR = 1.25
#: spots farther off the array's lattice than this share of the pitch (root mean square); printed ones jitter by 0.05
_MISFIT = 0.25
#: an image that holds less than this share of the spots is not theirs
_MOST_INSIDE = 0.5
#: an image that nobody named must hold nearly all
_NEARLY_ALL = 0.9
#: µm per pixel above which nuclei cannot be told apart
COARSE_MPP = 1.0


@dataclass(eq=False)
class Placed:
    """Spots on an open slide.

    Parameters
    ----------
    slide
        Open, its µm per pixel known.
    xy
        Centres of the spots (x, y), level-0 px, float64 ``(n, 2)``.
    scale
        Level-0 pixels per pixel of the files' positions.
    grid
        Pitch in level-0 px; None when it cannot be measured.
    warnings
        What a person should know.
    """

    slide: Slide
    xy: FloatArray
    scale: float
    grid: Grid | None
    warnings: list[str] = field(default_factory=list)

    @property
    def mpp(self) -> float:
        """Mean of the slide's µm per pixel in y and x."""
        return float(np.mean(self.slide.mpp))

    @property
    def pitch_um(self) -> float | None:
        """Distance between neighbouring spots, µm."""
        return None if self.grid is None else self.grid.pitch_px * self.mpp


def place(
    found: Found,
    spots: pd.DataFrame,
    path: Path,
    *,
    image: str | Path | None,
    mpp: float | tuple[float, float] | None,
    affine: FloatArray | None,
) -> Placed:
    """Open the image of a section and put the spots on it.

    Parameters
    ----------
    found, path
        The section as its files have it.
    spots
        Those with counts.
    image, mpp
        What the caller named, or None.
    affine
        float64 ``(2, 3)``, from the files' (x, y) to level-0 (x, y); None: by the scale factor.

    Raises
    ------
    SectionError
        If there is no image, it is not that of the spots, or its µm per pixel cannot be known.
    SlideError
        If a named image cannot be opened.
    """
    xy = spots[["x", "y"]].to_numpy(np.float64)
    if affine is not None:
        xy = xy @ affine[:, :2].T + affine[:, 2]
    warnings: list[str] = []
    file, scale = _choose(found, xy, path, image, affine is None, warnings)
    if affine is not None:
        moved = float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    else:
        xy, moved = xy * scale, scale
    grid = _measure(xy, spots, found.platform)
    slide = open_slide(file, mpp=mpp)
    placed = Placed(slide, xy, moved, grid, warnings)
    try:
        if slide.resolution is None:
            placed.slide = _resolved(placed, found, file)
        _check(placed, found)
    except BaseException:
        placed.slide.close()
        raise
    return placed


def inside(xy: FloatArray, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return which (x, y) lie on an image of `shape` (h, w), bool ``(n,)``."""
    return np.asarray(((xy >= 0) & (xy <= np.array(shape[::-1]))).all(1))


def _choose(
    found: Found, xy: FloatArray, path: Path, image: str | Path | None, scaled: bool, warnings: list[str]
) -> tuple[Path, float]:
    """Return the file to open and its pixels per pixel of the positions."""
    if image is not None:
        return _named(Path(image), found, xy, scaled, warnings)
    fits, reasons = [], []
    for candidate in found.images:
        try:
            with open_slide(candidate) as slide:
                share = float(inside(xy, slide.shape).mean())
                size = f"{slide.shape[1]:,} × {slide.shape[0]:,} px"
                hint = _if_swapped(xy, slide.shape, share)
        except SlideError as e:
            reasons.append(str(e))
            continue
        if share >= _NEARLY_ALL:
            fits.append(candidate)
        else:
            moved = "" if scaled else " where the affine puts them"
            reasons.append(f"{candidate.name} ({size}) holds {share:.0%} of the spots{moved}{hint}")
    if fits:
        if len(fits) > 1:
            others = ", ".join(p.name for p in fits[1:4])
            warnings.append(
                f"{fits[0].name} is taken for the image; {others} would fit too: name it with --image or image="
            )
        return fits[0], 1.0
    why = f" ({'; '.join(reasons[:3])})" if reasons else ""
    if reasons and not scaled:
        raise SectionError(f"the affine does not fit {path}: {'; '.join(reasons[:3])}; check it, or name the image")
    if found.overview is None:
        raise SectionError(
            f"no image was found for {path}: looked for {found.looked}{why}; name it with --image or image="
        )
    file = found.overview.path()
    warnings.append(
        f"the full-resolution image was not found{why}: {found.overview.name} stands in for it ({file}); name the scan "
        "with --image or image="
    )
    return file, found.overview.scale if scaled else 1.0


def _named(image: Path, found: Found, xy: FloatArray, scaled: bool, warnings: list[str]) -> tuple[Path, float]:
    with open_slide(image) as slide:
        share, shape = float(inside(xy, slide.shape).mean()), slide.shape
        hint = _if_swapped(xy, shape, share)
    if share >= _MOST_INSIDE:
        return image, 1.0
    if scaled and found.overview is not None:
        with open_slide(found.overview.path()) as overview:
            same = overview.shape == shape
        if same:
            warnings.append(
                f"{image.name} is {found.overview.name}, not the scan: positions are scaled by "
                f"{found.overview.scale:.4g} to fit it; name the scan with --image or image="
            )
            return image, found.overview.scale
    raise SectionError(
        f"only {share:.0%} of {len(xy):,} spots lie inside {image.name} ({shape[1]:,} × {shape[0]:,} px), they reach "
        f"x = {xy[:, 0].max():,.0f}, y = {xy[:, 1].max():,.0f}{hint}: it is the image of another section, or reduced; "
        "name the full-resolution one with --image or image=, or give --affine or affine="
    )


def _if_swapped(xy: FloatArray, shape: tuple[int, int], share: float) -> str:
    swapped = float(inside(xy[:, ::-1], shape).mean())
    return f" (with x and y swapped {swapped:.0%})" if swapped > share + 0.05 else ""


def _measure(xy: FloatArray, spots: pd.DataFrame, platform: Platform | None) -> Grid | None:
    if {"array_row", "array_col"} <= set(spots.columns):
        array = spots[["array_col", "array_row"]].to_numpy(np.float64)
        if np.isfinite(array).all():
            layout = platform.layout if platform else layout_of(array[:, 1].astype(int), array[:, 0].astype(int))
            if (grid := fit_grid(xy, array, layout)) is not None:
                return grid
    return neighbour_grid(xy)


def _resolved(placed: Placed, found: Found, file: Path) -> Slide:
    """Return the slide opened again with the µm per pixel that the pitch, else the files, give."""
    if placed.grid is not None and found.platform is not None:
        value, source = found.platform.pitch_um / placed.grid.pitch_px, "spot pitch"
    elif found.mpp is not None:
        value, source = found.mpp[0] / placed.scale, found.mpp[1]
    else:
        raise SectionError(
            f"{file.name} does not say its µm per pixel, and the spots' pitch cannot give it: the platform is not "
            "known or the spots are too few; give it with --mpp or mpp="
        )
    if not ALLOWED_MPP[0] <= value <= ALLOWED_MPP[1]:
        raise SectionError(
            f"by the {source} {file.name} would have {value:.3g} µm/px: it is not the image to which the positions "
            "belong, or too coarse; name the full-resolution one with --image or image="
        )
    placed.slide.close()
    slide = open_slide(file, mpp=value)
    slide.resolution = Resolution((value, value), source)
    return slide


def _check(placed: Placed, found: Found) -> None:
    mpp, platform, resolution = placed.mpp, found.platform, placed.slide.resolution
    say = placed.warnings.append
    by_pitch = resolution is not None and resolution.source == "spot pitch"
    if by_pitch:
        say(f"the image does not say its µm per pixel: {mpp:.4g} by the spots' pitch of {placed.pitch_um:.0f} µm")
    if by_pitch and placed.scale == 1 and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        say(f"{mpp:.3g} µm/px is what no scan of a slide has: image and coordinates may not belong together")
    if platform is not None and placed.pitch_um is not None and resolution is not None:
        off = placed.pitch_um / platform.pitch_um - 1
        if abs(off) > PITCH_TOLERANCE:
            say(
                f"the pitch of the spots is {placed.pitch_um:.4g} µm at {mpp:.4g} µm/px ({resolution.source}), that of "
                f"the platform {platform.pitch_um:g} µm: image and coordinates do not belong together, or the µm per "
                "pixel are wrong"
            )
    if placed.grid is not None and (placed.grid.misfit or 0) > _MISFIT:
        say(
            f"spots lie {placed.grid.misfit:.0%} of the pitch off the array's rows and columns: positions and array "
            "places do not belong together"
        )
    if mpp > COARSE_MPP * 1.001:
        say(f"the image has {mpp:.3g} µm/px, coarser than {COARSE_MPP:g}: nuclei cannot be seen, little can be learnt")


def diameter_um(placed: Placed, found: Found, path: Path) -> tuple[float, list[str]]:
    """Return the diameter of the spots, µm, and warnings: the platform's where it is known, else what the files say.

    Raises
    ------
    SectionError
        If nobody says it and there is no pitch.
    """
    said = None if found.diameter_px is None else found.diameter_px * placed.scale * placed.mpp
    if found.platform is not None:
        known = found.platform.diameter_um
        if said is None or 1 / _DIAMETER_FACTOR <= said / known <= _DIAMETER_FACTOR:
            return known, []
        return known, [
            f"the diameter of the spots is {said:.4g} µm by the scale factors, that of the platform {known:g} µm: "
            "scale factors and positions do not belong together"
        ]
    if said is not None:
        return said, []
    if placed.pitch_um is None:
        raise SectionError(f"{path} does not say how large its spots are, and there are too few to measure the pitch")
    return placed.pitch_um, [
        f"the diameter of the spots is not known: their pitch ({placed.pitch_um:.4g} µm) is taken for it"
    ]
