"""Scores of held-out parts, brought together: over the parts of a section, over sections, over genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import SettingError
from napari_peka.training import confidence
from napari_peka.training.baselines import BASELINES
from napari_peka.training.bootstrap import interval, resampled_means
from napari_peka.training.confidence import effective_spots
from napari_peka.training.metrics import METRICS, gene_scores, nan_max, nan_mean, nan_sd

Table = npt.NDArray[np.float64]
#: below this a noise ceiling is mostly chance (see ``attainable_pcc``), and a share of it says nothing
MIN_ATTAINABLE = 0.2


@dataclass(frozen=True, eq=False)
class Part:
    """What a run held out.

    Parameters
    ----------
    section_id, patient_id
        Whose spots they are.
    fold
        Name of the fold whose training part did not hold these spots.
    seed
        Seed of the training run.
    """

    section_id: str
    patient_id: str
    fold: str
    seed: int


@dataclass(frozen=True, eq=False)
class Measured(Part):
    """Held-out spots of one section in one fold, measured and predicted.

    Parameters
    ----------
    section_id, patient_id, fold, seed
        As :class:`Part`.
    spot_ids
        Barcodes, ``n``.
    centre_um
        Spot centres (y, x) in µm, float64, shape ``(n, 2)``.
    truth, predicted
        Expression in the report's unit, float32, shape ``(n, g)``; a row that could not be predicted is NaN.
    attainable
        Noise ceiling of each gene's PCC over these spots, shape ``(g,)``; NaN where it is not known.
    baselines
        Predictions of each baseline, shape ``(n, g)``.
    spread
        By how much intervals are wider at each spot, ``(n,)``; None: nowhere.
    """

    spot_ids: tuple[str, ...]
    centre_um: npt.NDArray[np.float64]
    truth: npt.NDArray[np.float32]
    predicted: npt.NDArray[np.float32]
    attainable: npt.NDArray[np.floating]
    baselines: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    spread: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n, g = self.truth.shape
        shapes = {
            "spot_ids": ((len(self.spot_ids),), (n,)),
            "centre_um": (self.centre_um.shape, (n, 2)),
            "predicted": (self.predicted.shape, (n, g)),
            "attainable": (self.attainable.shape, (g,)),
            "spread": ((n,) if self.spread is None else self.spread.shape, (n,)),
            **{f"baseline {name}": (values.shape, (n, g)) for name, values in self.baselines.items()},
        }
        for name, (got, wanted) in shapes.items():
            if got != wanted:
                raise SettingError(f"section {self.section_id}: {name} has shape {got}, truth asks for {wanted}")


@dataclass(frozen=True, eq=False)
class Scoreboard:
    """Scores of every gene in every held-out part: each table float64, shape ``(n_parts, n_genes)``, NaN: no score.

    Parameters
    ----------
    parts
        Where each row comes from.
    genes
        Names of the columns.
    is_hvg50
        bool, ``(n_parts, n_genes)``: the 50 most variable genes by each part's training spots.
    metrics
        By name of the metric.
    baselines
        By name, then metric (``pcc``, ``mse``), and ``alike``: the correlation with what the model predicts.
    attainable, coverage
        Noise ceiling; share of spots within the 90 % interval.
    effective
        Independent spots that each correlation rests on; see :func:`effective_spots`.
    """

    parts: tuple[Part, ...]
    genes: tuple[str, ...]
    is_hvg50: npt.NDArray[np.bool_]
    metrics: dict[str, Table]
    baselines: dict[str, dict[str, Table]]
    attainable: Table
    coverage: Table
    effective: Table

    @property
    def sections(self) -> dict[str, str]:
        """Patient of each section, in order of first appearance."""
        return {p.section_id: p.patient_id for p in self.parts}

    def by_section(self, values: Table, where: npt.NDArray[np.bool_] | None = None) -> Table:
        """Average parts within each section, ``(n_sections, n_genes)``; entries not in `where` count as missing."""
        own = np.array([p.section_id for p in self.parts], dtype=object)
        values = values if where is None else np.where(where, values, np.nan)
        return np.stack([nan_mean(values[own == s], 0) for s in self.sections])

    def mean(self, values: Table, where: npt.NDArray[np.bool_] | None = None) -> float:
        """Return the mean over sections of the mean over genes; NaN when nothing is known."""
        return float(nan_mean(nan_mean(self.by_section(values, where), 1)))

    def sd(self, values: Table, where: npt.NDArray[np.bool_] | None = None) -> float:
        """Return the standard deviation over folds and seeds, over sections where there is one of those."""
        values = values if where is None else np.where(where, values, np.nan)
        of_part = nan_mean(values, 1)
        runs: dict[Any, list[float]] = {}
        for part, value in zip(self.parts, of_part):
            key = (part.fold, part.seed) if self.sd_over == "folds and seeds" else part.section_id
            runs.setdefault(key, []).append(value)
        return float(nan_sd(np.array([nan_mean(np.array(v)) for v in runs.values()])))

    @property
    def sd_over(self) -> str:
        """Over what :meth:`sd` is taken."""
        return "folds and seeds" if len({(p.fold, p.seed) for p in self.parts}) > 1 else "sections"

    def mean_sd(self, values: Table, where: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Return ``mean`` and ``sd``."""
        return {"mean": self.mean(values, where), "sd": self.sd(values, where)}

    def with_ci(self, values: Table, where: npt.NDArray[np.bool_] | None = None, *, seed: int = 0) -> dict[str, Any]:
        """Return ``mean``, ``sd`` and ``ci95`` by the hierarchical bootstrap over patients, sections and genes."""
        table = self.by_section(values, where)
        known = table[:, np.isfinite(table).any(0)]
        if not known.shape[1]:
            return {**self.mean_sd(values, where), "ci95": [float("nan"), float("nan")]}
        means = resampled_means(known[None], list(self.sections.values()), seed=seed)
        return {**self.mean_sd(values, where), "ci95": list(interval(means[:, 0]))}


def score_parts(
    measured: Sequence[Measured],
    genes: Sequence[str],
    is_hvg50: npt.NDArray[np.bool_],
    intervals: Intervals | Mapping[str, Intervals] | None,
) -> Scoreboard:
    """Score every part.

    Parameters
    ----------
    measured
        The parts.
    genes
        Names of their columns.
    is_hvg50
        bool, ``(n_parts, n_genes)``.
    intervals
        Around what is predicted; by section where each has its own.
    """
    rows = [gene_scores(m.truth, m.predicted) for m in measured]
    baselines = {}
    for name in measured[0].baselines:
        found = [gene_scores(m.truth, m.baselines[name], ("pcc", "mse")) for m in measured]
        baselines[name] = {k: np.stack([f[k] for f in found]) for k in ("pcc", "mse")}
        # of what is constant nothing is alike
        both = [gene_scores(m.baselines[name], m.predicted, ("pcc",))["pcc"] for m in measured]
        baselines[name]["alike"] = np.stack(both)
    return Scoreboard(
        parts=tuple(Part(m.section_id, m.patient_id, m.fold, m.seed) for m in measured),
        genes=tuple(genes),
        is_hvg50=is_hvg50,
        metrics={name: np.stack([r[name] for r in rows]) for name in METRICS},
        baselines=baselines,
        attainable=np.stack([np.asarray(m.attainable, np.float64) for m in measured]),
        coverage=np.stack([_covered(m, intervals) for m in measured]),
        effective=np.stack([effective_spots(m.truth, m.predicted, m.centre_um) for m in measured]),
    )


def _covered(m: Measured, intervals: Intervals | Mapping[str, Intervals] | None) -> Table:
    own = intervals.get(m.section_id) if isinstance(intervals, Mapping) else intervals
    if own is None:
        return np.full(m.truth.shape[1], np.nan)
    return own.shares_held(m.truth, m.predicted, np.ones(len(m.truth)) if m.spread is None else m.spread)[0]


def summarise(board: Scoreboard, *, seed: int = 0) -> dict[str, Any]:
    """Return the summary of ``report.json``; what is not known is NaN."""
    pcc, hvg = board.metrics["pcc"], board.is_hvg50
    sections = board.sections
    levels = {"patients": len(set(sections.values())), "sections": len(sections)}
    return {
        "pcc_hvg50": board.with_ci(pcc, hvg, seed=seed),
        "pcc_all": board.with_ci(pcc, seed=seed),
        "attainable_hvg50": board.mean(board.attainable, hvg),
        "share_of_attainable_hvg50": _share(board, hvg),
        "baselines": {
            name: {
                "pcc_hvg50": board.with_ci(scores["pcc"], hvg, seed=seed),
                "mse_hvg50": board.mean_sd(scores["mse"], hvg),
            }
            for name, scores in board.baselines.items()
        },
        "coverage_90": board.mean(board.coverage),
        **{f"{name}_hvg50": board.mean_sd(board.metrics[name], hvg) for name in METRICS if name != "pcc"},
        "sd_over": board.sd_over,
        "ci95_over": [*(level for level, n in levels.items() if n > 1), "genes"],
    }


def _share(board: Scoreboard, where: npt.NDArray[np.bool_]) -> float:
    """Return the mean PCC as a share of the mean ceiling, over genes that have both."""
    pcc = board.metrics["pcc"]
    both = where & np.isfinite(pcc) & np.isfinite(board.attainable)
    ceiling = board.mean(board.attainable, both)
    return board.mean(pcc, both) / ceiling if ceiling > 0 else float("nan")


def gene_columns(board: Scoreboard) -> Mapping[str, npt.NDArray[Any]]:
    """Return the columns of the table of genes: means over sections, and sds over parts."""
    mean = {name: nan_mean(board.by_section(values), 0) for name, values in board.metrics.items()}
    attainable = nan_mean(board.by_section(board.attainable), 0)
    low, high = confidence.interval(board.metrics["pcc"], board.effective)
    bounds = [
        confidence.upper_bound(board.metrics["pcc"], scores["pcc"], scores["alike"], board.effective)
        for name, scores in board.baselines.items()
        if name in BASELINES
    ]
    first = ("pcc", "spearman", "mse", "mae", "r2")
    return {
        **{name: mean[name] for name in first},
        "attainable_pcc": attainable,
        "coverage_90": nan_mean(board.by_section(board.coverage), 0),
        "pcc_low": low,
        "pcc_high": high,
        "baseline_pcc_high": nan_max(np.stack(bounds)) if bounds else np.full(len(low), np.nan),
        "cosine": mean["cosine"],
        "kl": mean["kl"],
        "share_of_attainable": np.divide(
            mean["pcc"], attainable, out=np.full(len(attainable), np.nan), where=attainable >= MIN_ATTAINABLE
        ),
        **{f"{name}_sd": nan_sd(values, 0) for name, values in board.metrics.items()},
        "n_scored": np.isfinite(board.metrics["pcc"]).sum(0),
        "hvg50": board.is_hvg50.any(0),
    }


def part_columns(board: Scoreboard, n_spots: Sequence[int]) -> Mapping[str, Sequence[Any]]:
    """Return the columns of the table of held-out parts."""
    hvg = board.is_hvg50

    def mean(values: Table, where: npt.NDArray[np.bool_] | None = None) -> Table:
        return nan_mean(values if where is None else np.where(where, values, np.nan), 1)

    pcc, both = board.metrics["pcc"], hvg & np.isfinite(board.metrics["pcc"]) & np.isfinite(board.attainable)
    attainable = mean(board.attainable, both)
    return {
        "section": [p.section_id for p in board.parts],
        "patient": [p.patient_id for p in board.parts],
        "fold": [p.fold for p in board.parts],
        "seed": [p.seed for p in board.parts],
        "n_spots": list(n_spots),
        "n_constant": np.isnan(pcc).sum(1).tolist(),
        "pcc_hvg50": mean(pcc, hvg).tolist(),
        "pcc_all": mean(pcc).tolist(),
        "attainable_hvg50": mean(board.attainable, hvg).tolist(),
        "share_of_attainable_hvg50": np.divide(
            mean(pcc, both), attainable, out=np.full(len(pcc), np.nan), where=attainable > 0
        ).tolist(),
        "mse_hvg50": mean(board.metrics["mse"], hvg).tolist(),
        "coverage_90": mean(board.coverage).tolist(),
        **{f"pcc_hvg50_{name}": mean(scores["pcc"], hvg).tolist() for name, scores in board.baselines.items()},
    }
