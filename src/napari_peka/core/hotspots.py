"""Where high or low values lie together more than chance would have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_peka.core.neighbours import Neighbours

#: random neighbourhoods of each size: p-values down to 2e-5, which the first of 2,500 spots must reach at 5 %
DRAWS = 100_000
#: fewer values say nothing of chance
LEAST = 20
#: two sums of the same values in another order are one
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Hotspots:
    """Where values are high or low together.

    Parameters
    ----------
    sign
        int8 ``(n,)``: 1 high, -1 low, 0 neither.
    q
        Least false discovery rate at which each place would be found, ``(n,)``; NaN where it was not asked.
    """

    sign: npt.NDArray[np.int8]
    q: npt.NDArray[np.float64]


def hotspots(
    values: npt.NDArray[np.floating], neighbours: Neighbours, *, fdr: float = 0.05, draws: int = DRAWS, seed: int = 0
) -> Hotspots:
    """Find places whose neighbourhood, themselves included, has a higher or lower mean than chance gives.

    Parameters
    ----------
    values
        One a place, ``(n,)``, finite.
    neighbours
        Of the same places.
    fdr
        False discovery rate: the share of what is found that may be chance, 0 to 1.
    draws
        Random neighbourhoods, for each number of neighbours.
    seed
        Of the drawing.

    Notes
    -----
    The statistic of a place is Getis and Ord's Gi* with equal weights (Getis & Ord, Geographical Analysis 24, 1992,
    189-206; Ord & Getis, 27, 1995, 286-306): up to a factor it is the mean over the place and its neighbours. Its
    p-value, two-sided, is by permutation: if values lay at random, such a mean would be that of as many values drawn
    without replacement from all of them, which is the same for all places of one number of neighbours, so that one set
    of draws serves them all. The many tests are taken into account by Benjamini and Hochberg's procedure (Journal of
    the Royal Statistical Society B 57, 1995, 289-300), as Caldas de Castro and Singer recommend for local statistics,
    whose neighbourhoods overlap (Geographical Analysis 38, 2006, 180-208).

    Values that are high everywhere are not found: a place is compared with the others. A place without neighbours, and
    fewer than 20 places, are not tested. Where nothing is clustered, anything at all is found in a share `fdr` of maps.
    """
    x = np.asarray(values, np.float64)
    n, count = len(x), neighbours.counts
    asked = count > 0
    out = Hotspots(np.zeros(n, np.int8), np.full(n, np.nan))
    if n < LEAST or not asked.any() or not np.ptp(x) > 0:
        return out
    x = (x - x.mean()) / x.std()
    around = (neighbours.mean(x) * count + x) / (count + 1)
    rng = np.random.default_rng(seed)
    p = np.ones(n)
    for k in np.unique(count[asked]):
        rows = np.flatnonzero(count == k)
        chance = np.sort(_means(x, min(int(k) + 1, n), draws, rng))
        above = len(chance) - np.searchsorted(chance, around[rows] - _SLACK)
        below = np.searchsorted(chance, around[rows] + _SLACK, side="right")
        p[rows] = np.minimum(2 * (1 + np.minimum(above, below)) / (len(chance) + 1), 1)
    out.q[asked] = _adjusted(p[asked])
    found = asked & (np.nan_to_num(out.q, nan=1.0) <= fdr)
    out.sign[found] = np.sign(around[found])
    return out


def moran(values: npt.NDArray[np.floating], neighbours: Neighbours) -> npt.NDArray[np.float64]:
    """Return Moran's I of each column: -1 to 1, about 0 where nothing lies together; NaN for a constant one.

    Each place's neighbours weigh 1 together, as in :meth:`napari_peka.core.statistics.Moments.moran`.

    Parameters
    ----------
    values
        ``(n, g)``, finite.
    neighbours
        Of the same places.
    """
    z = np.asarray(values, np.float64)
    z = z - z.mean(0) if len(z) else z
    some = neighbours.counts > 0
    variance = (z**2).sum(0) / max(len(z), 1)
    varies = variance > 1e-12 * max(float(variance.max(initial=0)), 1e-300)
    out = np.full(z.shape[1], np.nan)
    if some.any():
        lag = (z[some] * neighbours.mean(z)[some]).sum(0) / some.sum()
        np.divide(lag, variance, out=out, where=varies)
    return out


def _means(x: npt.NDArray[np.float64], m: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return means of `m` different values, at least `draws` of them: a shuffled array holds many such samples."""
    per = len(x) // m
    rounds = -(-draws // per)
    rows = max(1, 2_000_000 // len(x))
    parts = []
    for at in range(0, rounds, rows):
        mixed = rng.permuted(np.tile(x, (min(rows, rounds - at), 1)), axis=1)
        parts.append(mixed[:, : per * m].reshape(-1, m).mean(1))
    return np.concatenate(parts)


def _adjusted(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Benjamini and Hochberg's adjusted p-values."""
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1)
    return q
