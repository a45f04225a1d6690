"""Places of a section where a map is wrong in one direction over several spots side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.hotspots import hotspots
from napari_peka.core.neighbours import Neighbours, neighbour_mean
from napari_peka.training.splits import pitch_um

#: spots are neighbours up to this many pitches: 8 around one on a square grid, 6 on a hexagonal one
_NEAR = 1.5
#: spots of one sign side by side that are a place
LEAST_SPOTS = 3
#: pitches around a spot that a place's outline holds; then it is drawn in by the second, so that it hugs the spots
_OUT, _IN = 0.85, 0.3
#: false discovery rate of the places of one gene
FDR = 0.05
HIGH, LOW = "more than predicted", "less than predicted"
#: what an outline means, for who sees one
OUTLINES = (
    "Outlined are places of at least 3 spots side by side where measured less predicted is higher (purple) or lower "
    "(orange) than on the rest of this section, beyond chance: Getis–Ord Gi* over each spot and those around it, "
    "against 100,000 random neighbourhoods, at a false discovery rate of 5 % over the spots of this gene. Where errors "
    "lie at random, up to 1 gene in 20 has an outline all the same, so in a search through many genes some are chance. "
    "An error that is the same everywhere is not outlined. It may be the measurement that is wrong: look at the tissue "
    "and at how much was counted there."
)


@dataclass(frozen=True, eq=False)
class Place:
    """Spots side by side where the map is wrong in one direction.

    Parameters
    ----------
    sign
        1: more was measured than predicted; -1: less.
    rows
        Its spots, ascending.
    polygon
        Around them, a shapely geometry in level-0 pixels, x first.
    residual
        Mean of measured less predicted over them.
    q
        False discovery rate at which the least certain of them is found.
    """

    sign: int
    rows: npt.NDArray[np.intp]
    polygon: Any
    residual: float
    q: float

    @property
    def kind(self) -> str:
        """The direction in words."""
        return HIGH if self.sign > 0 else LOW


@dataclass(frozen=True, eq=False)
class Lattice:
    """The spots on a map, and which lie side by side.

    Parameters
    ----------
    rows
        Their numbers, ascending.
    centre_yx
        Their centres in level-0 pixels.
    radius
        Their pitch in level-0 pixels.
    near
        Their neighbours among each other; None: there is one spot at the most.
    """

    rows: npt.NDArray[np.intp]
    centre_yx: npt.NDArray[np.float64]
    radius: float
    near: Neighbours | None

    @classmethod
    def of(cls, centre_yx: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_], mpp: Any) -> Lattice:
        """Find the neighbours of those of some spots that lie inside a map; µm per pixel are (y, x)."""
        rows = np.flatnonzero(inside)
        centre_um = centre_yx[rows] * np.array(mpp)
        pitch = pitch_um(centre_um)
        near = neighbour_mean(centre_um, _NEAR * pitch) if pitch > 0 else None
        return cls(rows, centre_yx[rows], pitch / float(np.mean(mpp)), near)


def find_places(residual: npt.NDArray[np.floating], lattice: Lattice) -> list[Place]:
    """Return where errors lie together, the largest place first.

    Parameters
    ----------
    residual
        Measured less predicted of each spot of the section.
    lattice
        Those spots on the map.
    """
    import shapely
    from scipy.sparse.csgraph import connected_components

    rows, near = lattice.rows, lattice.near
    if near is None:
        return []
    own_residual = np.asarray(residual[rows], np.float64)
    found = hotspots(own_residual, near, fdr=FDR)
    places = []
    for sign in (1, -1):
        some = np.flatnonzero(found.sign == sign)
        if not len(some):
            continue
        n, part = connected_components(near.among(some).links, directed=False)
        for k in range(n):
            own = some[part == k]
            if len(own) < LEAST_SPOTS:
                continue
            discs = shapely.buffer(shapely.points(lattice.centre_yx[own][:, ::-1]), _OUT * lattice.radius)
            outline = shapely.union_all(discs).buffer(-_IN * lattice.radius)
            places.append(Place(sign, rows[own], outline, float(own_residual[own].mean()), float(found.q[own].max())))
    return sorted(places, key=lambda p: -len(p.rows))
