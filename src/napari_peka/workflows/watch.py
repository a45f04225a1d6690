"""What can be seen of a training while it runs: which spots are left out, and what is predicted of them so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from napari_peka.training.metrics import nan_mean

if TYPE_CHECKING:
    from napari_peka.training.learner import Look

Float16 = npt.NDArray[np.float16]
#: genes that can be looked at while a model learns: the most variable ones of what it trains on
N_SHOWN = 300
#: fewer spots of a section give no correlation
_FEWEST = 3


@dataclass(frozen=True, eq=False)
class Part:
    """A training that begins, and the spots by which one sees it learn.

    Parameters
    ----------
    name
        What is left out of it.
    number, of
        The how-manieth of how many trainings, from 1.
    genes, unit
        What is shown, most variable first, and its unit.
    judged
        Number of genes, from the first, over which a mean PCC is taken.
    section
        Section of each spot shown, ``(n,)``; empty where the validation spots of the training part are shown.
    centre_um
        Their centres (y, x) in µm from the slide's upper left corner, ``(n, 2)``.
    measured
        ``(n, g)``.
    attainable
        What the noise of the measurement lets any model reach, PCC a gene, ``(g,)``; NaN where not known.
    """

    name: str
    number: int
    of: int
    genes: tuple[str, ...]
    unit: str
    judged: int
    section: npt.NDArray[np.str_]
    centre_um: npt.NDArray[np.float64]
    measured: Float16
    attainable: npt.NDArray[np.float32]

    @property
    def ceiling(self) -> float:
        """Mean attainable PCC of the genes that are judged; NaN where not known."""
        return float(nan_mean(self.attainable[: self.judged]))


@dataclass(frozen=True, eq=False)
class Glance:
    """What is seen after an epoch.

    Parameters
    ----------
    part
        Number of the training.
    epoch
        From 1; 0 is the encoder as it was.
    predicted
        ``(n, g)``, as :class:`Part` has spots and genes.
    pcc
        Of each gene over the spots shown, the mean over sections, ``(g,)``.
    held_out_pcc
        Mean of those of the genes that are judged.
    val_pcc
        The same over the validation spots of the training part, as the learning curve has it.
    curve
        The line of the learning curve: ``train_loss``, ``val_loss``, ``images_per_second``, …; empty before training.
    """

    part: int
    epoch: int
    predicted: Float16
    pcc: npt.NDArray[np.float32]
    held_out_pcc: float
    val_pcc: float
    curve: dict[str, float] = field(default_factory=dict)


class Watcher(Protocol):
    """Somebody who looks on. What is seen decides nothing.

    Attributes
    ----------
    genes
        Genes to show besides the most variable ones, where they are predicted.
    """

    genes: tuple[str, ...]

    def begins(self, part: Part) -> None:
        """A training begins."""

    def sees(self, glance: Glance) -> None:
        """An epoch is over."""


def glance(part: Part, look: Look) -> Glance:
    """Return what a look shows, with how well it agrees with what was measured."""
    pcc = pcc_by_section(look.predicted, part.measured, part.section)
    judged = pcc[: part.judged]
    mean = float(np.nanmean(judged)) if np.isfinite(judged).any() else math.nan
    curve = look.entry.row if look.entry is not None else {}
    return Glance(part.number, look.epoch, look.predicted.astype(np.float16), pcc, mean, look.val_pcc, curve)


def pcc_by_section(
    predicted: npt.NDArray[np.floating], measured: npt.NDArray[np.floating], section: npt.NDArray[np.str_]
) -> npt.NDArray[np.float32]:
    """Return the correlation of each gene within sections, their mean, float32 ``(g,)``; NaN where none is known."""
    from napari_peka.training.gene_head import pearson

    found = [
        pearson(predicted[section == s], measured[section == s].astype(np.float32))
        for s in np.unique(section)
        if (section == s).sum() >= _FEWEST
    ]
    if not found:
        return np.full(measured.shape[1], np.nan, np.float32)
    return np.asarray(nan_mean(np.stack(found), 0), np.float32)
