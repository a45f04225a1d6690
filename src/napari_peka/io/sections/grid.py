"""Pitch of spots in pixels, from their places on the array or from their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_peka.io.sections.base import Layout

FloatArray = npt.NDArray[np.float64]

#: spots that are asked for their neighbours at most
_ASKED = 5000
#: a neighbour is nearer than this many times the usual nearest one; the next ring of a square lattice is at 1.41
_RING = 1.25
#: spots farther from the lattice than this many times the usual distance are left out of the second fit
_OUTLIER = 4.0


@dataclass(frozen=True)
class Grid:
    """The lattice on which spots lie.

    Parameters
    ----------
    pitch_px
        Distance between neighbouring centres, px.
    misfit
        Root mean square distance of the spots from the lattice as a share of the pitch; None when it was not fitted.
    """

    pitch_px: float
    misfit: float | None


def layout_of(array_row: npt.NDArray[np.integer], array_col: npt.NDArray[np.integer]) -> Layout:
    """Return the layout that places on the array tell: in Visium's, row and column are both even or both odd."""
    return "hex" if len(array_row) > 8 and ((array_row + array_col) % 2 == 0).all() else "square"


def fit_grid(xy: FloatArray, array_col_row: FloatArray, layout: Layout) -> Grid | None:
    """Fit the lattice of the array to the spots' pixels.

    Spots are printed with some jitter, so the slope over the whole array is the pitch, not the nearest neighbour.

    Parameters
    ----------
    xy
        Centres of spots, px, float64 ``(n, 2)``.
    array_col_row
        Column and row on the array, ``(n, 2)``.
    layout
        How columns and rows lie.

    Returns
    -------
    Grid
        None when the spots lie on one line, or are fewer than three.
    """
    step = np.array((0.5, np.sqrt(3) / 2)) if layout == "hex" else np.ones(2)
    design = np.column_stack([array_col_row * step, np.ones(len(xy))])
    if len(xy) < 3 or np.linalg.matrix_rank(design) < 3:
        return None
    keep = np.ones(len(xy), bool)
    for _ in range(2):
        solution = np.linalg.lstsq(design[keep], xy[keep], rcond=None)[0]
        away = np.linalg.norm(xy - design @ solution, axis=1)
        keep = away <= max(_OUTLIER * float(np.median(away)), 1e-9)
        if np.linalg.matrix_rank(design[keep]) < 3:
            return None
    pitch = float(np.sqrt(abs(np.linalg.det(solution[:2]))))
    return Grid(pitch, float(np.sqrt(np.mean(away**2))) / pitch) if pitch > 0 else None


def neighbour_grid(xy: FloatArray) -> Grid | None:
    """Return the mean distance of direct neighbours; None for fewer than three spots."""
    from scipy.spatial import cKDTree

    if len(xy) < 3:
        return None
    tree = cKDTree(xy)
    step = max(1, len(xy) // _ASKED)
    distances = tree.query(xy[::step], k=min(7, len(xy)))[0][:, 1:]
    nearest = float(np.median(distances[:, 0]))
    if nearest <= 0:
        return None
    return Grid(float(np.mean(distances[distances < _RING * nearest])), None)
