"""What an adapter gains over the same encoder frozen: paired differences with their uncertainty.

A frozen encoder with four rotations may beat an adapted one with none, so an arm is compared with the frozen arm of the
same encoder, averaging, context and head tuning, and with no other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_peka.core import files
from napari_peka.core.errors import SettingError
from napari_peka.training.bootstrap import interval, resampled_means
from napari_peka.training.evaluate import EvaluationReport, plain
from napari_peka.training.metrics import nan_mean
from napari_peka.training.scoring import Scoreboard

FROZEN, IMAGE = "none", "image"
#: columns of the Markdown table and their heads
_SHOWN = {
    "encoder": "encoder",
    "adapter": "adapter",
    "features": "features",
    "averaging": "averaging",
    "context": "context",
    "pcc": "PCC",
    "pcc_sd": "sd",
    "share_of_attainable": "of attainable",
    "frozen_pcc": "frozen",
    "difference": "difference",
    "difference_ci95": "95 % CI",
    "gain_percent": "gain %",
    "gain_percent_ci95": "95 % CI",
    "genes_improved": "genes better",
    "pcc_random_split": "random split",
    "random_split_flatters": "flattered by",
}


@dataclass(frozen=True, eq=False)
class Arm:
    """One row of the table: a way to predict, and how it scored.

    Parameters
    ----------
    encoder
        Name of the encoder.
    adapter
        Kind of adapter; ``"none"``: frozen.
    features
        What the head read: ``image``, ``peka``, ``image+peka``, ``teacher``.
    averaging
        Views over which an embedding was averaged, such as ``"8 rotations"``; ``""`` for none.
    context
        Neighbours that the head read, such as ``"300 µm"``; ``""`` for none.
    head
        How the head was fitted and tuned, in words.
    board
        Scores of every gene in every held-out part.
    protocol
        ``grouped`` (held-out patients, sections or blocks) or ``paper`` (spots at random).
    smoothed
        The truth was averaged over neighbouring spots.
    """

    encoder: str
    adapter: str
    features: str
    averaging: str
    context: str
    head: str
    board: Scoreboard
    protocol: Literal["grouped", "paper"] = "grouped"
    smoothed: bool = False

    @classmethod
    def of_report(cls, report: EvaluationReport, **names: str) -> Arm:
        """Make an arm of a report's scores; `names` are the other members but protocol and smoothing."""
        if report.board is None:
            raise SettingError(f"the report of {report.model} was read from disk and has no scores of single sections")
        protocol: Literal["grouped", "paper"] = "paper" if report.optimistic else "grouped"
        return cls(board=report.board, protocol=protocol, smoothed=report.neighbour_smoothing, **names)

    @property
    def read_out(self) -> tuple[str, str, str, str, str, bool]:
        """What an adapted arm and its frozen baseline have in common."""
        return self.encoder, self.averaging, self.context, self.head, self.protocol, self.smoothed

    @property
    def is_frozen_baseline(self) -> bool:
        """Whether this is the encoder as it came, read directly."""
        return self.adapter == FROZEN and self.features == IMAGE


def compare(arms: Sequence[Arm], *, seed: int = 0) -> pd.DataFrame:
    """Compare each arm with its own frozen baseline over the HVG50.

    Parameters
    ----------
    arms
        All arms; for each adapted one the frozen arm of the same encoder, averaging, context, head and protocol, scored
        on the same sections and genes.
    seed
        Of the bootstrap.

    Returns
    -------
    DataFrame
        One row a grouped arm, then paper arms that have no grouped one; columns ``encoder, adapter, features,
        averaging, context, head, protocol, smoothed, n_patients, n_sections, n_seeds, n_genes``; ``pcc, pcc_sd,
        pcc_ci95, attainable, share_of_attainable``; against the frozen arm (NaN for it) ``frozen_pcc, difference,
        difference_ci95, gain_percent, gain_percent_ci95, genes_improved`` (share of genes, 0 to 1); and
        ``pcc_random_split, random_split_flatters`` (the same arm under the paper's protocol, and by how much that is
        more). Intervals are ``(low, high)``.

    Raises
    ------
    SettingError
        If an arm lacks its frozen baseline, is there twice, or was scored on other sections or genes than it.

    Notes
    -----
    Seeds are averaged within each section first; patients, sections and genes are resampled together for both arms
    (:func:`~napari_peka.training.bootstrap.resampled_means`), so what both find hard cancels.
    """
    frozen: dict[Any, Arm] = {}
    by_name: dict[Any, Arm] = {}
    for arm in arms:
        key = (*arm.read_out, arm.adapter, arm.features)
        if key in by_name:
            raise SettingError(f"the arm {_called(arm)} is there twice; give each way to predict once")
        by_name[key] = arm
        if arm.is_frozen_baseline:
            frozen[arm.read_out] = arm
    rows = []
    for arm in sorted(arms, key=lambda a: a.protocol):
        baseline = frozen.get(arm.read_out)
        if baseline is None:
            raise SettingError(
                f"{_called(arm)} has no frozen baseline under the same averaging, context and head; add the adapter"
                f" {FROZEN!r} with {IMAGE} features"
            )
        twin = by_name.get(_with_protocol(arm, "paper")) if arm.protocol == "grouped" else None
        if arm.protocol == "paper" and _with_protocol(arm, "grouped") in by_name:
            continue  # it stands in its grouped arm's row
        rows.append(_row(arm, baseline, twin, seed))
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, folder: Path, name: str = "comparison") -> None:
    """Write a table of :func:`compare` as ``name.csv``, ``name.json`` and ``name.md``, each whole or not at all.

    Raises
    ------
    StoreError
        If the folder cannot be written or the disk is full.
    """
    files.make_folder(folder)
    flat = table.copy()
    for column in [c for c in table if c.endswith("ci95")]:
        at = flat.columns.get_loc(column)
        flat.insert(at, f"{column}_low", [pair[0] for pair in table[column]])
        flat.insert(at + 1, f"{column}_high", [pair[1] for pair in table[column]])
        flat = flat.drop(columns=column)
    files.write_whole(folder / f"{name}.csv", flat.to_csv(index=False, float_format="%.6g").encode())
    document = json.dumps(plain(table.to_dict("records")), indent=1, allow_nan=False)
    files.write_whole(folder / f"{name}.json", document.encode())
    files.write_whole(folder / f"{name}.md", markdown(table).encode())


def markdown(table: pd.DataFrame) -> str:
    """Return a table of :func:`compare` in Markdown; columns that say nothing are left out."""
    shown = {c: head for c, head in _SHOWN.items() if any(_text(c, v) for v in table[c])}
    lines = ["| " + " | ".join(shown.values()) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(_text(c, row[c]) for c in shown) + " |" for row in table.to_dict("records")]
    return "\n".join(lines) + "\n"


def _row(arm: Arm, baseline: Arm, twin: Arm | None, seed: int) -> dict[str, Any]:
    board = arm.board
    _same_spots(arm, baseline)
    mine, theirs = (a.board.by_section(a.board.metrics["pcc"], a.board.is_hvg50) for a in (arm, baseline))
    both = np.isfinite(mine) & np.isfinite(theirs)
    # PCCs of a gene that one arm has no score of are no pair
    pair = np.where(both, np.stack([mine, theirs]), np.nan)[:, :, both.any(0)]
    patients = list(board.sections.values())
    means = resampled_means(pair, patients, seed=seed)
    pcc, frozen_pcc = (float(nan_mean(nan_mean(v, 1))) for v in pair)
    attainable = board.mean(board.attainable, board.is_hvg50 & np.isfinite(board.metrics["pcc"]))
    row = {
        **{k: getattr(arm, k) for k in ("encoder", "adapter", "features", "averaging", "context", "head", "protocol")},
        "smoothed": arm.smoothed,
        "n_patients": len(set(patients)),
        "n_sections": len(patients),
        "n_seeds": len({p.seed for p in board.parts}),
        "n_genes": pair.shape[2],
        "pcc": pcc,
        "pcc_sd": board.sd(board.metrics["pcc"], board.is_hvg50),
        "pcc_ci95": interval(means[:, 0]),
        "attainable": attainable,
        "share_of_attainable": pcc / attainable if attainable > 0 else np.nan,
        **_gain(pair, means, pcc, frozen_pcc, arm is baseline),
        "pcc_random_split": np.nan,
        "random_split_flatters": np.nan,
    }
    if twin is not None:
        row["pcc_random_split"] = twin.board.mean(twin.board.metrics["pcc"], twin.board.is_hvg50)
        row["random_split_flatters"] = row["pcc_random_split"] - pcc
    return row


def _gain(
    pair: npt.NDArray[np.float64], means: npt.NDArray[np.float64], pcc: float, frozen_pcc: float, itself: bool
) -> dict[str, Any]:
    nothing = (np.nan, np.nan)
    if itself:
        return {
            "frozen_pcc": np.nan,
            "difference": np.nan,
            "difference_ci95": nothing,
            "gain_percent": np.nan,
            "gain_percent_ci95": nothing,
            "genes_improved": np.nan,
        }
    difference = means[:, 0] - means[:, 1]
    # a share of nothing, or of less, is no gain
    gained = frozen_pcc > 0 and (means[:, 1] > 0).mean() > 0.95
    percent = 100 * difference / np.where(means[:, 1] > 0, means[:, 1], np.nan)
    return {
        "frozen_pcc": frozen_pcc,
        "difference": pcc - frozen_pcc,
        "difference_ci95": interval(difference),
        "gain_percent": 100 * (pcc - frozen_pcc) / frozen_pcc if gained else np.nan,
        "gain_percent_ci95": interval(percent) if gained else nothing,
        "genes_improved": float((nan_mean(pair[0] - pair[1], 0) > 0).mean()),
    }


def _same_spots(arm: Arm, baseline: Arm) -> None:
    if arm.board.sections != baseline.board.sections or arm.board.genes != baseline.board.genes:
        raise SettingError(f"{_called(arm)} was scored on other sections or genes than {_called(baseline)}")


def _with_protocol(arm: Arm, protocol: str) -> tuple[Any, ...]:
    encoder, averaging, context, head, _, smoothed = arm.read_out
    return encoder, averaging, context, head, protocol, smoothed, arm.adapter, arm.features


def _called(arm: Arm) -> str:
    how = ", ".join(t for t in (arm.averaging, arm.context and f"context {arm.context}", arm.head) if t)
    return f"{arm.encoder} + {arm.adapter} ({arm.features}; {how}; {arm.protocol} protocol)"


def _text(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        low, high = (_text(column, v) for v in value)
        return f"{low} to {high}" if low and high else ""
    if not np.isfinite(value):
        return ""
    if column in ("share_of_attainable", "genes_improved"):
        return f"{100 * value:.0f} %"
    if column.startswith("gain_percent"):
        return f"{value:+.1f}"
    return f"{value:+.3f}" if "difference" in column or "flatters" in column else f"{value:.3f}"
