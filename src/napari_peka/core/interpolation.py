"""What a map says at any place: between its tiles, and never beyond them.

Frame of reference: as in :mod:`napari_peka.core.geometry`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.geometry import FloatArray, TileTable

#: a corner of less weight is not asked for: a place on a tile's centre needs no neighbour, whatever rounding says
_NOTHING = 1e-9


def interpolate(tiles: TileTable, at_yx: FloatArray, known: npt.NDArray[np.bool_]) -> Any:
    """Return by how much each tile counts at each place: bilinear between the four tiles around it.

    Where one of these four is missing, the tile in whose cell the place lies counts alone; where there is none, the
    place is outside the map.

    Parameters
    ----------
    tiles
        Tiles on a regular grid.
    at_yx
        Places in level-0 pixels, float64 ``(m, 2)``.
    known
        Tiles that have a value, bool ``(n,)``.

    Returns
    -------
    scipy CSR array
        float64 ``(m, n)``: ``result @ values`` are the values at the places. Rows add up to 1; the row of a place
        outside the map is empty.

    Raises
    ------
    ValueError
        For tiles without a grid.
    """
    from scipy.sparse import csr_array

    if tiles.grid_yx is None:
        raise ValueError("only tiles on a regular grid can be interpolated")
    at = np.asarray(at_yx, np.float64).reshape(-1, 2)
    shape = (len(at), len(tiles))
    if not known.any() or not len(at):
        return csr_array(shape)
    step = np.array(tiles.spec.stride0(tiles.slide_mpp))
    grid = tiles.grid_yx.astype(np.int64)
    place = (at - tiles.centre_yx[0]) / step + grid[0]  # in rows and columns of the grid
    find = _Finder(grid, known)
    low = np.floor(place).astype(np.int64)
    share = place - low
    corners = [
        (low + np.array((i, j)), np.abs(1 - i - share[:, 0]) * np.abs(1 - j - share[:, 1]))
        for i in (0, 1)
        for j in (0, 1)
    ]
    tile = np.stack([find(corner) for corner, _ in corners], 1)
    weight = np.stack([w for _, w in corners], 1)
    weight[weight < _NOTHING] = 0
    alone = ((tile < 0) & (weight > 0)).any(1)
    weight[alone], tile[alone, 0] = (1.0, 0.0, 0.0, 0.0), find(np.floor(place[alone] + 0.5).astype(np.int64))
    there = (tile >= 0) & (weight > 0)
    weight /= np.where(there.any(1), np.where(there, weight, 0).sum(1), 1)[:, None]
    rows = np.nonzero(there)[0]
    return csr_array((weight[there], (rows, tile[there])), shape=shape)


class _Finder:
    """Finds the tile at a row and column; -1 where there is none."""

    def __init__(self, grid: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]) -> None:
        tiles = np.flatnonzero(known)
        self._first, self._last = grid[tiles].min(0), grid[tiles].max(0)
        keys = self._key(grid[tiles])
        order = np.argsort(keys)
        self._keys, self._tiles = keys[order], tiles[order]

    def _key(self, grid: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        row, col = (grid - self._first).T
        return np.asarray(row * (self._last[1] - self._first[1] + 1) + col)

    def __call__(self, grid: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        within = ((grid >= self._first) & (grid <= self._last)).all(1)
        key = self._key(np.where(within[:, None], grid, self._first))
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return np.where(within & (self._keys[at] == key), self._tiles[at], -1)
