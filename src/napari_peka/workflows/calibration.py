"""Whether measured spots lie within the intervals of a map as often as these promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import LEVEL, beyond
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.trust import fitted_to
from napari_peka.training.metrics import nan_mean

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.section import Section
    from napari_peka.workflows.check import Check, Rows

FloatArray = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
#: at which a calibration is looked at
LEVELS = (0.5, 0.8, 0.9, 0.95)
#: between these shares of the genes lies what is told of all of them
_MOST_GENES = (0.1, 0.9)
#: genes worked on at once
_AT_ONCE = 512
SEEN = "the model was trained on these very spots: that says nothing of others"
#: what the plot shows, for who sees one
MEANING = (
    "Each point says how many of the measured spots lie within the intervals that should hold 50, 80, 90 or 95 of 100. "
    "On the dashed line the model knows how wrong it is; below it the model is surer of this slide than it should be; "
    "above it the intervals are wider than they need be. The band holds eight in ten of the genes that vary here. "
    "Many genes are not seen at all in most spots; their narrow intervals hold more than they should."
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Share of measured spots within the intervals of a map.

    Parameters
    ----------
    levels
        Shares that the intervals should hold, ascending, ``k``.
    held
        Shares that they do hold, ``(k, g)``; NaN for a gene without intervals.
    varies
        Genes that vary over these spots, bool ``(g,)``: the others are left out of what is said of all.
    spots
        How many spots were looked at.
    fitted
        In words: which measured spots the intervals were fitted to, so that these prove nothing; empty: to none.
    """

    levels: tuple[float, ...]
    held: Float64
    varies: npt.NDArray[np.bool_]
    spots: int
    fitted: str = ""

    @property
    def genes(self) -> int:
        """Genes that count in :attr:`mean`."""
        return int((self.varies & np.isfinite(self.held).all(0)).sum())

    @property
    def mean(self) -> Float64:
        """Mean over the genes that vary, ``(k,)``; NaN: there is none."""
        return np.asarray(nan_mean(self._counted, 1))

    @property
    def around(self) -> tuple[Float64, Float64]:
        """Between what eight in ten of these genes lie, ``(k,)`` each."""
        some = self._counted[:, np.isfinite(self._counted).all(0)]
        if not some.shape[1]:
            return np.full(len(self.levels), np.nan), np.full(len(self.levels), np.nan)
        low, high = np.quantile(some, _MOST_GENES, axis=1)
        return low, high

    @property
    def _counted(self) -> Float64:
        return np.where(self.varies, self.held, np.nan)

    def in_words(self, gene: int | None = None) -> str:
        """Return a sentence on the level of 90 %, or the highest below it.

        Parameters
        ----------
        gene
            Number of one; None: the mean over all.
        """
        at = max((k for k, level in enumerate(self.levels) if level <= LEVEL + 1e-6), default=0)
        level = self.levels[at] if self.levels else math.nan
        share = float((self.mean if gene is None else self.held[:, gene])[at]) if self.levels else math.nan
        if not self.spots:
            return "not known: there are no spots here"
        if not math.isfinite(share):
            return "not known: there are no intervals here"
        if self.fitted:
            return f"{within(share, level)}, but {self.fitted}"
        return f"{within(share, level)}: {verdict(share, level, self.spots)}"


def within(share: float, level: float) -> str:
    """Return a share of spots in words, beside the one that was promised."""
    return f"of 100 measured spots {100 * share:.0f} lie within the interval that should hold {100 * level:.0f}"


def verdict(share: float, level: float, spots: int) -> str:
    """Return in words what it means that intervals hold this share of some spots."""
    return {
        -1: "this slide is less certain than the model thinks", 1: "this slide is more certain than the model thinks",
    }.get(beyond(share, level, spots), "the model knows how wrong it is here")  # fmt: skip


def moran_words(value: float) -> str:
    """Return in words what Moran's I of measured less predicted means; empty where it is not known."""
    if not math.isfinite(value):
        return ""
    if value < 0.1:
        return "errors are scattered at random"
    more = "somewhat" if value < 0.3 else "strongly"
    return f"errors lie together {more}: neighbours are wrong in the same direction"


def fitted_words(prediction: Prediction, section: Section) -> str:
    """Return in words that a map's intervals were fitted to measured spots of its slide; empty where they were not."""
    told = prediction.fitted
    if not told:
        return ""
    if told.get("fingerprint") == section.fingerprint:
        return "the intervals were fitted to these very spots: that they hold here is no evidence"
    return f"the intervals were fitted to spots of {told.get('section')}, measured on this slide too"


def proof_words(prediction: Prediction) -> str:
    """Return in words what a fit of a map's intervals is worth, by the spots that were left out of it in turn."""
    told = prediction.fitted
    before, after = (told.get("coverage_90", {}).get(k) for k in ("before", "left_out"))
    said = fitted_to(prediction)
    if before is None:
        return said
    said += f"; of 100 spots {100 * before:.0f} lay within the 90 % interval before"
    return said if after is None else f"{said}, and {100 * after:.0f} do of parts that were left out of a fit in turn"


def calibrations(
    check: Check, where: Mapping[str, Rows | None], genes: Sequence[str] | None = None, *, progress: Progress = NULL
) -> dict[str, Calibration]:
    """Return the calibration over some parts of a section, by their names.

    Parameters
    ----------
    check
        A map against measured spots.
    where
        Spots that count, bool ``(n,)``, by name; None: all.
    genes
        Which; None: all.
    progress
        Told of every 512 genes.
    """
    columns = np.arange(len(check.genes)) if genes is None else np.array([check.index(g) for g in genes], np.intp)
    intervals, inside = check.intervals, check.inside
    levels = tuple(v for v in LEVELS if intervals is not None and intervals.reaches(v))
    rows = {name: (inside if some is None else some & inside) for name, some in where.items()}
    parts: dict[str, list[Any]] = {name: [] for name in where}
    progress.stage("comparing with intervals", len(columns))
    for at in range(0, len(columns), _AT_ONCE):
        some = columns[at : at + _AT_ONCE]
        truth, predicted = check.values_of(some)
        own = None if intervals is None else intervals.only(some)
        for name, these in rows.items():
            t, p, s = truth[these], predicted[these], check.spread[these]
            held = np.empty((0, len(some))) if own is None else own.shares_held(t, p, s, levels)
            parts[name].append((held, np.ptp(t, axis=0) > 0 if len(t) else np.zeros(len(some), bool)))
        progress.advance(len(some))
    fitted = SEEN if check.seen else fitted_words(check.prediction, check.section)
    out = {}
    for name, these in rows.items():
        both = parts[name] or [(np.empty((len(levels), 0)), np.empty(0, bool))]
        all_held, all_vary = np.concatenate([h for h, _ in both], 1), np.concatenate([v for _, v in both])
        out[name] = Calibration(levels, all_held, all_vary, int(these.sum()), fitted)
    return out
