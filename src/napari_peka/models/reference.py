"""What the embeddings of the training spots look like, so that a tile unlike them can be told later.

Numpy only. The statistics are a Gaussian with a few principal axes and one variance for all other directions
(probabilistic PCA: Tipping & Bishop, J. R. Stat. Soc. B 1999), which a few hundred spots can carry where a full
covariance of a thousand dimensions cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError

FloatArray = npt.NDArray[np.floating]
Arrays = dict[str, npt.NDArray[np.float32]]
T = TypeVar("T")

#: what names of these tensors begin with, and of those of what an encoder saw before it was narrowed
PREFIX, IMAGE = "reference.", "reference.image."
MEAN, AXES, VARIANCES = "reference.mean", "reference.axes", "reference.variances"
RESIDUAL, PERCENTILES = "reference.residual_variance", "reference.distance_percentiles"
ROWS = "reference.rows"
MAX_AXES = 64
#: rows an axis needs: with fewer it follows these rows and no others
_ROWS_AN_AXIS = 10
#: fewer say nothing of a spread
MIN_ROWS = 10
#: parts, each left out in turn, on which the training distances are measured
FOLDS = 5
#: rows at once in float64
_ROWS = 4096
#: least variance of a direction, of the mean one: no direction counts without bound
_FLOOR = 1e-6


def reference_of(embeddings: FloatArray, groups: npt.ArrayLike | None = None) -> Arrays:
    """Fit the reference statistics of training embeddings.

    Parameters
    ----------
    embeddings
        Shape ``(n, d)``; rows that are not finite are left out.
    groups
        Section or patient of each row, ``(n,)``: whole groups are left out in turn to measure the distances. None:
        five runs of rows, which are near one another when rows are in the order of sections.

    Returns
    -------
    dict
        Tensors of a bundle, float32: ``reference.mean (d,)``; ``reference.axes (k, d)``, orthonormal rows, at most 64
        and at most one for ten rows; ``reference.variances (k,)``; ``reference.residual_variance (1,)`` of each
        further direction; ``reference.distance_percentiles (101,)``, of :func:`distances` of training rows to the
        statistics of the *other* groups: a new tile is never among those that were fitted either; ``reference.rows
        (1,)``, how many there were.

    Raises
    ------
    SettingError
        If fewer than 10 rows are finite.
    """
    x = np.asarray(embeddings)
    finite = np.isfinite(x).all(1)
    x = x[finite]
    if len(x) < MIN_ROWS:
        raise SettingError(f"reference statistics need at least {MIN_ROWS} embeddings, got {len(x)}")
    fold = np.arange(len(x)) * FOLDS // len(x)
    if groups is not None:
        names, at = np.unique(np.asarray(groups)[finite], return_inverse=True)
        fold = at % FOLDS if len(names) > 1 else fold
    shift = x[:_ROWS].astype(np.float64).mean(0)  # sums of squares lose nothing near their centre
    parts = {k: _Moments.of(x[fold == k], shift) for k in np.unique(fold).tolist()}
    whole = _Moments.sum(list(parts.values()))
    apart = np.empty(len(x), np.float32)
    for k, part in parts.items():
        apart[fold == k] = distances(x[fold == k], _fitted(whole.without(part), shift))
    percentiles = np.percentile(apart, np.arange(101)).astype(np.float32)
    return {**_fitted(whole, shift), PERCENTILES: percentiles, ROWS: np.array([len(x)], np.float32)}


def of_image(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return what is there of an encoder before it was narrowed, under the names of :func:`reference_of`."""
    return {PREFIX + name.removeprefix(IMAGE): t for name, t in tensors.items() if name.startswith(IMAGE)}


def as_image(statistics: Mapping[str, T]) -> dict[str, T]:
    """Return what :func:`of_image` undoes."""
    return {IMAGE + name.removeprefix(PREFIX): t for name, t in statistics.items()}


def image_reference_of(embeddings: FloatArray, groups: npt.ArrayLike | None = None) -> Arrays:
    """Return :func:`reference_of` under the names of what an encoder saw before it was narrowed."""
    return as_image(reference_of(embeddings, groups))


def distances(embeddings: FloatArray, reference: Mapping[str, npt.NDArray[np.floating]]) -> npt.NDArray[np.float32]:
    """Return the Mahalanobis distance of each embedding from the reference, shape ``(n,)``; NaN for a NaN row.

    Parameters
    ----------
    embeddings
        Shape ``(n, d)``.
    reference
        From :func:`reference_of` or :attr:`Model.reference`.
    """
    mean, axes = (np.asarray(reference[k], np.float64) for k in (MEAN, AXES))
    variances, residual = (np.asarray(reference[k], np.float64) for k in (VARIANCES, RESIDUAL))
    out = np.empty(len(embeddings), np.float32)
    for at in range(0, len(out), _ROWS):
        x = np.asarray(embeddings[at : at + _ROWS], np.float64) - mean
        z = x @ axes.T
        rest = np.maximum((x**2).sum(1) - (z**2).sum(1), 0)
        if len(axes) == len(mean):
            rest[np.isfinite(rest)] = 0  # no direction is left: only rounding is
        out[at : at + _ROWS] = np.sqrt((z**2 / variances).sum(1) + rest / residual)
    return out


def shapes_of(shapes: Mapping[str, tuple[int, ...]], d: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that statistics of embeddings ``(n, d)`` must have, by name, where `shapes` are there."""
    k = (shapes.get(VARIANCES) or (0,))[0]
    rows = {ROWS: (1,)} if ROWS in shapes else {}
    return {MEAN: (d,), AXES: (k, d), VARIANCES: (k,), RESIDUAL: (1,), PERCENTILES: (101,), **rows}


@dataclass(frozen=True, eq=False)
class _Moments:
    n: int
    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]

    @classmethod
    def of(cls, x: FloatArray, shift: npt.NDArray[np.float64]) -> _Moments:
        d = len(shift)
        first, second = np.zeros(d), np.zeros((d, d))
        for at in range(0, len(x), _ROWS):
            rows = np.asarray(x[at : at + _ROWS], np.float64) - shift
            first += rows.sum(0)
            second += rows.T @ rows
        return cls(len(x), first, second)

    @classmethod
    def sum(cls, parts: list[_Moments]) -> _Moments:
        first = np.asarray(np.sum([p.first for p in parts], axis=0))
        return cls(sum(p.n for p in parts), first, np.asarray(np.sum([p.second for p in parts], axis=0)))

    def without(self, part: _Moments) -> _Moments:
        return _Moments(self.n - part.n, self.first - part.first, self.second - part.second)


def _fitted(m: _Moments, shift: npt.NDArray[np.float64]) -> Arrays:
    d = len(shift)
    mean = m.first / m.n
    variances, vectors = np.linalg.eigh(m.second / m.n - np.outer(mean, mean))
    k = max(1, min(MAX_AXES, d, m.n // _ROWS_AN_AXIS))
    total = float(np.maximum(variances, 0).sum())
    top, axes = variances[::-1][:k], vectors[:, ::-1][:, :k].T
    # a vector's sign is the solver's whim: the largest entry is made positive, so that files do not differ by it
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    floor = max(_FLOOR * total / d, float(np.finfo(np.float32).tiny))
    rest = (total - float(top.sum())) / (d - k) if k < d else floor
    arrays = {MEAN: mean + shift, AXES: axes, VARIANCES: np.maximum(top, floor), RESIDUAL: np.array([max(rest, floor)])}
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}
