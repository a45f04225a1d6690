"""How far to believe a map, in plain words: of each gene, and of the slide's tiles. What is unknown is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import LEVEL, OUTSIDE, opacity
from napari_peka.core.head import MEASURED

if TYPE_CHECKING:
    from napari_peka.core.head import GeneHead
    from napari_peka.io.prediction import Prediction

Float32 = npt.NDArray[np.float32]
NOT_SHOWN = "not shown to be predicted"
#: the percentile of a tile, as channels and colour bars call it
UNLIKE = "unlike the training data (percentile)"
#: an interval whose one side is longer than the other by more than this is told by both
_LOPSIDED = 1.5


# -- of genes ----------------------------------------------------------------------------------------------------


def trust_text(pcc: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a held-out correlation in words, with its 95 % interval where that is known."""
    if not _known(pcc):
        return "held-out PCC not measured"
    assert pcc is not None
    between = _between(low, high)
    return (
        f"held-out PCC {pcc:.2f}{between}, {trust_word(pcc)}"
        if between
        else f"held-out PCC {pcc:.2f} ({trust_word(pcc)})"
    )


def trust_word(pcc: float) -> str:
    """Return a word for a held-out correlation."""
    return "good" if pcc >= 0.5 else "fair" if pcc >= 0.3 else "weak" if pcc >= 0.15 else "not predicted"


def gene_trust(head: GeneHead, gene: str) -> str:
    """Return in words how far to believe a gene: its held-out correlation, or that it was not shown to be predicted.

    Raises
    ------
    UnknownName
        If the head does not know the gene.
    """
    at = head.index(gene)
    pcc, low, high = (_number(head, name, at) for name in ("pcc", "pcc_low", "pcc_high"))
    if head.predictable[at]:
        best = "" if pcc is None else _at_best(head, at, pcc).removesuffix(" could be reached")
        return f"{trust_text(pcc, low, high)}{best}"
    return f"held-out PCC {'not measured' if pcc is None else f'{pcc:.2f}{_between(low, high)}'}, {NOT_SHOWN}"


def gene_record(head: GeneHead, gene: str) -> dict[str, float | bool]:
    """Return what was measured of a gene on data that were left out of training, fit for JSON; empty: nothing.

    Raises
    ------
    UnknownName
        If the head does not know the gene.
    """
    at = head.index(gene)
    known = {name: value for name in MEASURED if (value := _number(head, name, at)) is not None}
    return {k: round(v, 4) for k, v in known.items()} | {"predictable": bool(head.predictable[at])} if known else {}


def why_not_shown(head: GeneHead, gene: str) -> str:
    """Return in words why a gene was not shown to be predicted; empty where it was, or where nobody measured.

    Raises
    ------
    UnknownName
        If the head does not know the gene.
    """
    at = head.index(gene)
    if head.predictable[at]:
        return ""
    pcc, other = _number(head, "pcc", at), _number(head, "baseline_pcc_high", at)
    if pcc is None:
        return "it could not be measured on data that were left out of training"
    between = _between(_number(head, "pcc_low", at), _number(head, "pcc_high", at))
    text = f"held-out PCC {pcc:.2f}{between}"
    text += "" if other is None else f", and colour, position or chance alone reach up to {other:.2f}"
    return text + _at_best(head, at, pcc)


def gene_words(head: GeneHead, gene: str) -> str:
    """Return in words how far to believe a gene; of one that was not shown to be predicted, why.

    Raises
    ------
    UnknownName
        If the head does not know the gene.
    """
    why = why_not_shown(head, gene)
    return f"{NOT_SHOWN}: {why}" if why else gene_trust(head, gene)


def split_words(prediction: Prediction) -> str:
    """Return in brackets on what held-out correlations were measured; empty where nobody says, or nothing was."""
    known = prediction.head.pcc is not None and prediction.pcc_split
    return f" ({prediction.pcc_split})" if known else ""


# -- of a map ----------------------------------------------------------------------------------------------------


def legend(prediction: Prediction, gene: str, *, reach: float | None = None, hatched: bool = False) -> list[str]:
    """Return in sentences how far to believe the map of a gene.

    Parameters
    ----------
    prediction
        The map.
    gene
        Symbol or Ensembl id.
    reach
        The range of values that the map's colours span, in its unit: intervals that are wider are told. None: they are
        not.
    hatched
        Whether the tiles that are unlike the training data are hatched on the map that is looked at.

    Raises
    ------
    UnknownName
        If the model does not know the gene.
    """
    said = [
        _gene_sentence(prediction, gene),
        interval_sentence(prediction, gene, reach),
        ood_sentence(prediction, hatched),
    ]
    return [sentence for sentence in said if sentence]


def interval_sentence(prediction: Prediction, gene: str, reach: float | None = None) -> str:
    """Return how far measured values lie from the map of a gene; empty where the model cannot tell."""
    intervals, at = prediction.intervals, prediction.head.index(gene)
    if intervals is None or not intervals.tell(at):
        return ""
    spread = 1.0 if prediction.spread is None else _median(prediction.spread)
    low, high = (float(end[at]) * spread for end in intervals.ends(LEVEL))
    below, above = max(-low, 0.0), max(high, 0.0)
    unit = prediction.unit
    if max(below, above) > _LOPSIDED * min(below, above):
        text = f"9 of 10 measured values lie between {below:.2g} below and {above:.2g} {unit} above the map"
    else:
        text = f"9 of 10 measured values lie within about ±{(below + above) / 2:.2g} {unit} of the map"
    if reach is not None and high - low > reach:
        text += ", a span wider than that of the colours: read areas, not single tiles"
    if fitted := fitted_to(prediction):
        text += f" ({fitted})"
    return f"{text}."


def fitted_to(prediction: Prediction) -> str:
    """Return by which measured spots a map's intervals were fitted; empty where they were not."""
    told = prediction.fitted
    return f"fitted to {told.get('spots', 0):,} spots of {told.get('section')}" if told else ""


def ood_sentence(prediction: Prediction, hatched: bool = False) -> str:
    """Return how much of a map is unlike the training data; empty where the model cannot tell."""
    share = unlike_share(prediction)
    if share is None:
        return ""
    if share == 0:
        return "No tile is unlike the training data."
    mark = " (hatched)" if hatched else ""
    return f"{percent(share)} of the tiles are unlike the training data{mark}: do not believe the map there."


def unlike(prediction: Prediction) -> npt.NDArray[np.bool_]:
    """Return which tiles count as unlike the training data, bool ``(n,)``; none where the model cannot tell."""
    if prediction.ood is None:
        return np.zeros(len(prediction.tiles), bool)
    return np.asarray(prediction.ood >= OUTSIDE)  # NaN is not


def unlike_share(prediction: Prediction) -> float | None:
    """Return the share of a map's tiles that are unlike the training data; None where nothing is known."""
    n = 0 if prediction.ood is None else int(np.isfinite(prediction.ood).sum())
    return float(unlike(prediction).sum() / n) if n else None


def percent(share: float) -> str:
    """Return a share as a percentage that is never rounded to nothing, or to all."""
    if 0 < share < 0.01:
        return "less than 1 %"
    return f"{min(round(100 * share), 99) if share < 1 else 100} %"


def ordinal(n: int) -> str:
    """Return a number as a place in an order: 1st, 2nd, 11th."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def interval_width(prediction: Prediction, gene: str, values: Float32 | None = None) -> Float32 | None:
    """Return the width of the 90 % interval of a gene at each tile, ``(n,)`` in the map's unit; None: not known.

    Parameters
    ----------
    prediction
        The map.
    gene
        Symbol or Ensembl id.
    values
        The gene's values, where they are at hand: they are not computed again.

    Raises
    ------
    UnknownName
        If the model does not know the gene.
    """
    intervals, at = prediction.intervals, prediction.head.index(gene)
    if intervals is None or not intervals.tell(at):
        return None
    values = prediction.values(gene) if values is None else values
    lower, upper = intervals.around(values, prediction.spread_of(), LEVEL, at)
    return np.asarray(upper - lower, np.float32)


def tile_opacity(prediction: Prediction, gene: str | None, values: Float32, reach: float) -> Float32 | None:
    """Return how much of each tile's colour is to be seen, by the rule of :func:`napari_peka.core.doubt.opacity`.

    Parameters
    ----------
    prediction
        The map.
    gene
        Symbol or Ensembl id; None: what is shown is no gene's, and only the tiles' likeness counts.
    values
        The gene's values, ``(n,)``, in the map's unit.
    reach
        Their range.
    """
    return opacity(prediction.ood, None if gene is None else interval_width(prediction, gene, values), reach)


def _gene_sentence(prediction: Prediction, gene: str) -> str:
    head = prediction.head
    at = head.index(gene)
    pcc, low, high = (_number(head, name, at) for name in ("pcc", "pcc_low", "pcc_high"))
    if not head.predictable[at]:
        return f"This gene was {NOT_SHOWN}, so the map may show something else: {why_not_shown(head, gene)}."
    if pcc is None:
        return "Held-out PCC not measured: nobody knows how far to believe this map."
    inside = "; ".join(filter(None, (_between(low, high).strip(" ()"), prediction.pcc_split)))
    return f"Held-out PCC {pcc:.2f}{f' ({inside})' if inside else ''}, {trust_word(pcc)}{_at_best(head, at, pcc)}."


def _between(low: float | None, high: float | None) -> str:
    """Return an interval in brackets; empty where it is not known."""
    return f" ({low:.2f} to {high:.2f})" if _known(low) and _known(high) else ""


def _at_best(head: GeneHead, at: int, pcc: float) -> str:
    """Return what the noise of the measurement lets any model reach; empty where it is not known, or was beaten."""
    best = _number(head, "attainable_pcc", at)
    return f"; at best {best:.2f} could be reached" if best is not None and best > pcc else ""


def _number(head: GeneHead, name: str, at: int) -> float | None:
    values = getattr(head, name, None)
    return float(values[at]) if values is not None and np.isfinite(values[at]) else None


def _known(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _median(values: Float32) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 1.0
