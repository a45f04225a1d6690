"""Who lies near whom, and the mean over them: the context that a gene head may read.

One function serves measured spots and regular tiles, so that a map's context is what the head was fitted on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError

FloatArray = npt.NDArray[np.floating]
#: pairs of neighbours at most: 8 bytes each, so 2.4 GB
MAX_PAIRS = 300_000_000
#: rows whose neighbours are looked up at once: pairs come as 24 bytes each before they are packed
_ROWS = 4096
#: on a regular grid many neighbours lie exactly at the radius: rounding must not choose among them
_SLACK = 1 + 1e-6


class Neighbours:
    """For each of `n` places, the others within a radius; made by :func:`neighbour_mean`.

    Parameters
    ----------
    matrix
        Who is whose neighbour, a scipy CSR array of ones, a row a place, a column a place whose numbers are read.
    own
        Column of each place itself; None: rows and columns are the same places.
    """

    def __init__(self, matrix: Any, own: npt.NDArray[np.intp] | None = None) -> None:
        self._matrix = matrix
        #: rows of what :meth:`mean` reads that are the places' own
        self.own: slice | npt.NDArray[np.intp] = slice(None) if own is None else own

    def __len__(self) -> int:
        return int(self._matrix.shape[0])

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        """Number of neighbours of each place, int32 ``(n,)``."""
        return np.asarray(np.diff(self._matrix.indptr), np.int32)

    @property
    def links(self) -> Any:
        """Who is whose neighbour, a scipy CSR array of ones, ``(n, n)``."""
        return self._matrix

    def mean(self, x: FloatArray) -> FloatArray:
        """Return the mean of the neighbours' rows of `x`, the own row left out.

        Rows that are not finite (not computed yet, not readable) are left out and the others count equally; a place
        of which no neighbour is known has its own row in place of a mean.

        Parameters
        ----------
        x
            One number or row a place that is read, ``(n,)`` or ``(n, d)``.

        Returns
        -------
        A number or row a place; float64 for float64, else float32.

        Raises
        ------
        ValueError
            If `x` has not one row a place.
        """
        x = np.asarray(x)
        if len(x) != self._matrix.shape[1]:
            raise ValueError(f"{self._matrix.shape[1]} places need as many rows, got {len(x)}")
        x = x.astype(np.float64 if x.dtype == np.float64 else np.float32, copy=False)
        known = np.isfinite(x).all(tuple(range(1, x.ndim)))
        count = self.counts.astype(x.dtype)
        filled = x
        if not known.all():
            filled = np.where(known.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
            count = self._matrix @ known.astype(x.dtype)
        some = count > 0
        total = self._matrix @ filled
        total[some] /= count[some].reshape(-1, *[1] * (x.ndim - 1))
        total[~some] = x[self.own][~some]
        return np.asarray(total)

    def touched(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
        """Return the places whose mean reads one of `rows`, and `rows` themselves, ascending."""
        return np.union1d(rows, self._matrix[rows].indices).astype(np.intp)  # to be near is mutual

    def within(self, rows: slice) -> tuple[npt.NDArray[np.intp], Neighbours]:
        """Return the places that the mean of `rows` reads, themselves too, ascending, and the neighbours among these.

        So a mean is taken of a part of the places, and no more than that part is read.
        """
        at = np.arange(len(self))[rows]
        around = self.touched(at)
        return around, Neighbours(self._matrix[rows][:, around], np.searchsorted(around, at))

    def among(self, rows: npt.NDArray[np.integer]) -> Neighbours:
        """Return the neighbours among some of the places, in the order of `rows`."""
        return Neighbours(self._matrix[rows][:, rows])


def neighbour_mean(centre_um: npt.NDArray[np.float64], radius_um: float) -> Neighbours:
    """Find the neighbours of every place within a radius.

    Parameters
    ----------
    centre_um
        Places in µm, float64 ``(n, 2)``; rows in any order.
    radius_um
        A place is a neighbour when its centre is at most this far, µm.

    Returns
    -------
    Neighbours
        ``mean(x)`` is the mean of the neighbours' rows.

    Raises
    ------
    SettingError
        If the radius is not positive, or there are more pairs of neighbours than memory is good for.
    """
    # takes 0.2 s to import
    from scipy.sparse import csr_array, vstack
    from scipy.spatial import cKDTree

    if not (radius_um > 0 and np.isfinite(radius_um)):
        raise SettingError(f"the radius of the context must be a positive number of µm, got {radius_um}")
    at = np.asarray(centre_um, np.float64).reshape(-1, 2)
    n, reach = len(at), radius_um * _SLACK
    tree = cKDTree(at) if n else None
    if tree is not None and (pairs := int(tree.count_neighbors(tree, reach)) - n) > MAX_PAIRS:
        raise SettingError(
            f"{n:,} tiles have {pairs:,} neighbours within {radius_um:g} µm, the most is {MAX_PAIRS:,}; give a "
            "smaller radius or region, or a larger stride"
        )
    parts = [csr_array((0, n), dtype=np.float32)]
    for start in range(0, n, _ROWS):
        part = at[start : start + _ROWS]
        near = cKDTree(part).sparse_distance_matrix(tree, reach, output_type="ndarray")
        i, j = near["i"].astype(np.int32), near["j"].astype(np.int32)
        other = j != i + start
        ones = np.ones(int(other.sum()), np.float32)
        parts.append(csr_array((ones, (i[other], j[other])), shape=(len(part), n)))
        parts[-1].sort_indices()
    return Neighbours(vstack(parts, format="csr"))
