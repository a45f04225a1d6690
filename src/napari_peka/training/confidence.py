"""How sure a gene's held-out correlation is, where neighbouring spots say nearly the same.

A hundred spots of a smooth map are not a hundred observations. What two maps are worth is counted from how alike each
is to itself at every distance, and the interval follows from that number by Fisher's transformation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from napari_peka.training.metrics import nan_mean
from napari_peka.training.splits import pitch_um

FloatArray = npt.NDArray[np.floating]
Table = npt.NDArray[np.float64]

#: pitches up to which maps are compared with themselves: beyond, what is left is noise of few pairs
REACH = 8
#: standard normal quantile of a two-sided 95 % interval
Z95 = 1.959964
#: spots that an interval needs: Fisher's variance is 1 / (n - 3)
_LEAST = 4.0
#: genes worked on at once
_AT_ONCE = 512


def effective_spots(truth: FloatArray, predicted: FloatArray, centre_um: npt.NDArray[np.float64]) -> Table:
    """Return how many independent spots each gene's correlation rests on, ``(g,)``.

    Parameters
    ----------
    truth, predicted
        Of one section, ``(n, g)``; spots where any gene is not finite are left out.
    centre_um
        Spot centres in µm, ``(n, 2)``.

    Notes
    -----
    Clifford, Richardson & Hémon, Biometrics 1989: the variance of a sample correlation of two autocorrelated maps is
    ``ΣΣ ρx(d_ij) ρy(d_ij) / n²``, the sum over all pairs of spots, and its inverse plus 1 the number of independent
    ones. Autocorrelations are means over pairs in classes of one spot distance, up to eight of them. Where maps are
    not autocorrelated it is the number of spots, which it never exceeds.
    """
    known = np.isfinite(truth).all(1) & np.isfinite(predicted).all(1)
    n, g = int(known.sum()), truth.shape[1]
    if n < _LEAST:
        return np.full(g, float(n))
    classes = list(_classes(np.asarray(centre_um)[known]))
    out = np.empty(g)
    for at in range(0, g, _AT_ONCE):
        x, y = (_standardised(v[known, at : at + _AT_ONCE]) for v in (truth, predicted))
        total = np.full(x.shape[1], float(n))  # each spot with itself
        for links, pairs in classes:
            total += pairs * _alike(x, links, pairs) * _alike(y, links, pairs)
        out[at : at + x.shape[1]] = np.clip(1 + n**2 / np.maximum(total, n), min(_LEAST, n), n)
    return out


def interval(pcc: Table, effective: Table) -> tuple[Table, Table]:
    """Return the ends of the 95 % interval of each gene's mean correlation over held-out parts, ``(g,)`` each.

    Parameters
    ----------
    pcc
        Of every part and gene, ``(p, g)``; NaN: not scored.
    effective
        Independent spots of each, ``(p, g)``.

    Notes
    -----
    Fisher's z of each part has the variance ``1 / (n - 3)``.
    """
    mean, se = _pooled(_fisher(pcc), 1 / np.maximum(effective - 3, 1))
    return np.tanh(mean - Z95 * se), np.tanh(mean + Z95 * se)


def upper_bound(pcc: Table, other: Table, alike: Table, effective: Table) -> Table:
    """Return how far another prediction's correlation may reach, for what the model's is, ``(g,)``.

    Both were made of the same spots, so they are compared there: the bound is the model's correlation less the lower
    end of the 95 % interval of the difference. The model's lies above it where it was shown to be better.

    Parameters
    ----------
    pcc, other
        Of the model and of the other one, ``(p, g)``.
    alike
        Correlation of the two predictions, ``(p, g)``; NaN where the other one is constant.
    effective
        Independent spots, ``(p, g)``.

    Notes
    -----
    Variance of the difference of two dependent correlations: Meng, Rosenthal & Rubin, Psychol. Bull. 1992. A constant
    prediction has the correlation 0 and no variance, so that its bound is what chance gives the model.
    """
    x, y = _fisher(pcc), _fisher(other)
    constant = ~np.isfinite(alike)
    r = np.clip(np.where(constant, 0, alike), -0.999, 0.999)
    square = np.minimum((pcc**2 + other**2) / 2, 0.999)
    f = np.minimum((1 - r) / (2 * (1 - square)), 1)
    one = 1 / np.maximum(effective - 3, 1)
    both = 2 * (1 - r) * (1 - f * square) / (1 - square) * one
    better, se = _pooled(x - y, np.where(constant, one, both))
    mean = nan_mean(x, 0)
    return np.tanh(mean - (better - Z95 * se))


def _fisher(pcc: Table) -> Table:
    return np.asarray(np.arctanh(np.clip(pcc, -0.999999, 0.999999)))


def _pooled(values: Table, variance: Table) -> tuple[Table, Table]:
    """Return mean over parts and its standard error, ``(g,)`` each.

    What parts differ by beyond their own variance is another variance between them (DerSimonian & Laird, Control. Clin.
    Trials 1986). Of one part nothing is known of the latter.
    """
    known = np.isfinite(values) & np.isfinite(variance)
    v = np.where(known, variance, 1.0)
    z, weight, k = np.where(known, values, 0.0), np.where(known, 1 / v, 0.0), known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weight.sum(0)
        q = (weight * (z - (weight * z).sum(0) / total) ** 2).sum(0)
        free = total - (weight**2).sum(0) / total
        between = np.where((k > 1) & (free > 0), np.maximum(q - (k - 1), 0) / free, 0.0)
        return z.sum(0) / k, np.sqrt(np.where(known, v + between, 0.0).sum(0)) / k


def _classes(centre_um: npt.NDArray[np.float64]) -> Iterator[tuple[Any, int]]:
    """Yield the pairs of spots of each distance class as a matrix of ones, and how many (ordered) pairs there are."""
    from scipy.sparse import csr_array

    pitch = pitch_um(centre_um)
    if not pitch:
        return
    tree = cKDTree(centre_um)
    pairs = tree.query_pairs((REACH + 0.5) * pitch, output_type="ndarray")
    far = np.linalg.norm(centre_um[pairs[:, 0]] - centre_um[pairs[:, 1]], axis=1) / pitch
    kind = np.maximum(np.round(far).astype(int), 1)
    n = len(centre_um)
    for k in range(1, REACH + 1):
        i, j = pairs[kind == k].T
        if len(i):
            yield csr_array((np.ones(len(i), np.float32), (i, j)), shape=(n, n)), 2 * len(i)


def _standardised(x: FloatArray) -> npt.NDArray[np.float32]:
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    sd = x.std(0)
    return np.asarray(np.divide(x, sd, out=np.zeros_like(x), where=sd > 1e-12), np.float32)


def _alike(x: npt.NDArray[np.float32], links: Any, pairs: int) -> Table:
    """Return the autocorrelation of each column over a class of pairs."""
    return np.asarray((x * (links @ x)).sum(0, dtype=np.float64) * 2 / pairs)
