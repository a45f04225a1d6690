"""How far to believe a value: intervals of every gene, and how unlike the training data a tile is, as plain arrays.

A tile is described by its distance from the training spots. It says how unlike them the tile is, and by the posterior
variance of a linear head it says how much wider the intervals of all genes are there; a gene adds the quantiles of its
own residuals. So the doubt of a whole map costs a number or two a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.floating]
#: numbers of genes
Genes = Sequence[int] | npt.NDArray[np.integer]

#: share of measured values that an interval is to hold, where nobody asks for another
LEVEL = 0.9
#: by which a share may miss its level without a word, whatever the number of spots
_SLACK = 0.02
#: both ends of the intervals of 50, 80, 90 and 95 %, and the median
PROBABILITIES = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
#: percentile from which on a tile counts as unlike the training data: one in a hundred of theirs lies beyond it
OUTSIDE = 99.0
#: opacity of a tile that says nothing: to be seen that it is there, no more
FAINT = 0.15
#: levels are sums of shares: rounding
_TINY = 1e-6
#: a tile fades from the first of these percentiles to the second
_UNLIKE = (95.0, OUTSIDE)
#: and from the first of these widths of its interval to the second, in ranges of the gene's values on the map
_WIDE = (1.0, 3.0)


@dataclass(frozen=True, eq=False)
class Intervals:
    """What was measured lies around what was predicted, gene by gene.

    Parameters
    ----------
    probabilities
        Ascending, within 0 to 1, ``(m,)``.
    quantiles
        Of measured less predicted over :meth:`Likeness.spread`, on spots that were left out of training, float32
        ``(m, g)``, ascending along m; NaN for a gene of which nothing is known.
    floor
        Values below this are not possible in the unit; None: there is no such bound.
    """

    probabilities: FloatArray
    quantiles: Float32
    floor: float | None = None

    def __post_init__(self) -> None:
        p, q = np.asarray(self.probabilities, np.float64), self.quantiles
        if p.ndim != 1 or q.shape[:1] != p.shape or q.ndim != 2 or len(p) < 2:
            raise ValueError(f"{p.shape} probabilities do not fit quantiles of shape {q.shape}")
        if not ((np.diff(p) > 0).all() and p[0] > 0 and p[-1] < 1):
            raise ValueError("probabilities must ascend between 0 and 1")
        with np.errstate(invalid="ignore"):
            if (np.diff(q, axis=0) < 0).any():
                raise ValueError("quantiles must ascend")

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Genes that have intervals, bool ``(g,)``."""
        return np.asarray(np.isfinite(self.quantiles).all(0))

    @property
    def most(self) -> float:
        """The widest level that can be asked for: few left-out spots tell nothing of rare errors."""
        return float(1 - 2 * max(self.probabilities[0], 1 - self.probabilities[-1]))

    def reaches(self, level: float) -> bool:
        """Whether intervals of this level were calibrated."""
        return bool(level <= self.most + _TINY)

    def tell(self, gene: int, level: float = LEVEL) -> bool:
        """Whether a gene, by its number, has an interval of this level."""
        return self.reaches(level) and bool(np.isfinite(self.quantiles[:, gene]).all())

    def ends(self, level: float = LEVEL) -> tuple[Float32, Float32]:
        """Return the ends of each gene's interval around 0, for a spread of 1, ``(g,)`` each.

        Parameters
        ----------
        level
            Share of measured values that the interval is to hold.

        Raises
        ------
        SettingError
            If the level is not above 0, or higher than what was calibrated.
        """
        if isinstance(level, bool) or not isinstance(level, (int, float, np.number)) or not 0 < level < 1:
            raise SettingError(f"the level of an interval is a share such as 0.9, got {level!r}")
        if not self.reaches(level):
            raise SettingError(f"intervals were calibrated for levels up to {self.most:.0%}, not for {level:.4g}")
        return self.at((1 - level) / 2), self.at((1 + level) / 2)

    def around(
        self, values: FloatArray, spread: FloatArray, level: float = LEVEL, genes: Genes | int | slice = slice(None)
    ) -> tuple[Float32, Float32]:
        """Return the lower and the upper end of the interval of each value.

        Parameters
        ----------
        values
            Predicted, ``(n, g)``, or ``(n,)`` of one gene.
        spread
            Of each tile, ``(n,)``.
        level
            As for :meth:`ends`.
        genes
            Which genes the columns are; a number where `values` has none.
        """
        low, high = (end[genes] for end in self.ends(level))
        wide = np.asarray(spread, np.float32)
        wide = wide[:, None] if np.ndim(values) == 2 else wide
        lower, upper = values + wide * low, values + wide * high
        if self.floor is not None:  # NaN stays
            lower, upper = np.maximum(lower, self.floor), np.maximum(upper, self.floor)
        return np.asarray(lower, np.float32), np.asarray(upper, np.float32)

    def shares_held(
        self, truth: FloatArray, predicted: FloatArray, spread: FloatArray, levels: Sequence[float] = (LEVEL,)
    ) -> Float64:
        """Return the share of measured values within the intervals of each level and gene, float64 ``(k, g)``.

        Parameters
        ----------
        truth, predicted
            ``(n, g)``; what is NaN does not count.
        spread
            ``(n,)``.
        levels
            ``k`` of them, as for :meth:`ends`.

        Returns
        -------
        numpy.ndarray
            NaN where a gene has no values or no intervals, and for a level that was not calibrated.
        """
        out = np.full((len(levels), truth.shape[1]), np.nan)
        if not len(truth):
            return out
        # in units of the spread, as quantiles are: compared as they were calibrated, and divided once for all levels
        score = (truth - predicted) / np.asarray(spread, np.float32)[:, None]
        known = np.isfinite(score).sum(0)
        below = None if self.floor is None else truth <= self.floor
        for k, level in enumerate(levels):
            if not self.reaches(level):
                continue
            low, high = self.ends(level)
            under = score <= high if below is None else (score <= high) | below
            inside = np.count_nonzero((score >= low) & under, axis=0)
            some = self.known & (known > 0)
            out[k, some] = inside[some] / known[some]
        return out

    def only(self, genes: Genes) -> Intervals:
        """Return the intervals of some genes, by their numbers."""
        return Intervals(self.probabilities, self.quantiles[:, genes], self.floor)

    def at(self, p: float) -> Float32:
        """Return the quantiles at a probability, ``(g,)``: between those that are kept, or the outermost of them."""
        known = np.asarray(self.probabilities, np.float64)
        i = int(np.clip(np.searchsorted(known, p) - 1, 0, len(known) - 2))
        share = np.float32((p - known[i]) / (known[i + 1] - known[i]))
        share = np.clip(share, 0, 1)
        return np.asarray(self.quantiles[i] * (1 - share) + self.quantiles[i + 1] * share, np.float32)


@dataclass(frozen=True, eq=False)
class Likeness:
    """What a distance from the training spots means.

    Parameters
    ----------
    percentiles
        Of the distances of training spots to those of *other* sections, ``(101,)``, ascending.
    rows
        Training spots, which is how well the head is known.
    """

    percentiles: FloatArray
    rows: int

    def __post_init__(self) -> None:
        if np.shape(self.percentiles) != (101,):
            raise ValueError(f"percentiles of a distance must be 101 numbers, got {np.shape(self.percentiles)}")

    def percentile(self, distance: FloatArray) -> Float32:
        """Return how unlike the training data a tile is: the share of theirs, in %, that are less so; NaN stays."""
        return np.asarray(np.interp(distance, np.maximum.accumulate(self.percentiles), np.arange(101.0)), np.float32)

    def spread(self, distance: FloatArray) -> Float32:
        """Return by how much the intervals are wider than right among the training spots.

        Notes
        -----
        The posterior variance of a ridge, in closed form: a value at x has the variance ``s² (1 + x' (X'X + A)⁻¹ x)``
        (Hoerl & Kennard, Technometrics 1970; Rasmussen & Williams 2006, eq. 2.9). With the penalty that the shrunk
        covariance of the reference stands for, the second term is the squared Mahalanobis distance over the number of
        spots: the same for all genes.
        """
        return np.asarray(np.sqrt(1 + np.square(np.asarray(distance, np.float64)) / max(self.rows, 1)), np.float32)


def beyond(share: float, level: float, spots: int) -> int:
    """Return whether intervals hold fewer of some spots than they should (-1), more (1), or about as many (0).

    Parameters
    ----------
    share, level
        What they hold, and what they should.
    spots
        How many spots there are. A share of few scatters; they are no independent samples, so it scatters more still.
    """
    slack = max(_SLACK, 2 * float(np.sqrt(level * (1 - level) / max(spots, 1))))
    return int(share > level + slack) - int(share < level - slack)


def opacity(ood: FloatArray | None, width: FloatArray | None, reach: float) -> Float32 | None:
    """Return how much of a tile's colour is to be seen, :data:`FAINT` to 1; None where nothing is known of its doubt.

    The lesser of two counts. By likeness: 1 up to the 95th percentile, `FAINT` from the 99th on, where a tile counts as
    unlike the training data. By the 90 % interval: 1 while it is no wider than the range of the gene's values on the
    map, `FAINT` where it is three times as wide; the colour may then be any. A part that is not known, or a tile of
    which it is not (NaN), does not fade.

    Parameters
    ----------
    ood
        How unlike the training data the tiles are, a percentile, ``(n,)``; or None.
    width
        Of the tiles' intervals, ``(n,)``; or None.
    reach
        The range of the gene's values on the map, in the unit of `width`.
    """
    shares = []
    if ood is not None:
        shares.append(np.interp(ood, _UNLIKE, (1, FAINT)))
    if width is not None and reach > 0:
        shares.append(np.interp(np.asarray(width) / reach, _WIDE, (1, FAINT)))
    if not shares:
        return None
    least = np.fmin.reduce(shares)  # NaN only where nothing is known
    return np.asarray(np.nan_to_num(least, nan=1.0), np.float32)
