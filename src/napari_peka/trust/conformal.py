"""Conformal intervals: quantiles of held-out residuals, grouped by section, so that others like them are covered.

Residuals are those of cross-fitting: each spot was predicted by a head that had not seen its section (cross-conformal
prediction: Vovk, Ann. Math. Artif. Intell. 2015; Barber, Candès, Ramdas & Tibshirani, Ann. Stat. 2021). They are
divided by what the head itself says of its certainty at the tile (locally weighted: Lei et al., JASA 2018). Spots of
one section are alike and those of two are not, so sections, not spots, are what is exchangeable: every section counts
the same, however many spots it has (pooled distribution functions: Dunn, Wasserman & Ramdas, JASA 2023). Both tails are
calibrated for themselves, since counts lie skewed around what is predicted of them.

What it promises: of another section *of the same kind* (drawn like these) intervals hold their share on average over
its spots. It promises nothing for another patient where all sections are of one, nor for a place or a gene in
particular.

In closed form and by hand: `mapie` and `crepes` calibrate one target at a time and know no groups that count alike,
and here are 18,000 targets that share their order of work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import PROBABILITIES, Intervals
from napari_peka.core.errors import SettingError

FloatArray = npt.NDArray[np.floating]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

#: fewer spots say nothing of an interval
MIN_SPOTS = 20
#: values sorted at once
_CHUNK = 4_000_000
#: of a weight: rounding
_TINY = 1e-9
#: points that stand for a distribution
_POINTS = 199
#: spots that a model's own calibration weighs against those of a slide at hand
OWN_SPOTS = 50


def calibrate(
    residuals: FloatArray,
    spread: FloatArray,
    groups: Sequence[str] | npt.NDArray[np.generic],
    *,
    probabilities: Sequence[float] = PROBABILITIES,
    floor: float | None = None,
) -> Intervals:
    """Return the intervals that residuals of left-out spots support.

    Parameters
    ----------
    residuals
        Measured less predicted, ``(n, g)``; rows that are NaN were not predicted and do not count.
    spread
        Of each spot, ``(n,)``: see :meth:`Likeness.spread`.
    groups
        Section of each spot, ``(n,)``.
    probabilities
        Wanted; those that so few spots cannot tell are left out.
    floor
        Least possible value in the unit.

    Raises
    ------
    SettingError
        If fewer than 20 spots were predicted.
    """
    kept, scores = _scores(residuals, spread)
    n = len(scores)
    if n < MIN_SPOTS:
        raise SettingError(f"intervals need at least {MIN_SPOTS} spots that were left out of training, got {n}")
    names, of = np.unique(np.asarray(groups)[kept], return_inverse=True)
    sizes = np.bincount(of)
    # the spot to come is one more of its section: ranks are out of n + 1
    weight = 1 / (len(names) * (sizes[of] + 1.0))
    able = [p for p in probabilities if min(p, 1 - p) >= float((1 / (len(names) * (sizes + 1.0))).sum()) / 2]
    return Intervals(np.array(able), weighted_quantiles(scores, weight, able), floor)


def weighted_quantiles(scores: Float32, weight: FloatArray, probabilities: Sequence[float]) -> Float32:
    """Return conservative quantiles of each column, float32 ``(m, g)``: below a half from below, above it from above.

    Parameters
    ----------
    scores
        ``(n, g)``; NaN in a column does not count.
    weight
        Of each row, ``(n,)``; together they may be less than 1, and the rest lies beyond both ends.
    probabilities
        Ascending, ``m``.
    """
    n, g = scores.shape
    out = np.full((len(probabilities), g), np.nan, np.float32)
    step = max(1, _CHUNK // max(n, 1))
    own = np.asarray(weight, np.float64)
    for at in range(0, g, step):
        part = scores[:, at : at + step]
        order = np.argsort(part, axis=0, kind="stable")  # NaN comes last
        ordered = np.take_along_axis(part, order, 0)
        known = np.isfinite(ordered)
        heavy = np.where(known, own[order], 0.0)
        below = np.cumsum(heavy, 0)
        scale = np.divide(own.sum(), below[-1], out=np.zeros_like(below[-1]), where=below[-1] > 0)
        below, heavy = below * scale, heavy * scale
        above, last = below[-1] - below + heavy, np.maximum(known.sum(0) - 1, 0)
        for k, p in enumerate(probabilities):
            # with what lies beyond that end, no more than the tail's share is outside
            if p < 0.5:
                rank = np.maximum((above >= 1 - p - _TINY).sum(0, where=known) - 1, 0)
            else:
                rank = np.minimum((below < p - _TINY).sum(0, where=known), last)
            picked = np.take_along_axis(ordered, rank[None], 0)[0]
            out[k, at : at + step] = np.where(known.any(0), picked, np.nan)
    return np.maximum.accumulate(out, 0)


def recalibrated(
    intervals: Intervals, residuals: FloatArray, spread: FloatArray, *, own: float = OWN_SPOTS
) -> Intervals:
    """Return intervals for a slide on which some spots were measured.

    Parameters
    ----------
    intervals
        The model's.
    residuals, spread
        Of the measured spots, ``(n, g)`` and ``(n,)``, as for :func:`calibrate`.
    own
        Spots that the model's own calibration counts for: with as many measured ones both weigh the same.

    Raises
    ------
    SettingError
        If no spot has a value.

    Notes
    -----
    The quantiles of a mixture of both distributions: few spots move an interval little, many make it their own.
    """
    scores = _scores(residuals, spread)[1]
    n = len(scores)
    if not n:
        raise SettingError(
            "none of the measured spots has a predicted value, so intervals cannot be calibrated by them"
        )
    # the model's distribution as points of equal weight
    points = (np.arange(_POINTS) + 0.5) / _POINTS
    before = np.stack([intervals.at(p) for p in points])
    whole = n + own + 1  # the spot to come is one more
    weight = np.concatenate([np.full(n, 1 / whole), np.full(_POINTS, own / whole / _POINTS)])
    mixed = weighted_quantiles(np.concatenate([scores, before]), weight, intervals.probabilities.tolist())
    return Intervals(intervals.probabilities, np.where(np.isfinite(mixed), mixed, intervals.quantiles), intervals.floor)


def _scores(residuals: FloatArray, spread: FloatArray) -> tuple[npt.NDArray[np.bool_], Float32]:
    """Return which spots were predicted, bool ``(n,)``, and the residuals of those in units of their spread."""
    kept = np.isfinite(residuals).any(1) & np.isfinite(spread)
    return kept, np.asarray(residuals, np.float32)[kept] / np.asarray(spread, np.float32)[kept, None]
