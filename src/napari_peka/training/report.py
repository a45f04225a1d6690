"""The report of an evaluation as one HTML file, for who has to believe it or not.

It needs nothing but itself, offline, on paper, without scripts. What is read first is said in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from napari_peka.core import files
from napari_peka.training import report_plots as plots
from napari_peka.training import report_words as words
from napari_peka.training.report_comparison import write_comparison_html
from napari_peka.training.report_maps import gene_maps
from napari_peka.training.report_page import Html, caution, element, markup, page, picture, section, table
from napari_peka.training.report_words import Score, cell, column, count, number, percent

if TYPE_CHECKING:
    from napari_peka.training.evaluate import EvaluationReport

__all__ = ["write_comparison_html", "write_html"]

#: an anchor, a title, and the content under it
Part = tuple[str, str, Iterable[Html]]
KICKER = "Evaluation of predicted gene expression"
#: heads of tables: column, words
_GENE_COLUMNS = (
    ("pcc", "PCC"), ("pcc_sd", "sd"), ("attainable_pcc", "attainable"), ("share_of_attainable", "share"),
    ("spearman", "Spearman"), ("r2", "R²"), ("mse", "MSE"), ("mae", "MAE"), ("cosine", "cosine"), ("kl", "KL"),
    ("coverage_90", "in 90 %"), ("n_scored", "scored in"),
)  # fmt: skip
_SECTION_COLUMNS = (
    ("section", "section"), ("patient", "patient"), ("fold", "fold"), ("seed", "seed"), ("n_spots", "spots"),
    ("pcc_hvg50", "PCC"), ("attainable_hvg50", "attainable"), ("share_of_attainable_hvg50", "share"),
    ("pcc_all", "PCC, all genes"), ("mse_hvg50", "MSE"), ("coverage_90", "in 90 %"), ("n_constant", "genes not scored"),
)  # fmt: skip
_METRICS = {
    "spearman": "Spearman correlation", "mse": "mean squared error", "mae": "mean absolute error",
    "r2": "R² (1: perfect, 0: the section's mean)", "cosine": "cosine similarity", "kl": "KL divergence, nats",
}  # fmt: skip
_MEANINGS = (
    ("PCC", "Pearson correlation of measured and predicted values over the spots of one held-out section, then averaged"
     " over sections. 1 is perfect, 0 is chance. From 0.5 it is called good here, from 0.3 fair, from 0.15 weak."),
    ("Attainable", "The noise ceiling: the PCC that a perfect prediction of the true expression would reach, since the"
     " measurement itself scatters. Counts are split at random into halves and the halves compared. The share of"
     " attainable is the PCC divided by it."),
    ("Most variable genes", "The genes (50, where there are as many) of greatest variance over the training spots:"
     " those with most to predict. The genes of a panel that hardly vary pull a mean over all genes down."),
    ("95 % interval", "By bootstrap over patients, sections and genes, as far as there are several."),
    ("In 90 %", "Share of held-out spots whose measurement lies within the model's own 90 % interval. Near 90 % is"
     " right; less means that the model is surer than it should be."),
    ("Baselines", "What needs no look at structure: the mean of the training spots (correlates with nothing, so its MSE"
     " counts), the mean and spread of a tile's colours, and the position in the tissue."),
)  # fmt: skip


def write_html(
    report: EvaluationReport, path: Path, *, beside: EvaluationReport | None = None, kicker: str = KICKER,
    further: Sequence[Part] = (),
) -> None:  # fmt: skip
    """Write the report as one HTML file.

    Parameters
    ----------
    report
        What to show.
    path
        Where to write; whole or not at all. The same report gives the same bytes with the same libraries.
    beside
        The same model judged under another split, such as spots at random, to be shown side by side.
    kicker
        What kind of report this is, above its title.
    further
        More sections to show first: anchor, title, and what is in it.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    parts = (
        *further,
        ("baselines", "Against baselines and noise", _baselines(report)),
        ("splits", "Two ways to split", [_two_splits(report, beside)] if beside else []),
        ("genes", "All genes", _all_genes(report)),
        ("maps", "Maps of the best and the worst genes", gene_maps(report)),
        ("sections", "Section by section", _sections(report)),
        ("curves", "Learning curves", _curves(report)),
        ("table", "Gene by gene", _gene_table(report)),
        ("record", "How these numbers were made", _record(report)),
        ("meaning", "What the words mean", [_meanings()]),
    )
    shown = [(anchor, title, list(content)) for anchor, title, content in parts]
    shown = [part for part in shown if part[2]]
    whole = page(
        report.model, kicker, [section(anchor, title, *content) for anchor, title, content in shown],
        [(anchor, title) for anchor, title, _ in shown], _top(report),
    )  # fmt: skip
    files.write_whole(path, whole.encode("utf-8"))


def _top(report: EvaluationReport) -> Html:
    verdict = element("div", *(element("p", text) for text in words.verdict(report)), class_="verdict")
    if why := words.flattered(report):  # said before the number is
        return markup(caution(f"These scores are flattered: {why}.", report.warnings), verdict)
    return markup(verdict, caution("Read with care", report.warnings) if report.warnings else "")


def _baselines(report: EvaluationReport) -> Iterator[Html]:
    summary = report.summary
    ceiling = Score.of(summary.get("attainable_hvg50"))
    rows = [
        (words.BASELINE_NAMES.get(name, name), Score.of((value or {}).get("pcc_hvg50")),
         Score.of((value or {}).get("mse_hvg50")), "other")
        for name, value in (summary.get("baselines") or {}).items()
    ]  # fmt: skip
    own = len(rows)
    rows.append((report.model, Score.of(summary.get("pcc_hvg50")), Score.of(summary.get("mse_hvg50")), "model"))
    rows.append(("attainable (noise ceiling)", ceiling, Score(), "ceiling"))
    body = []
    for name, pcc, mse, kind in rows:
        share = pcc.mean / ceiling.mean if ceiling.mean > 0 and kind != "ceiling" else math.nan
        of = percent(share) if math.isfinite(share) else ""
        body.append((name, _bar(pcc, kind), cell(pcc.mean), cell(pcc.sd), pcc.interval, of, cell(mse.mean)))
    scale = element("th", "PCC on a scale from 0 to 1", scope="col", class_="bar")
    heads = ("prediction", scale, "PCC", "sd", "95 % interval", "of attainable", "MSE")
    over = words.genes_in_words(len(report.hvg50))
    yield table(heads, body, own=own, caption=f"Means over {over}, {report.unit}")
    means = [(name, Score.of(summary.get(f"{key}_hvg50"))) for key, name in _METRICS.items()]
    means += [
        ("PCC over all genes", Score.of(summary.get("pcc_all"))),
        ("share of spots within the 90 % interval", Score.of(summary.get("coverage_90"))),
    ]
    known = [(name, cell(score.mean), cell(score.sd)) for name, score in means if score.known]
    if known:
        over_what = summary.get("sd_over") or "held-out parts"
        yield table(("measure of the model", "mean", "sd"), known, caption=f"Other measures (sd over {over_what})")


def _bar(score: Score, kind: str) -> Html:
    if not score.known:
        return element("td", class_="bar")

    def at(value: float) -> str:
        return f"{100 * min(max(value, 0.0), 1.0):.1f}"

    marks = [element("rect", x=0, y=1, width=at(score.mean), height=8, class_=f"bar-{kind}")]
    if score.interval:
        marks.append(element("line", x1=at(score.low), x2=at(score.high), y1=5, y2=5, class_="bar-ci"))
    drawing = element("svg", *marks, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")
    return element("td", drawing, class_="bar")


def _two_splits(report: EvaluationReport, beside: EvaluationReport) -> Html:
    first, second = sorted((report, beside), key=lambda r: r.optimistic)
    rows = []
    for key, name in (("pcc_hvg50", "PCC, most variable genes"), ("pcc_all", "PCC, all genes"),
                      ("share_of_attainable_hvg50", "share of attainable")):  # fmt: skip
        a, b = (Score.of(r.summary.get(key)).mean for r in (first, second))
        rows.append((name, cell(a), cell(b), cell(b - a)))
    flatters = second.optimistic and not first.optimistic
    heads = ("", first.split, second.split, "flattered by" if flatters else "second less first")
    return table(heads, rows, caption="The same model, judged under two ways to hold spots out")


def _all_genes(report: EvaluationReport) -> Iterator[Html]:
    pcc, attainable, share = (column(report, c) for c in ("pcc", "attainable_pcc", "share_of_attainable"))
    hvg = words.is_hvg50(report)
    if not np.isfinite(pcc).any():
        yield element("p", "No gene has a score, so there is nothing to draw.")
        return
    known = pcc[np.isfinite(pcc)]
    low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
    said = (
        f"PCC of {count(len(known), 'gene')}: half lie above {number(middle)}, nine in ten between {number(low)} and "
        f"{number(high)}."
    )
    missing = f" {count(len(pcc) - len(known), 'gene')} could not be scored." if len(known) < len(pcc) else ""
    yield picture(
        plots.distributions(pcc, attainable, share, hvg), f"Histograms and a scatter plot. {said}",
        f"{said}{missing} Orange: the most variable genes. Black outline and lines: what noise allows.",
    )  # fmt: skip
    grades = np.array([words.grade(v) for v in pcc])
    rows = [
        (word, f"from {least:g}" if math.isfinite(least) else "below", int((grades == word).sum()),
         int((hvg & (grades == word)).sum()))
        for least, word in words.GRADES
    ]  # fmt: skip
    rows.append(("not scored", "", int((grades == "not scored").sum()), int((hvg & (grades == "not scored")).sum())))
    yield table(("called", "PCC", "genes", "of the most variable"), rows, caption="How many genes are predicted well")


def _sections(report: EvaluationReport) -> Iterator[Html]:
    frame = report.sections
    wanted = list(_SECTION_COLUMNS)
    wanted[6:6] = [
        (key, words.BASELINE_NAMES.get(name, name)) for key in frame if (name := key.removeprefix("pcc_hvg50_")) != key
    ]
    there = [(key, head) for key, head in wanted if key in frame]
    if not len(frame) or not there:
        return
    rows = ([cell(row[key]) for key, _ in there] for row in frame.to_dict("records"))
    over = words.genes_in_words(len(report.hvg50))
    caption = f"Each held-out part by itself; PCC of model and baselines, ceiling and MSE over {over}"
    yield table([head for _, head in there], rows, kind="sortable", caption=caption)


def _curves(report: EvaluationReport) -> Iterator[Html]:
    if not report.curves:
        return
    frame = pd.DataFrame(list(report.curves))
    for key in ("fold", "seed"):
        if key not in frame:
            frame[key] = ""
    runs, rows = [], []
    marked = "kept" in frame
    for (fold, seed), own in frame.groupby(["fold", "seed"], sort=False, dropna=False):
        own = own.sort_values("epoch")
        epoch, train, val, pcc = (
            pd.to_numeric(own[c], errors="coerce").to_numpy(float) if c in own else np.full(len(own), np.nan)
            for c in ("epoch", "train_loss", "val_loss", "val_pcc")
        )
        if marked:
            at = int(np.argmax(own["kept"].fillna(False).to_numpy(bool)))
        else:
            at = int(np.nanargmin(val)) if np.isfinite(val).any() else len(own) - 1
        runs.append(plots.Run(epoch, train, val, pcc, int(epoch[at])))
        rows.append((len(runs), fold, seed, len(own), int(epoch[at]), cell(val[at]), cell(pcc[at])))
    dot = "The dot is the epoch that was kept." if marked else "The dot is the epoch of the lowest held-out loss."
    yield picture(
        plots.curves(runs), f"Learning curves of {count(len(runs), 'training')}.",
        f"Dotted: training; solid: the part of the training spots by which the best epoch is chosen. {dot}",
    )  # fmt: skip
    heads = ("curve", "fold", "seed", "epochs", "epoch of the dot", "loss there", "PCC there")
    yield table(heads, rows, caption="The curves, and where each stood at its dot")


def _gene_table(report: EvaluationReport) -> Iterator[Html]:
    frame = report.genes
    there = [(key, head) for key, head in _GENE_COLUMNS if key in frame]
    order = np.argsort(-np.nan_to_num(column(report, "pcc"), nan=-np.inf), kind="stable")
    hvg, names = words.is_hvg50(report), frame["gene"].to_numpy(object)
    columns = [[cell(v) for v in frame[key].to_numpy()[order].tolist()] for key, _ in there]
    mark = ["yes" if h else "" for h in hvg[order]]
    rows = zip(names[order], mark, *columns)
    yield element(
        "p",
        "Best first. Click a head to sort, type to find a gene. The same table with all digits is in genes.csv.",
        class_="find",
    )
    if len(frame) > 100:
        yield element(
            "p", f"On paper: the first 100 of {len(frame):,} genes; all are in genes.csv.", class_="paper-only"
        )
    heads = ["gene", "most variable", *(head for _, head in there)]
    yield table(heads, rows, kind="sortable searchable long", caption=f"Scores of each gene, {report.unit}")


def _record(report: EvaluationReport) -> Iterator[Html]:
    first = [("model", report.model), ("unit", report.unit), ("split", report.split), ("spots", f"{report.n_spots:,}")]
    first += [("genes", f"{len(report.genes):,}"), ("most variable genes", ", ".join(report.hvg50) or "none")]
    yield table(
        ("what", "value"), [*first, *words.flat(report.provenance)], kind="words", caption="Settings and origin"
    )


def _meanings() -> Html:
    return element("dl", *(markup(element("dt", a), element("dd", b)) for a, b in _MEANINGS))
