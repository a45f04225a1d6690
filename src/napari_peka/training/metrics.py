"""How well predicted expression fits the measured one, gene by gene."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
Scores = dict[str, npt.NDArray[np.float64]]
METRICS = ("pcc", "spearman", "mse", "mae", "r2", "cosine", "kl")
#: values of a chunk of genes: some MB a thread, never copies of the whole matrix
_CHUNK = 500_000
#: numpy sorts and sums outside the GIL; more threads than this wait for memory
_THREADS = min(8, os.cpu_count() or 1)
#: added to every share before the logarithm, as the PEKA authors do
_KL_EPSILON = 1e-10


def gene_scores(truth: FloatArray, predicted: FloatArray, metrics: Sequence[str] = METRICS) -> Scores:
    """Return the score of each gene (column) over spots (rows).

    Parameters
    ----------
    truth, predicted
        Expression in the same unit, shape ``(n, g)``. Spots where either is not finite are left out, gene by gene.
    metrics
        Which of ``pcc, spearman, mse, mae, r2, cosine, kl``.

    Returns
    -------
    dict
        float64 arrays of shape ``(g,)``. A gene whose truth is constant over the spots (or of fewer than two spots) has
        NaN for ``pcc``, ``spearman``, ``r2`` and ``kl``: there is nothing to predict. A constant *prediction* of a
        varying gene has ``pcc`` and ``spearman`` 0: left out instead, a model would gain by not trying.

    Notes
    -----
    ``r2`` is 1 - SSE / SST, ``cosine`` is not centred. ``kl`` follows the PEKA authors' published code: for each gene
    the values over spots, less their minimum, are divided by their sum and raised by 1e-10; the divergence of truth
    from prediction is in nats. It is a distance between two maps of one gene, not between two profiles of one spot. A
    constant prediction is the uniform map. Their cosine is over the spots of a gene as well.
    """
    if truth.shape != predicted.shape or truth.ndim != 2:
        raise ValueError(f"truth and prediction must be (spots, genes) alike, got {truth.shape} and {predicted.shape}")
    n, g = truth.shape
    out = {name: np.full(g, np.nan) for name in metrics}
    # a spot whose tile could not be read lacks every gene: taken out once, not gene by gene
    rows = slice(None) if np.isfinite(predicted[:, :1]).all() else np.isfinite(predicted).any(1)
    step = max(1, _CHUNK // max(n, 1))

    def score(at: int) -> None:
        chunk = slice(at, at + step)
        # a gene a row: sums and sorts then run along memory
        t = np.ascontiguousarray(truth[rows, chunk].T, dtype=np.float64)
        p = np.ascontiguousarray(predicted[rows, chunk].T, dtype=np.float64)
        ok = np.isfinite(t) & np.isfinite(p)
        whole = ok.all(1)
        for name, values in _rows_scores(t[whole], p[whole], metrics).items():
            out[name][chunk][whole] = values
        for i in np.flatnonzero(~whole):
            for name, values in _rows_scores(t[i : i + 1, ok[i]], p[i : i + 1, ok[i]], metrics).items():
                out[name][at + i] = values[0]

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(score, range(0, g, step)))
    return out


def within_groups(
    truth: FloatArray, predicted: FloatArray, groups: Sequence[str], metrics: Sequence[str] = METRICS
) -> Scores:
    """Return the scores within each group of spots, such as each section.

    Parameters
    ----------
    truth, predicted, metrics
        As in :func:`gene_scores`.
    groups
        Group of each spot, ``n``.

    Returns
    -------
    dict
        float64 arrays of shape ``(n_groups, g)``, groups in order of first appearance.
    """
    own = np.asarray(groups, dtype=object)
    parts = [gene_scores(truth[own == k], predicted[own == k], metrics) for k in dict.fromkeys(groups)]
    return {name: np.stack([p[name] for p in parts]) for name in metrics}


def nan_mean(values: FloatArray, axis: int | None = None) -> npt.NDArray[np.float64]:
    """Return the mean of what is finite, NaN (without numpy's warning) where nothing is."""
    ok = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(ok, values, 0.0).sum(axis, dtype=np.float64) / ok.sum(axis))


def nan_max(values: FloatArray, axis: int = 0) -> npt.NDArray[np.float64]:
    """Return the greatest of what is finite, NaN (without numpy's warning) where nothing is."""
    most = np.where(np.isfinite(values), values, -np.inf).max(axis)
    return np.where(np.isfinite(most), most, np.nan)


def nan_sd(values: FloatArray, axis: int | None = None) -> npt.NDArray[np.float64]:
    """Return the sample standard deviation (n - 1) of what is finite, NaN where fewer than two are."""
    ok = np.isfinite(values)
    mean = nan_mean(values, axis)
    away = np.where(ok, values - (mean if axis is None else np.expand_dims(mean, axis)), 0.0)
    free = ok.sum(axis) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(free > 0, np.sqrt((away**2).sum(axis) / np.maximum(free, 1)), np.nan))


def _rows_scores(t: FloatArray, p: FloatArray, metrics: Sequence[str]) -> Scores:
    """Score rows of finite values against each other."""
    if t.shape[1] == 0:
        return {name: np.full(len(t), np.nan) for name in metrics}
    varies = np.ptp(t, axis=1) > 0
    scores: Scores = {}
    if {"mse", "mae", "r2"} & set(metrics):
        error = t - p
        scores["mse"] = np.einsum("ij,ij->i", error, error) / t.shape[1]
        if "mae" in metrics:
            scores["mae"] = np.abs(error).mean(1)
        if "r2" in metrics:
            scores["r2"] = 1 - _ratio(scores["mse"], t.var(1), varies)
    if "pcc" in metrics:
        scores["pcc"] = _pearson(t, p, varies)
    if "spearman" in metrics:
        scores["spearman"] = _pearson(_ranks(t), _ranks(p), varies)
    if "cosine" in metrics:
        scores["cosine"] = _cosine(t, p)
    if "kl" in metrics:
        scores["kl"] = _kl(t, p, varies)
    return {name: scores[name] for name in metrics}


def _ratio(a: FloatArray, b: FloatArray, where: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=where)


def _pearson(t: FloatArray, p: FloatArray, varies: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    constant = np.ptp(p, axis=1) == 0
    t, p = t - t.mean(1, keepdims=True), p - p.mean(1, keepdims=True)
    r = _ratio(
        np.einsum("ij,ij->i", t, p),
        np.sqrt(np.einsum("ij,ij->i", t, t) * np.einsum("ij,ij->i", p, p)),
        varies & ~constant,
    )
    r[varies & constant] = 0.0
    return np.clip(r, -1, 1)


def _cosine(t: FloatArray, p: FloatArray) -> npt.NDArray[np.float64]:
    tt, pp = np.einsum("ij,ij->i", t, t), np.einsum("ij,ij->i", p, p)
    cosine = _ratio(np.einsum("ij,ij->i", t, p), np.sqrt(tt * pp), (tt > 0) & (pp > 0))
    cosine[(tt > 0) & (pp == 0)] = 0.0
    return cosine


def _kl(t: FloatArray, p: FloatArray, varies: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    shares = []
    for values in (t, p):
        share = values - values.min(1, keepdims=True)
        total = share.sum(1, keepdims=True)
        share = share / np.where(total > 0, total, 1.0) + _KL_EPSILON
        shares.append(share / share.sum(1, keepdims=True))
    a, b = shares
    kl = np.einsum("ij,ij->i", a, np.log(a) - np.log(b))
    return np.where(varies, kl, np.nan)


def _ranks(values: FloatArray) -> npt.NDArray[np.float64]:
    """Return ranks within each row from 1, ties sharing their mean rank."""
    m, n = values.shape
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    starts = np.ones((m, n), bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = np.flatnonzero(starts)
    size = np.diff(at, append=m * n)
    mean = np.repeat(at % n + (size + 1) / 2, size)
    ranks = np.empty((m, n))
    np.put_along_axis(ranks, order, mean.reshape(m, n), axis=1)
    return ranks
