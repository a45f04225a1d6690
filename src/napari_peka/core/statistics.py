"""What a linear head says of all genes at once, from moments of what it reads: no gene's map is computed.

A gene's value is ``features @ w + b``, so its mean, variance, and any quadratic form over tiles are those of the
features seen through `w`: a few products of matrices as wide as an embedding, for ten thousand genes as for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_peka.core.neighbours import Neighbours

FloatArray = npt.NDArray[np.float64]
#: rows converted to float64 at once
_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of features over some tiles.

    Parameters
    ----------
    n
        Tiles.
    mean
        ``(d,)``.
    covariance
        ``(d, d)``, divided by `n`.
    lag
        ``(d, d)``: mean over the tiles i that have neighbours of z_i times the mean of z_j over their neighbours j,
        where z are features less their mean; None when no neighbours were given.
    """

    n: int
    mean: FloatArray
    covariance: FloatArray
    lag: FloatArray | None = None

    def gene_mean(self, weights: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> FloatArray:
        """Return each gene's mean, ``(g,)``, for weights ``(d, g)`` and bias ``(g,)``."""
        return np.asarray(self.mean @ weights + bias, np.float64)

    def gene_variance(self, weights: npt.NDArray[np.floating]) -> FloatArray:
        """Return each gene's variance, ``(g,)``."""
        return _forms(self.covariance, weights)

    def moran(self, weights: npt.NDArray[np.floating]) -> FloatArray:
        """Return Moran's I of each gene, ``(g,)``: -1 to 1, about 0 without structure; NaN where a gene is constant.

        Each tile's neighbours weigh 1 together (row-standardised), as in squidpy and scanpy (Moran, Biometrika 1950).
        """
        if self.lag is None:
            raise ValueError("Moran's I needs neighbours; none were given")
        variance = self.gene_variance(weights)
        known = variance > 1e-12 * max(float(variance.max(initial=0)), 1e-300)
        out = np.full(len(variance), np.nan)
        np.divide(_forms(self.lag, weights), variance, out=out, where=known)
        return out


def moments(features: npt.NDArray[np.floating], neighbours: Neighbours | None = None) -> Moments:
    """Return the moments of features over tiles.

    Parameters
    ----------
    features
        ``(n, d)``, finite.
    neighbours
        Of these tiles; None: no spatial moment.

    Raises
    ------
    ValueError
        If there is no tile.
    """
    if not len(features):
        raise ValueError("there is no tile to take moments of")
    n, d = features.shape
    mean = np.asarray(features, np.float64).mean(0)
    covariance, lag, linked = np.zeros((d, d)), np.zeros((d, d)), 0
    centred = np.asarray(features - mean, np.float32) if neighbours is not None else None
    around = None if centred is None or neighbours is None else neighbours.mean(centred)
    counts = None if neighbours is None else neighbours.counts
    for at in range(0, n, _ROWS):
        rows = slice(at, at + _ROWS)
        z = np.asarray(features[rows], np.float64) - mean
        covariance += z.T @ z
        if around is not None and counts is not None:
            some = counts[rows] > 0
            lag += z[some].T @ np.asarray(around[rows][some], np.float64)
            linked += int(some.sum())
    return Moments(n, mean, covariance / n, lag / linked if linked else None)


def _forms(matrix: FloatArray, weights: npt.NDArray[np.floating]) -> FloatArray:
    """Return ``w' M w`` of each column w, ``(g,)``."""
    w = np.asarray(weights, np.float64)
    return np.asarray((w * (matrix @ w)).sum(0))
