"""From the held-out spots of a training to the intervals of its model, and to what these are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import Intervals, Likeness
from napari_peka.core.errors import SettingError
from napari_peka.models.reference import PERCENTILES, distances, reference_of
from napari_peka.trust.conformal import calibrate

FloatArray = npt.NDArray[np.floating]
Float32 = npt.NDArray[np.float32]


def spread_at(embeddings: FloatArray, train: npt.NDArray[np.bool_], sections: npt.NDArray[np.generic]) -> Float32:
    """Return by how much the intervals of a head are wider at each spot, ``(n,)``.

    Parameters
    ----------
    embeddings
        Of all spots, ``(n, d)``.
    train
        Spots that the head was fitted on, bool ``(n,)``.
    sections
        Of each spot, ``(n,)``.
    """
    reference = reference_of(embeddings[train], sections[train])
    likeness = Likeness(np.asarray(reference[PERCENTILES], np.float64), int(train.sum()))
    return likeness.spread(distances(embeddings, reference))


def intervals_of(
    residuals: Sequence[FloatArray], spread: Sequence[FloatArray | None], groups: Sequence[str], floor: float | None
) -> Intervals | None:
    """Return the intervals that held-out parts support together; None where they are too few.

    Parameters
    ----------
    residuals
        Of each part, measured less predicted, ``(n, g)``.
    spread
        Of each part, ``(n,)``; None: 1.
    groups
        Section, or patient, of each part.
    floor
        Least possible value in the unit.
    """
    wide = [np.ones(len(r), np.float32) if s is None else s for r, s in zip(residuals, spread)]
    of_spots = np.repeat(np.asarray(groups, dtype=object), [len(r) for r in residuals]).astype(str)
    try:
        return calibrate(np.concatenate(residuals), np.concatenate(wide), of_spots, floor=floor)
    except SettingError:
        return None


def without_each(
    residuals: Sequence[FloatArray], spread: Sequence[FloatArray | None], groups: Sequence[str], floor: float | None
) -> dict[str, Intervals]:
    """Return for each group the intervals that the others support: what they hold of it was calibrated without it."""
    out = {}
    for name in dict.fromkeys(groups):
        others = [i for i, group in enumerate(groups) if group != name]
        if others:
            made = intervals_of(
                [residuals[i] for i in others], [spread[i] for i in others], [groups[i] for i in others], floor
            )
            if made is not None:
                out[name] = made
    return out
