"""Maps of single genes on held-out sections, for a report: which are shown, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from napari_peka.training import report_plots as plots
from napari_peka.training.metrics import gene_scores
from napari_peka.training.report_page import Html, element, picture
from napari_peka.training.report_words import column, count, grade, is_hvg50, number, percent

if TYPE_CHECKING:
    from napari_peka.training.evaluate import EvaluationReport
    from napari_peka.training.scoring import Measured

#: genes with maps at either end, and sections that each is shown on
MAP_GENES, MAP_SECTIONS = 3, 4


def gene_maps(report: EvaluationReport) -> Iterator[Html]:
    """Yield the maps, or a sentence that says why there are none."""
    if not report.measured:
        yield element("p", "This report was read from disk, where the spots themselves are not kept: no maps.")
        return
    if report.optimistic and len({m.section_id for m in report.measured}) == 1:
        yield element("p", "Spots were shuffled and are not told apart by section, so there is no map.")
        return
    best, worst = _chosen_genes(report)
    if not best:
        yield element("p", "No gene has a score, so there is nothing to draw.")
        return
    names, sections = list(report.genes["gene"]), _chosen_sections(report)
    seeds = sorted({m.seed for m in report.measured})
    n = len({m.section_id for m in report.measured})
    which = (
        f"{len(sections)} of {n} sections, from the best scored to the worst" if len(sections) < n else "each section"
    )
    run = f", by the run with seed {seeds[0]} of {len(seeds)}" if len(seeds) > 1 else ""
    yield element(
        "p",
        f"Shown on {which}{run}. Measured and predicted share one colour scale, so a pale prediction is a timid one. In"
        " the difference, purple is more and orange less than predicted; a cross has no prediction. Spots are drawn"
        " as wide as the distance between them. In the scatter plot a spot on the line is predicted exactly.",
    )
    for genes, title in ((best, "Best predicted"), (worst, "Worst of the most variable genes")):
        for i in genes:
            yield _maps_of(report, i, names[i], title, sections)


def _maps_of(report: EvaluationReport, i: int, gene: str, title: str, sections: dict[str, list[Measured]]) -> Html:
    maps = {
        name: plots.GeneMap(
            np.concatenate([m.centre_um for m in parts]),
            np.concatenate([m.truth[:, i] for m in parts]),
            np.concatenate([m.predicted[:, i] for m in parts]),
        )
        for name, parts in sections.items()
    }
    limits, residual = plots.gene_limits(list(maps.values()))
    pcc, attainable, share, covered = (
        float(column(report, c)[i]) for c in ("pcc", "attainable_pcc", "share_of_attainable", "coverage_90")
    )
    said = [f"{title}: mean PCC {number(pcc)} ({grade(pcc)})"]
    if math.isfinite(share):
        said.append(f"{percent(share)} of the attainable {number(attainable)}")
    if math.isfinite(covered):
        said.append(f"{percent(covered)} of spots lie within the 90 % interval")
    pictures = []
    for name, spots in maps.items():
        n = int(np.isfinite(spots.residual).sum())
        own = gene_scores(spots.truth[:, None], spots.predicted[:, None], ("pcc",))["pcc"][0] if n else math.nan
        what = f"section {name} (patient {sections[name][0].patient_id}): PCC {number(own)} over {count(n, 'spot')}"
        if len(sections[name]) > 1:  # the figure above is a mean over parts
            what += f" of {len(sections[name])} parts together"
        pictures.append(
            picture(
                plots.gene_map(spots, report.unit, limits, residual),
                f"Maps of {gene}, measured, predicted and their difference, and a scatter plot; {what}",
                f"{gene}, {what}",
            )
        )
    return element("article", element("h3", gene), element("p", "; ".join(said) + "."), *pictures)


def _chosen_genes(report: EvaluationReport) -> tuple[list[int], list[int]]:
    """Return rows of the best predicted genes, and of the worst of the most variable ones."""
    pcc, scored = column(report, "pcc"), np.nan_to_num(column(report, "n_scored"))
    # a gene that varies on few of the sections is easily best or worst by chance
    often = np.isfinite(pcc) & (scored >= scored.max(initial=0) / 2)
    order = [int(i) for i in np.argsort(-np.where(often, pcc, -np.inf), kind="stable") if often[i]]
    best, hvg = order[:MAP_GENES], is_hvg50(report)
    rest = [i for i in reversed(order[MAP_GENES:]) if hvg[i] or not hvg.any()]
    return best, rest[:MAP_GENES]


def _chosen_sections(report: EvaluationReport) -> dict[str, list[Measured]]:
    """Return the parts of the sections to draw, from one run; of many sections some between the best and the worst."""
    seed = min(m.seed for m in report.measured)
    parts: dict[str, list[Measured]] = {}
    for m in report.measured:
        if m.seed == seed:
            parts.setdefault(m.section_id, []).append(m)
    if len(parts) <= MAP_SECTIONS:
        return parts
    score = report.sections.groupby("section")["pcc_hvg50"].mean()
    ranked = sorted(parts, key=lambda name: -float(np.nan_to_num(score.get(name, np.nan), nan=-1.0)))
    at = np.linspace(0, len(ranked) - 1, MAP_SECTIONS).round().astype(int)
    return {ranked[k]: parts[ranked[k]] for k in at}
