"""The table of a benchmark as one HTML file: what each adapter gains over the same encoder frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_peka.core import files
from napari_peka.training import report_plots as plots
from napari_peka.training import report_words as words
from napari_peka.training.report_page import Html, caution, element, markup, page, picture, section, table
from napari_peka.training.report_words import count, number, percent

KICKER = "Comparison of encoders, adapters and features"
#: by this the adapters of the paper are said to be better than the frozen encoder (arXiv 2504.07061)
PAPER_GAIN_PERCENT = 5.0
_NAMES = ("encoder", "adapter", "features", "averaging", "context", "head", "protocol")
_COLUMNS = {
    **{name: name for name in _NAMES},
    "pcc": "PCC", "pcc_sd": "sd", "pcc_ci95": "95 % interval", "share_of_attainable": "of attainable",
    "frozen_pcc": "same encoder frozen", "difference": "difference", "difference_ci95": "95 % interval of it",
    "gain_percent": "gain, %", "gain_percent_ci95": "95 % interval of it", "genes_improved": "genes better",
    "pcc_random_split": "PCC with spots at random", "random_split_flatters": "flattered by",
}  # fmt: skip
#: letters of a row's label in the figure
_LABEL = 50
_SIGNED = ("difference", "gain_percent", "random_split_flatters")


def write_comparison_html(
    comparison: pd.DataFrame,
    path: Path,
    *,
    title: str = "Benchmark",
    split: str = "",
    provenance: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write a comparison as one HTML file.

    Parameters
    ----------
    comparison
        From :func:`napari_peka.training.compare.compare`.
    path
        Where to write; whole or not at all.
    title
        Heading of the page.
    split
        In words: what was held out.
    provenance
        What made these numbers, such as command, settings, versions.
    warnings
        What a reader must know.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    rows = comparison.to_dict("records")
    parts = [("table", "All ways to predict", [_figure(comparison), _table(rows)] if rows else [])]
    record = list(words.flat(dict(provenance or {}))) if provenance else []
    if record:
        settings = table(("what", "value"), record, kind="words", caption="Settings and origin")
        parts.append(("record", "How these numbers were made", [settings]))
    parts.append(("meaning", "What the words mean", [_meanings()]))
    shown = [part for part in parts if part[2]]
    whole = page(
        title, KICKER, [section(anchor, heading, *content) for anchor, heading, content in shown],
        [(anchor, heading) for anchor, heading, _ in shown], _top(rows, split, warnings),
    )  # fmt: skip
    files.write_whole(path, whole.encode("utf-8"))


def _top(rows: list[dict[str, Any]], split: str, warnings: Sequence[str]) -> Html:
    verdict = element("div", *(element("p", text) for text in _verdict(rows, split)), class_="verdict")
    why = []
    if any(row["protocol"] == "paper" for row in rows):
        why.append("in rows of the protocol paper, test spots have neighbours that were trained on")
    if any(row["smoothed"] for row in rows):
        why.append("measured values were averaged with those of neighbouring spots")
    if why:
        return markup(caution(f"Scores are flattered: {'; '.join(why)}.", warnings), verdict)
    return markup(verdict, caution("Read with care", warnings) if warnings else "")


def _verdict(rows: list[dict[str, Any]], split: str) -> Iterator[str]:
    scored = [row for row in rows if math.isfinite(row["pcc"])]
    if not scored:
        yield "Nothing was compared: no way to predict has a score."
        return
    best = max(scored, key=lambda row: row["pcc"])
    share = best["share_of_attainable"]
    of = f", {percent(share)} of what the noise of the measurement allows" if math.isfinite(share) else ""
    yield f"Best: {_called(best)}, mean PCC {number(best['pcc'], 3)}{of}."
    adapted = [row for row in scored if math.isfinite(row["difference"])]
    if adapted:
        yield from _gains(adapted)
    flatters = [row["random_split_flatters"] for row in scored if math.isfinite(row["random_split_flatters"])]
    if flatters:
        by = number(float(np.mean(flatters)))
        yield f"Spots held out at random, as in the paper, would have changed PCC by {by} on average."
    whose = f"{count(best['n_sections'], 'section')} of {count(best['n_patients'], 'patient')}"
    seeds = count(best["n_seeds"], "seed")
    yield f"On {whose}, {seeds}, {count(best['n_genes'], 'gene')}. Split: {split or 'not said'}."


def _gains(adapted: list[dict[str, Any]]) -> Iterator[str]:
    most = max(adapted, key=lambda row: row["difference"])
    low, high = most["difference_ci95"]
    gain = f", that is {most['gain_percent']:+.1f}{words.SPACE}%" if math.isfinite(most["gain_percent"]) else ""
    interval = f"95{words.SPACE}% interval of the PCC {low:+.3f} to {high:+.3f}"
    said = f"{_called(most)}, {most['difference']:+.3f} PCC{gain} ({interval}"
    if most["difference"] <= 0:
        yield f"Nothing is better than the same encoder frozen, averaged and read alike. Nearest to it: {said})."
        return
    sure = "leaves out 0" if low > 0 else "holds 0, so it may be chance"
    luck = f" It was picked from {len(adapted)}, which flatters it." if len(adapted) > 1 else ""
    yield (
        f"Largest gain over the same encoder frozen, under the same averaging, context and head: {said}, which {sure})."
        f"{luck}"
    )
    enough = sum(row["gain_percent"] >= PAPER_GAIN_PERCENT for row in adapted)
    yield (
        f"{enough} of {count(len(adapted), 'adapted way')} to predict gain {PAPER_GAIN_PERCENT:g}{words.SPACE}% or"
        " more, which is what the PEKA paper claims at least (arXiv 2504.07061)."
    )


def _called(row: Mapping[str, Any]) -> str:
    adapter = "frozen" if row["adapter"] == "none" else row["adapter"]
    how = ", ".join(str(t) for t in (row["features"], row["averaging"], row["context"]) if t)
    return f"{row['encoder']}, {adapter} ({how})"


def _table(rows: list[dict[str, Any]]) -> Html:
    names = _differing(rows)
    cells = {c: [_text(c, row[c]) for row in rows] for c in _COLUMNS if c not in _NAMES or c in names}
    shown = [c for c, texts in cells.items() if any(texts)]
    body = [[i + 1, *(cells[c][i] for c in shown)] for i in range(len(rows))]
    same = [f"{_COLUMNS[c]}: {text}" for c in _NAMES if c not in names and (text := _text(c, rows[0][c]))]
    caption = "Means over the most variable genes" + (f". In all rows {'; '.join(same)}" if same else "")
    return table(["row", *(_COLUMNS[c] for c in shown)], body, kind="sortable", caption=caption)


def _differing(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names that tell rows apart."""
    return [c for c in _NAMES if c == "adapter" or len({row[c] for row in rows}) > 1]


def _text(column: str, value: Any) -> str:
    if isinstance(value, str):
        return "frozen" if column == "adapter" and value == "none" else value
    if isinstance(value, tuple):
        low, high = (_text(column, v) for v in value)
        return f"{low} to {high}" if low and high else ""
    if not math.isfinite(value):
        return ""
    if column in ("share_of_attainable", "genes_improved"):
        return percent(value)
    digits = 1 if column.startswith("gain_percent") else 3
    return f"{value:+.{digits}f}" if column.startswith(_SIGNED) else f"{value:.{digits}f}"


def _figure(comparison: pd.DataFrame) -> Html:
    def ends(column: str) -> npt.NDArray[np.float64]:
        return np.array(comparison[column].tolist(), np.float64).reshape(-1, 2)

    frozen = ((comparison["adapter"] == "none") & (comparison["features"] == "image")).to_numpy(bool)
    values, difference = (comparison[c].to_numpy(np.float64) for c in ("pcc", "difference"))
    rows = comparison.to_dict("records")
    names = [c for c in _differing(rows) if c != "head"]
    labels = [
        f"{', '.join(t for c in names if (t := _text(c, row[c])))}  {i}"[-_LABEL:] for i, row in enumerate(rows, 1)
    ]
    png = plots.arms(labels, values, ends("pcc_ci95"), frozen, difference, ends("difference_ci95"))
    caption = (
        "Dots are means, lines 95 % intervals by bootstrap over patients, sections and genes. Intervals of scores may"
        " overlap where the gain is sure: what both find hard cancels in the paired difference on the right."
    )
    return picture(png, "Scores and gains of each row of the table, which holds the same numbers", caption)


def _meanings() -> Html:
    meanings = (
        ("Row", "One encoder, adapter and kind of features, with one way to average and one context."),
        ("Same encoder frozen", "The untrained encoder with the same averaging, context and head tuning. Against any"
         " other an adapter would be credited with what averaging or context give."),
        ("Gain", "Difference of mean PCC to the same encoder frozen, and in percent of it. Seeds are averaged first;"
         " patients, sections and genes are resampled together for both."),
        ("Of attainable", "PCC divided by the noise ceiling: what a perfect prediction would reach against so noisy a"
         " measurement."),
        ("Spots at random", "The paper's 5 folds over shuffled spots, whose test spots have neighbours that were"
         " trained on. Not comparable with sections or patients held out."),
    )  # fmt: skip
    return element("dl", *(markup(element("dt", a), element("dd", b)) for a, b in meanings))
