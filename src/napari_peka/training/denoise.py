"""Training targets with less of the measurement's noise: what the head is fitted on, never what it is judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: genes whose common directions are kept; rarer ones follow them, but do not choose them
N_GENES = 500


def depth_weights(totals: npt.NDArray[np.floating], power: float) -> npt.NDArray[np.float64]:
    """Return a weight for each spot that grows with its counts, mean 1.

    A spot of few counts is measured with more noise. With the power 1 weights would follow the variance of Poisson
    counts; half of that leaves room for what varies beyond it.

    Parameters
    ----------
    totals
        Counts of all genes of each spot, ``(n,)``.
    power
        0: all alike.
    """
    weights = np.asarray(totals, np.float64) ** power
    return np.asarray(weights / weights.mean())


def denoised(
    y: npt.NDArray[np.floating],
    section: npt.NDArray[Any],
    *,
    weights: npt.NDArray[np.floating],
    rank: int | None,
    variable: npt.NDArray[np.integer],
) -> npt.NDArray[np.float32]:
    """Return training targets without what sections differ in as a whole, and without what few genes share.

    Differences between sections are mostly of the laboratory (depth, day, stain), which no head should learn. What one
    gene alone does in a few hundred spots is mostly noise of its counts: only the directions in which many genes vary
    together are kept, as in a principal component analysis.

    Parameters
    ----------
    y
        Expression of the training spots, ``(n, g)``.
    section
        Section of each, ``(n,)``.
    weights
        Weight of each spot, ``(n,)``, mean 1.
    rank
        Directions kept; None: all.
    variable
        Genes, most variable first: the first 500 choose the directions.

    Returns
    -------
    float32 array
        ``(n, g)``; each gene keeps its weighted mean over all spots.
    """
    w = np.asarray(weights, np.float64)[:, None]
    y = np.asarray(y, np.float64)
    mean = (y * w).sum(0) / w.sum()
    centred = np.empty_like(y)
    for name in np.unique(section):
        rows = section == name
        centred[rows] = y[rows] - (y[rows] * w[rows]).sum(0) / w[rows].sum()
    if rank is not None and rank < min(len(y), len(variable)):
        root = np.sqrt(w)
        u, _, _ = np.linalg.svd(root * centred[:, variable[:N_GENES]], full_matrices=False)
        u = u[:, :rank]
        centred = (u @ (u.T @ (root * centred))) / root
    return np.asarray(centred + mean, np.float32)
