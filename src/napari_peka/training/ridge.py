"""Principal directions and ridge in closed form, for all genes at once.

With features ``X = U S Vᵀ`` (centred, scaled if asked for) and targets ``Y``, all that any penalty and any number of
components need of the spots is ``S`` and ``Z = Uᵀ Y``. So one eigendecomposition and one product serve a whole grid.
Targets are converted to float64 a few genes at a time: beside them no array of their size is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]

#: genes converted to float64 at once
_GENES = 2048
#: directions whose singular value is below this share of the largest are rounding errors: the decomposition squares
#: the features, so half of float64's 16 digits are left
_RANK = 1e-6


@dataclass(frozen=True, eq=False)
class Directions:
    """Principal directions of features: ``scores = (x - mean) / scale @ vectors``.

    Parameters
    ----------
    mean, scale
        Shape ``(d,)``; scale is 1 where features are not standardised or constant.
    vectors
        Unit directions in the scaled space, shape ``(d, k)``, that of greatest variance first; the sign makes the
        largest entry positive.
    values
        Singular values of the centred, scaled (and weighted) features, shape ``(k,)``.
    """

    mean: Float64Array
    scale: Float64Array
    vectors: Float64Array
    values: Float64Array

    def scores(self, x: FloatArray) -> Float64Array:
        """Return the coordinates of ``(n, d)`` features along the directions, shape ``(n, k)``."""
        return ((np.asarray(x, np.float64) - self.mean) / self.scale) @ self.vectors


def decompose(
    x: FloatArray, *, standardise: bool, limit: int | None = None, weight: FloatArray | None = None
) -> Directions:
    """Find the principal directions of features.

    Parameters
    ----------
    x
        Features, shape ``(n, d)``.
    standardise
        Divide each dimension by its standard deviation first.
    limit
        Directions kept at most; fewer when the features have fewer.
    weight
        Weight of each row, shape ``(n,)``.

    Returns
    -------
    Directions
        None of them (``k = 0``) when all rows are equal.
    """
    mean: Float64Array = np.average(np.asarray(x, np.float64), axis=0, weights=weight)
    x = np.asarray(x, np.float64) - mean
    scale = np.ones(x.shape[1])
    if standardise:
        sd = np.sqrt(np.average(x**2, axis=0, weights=weight))
        # a constant dimension leaves rounding errors, which must not be blown up
        scale = np.where(sd > 1e-8 * (np.abs(mean) + sd.max(initial=0)), sd, 1.0)
        x /= scale
    if weight is not None:
        x *= np.sqrt(np.asarray(weight, np.float64))[:, None]
    wide = x.shape[0] < x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
    k = min(limit or len(squares), int((squares > squares[0] * _RANK**2).sum()) if squares[0] > 0 else 0)
    values, vectors = np.sqrt(squares[:k]), vectors[:, :k]
    if wide:
        vectors = (x.T @ vectors) / values
    if k:
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(k)])
    return Directions(mean, scale, vectors, values)


@dataclass(frozen=True, eq=False)
class Projection:
    """What ridge needs of the targets: ``z = Uᵀ (y - mean)``, shape ``(k, g)``, their means and sums of squares.

    A target that is constant has exactly zero in ``z`` and ``squares``.
    """

    z: Float64Array
    mean: Float64Array
    squares: Float64Array


def project(
    scores: Float64Array, values: Float64Array, y: FloatArray, *, rows: Any = slice(None), weight: Any = None
) -> Projection:
    """Project targets onto the directions.

    Parameters
    ----------
    scores, values
        From :class:`Directions`; scores of the chosen rows, ``(n, k)``.
    y
        Targets, shape ``(all rows, g)``.
    rows
        Which of their rows.
    weight
        Weight of each chosen row, shape ``(n,)``.
    """
    g = y.shape[1]
    out = Projection(np.empty((len(values), g)), np.empty(g), np.empty(g))
    weighted = scores / values if weight is None else scores * np.asarray(weight, np.float64)[:, None] / values
    for at in gene_chunks(g):
        part = y[:, at][rows].astype(np.float64)
        varies = part.max(0) > part.min(0)
        out.mean[at] = np.where(varies, np.average(part, axis=0, weights=weight), part[0])
        part -= out.mean[at]
        out.z[:, at] = weighted.T @ part
        part **= 2
        out.squares[at] = part.sum(0) if weight is None else np.asarray(weight, np.float64) @ part
    return out


def gene_chunks(n_genes: int) -> Iterator[slice]:
    """Yield slices that cover all genes, a few thousand each."""
    return (slice(at, at + _GENES) for at in range(0, n_genes, _GENES))


def gcv_scores(
    values: Float64Array, projection: Projection, n: int, *, counts: Sequence[int], alphas: Sequence[float]
) -> Float64Array:
    """Return generalised cross-validation of every gene: the error to expect on new spots, over the gene's variance.

    Parameters
    ----------
    values
        Singular values of the features, shape ``(k,)``.
    projection
        From :func:`project`.
    n
        Number of spots.
    counts
        Numbers of components to try.
    alphas
        Penalties to try, on the squared weights, against the sum of squared errors.

    Returns
    -------
    float64 array
        Shape ``(n_counts, n_alphas, g)``; NaN for constant genes, infinite where nothing is left to judge by.

    Notes
    -----
    Golub, Heath and Wahba, Technometrics 1979: ``(RSS / n) / (1 - df / n)²``, the exact leave-one-out error when all
    spots have equal leverage. The mean, which is never penalised, costs one degree of freedom.
    """
    out = np.empty((len(counts), len(alphas), len(projection.mean)))
    z2 = projection.z**2
    variance = np.where(projection.squares > 0, projection.squares / n, np.nan)
    for j, alpha in enumerate(alphas):
        kept = values**2 / (values**2 + alpha)
        for i, count in enumerate(counts):
            left = (1 - kept[:count]) ** 2
            rss = projection.squares - (1 - left) @ z2[:count]
            free = 1 - (1 + kept[:count].sum()) / n
            out[i, j] = np.maximum(rss, 0) / n / free**2 / variance if free > 1e-9 else np.inf
    return out


def held_out_pcc(
    scores: Float64Array, values: Float64Array, z: Float64Array, y: FloatArray, rows: Any, *,
    counts: Sequence[int], alphas: Sequence[float],
) -> Float64Array:  # fmt: skip
    """Return the PCC of every gene over held-out spots for a grid of ridges, without predicting them one by one.

    Parameters
    ----------
    scores
        Coordinates of the held-out spots along the training part's directions, shape ``(m, k)``.
    values, z
        Singular values and projected targets of the training part.
    y, rows
        Targets of all spots, and which rows of them are held out.
    counts, alphas
        The grid.

    Returns
    -------
    float64 array
        Shape ``(n_counts, n_alphas, g)``; NaN where truth or prediction is constant.

    Notes
    -----
    With predictions ``P = T w`` their covariance with the truth is ``w · Tᵀy`` and their variance ``|R w|²``, where
    ``R`` is the triangle of ``T``'s QR decomposition: neither needs a prediction per spot.
    """
    t = scores - scores.mean(0)
    triangle: Float64Array = np.linalg.qr(t, mode="r")  # type: ignore[assignment]  # numpy's stub forgets the mode
    out = np.empty((len(counts), len(alphas), y.shape[1]))
    for at in gene_chunks(y.shape[1]):
        truth = y[:, at][rows].astype(np.float64)
        varies = truth.max(0) > truth.min(0)
        truth -= truth.mean(0)
        tall = np.sqrt((truth**2).sum(0))
        q, own = t.T @ truth, z[:, at]
        for j, alpha in enumerate(alphas):
            weights = (values / (values**2 + alpha))[:, None] * own
            for i, count in enumerate(counts):
                w = weights[:count]
                wide = np.sqrt(((triangle[:, :count] @ w) ** 2).sum(0))
                # rounding errors of a constant prediction are no variation
                moves = wide > 1e-12 * values[0] * np.sqrt((w**2).sum(0))
                with np.errstate(invalid="ignore", divide="ignore"):
                    out[i, j, at] = np.where(varies & moves, (w * q[:count]).sum(0) / (tall * wide), np.nan)
    return out


def coefficients(
    directions: Directions, projection: Projection, count: int, alpha: float
) -> tuple[Float64Array, Float64Array]:
    """Return weights ``(d, g)`` and bias ``(g,)`` of the ridge on raw features, from the first `count` directions."""
    values = directions.values[:count, None]
    shrunk = values / (values**2 + alpha) * projection.z[:count]
    weights = (directions.vectors[:, :count] / directions.scale[:, None]) @ shrunk
    return weights, projection.mean - directions.mean @ weights
