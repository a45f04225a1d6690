"""What the numbers of an evaluation say, in plain language, and what must be said beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_peka.core.doubt import LEVEL, beyond
from napari_peka.models.card import BASELINE_NAMES, TIE
from napari_peka.training.baselines import BEFORE, FROZEN
from napari_peka.training.targets import N_VARIABLE

if TYPE_CHECKING:
    from napari_peka.training.evaluate import EvaluationReport

_WAS, _BLIND = (BASELINE_NAMES[BEFORE], BASELINE_NAMES[FROZEN]), ", which sees no structure of the tissue"
#: how a split in words begins when sections that are judged were trained on
TRAINED_ON = "TRAINED ON"
#: PCC from which a gene is called so; the words of the maps, see docs/concepts.md
GRADES = ((0.5, "good"), (0.3, "fair"), (0.15, "weak"), (-math.inf, "not predicted"))
#: entries of a long list that are written out
_LISTED = 20
_TEXT = 400
#: between a number and its percent sign
SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Score:
    """A number of a summary: mean, standard deviation and 95 % interval, NaN where not known."""

    mean: float = math.nan
    sd: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, value: Any) -> Score:
        """Read an entry of ``report.json``: a number, ``{"mean", "sd", "ci95"}``, or None."""
        if not isinstance(value, dict):
            return cls(_float(value))
        low, high = value.get("ci95") or (None, None)
        return cls(_float(value.get("mean")), _float(value.get("sd")), _float(low), _float(high))

    @property
    def known(self) -> bool:
        """Whether there is a mean."""
        return math.isfinite(self.mean)

    @property
    def interval(self) -> str:
        """The 95 % interval, empty when not known."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"{number(self.low)} to {number(self.high)}" if known else ""


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with a fixed number of decimals; "not known" for NaN and None."""
    value = _float(value)
    if not math.isfinite(value):
        return "not known"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def cell(value: Any, digits: int = 3) -> str:
    """Return a value for a table: numbers with fixed decimals, integers and text as they are, nothing for NaN."""
    if isinstance(value, (bool, str)) or value is None:
        return "" if value is None else str(value)
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int):
        return str(value)
    return number(value, digits) if math.isfinite(_float(value)) else ""


def percent(share: float) -> str:
    """Return a share in percent, in words when it is not known."""
    return f"{100 * share:.0f}{SPACE}%" if math.isfinite(share) else "not known"


def count(n: int, noun: str) -> str:
    """Return a number of things, such as ``1,200 spots``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def grade(pcc: float) -> str:
    """Return what a held-out correlation is called."""
    return next(word for least, word in GRADES if pcc >= least) if math.isfinite(pcc) else "not scored"


def column(report: EvaluationReport, name: str) -> npt.NDArray[np.float64]:
    """Return a column of the table of genes, NaN where there is none."""
    if name not in report.genes:
        return np.full(len(report.genes), np.nan)
    return pd.to_numeric(report.genes[name], errors="coerce").to_numpy(np.float64)


def is_hvg50(report: EvaluationReport) -> npt.NDArray[np.bool_]:
    """Return which genes are among the most variable ones."""
    return np.asarray(report.genes["gene"].isin(report.hvg50))


def genes_in_words(n: int) -> str:
    """Return over which genes the headline mean is taken, `n` of them in any training part."""
    if n > N_VARIABLE:  # the lists of several folds together
        return f"the {N_VARIABLE} most variable genes of each training part"
    return "the most variable gene" if n == 1 else f"the {n or ''} most variable genes".replace("  ", " ")


def best_baseline(report: EvaluationReport) -> tuple[str, Score]:
    """Return name and score of the baseline with the highest PCC; an empty name where there is none."""
    scores = {
        BASELINE_NAMES.get(name, name): Score.of((value or {}).get("pcc_hvg50"))
        for name, value in (report.summary.get("baselines") or {}).items()
    }
    known = {name: score for name, score in scores.items() if score.known}
    return max(known.items(), key=lambda item: item[1].mean, default=("", Score()))


def verdict(report: EvaluationReport) -> list[str]:
    """Return what the evaluation found, a sentence or two a paragraph; the first is the one to remember."""
    whose = _whose(report)
    pcc, all_genes = (Score.of(report.summary.get(key)) for key in ("pcc_hvg50", "pcc_all"))
    if not pcc.known and not all_genes.known:
        return [
            f"No gene could be scored on {whose}: in no part do measured values vary where there are "
            "predictions, so there is nothing that a prediction could be compared with.",
            f"Split: {_sentence(report.split)}",
        ]
    over = genes_in_words(len(report.hvg50))
    if not pcc.known:
        pcc, over = all_genes, f"all {count(len(report.genes), 'gene')}"
    interval = f", 95{SPACE}% interval {pcc.interval}" if pcc.interval else ""
    said = [f"Mean PCC {number(pcc.mean)} over {over} ({grade(pcc.mean)}{interval}), on {whose}."]
    ceiling = Score.of(report.summary.get("attainable_hvg50"))
    share = Score.of(report.summary.get("share_of_attainable_hvg50"))
    if ceiling.known and share.known:
        said.append(
            f"That is {percent(share.mean)} of what the noise of the measurement lets any model reach "
            f"(PCC {number(ceiling.mean)})."
        )
    name, baseline = best_baseline(report)
    if name:
        ahead = pcc.mean - baseline.mean
        said.append(
            f"It is {number(ahead)} above {name} ({number(baseline.mean)}), the best of the baselines."
            if ahead >= TIE
            else f"It is not better than {name} ({number(baseline.mean)}){'' if name in _WAS else _BLIND}."
        )
    held = Score.of(report.summary.get("coverage_90"))
    if held.known:
        said.append(f"The model's intervals of 90{SPACE}% hold {percent(held.mean)} of these measured values: "
                    f"{_held_in_words(held.mean, report.n_spots)}.")  # fmt: skip
    said.append(f"Split: {_sentence(report.split)}")
    return said


def _held_in_words(share: float, spots: int) -> str:
    """Return in words what it means that intervals of 90 % hold this share."""
    fewer = f"it is surer of such tissue than it may be, by {round(100 * (LEVEL - share))} of 100"
    return {-1: fewer, 1: "they are wider than they need be"}.get(beyond(share, LEVEL, spots), "as they promise")


def flattered(report: EvaluationReport) -> str:
    """Return by what scores are higher than they would be on new tissue as measured; empty when nothing is known to."""
    why = {
        "the model was trained on sections that it is judged on": report.split.startswith(TRAINED_ON),
        "spots were split at random": report.optimistic,
        "measurements were smoothed": report.neighbour_smoothing,
    }
    return ", and ".join(reason for reason, so in why.items() if so)


def flat(record: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) of everything in a nested record; long lists and texts are cut and say so."""
    if isinstance(record, dict) and record:
        for key, value in record.items():
            yield from flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(record, (list, tuple)) and any(isinstance(v, (dict, list, tuple)) for v in record):
        for i, value in enumerate(record[:_LISTED]):
            yield from flat(value, f"{name}[{i}]")
        if len(record) > _LISTED:
            yield name, f"… {len(record)} in all"
    elif isinstance(record, (list, tuple)):
        more = f", … {len(record)} in all" if len(record) > _LISTED else ""
        yield name, (", ".join(map(str, record[:_LISTED])) or "none") + more
    elif record is None or record == {}:
        yield name, "none"
    else:
        text = str(record)
        yield name, text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text)} characters)"


def _whose(report: EvaluationReport) -> str:
    patients, sections = _different(report, "patient"), _different(report, "section")
    return f"{count(report.n_spots, 'spot')} of {count(sections, 'section')} from {count(patients, 'patient')}"


def _different(report: EvaluationReport, column: str) -> int:
    return report.sections[column].nunique() if column in report.sections else 0


def _sentence(text: str) -> str:
    text = text.strip() or "not said"
    return text if text.endswith(".") else text + "."


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
