"""The report of a check: the machinery of an evaluation, with the gene that was looked at first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.core.progress import NULL, Progress
from napari_peka.io.trust import gene_words, split_words
from napari_peka.training.evaluate import HTML_FILE, EvaluationReport, evaluate
from napari_peka.training.scoring import Measured
from napari_peka.training.targets import N_VARIABLE, most_variable
from napari_peka.workflows.evaluate import GIVEN, check_folder

if TYPE_CHECKING:
    from napari_peka.training.report_page import Html
    from napari_peka.workflows.check import Check

KICKER = "Check of a predicted map against measured spots"
#: how the map's values come to the spots
_BETWEEN = (
    "the map's values at the spots are interpolated between tiles, as one sees them; evaluate cuts a tile at each spot"
)


def report(check: Check, *, progress: Progress = NULL) -> EvaluationReport:
    """Return the scores of all genes; see :meth:`Check.report`."""
    columns = np.arange(len(check.genes))
    rows = np.flatnonzero(check.inside)
    attainable = check.attainable(progress=progress)
    progress.stage("scoring genes", 1)
    truth = check._truth(columns)[rows]
    measured = Measured(
        section_id=check.section.section_id, patient_id=check.section.patient_id, fold=GIVEN, seed=0,
        spot_ids=tuple(check.spot_ids[i] for i in rows), centre_um=check.centre_um[rows], truth=truth,
        predicted=check._map(columns)[rows], attainable=attainable, spread=check.spread[rows],
    )  # fmt: skip
    record, warnings = check.prediction.record, [*check.warnings, _BETWEEN]
    model = record.get("model", {})
    known = set(check.genes)
    hvg50 = [g for g in model.get("hvg50", ()) if g in known]
    if not hvg50:
        hvg50 = [check.genes[i] for i in most_variable(truth, check._counts[rows], N_VARIABLE)]
        warnings.append("the map does not say which genes vary most in training: those of this section are used")
    done = evaluate(
        [measured], check.genes, check.unit, hvg50=hvg50, model=str(model.get("name", "map")), split=check.split,
        intervals=check.intervals, warnings=warnings,
        provenance={
            "model": {k: model.get(k) for k in ("name", "digest", "pcc_split")},
            "slide": record.get("slide", {}),
            "section": {
                "name": check.section.section_id, "fingerprint": check.section.fingerprint,
                "platform": check.section.platform,
            },
            "map": {"tiles": len(check.prediction.tiles), "settings": record.get("settings", {})},
            "versions": record.get("versions", {}),
        },
    )  # fmt: skip
    progress.advance()
    return done


def write(
    check: Check, folder: Path, gene: str | None, regions: Mapping[str, Any], *, progress: Progress = NULL
) -> Path:
    """Write the report; see :meth:`Check.write`."""
    check_folder(folder)
    done = report(check, progress=progress)
    progress.stage("writing the report", 1)
    further = [] if gene is None else [("gene", f"{gene}, as it was looked at", list(_gene(check, gene, regions)))]
    if check.intervals is not None:
        further.append(("calibration", "How far the intervals hold", list(_calibration(check, gene, regions))))
    done.write(folder, kicker=KICKER, further=further)
    progress.advance()
    return folder / HTML_FILE


def _gene(check: Check, gene: str, regions: Mapping[str, Any]) -> Iterator[Html]:
    import shapely

    from napari_peka.training import report_plots as plots
    from napari_peka.training.report_page import element, picture, table
    from napari_peka.training.report_words import cell, number
    from napari_peka.workflows.calibration import moran_words
    from napari_peka.workflows.check_places import OUTLINES

    spots = plots.GeneMap(check.centre_um, check.measured(gene), check.predicted(gene))
    limits, residual = plots.gene_limits([spots])
    places = check.places(gene)
    mpp = np.array(check.section.slide.mpp)
    rings = [np.asarray(part.exterior.coords)[:, ::-1] * mpp for p in places for part in shapely.get_parts(p.polygon)]
    score = check.score(gene)
    yield picture(
        plots.gene_map(spots, check.unit, limits, residual, rings),
        f"Maps of {gene}, measured, predicted and their difference, and a scatter plot",
        f"{gene}: PCC {number(score['pcc'])} over {int(score['spots'])} spots; places where errors lie together are "
        "outlined in the difference" + ("" if places else ": there are none"),
    )
    rows = []
    for name, where in {"whole section": None, **{n: check.rows_in(r) for n, r in regions.items()}}.items():
        one = check.score(gene, where)
        top = float(check.attainable(where, [gene])[0])
        rows.append((name, int(one["spots"]), *(cell(v) for v in (one["pcc"], top, one["rmse"], one["residual"])),
                     _percent(one["coverage_90"]), cell(one["moran"])))  # fmt: skip
    heads = ("where", "spots", "PCC", "attainable", "RMSE", "mean of measured − predicted", "in 90 %", "Moran's I")
    yield table(heads, rows, caption=f"{gene}, {check.unit}")
    before = f"On data left out of training{split_words(check.prediction)}"
    yield element("p", f"{before}: {gene_words(check.prediction.head, gene)}.")
    if said := moran_words(score["moran"]):
        yield element(
            "p",
            "Moran's I of measured − predicted, from −1 to 1, says whether errors lie together: "
            f"{number(score['moran'])} over the whole section, {said}.",
        )
    if places:
        body = [
            (k, p.kind, len(p.rows), cell(p.residual), *(f"{v:,.0f}" for v in check.centre_um[p.rows].mean(0)[::-1]))
            for k, p in enumerate(places, 1)
        ]
        of_place = ("place", "measured is", "spots", "mean difference", "x, µm", "y, µm")
        yield table(of_place, body, caption=f"Where errors of {gene} lie together")
    yield element("p", OUTLINES)


def _calibration(check: Check, gene: str | None, regions: Mapping[str, Any]) -> Iterator[Html]:
    from napari_peka.training import report_plots as plots
    from napari_peka.training.report_page import element, picture, table
    from napari_peka.workflows.calibration import MEANING, calibrations

    where = {"whole section": None, **{n: check.rows_in(r) for n, r in regions.items()}}
    found = calibrations(check, where)
    whole = found["whole section"]
    at = None if gene is None else check.index(gene)
    if whole.fitted:
        yield element("p", element("strong", f"{whole.fitted[:1].upper()}{whole.fitted[1:]}."))
    if at is not None:
        yield element("p", f"{gene}: {whole.in_words(at)}.")
    yield element("p", f"All {whole.genes:,} genes that vary here: {whole.in_words()}.")
    of_gene = None if at is None else whole.held[:, at]
    said = "Share of measured spots within the intervals of a level, beside the level"
    yield picture(plots.calibration(whole.levels, whole.mean, whole.around, of_gene), said, MEANING)
    rows: list[tuple[object, ...]] = []
    for name, part in found.items():
        own = np.empty((len(part.levels), 0)) if at is None else part.held[:, [at]]
        shares = np.column_stack([own, part.mean, *part.around])
        rows += [(name, part.spots, f"{v:.0%}", *map(_percent, row)) for v, row in zip(part.levels, shares)]
    heads = ("where", "spots", "should hold", *(() if gene is None else (f"{gene} holds",)), "all genes hold",
             "a tenth of them less than", "a tenth more than")  # fmt: skip
    yield table(heads, rows, caption="Share of measured spots within the map's intervals")


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else ""
