"""From measured and predicted expression of held-out spots to one report.

Arrays in, :class:`EvaluationReport` out: what a model is worth on sections that it has never seen, gene by gene, beside
what the noise of the measurement lets any model reach and beside baselines that see no histology.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from napari_peka.core import files
from napari_peka.core.doubt import Intervals
from napari_peka.core.errors import SettingError, StoreError, UnknownName, near_names
from napari_peka.models.card import TIE
from napari_peka.training.baselines import BEFORE, FROZEN
from napari_peka.training.scoring import Measured, Scoreboard, gene_columns, part_columns, score_parts, summarise

#: version of ``report.json``; keys may be added under one version, never renamed
SCHEMA = 1
REPORT_FILE, GENES_FILE, HTML_FILE = "report.json", "genes.csv", "report.html"
#: members of a report that its JSON holds under their own names
_SCALARS = ("model", "unit", "split", "summary", "n_spots", "neighbour_smoothing", "optimistic", "provenance")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """What a model is worth on held-out spots.

    Parameters
    ----------
    model
        Name of what was judged.
    unit
        Unit of expression, such as ``"log1p CP10K"``.
    split
        In words: how the training data relate to these sections.
    genes
        One row a gene, in the model's order: ``gene, pcc, spearman, mse, mae, r2, attainable_pcc, coverage_90``, then
        ``pcc_low, pcc_high`` (95 % interval of the PCC), ``baseline_pcc_high`` (upper end of it for the best of the
        baselines that see no structure), ``cosine, kl, share_of_attainable``, the sd of each metric over sections,
        folds and seeds (``pcc_sd``, ...), ``n_scored`` (in how many of the held-out parts the truth varied) and
        ``hvg50`` (bool). NaN: not known.
    sections
        One row a held-out part: ``section, patient, fold, seed, n_spots, n_constant`` (genes whose truth is constant),
        ``pcc_hvg50, pcc_all, attainable_hvg50, share_of_attainable_hvg50, mse_hvg50, coverage_90`` and
        ``pcc_hvg50_<baseline>``.
    summary
        The numbers of ``report.json``: ``pcc_hvg50`` and ``pcc_all`` (``mean, sd, ci95``), ``attainable_hvg50``,
        ``share_of_attainable_hvg50``, ``baselines`` (name: ``{"pcc_hvg50": {...}, "mse_hvg50": {...}}``),
        ``coverage_90``, and ``spearman_hvg50, mse_hvg50, ...`` (``mean, sd``). None: not known.
    n_spots
        Different spots that were predicted.
    hvg50
        Names of the genes of most variable expression over the training spots (of any fold).
    measured
        The spots themselves, for maps and scatter plots; empty when the report was read from disk.
    board
        Scores of every gene in every held-out part; None when the report was read from disk.
    curves
        Rows of the training history, such as ``{"fold": "C5", "seed": 0, "epoch": 3, "train_loss": .., ...}``.
    warnings
        What a reader of the numbers must know.
    neighbour_smoothing
        The truth was averaged over neighbouring spots: every score is flattered.
    optimistic
        Spots were split at random, so that neighbours of test spots were trained on: every score is flattered.
    provenance
        What made these numbers: settings, versions, fingerprints.
    """

    model: str
    unit: str
    split: str
    genes: pd.DataFrame
    sections: pd.DataFrame
    summary: dict[str, Any]
    n_spots: int
    hvg50: tuple[str, ...]
    measured: tuple[Measured, ...] = ()
    board: Scoreboard | None = None
    curves: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    neighbour_smoothing: bool = False
    optimistic: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return what ``report.json`` holds: plain values, None for what is not known."""
        # scripts may look for these within the summary or beside it: they find them in both places
        beside = ("attainable_hvg50", "share_of_attainable_hvg50", "baselines", "coverage_90")
        members = {
            "schema": SCHEMA,
            "n_genes": len(self.genes),
            "sections": self.sections.to_dict("records"),
            "hvg50": self.hvg50,
            "curves": self.curves,
            "warnings": self.warnings,
            **{k: getattr(self, k) for k in _SCALARS},
            **{k: self.summary[k] for k in beside},
        }
        return dict(plain(members))

    def write(self, folder: Path, *, beside: EvaluationReport | None = None, **page: Any) -> None:
        """Write ``report.json``, ``genes.csv`` and ``report.html``, each whole or not at all, the JSON last.

        Parameters
        ----------
        folder
            Made if needed.
        beside
            The same model judged under another split, such as spots at random: the page shows both side by side.
        page
            ``kicker`` and ``further``, as :func:`napari_peka.training.report.write_html` takes them.

        Raises
        ------
        StoreError
            If the folder cannot be written or the disk is full.
        """
        from napari_peka.training.report import write_html

        files.make_folder(folder)
        files.write_whole(folder / GENES_FILE, self.genes.to_csv(index=False, float_format="%.6g").encode())
        write_html(self, folder / HTML_FILE, beside=beside, **page)
        files.write_whole(folder / REPORT_FILE, json.dumps(self.document(), indent=1, allow_nan=False).encode())


def evaluate(
    measured: Sequence[Measured],
    genes: Sequence[str],
    unit: str,
    *,
    hvg50: Sequence[str] | Mapping[str, Sequence[str]],
    model: str,
    split: str,
    intervals: Intervals | Mapping[str, Intervals] | None = None,
    curves: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    neighbour_smoothing: bool = False,
    optimistic: bool = False,
    seed: int = 0,
) -> EvaluationReport:
    """Score held-out predictions.

    A gene's score is taken within each held-out part, then averaged over the parts (folds, seeds) of each section, then
    over sections. A summary averages over genes within each section, then over sections.

    Parameters
    ----------
    measured
        One entry a section, fold and seed. A protocol that mixes spots of several sections gives them one common
        `section_id`.
    genes
        Names of the ``g`` columns, unique.
    unit
        Unit of expression.
    hvg50
        The 50 most variable genes of the training spots; for each fold its own where they differ, by the fold's name.
    model, split
        What was judged, and in words how its training data relate to these sections.
    intervals
        Around what is predicted, when the model states them; by section where each has its own, made without it.
    curves
        Rows of the training history.
    provenance
        What made these numbers, fit for JSON.
    warnings
        What else a reader must know.
    neighbour_smoothing
        The truth was averaged over neighbouring spots.
    optimistic
        Spots were split at random.
    seed
        Of the bootstrap.

    Raises
    ------
    SettingError
        If there is nothing to score, or parts do not fit the genes or each other.
    UnknownName
        If a gene of `hvg50` is not among `genes`.
    """
    _check(measured, genes)
    names = _hvg_by_fold(hvg50, measured)
    known = {gene: i for i, gene in enumerate(genes)}
    is_hvg = np.zeros((len(measured), len(genes)), bool)
    for k, m in enumerate(measured):
        is_hvg[k, [_index(gene, known) for gene in names[m.fold]]] = True
    board = score_parts(measured, genes, is_hvg, intervals)
    summary = summarise(board, seed=seed)
    sections = pd.DataFrame(part_columns(board, [len(m.truth) for m in measured]))
    return EvaluationReport(
        model=model,
        unit=unit,
        split=split,
        genes=pd.DataFrame({"gene": list(genes), **gene_columns(board)}),
        sections=sections,
        summary=plain(summary),
        n_spots=len({(m.section_id, spot) for m in measured for spot in m.spot_ids}),
        hvg50=tuple(np.asarray(genes, dtype=object)[is_hvg.any(0)]),
        measured=tuple(measured),
        board=board,
        curves=tuple(plain(list(curves))),
        warnings=tuple(
            dict.fromkeys([*warnings, *_warnings(measured, board, summary, neighbour_smoothing, optimistic)])
        ),
        neighbour_smoothing=neighbour_smoothing,
        optimistic=optimistic,
        provenance=plain(provenance or {}),
    )


def read_report(folder: Path) -> EvaluationReport:
    """Read what :meth:`EvaluationReport.write` left; spots and scores of single parts are not in it.

    Raises
    ------
    StoreError
        If a file is missing or is not such a report.
    """
    folder = Path(folder)
    try:
        document = json.loads((folder / REPORT_FILE).read_text("utf-8"))
        # NA may be a gene
        genes = pd.read_csv(folder / GENES_FILE, dtype={"gene": str}, keep_default_na=False, na_values=[""])
    except OSError as e:
        raise StoreError(f"there is no report in {folder}: {e.strerror or e}; run evaluate with -o {folder}") from e
    except ValueError as e:
        raise StoreError(f"the report in {folder} is damaged ({e}); run evaluate again") from e
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise StoreError(f"{folder / REPORT_FILE} is no report of this version of napari-peka (schema {SCHEMA})")
    try:
        return EvaluationReport(
            genes=genes,
            sections=pd.DataFrame(document["sections"]),
            hvg50=tuple(document["hvg50"]),
            curves=tuple(document["curves"]),
            warnings=tuple(document["warnings"]),
            **{k: document[k] for k in _SCALARS},
        )
    except KeyError as e:
        raise StoreError(f"the report in {folder} lacks {e}; run evaluate again") from e


def plain(value: Any) -> Any:
    """Return `value` as JSON has it: numpy's numbers as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def _check(measured: Sequence[Measured], genes: Sequence[str]) -> None:
    if not measured:
        raise SettingError("there is nothing to evaluate: no held-out spot was predicted")
    if len(set(genes)) != len(genes):
        raise SettingError("gene names of an evaluation must be unique")
    patient: dict[str, str] = {}
    for m in measured:
        if m.truth.shape[1] != len(genes) or not len(m.truth):
            raise SettingError(f"section {m.section_id}: {m.truth.shape} values do not fit {len(genes)} genes")
        if patient.setdefault(m.section_id, m.patient_id) != m.patient_id:
            raise SettingError(f"section {m.section_id} is said to be of two patients; name one for it")
        if set(m.baselines) != set(measured[0].baselines):
            raise SettingError(f"section {m.section_id} has other baselines than {measured[0].section_id}")


def _hvg_by_fold(
    hvg50: Sequence[str] | Mapping[str, Sequence[str]], measured: Sequence[Measured]
) -> Mapping[str, Sequence[str]]:
    folds = {m.fold for m in measured}
    if not isinstance(hvg50, Mapping):
        return dict.fromkeys(folds, hvg50)
    if missing := sorted(folds - set(hvg50)):
        raise SettingError(f"the most variable genes are not given for the fold {missing[0]}")
    return hvg50


def _index(gene: str, known: Mapping[str, int]) -> int:
    if gene not in known:
        raise UnknownName(f"the variable gene {gene!r} is not among the predicted ones{near_names(gene, known)}")
    return known[gene]


def _warnings(
    measured: Sequence[Measured], board: Scoreboard, summary: Mapping[str, Any], smoothed: bool, optimistic: bool
) -> Iterator[str]:
    if smoothed:
        yield "expression was averaged over neighbouring spots before scoring: all scores are flattered"
    if optimistic:
        yield (
            "spots were split at random, so that neighbours of test spots were trained on: all scores are flattered,"
            " and say nothing of another section or patient"
        )
    if len(set(board.sections.values())) < 2:
        among = "sections and genes" if len(board.sections) > 1 else "genes of one section"
        yield f"the held-out spots are of one patient: the intervals speak of {among}, not of other patients"
    for m in measured:
        lost = int((~np.isfinite(m.predicted)).any(1).sum())
        if lost:
            yield f"{lost} of {len(m.truth)} spots of {m.section_id} could not be predicted and are left out"
    constant = {s: int(n) for s, n in zip(board.sections, np.isnan(board.by_section(board.metrics["pcc"])).sum(1)) if n}
    for section, n in constant.items():
        yield f"{n} of {measured[0].truth.shape[1]} genes do not vary over the held-out spots of {section}: not scored"
    mine = summary["pcc_hvg50"]["mean"]
    for name, scores in summary["baselines"].items():
        other = scores["pcc_hvg50"]["mean"]
        if other > mine - TIE:
            own = {BEFORE: "the model as it was before", FROZEN: "the encoder without any training"}
            who = own.get(name, f"the baseline {name}")
            worse = other > mine + TIE
            if name == BEFORE:
                found = "the refit made it worse" if worse else "the refit has gained nothing in PCC"
            elif name == FROZEN:
                found = "training made it worse" if worse else "training has gained nothing in PCC"
            else:
                found = "the model is worse than that" if worse else "the model has learnt no more than that"
            yield f"{who} scores {other:.3f} and the model {mine:.3f} (PCC, HVG50): {found}"
    if summary["share_of_attainable_hvg50"] > 1:
        yield "the score lies above the noise ceiling: look for test spots among the training spots"
