"""Pictures of an evaluation as PNG: distributions, maps of held-out sections, learning curves, arms side by side.

Text in them is this module's own: names of genes, sections and folds stand in the page, where any script can be shown,
found and copied.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.io.figure import BARS_UM, COLORMAP, contrast_limits
from napari_peka.training.splits import pitch_um

FloatArray = npt.NDArray[np.floating]
#: diverging and readable with colour-blind eyes: orange below zero, purple above
RESIDUAL_MAP = "PuOr"
#: Okabe and Ito, "Color Universal Design", 2008: blue, vermilion, green, purple, orange, sky blue, black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8a8f96"
DPI, WIDTH_IN = 140, 11.0
#: share of a spot's pitch that its disc is drawn wide, so that discs nearly touch
_DISC = 0.92
#: points between spots below which they are drawn as squares
_DENSE_PT = 5.0
#: inches: a map's width and the range of its height; room above, and below for colour bars
_MAP_IN, _GAP_IN, _MAP_HEIGHT_IN, _ABOVE_IN, _BELOW_IN = 2.55, 0.1, (1.4, 3.6), 0.28, 0.62


@dataclass(frozen=True, eq=False)
class GeneMap:
    """One gene on one held-out section.

    Parameters
    ----------
    centre_um
        Spot centres (y, x) in µm, shape ``(n, 2)``.
    truth, predicted
        Shape ``(n,)``; NaN where not known.
    """

    centre_um: npt.NDArray[np.float64]
    truth: FloatArray
    predicted: FloatArray

    @property
    def residual(self) -> FloatArray:
        """Measured less predicted."""
        return np.asarray(self.truth - self.predicted)


def distributions(pcc: FloatArray, attainable: FloatArray, share: FloatArray, hvg50: npt.NDArray[np.bool_]) -> bytes:
    """Draw the genes' PCC, PCC against noise ceiling, and share of attainable, side by side.

    Parameters
    ----------
    pcc, attainable, share
        Of each gene, shape ``(g,)``; NaN where not known.
    hvg50
        The most variable genes, bool ``(g,)``.
    """
    with _figure(3.3) as figure:
        left, middle, right = _row(figure, 3)
        low = min(-0.2, np.floor(10 * np.nanmin(pcc)) / 10) if np.isfinite(pcc).any() else -0.2
        bins = np.arange(low, 1.0001, 0.05)
        ceilings = attainable[np.isfinite(attainable)]
        left.hist(pcc[np.isfinite(pcc)], bins, color=COLOURS[0], alpha=0.85, label="reached")
        if len(ceilings):
            left.hist(ceilings, bins, histtype="step", color="black", linewidth=1.4, label="attainable")
        left.hist(pcc[np.isfinite(pcc) & hvg50], bins, color=COLOURS[4], label="reached, most variable")
        left.set(xlabel="held-out PCC", ylabel="genes", title="How many genes reach what")
        left.set_ylim(top=1.35 * left.get_ylim()[1])
        left.legend(frameon=False, loc="upper right")
        both = np.isfinite(pcc) & np.isfinite(attainable)
        for these, colour, size, name in (
            (both & ~hvg50, COLOURS[0], 5, "other"),
            (both & hvg50, COLOURS[4], 16, "most variable"),
        ):
            middle.scatter(
                attainable[these], pcc[these], s=size, c=colour, linewidths=0.3 if size > 9 else 0, edgecolors="black",
                alpha=0.5 if size < 9 else 1, label=name,
            )  # fmt: skip
        middle.plot([0, 1], [0, 1], color="black", linewidth=1)
        middle.plot([0, 1], [0, 0.5], color="black", linewidth=1, linestyle="--")
        for end, name in ((1, "all"), (0.5, "half")):
            middle.annotate(name, (1, end), xytext=(3, 0), textcoords="offset points", va="center")
        middle.set(xlim=(0, 1), ylim=(low, 1.02), xlabel="attainable PCC", ylabel="held-out PCC")
        middle.set_title("Each gene against its ceiling")
        shares = np.clip(100 * share[np.isfinite(share)], -50, 150)
        right.hist(shares, np.arange(-50, 151, 10), color=COLOURS[0], alpha=0.85)
        variable = np.clip(100 * share[np.isfinite(share) & hvg50], -50, 150)
        right.hist(variable, np.arange(-50, 151, 10), color=COLOURS[4])
        right.set(xlabel="share of attainable, %", ylabel="genes", title="How much of what is possible")
        for axis in (left, right):
            axis.yaxis.get_major_locator().set_params(integer=True)
        for axis, there in ((middle, both.any()), (right, len(shares))):
            if not there:
                _nothing(axis, "no noise ceiling is known")
        return _png(figure)


def gene_map(
    spots: GeneMap, unit: str, limits: tuple[float, float], residual_limit: float,
    outlines: Sequence[npt.NDArray[np.float64]] = (),
) -> bytes:  # fmt: skip
    """Draw a gene on a section: measured, predicted, the difference, and predicted against measured.

    Parameters
    ----------
    spots
        What to draw.
    unit
        Of the values, for the colour bars.
    limits
        Values at the ends of the colour scale of measured and predicted.
    residual_limit
        Value at the ends of the difference's colour scale.
    outlines
        Rings to draw over the difference, (y, x) in µm, each ``(m, 2)``.
    """
    low, high = spots.centre_um.min(0), spots.centre_um.max(0)
    pitch = pitch_um(spots.centre_um) or 100.0
    h, w = high - low + 1.6 * pitch
    h += 0.16 * max(h, w)  # where the scale bar lies
    height = float(np.clip(_MAP_IN * h / w, *_MAP_HEIGHT_IN))
    inches_per_um = min(_MAP_IN / w, height / h)
    panel, step = _MAP_IN / inches_per_um, (_MAP_IN + _GAP_IN) / inches_per_um  # a map's room, and to the next, in µm
    bar = max((b for b in BARS_UM if b <= panel / 3), default=BARS_UM[0])
    total = height + _ABOVE_IN + _BELOW_IN
    with _figure(total) as figure:

        def place(x: float, y: float, w_in: float, h_in: float) -> Any:
            return figure.add_axes((x / WIDTH_IN, y / total, w_in / WIDTH_IN, h_in / total))

        # one pair of axes for the three maps: axes, not spots, are what takes time
        axis = place(0, _BELOW_IN, 3 * _MAP_IN + 2 * _GAP_IN, height)
        axis.set_axis_off()
        axis.set(xlim=(-panel / 2, 2 * step + panel / 2), ylim=(h, 0), aspect="equal", anchor="NW")
        differences = (-residual_limit, residual_limit)
        spots_residual = spots.residual
        panels = (
            ("measured", spots.truth, COLORMAP, limits),
            ("predicted", spots.predicted, COLORMAP, limits),
            ("measured − predicted", spots_residual, RESIDUAL_MAP, differences),
        )
        drawn = []
        for k, (title, values, colours, ends) in enumerate(panels):
            shift = np.array([0.8 * pitch - low[0], k * step - (low[1] + high[1]) / 2])
            drawn.append(_spots(axis, spots.centre_um + shift, values, colours, ends, pitch * inches_per_um * 72))
            above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 10}
            axis.annotate(title, (k * step, 0), **above)
            for ring in outlines if values is spots_residual else ():
                axis.plot(*(ring + shift).T[::-1], color="black", linewidth=1.2)
        _scale_bar(axis, 0.02 * panel - min(panel, w) / 2, h - 0.04 * max(h, w), bar)
        shown = np.concatenate([spots.truth, spots.predicted])
        _colour_bar(figure, place(0.4, 0.42, 2 * _MAP_IN - 0.7, 0.09), drawn[0], unit, shown, limits)
        at = 2 * (_MAP_IN + _GAP_IN) + 0.2
        _colour_bar(figure, place(at, 0.42, _MAP_IN - 0.4, 0.09), drawn[2], unit, spots.residual, differences)
        side = min(height, _MAP_IN - 0.35)
        _agreement(place(WIDTH_IN - side - 0.12, _BELOW_IN + height - side, side, side), spots)
        return _png(figure)


def gene_limits(maps: Sequence[GeneMap]) -> tuple[tuple[float, float], float]:
    """Return one colour scale for measured and predicted, and one for the difference, over all sections shown."""
    limits = contrast_limits(np.concatenate([v for m in maps for v in (m.truth, m.predicted)]))
    residual = np.abs(np.concatenate([m.residual for m in maps]))
    return limits, max(contrast_limits(residual)[1], 1e-6)


@dataclass(frozen=True, eq=False)
class Run:
    """The learning curve of one training: arrays of one length, NaN where not known; `kept` is an epoch, 0 for none."""

    epoch: FloatArray
    train_loss: FloatArray
    val_loss: FloatArray
    val_pcc: FloatArray
    kept: int


def curves(runs: Sequence[Run]) -> bytes:
    """Draw training and held-out loss, and held-out PCC, by epoch; a dot marks the epoch that was kept."""
    with _figure(3.3) as figure:
        left, right = _row(figure, 2)
        told = len(runs) <= len(COLOURS)
        for k, run in enumerate(runs):
            colour = COLOURS[k] if told else COLOURS[0]
            style: dict[str, Any] = {"color": colour, "alpha": 1 if told else 0.4, "marker": "."}
            left.plot(run.epoch, run.train_loss, linestyle=":", label="training" if k == 0 else None, **style)
            left.plot(run.epoch, run.val_loss, label="held out" if k == 0 else None, **style)
            right.plot(run.epoch, run.val_pcc, label=str(k + 1), **style)
            kept = run.epoch == run.kept
            for axis, values in ((left, run.val_loss), (right, run.val_pcc)):
                axis.plot(run.epoch[kept], values[kept], "o", color=colour, markersize=6, markeredgecolor="black")
        left.legend(frameon=False, loc="upper right")
        left.set(xlabel="epoch", ylabel="loss", title="Loss")
        right.set(xlabel="epoch", ylabel="PCC", title="PCC on the part of training that was held out")
        if told and len(runs) > 1:
            right.legend(title="curve", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        if not any(np.isfinite(run.val_pcc).any() for run in runs):
            _nothing(right, "nothing was held out of training")
        for axis in (left, right):
            axis.xaxis.get_major_locator().set_params(integer=True)
        return _png(figure)


def calibration(
    levels: Sequence[float], mean: FloatArray, around: tuple[FloatArray, FloatArray], gene: FloatArray | None
) -> bytes:
    """Draw the share of measured spots within intervals against the share that these should hold.

    Parameters
    ----------
    levels
        Shares that they should hold, ``k``.
    mean, around
        Mean over genes, and between what most of these lie, ``(k,)`` each.
    gene
        Of the one that was looked at; None: of none.
    """
    with _figure(3.6) as figure:
        axis = figure.add_axes((0.65 / WIDTH_IN, 0.16, 5 / WIDTH_IN, 0.8))
        x = 100 * np.asarray(levels)
        axis.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="as promised")
        axis.fill_between(x, 100 * around[0], 100 * around[1], color=COLOURS[0], alpha=0.2, linewidth=0,
                          label="eight in ten genes")  # fmt: skip
        axis.plot(x, 100 * mean, color=COLOURS[0], marker="o", markersize=4, label="mean over genes")
        if gene is not None:
            axis.plot(x, 100 * gene, color=COLOURS[4], marker="o", markersize=4, label="the gene looked at")
        axis.set(xlim=(40, 100), ylim=(0, 102), xlabel="should hold, % of spots", ylabel="do hold, % of spots")
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1))
        return _png(figure)


def arms(
    labels: Sequence[str], values: FloatArray, intervals: FloatArray, frozen: npt.NDArray[np.bool_],
    difference: FloatArray, difference_intervals: FloatArray,
) -> bytes:  # fmt: skip
    """Draw rows of a comparison, first row on top: PCC with interval, and difference to the frozen encoder.

    Parameters
    ----------
    labels
        Of the rows.
    values, difference
        Shape ``(n,)``; NaN where not known.
    intervals, difference_intervals
        Low and high end, shape ``(n, 2)``.
    frozen
        Rows that are a frozen encoder, drawn hollow.
    """
    n = len(values)
    with _figure(1.1 + 0.3 * n) as figure:
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)  # labels of any length
        left, right = figure.subplots(1, 2, sharey=True)
        rows = np.arange(n)
        for axis, middle, ends in ((left, values, intervals), (right, difference, difference_intervals)):
            for solid in (True, False):
                these = (frozen != solid) & np.isfinite(middle)
                axis.hlines(rows[these], ends[these, 0], ends[these, 1], color=COLOURS[0], linewidth=1.6)
                face = COLOURS[0] if solid else "white"
                axis.scatter(middle[these], rows[these], s=36, zorder=3, facecolors=face, edgecolors=COLOURS[0])
            axis.grid(axis="x", color="0.9")
        right.axvline(0, color="black", linewidth=1)
        left.set(yticks=rows, yticklabels=labels, ylim=(n - 0.4, -0.6))
        left.set(xlabel="PCC, most variable genes", title="Score (hollow: frozen encoder)")
        right.set(xlabel="difference of PCC", title="Gain over the same encoder frozen")
        return _png(figure)


@contextmanager
def _figure(height_in: float) -> Iterator[Any]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "font.family": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
        "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False,
        "text.usetex": False,
    }  # fmt: skip
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in a unit, no reason to fail
        figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def _row(figure: Any, n: int) -> Any:
    """Return `n` axes side by side, with room for labels; laid out by hand, which halves the time to draw."""
    room = {"left": 0.65 / WIDTH_IN, "right": 1 - 0.55 / WIDTH_IN, "bottom": 0.16, "top": 0.9}
    return figure.subplots(1, n, gridspec_kw={**room, "wspace": 0.34 if n == 3 else 0.22})


def _png(figure: Any) -> bytes:
    from PIL import Image

    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    out = io.BytesIO()
    image.quantize(palette=_palette(), dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue()


@cache
def _palette() -> Any:
    """Return the 256 colours that plots are stored in: a third of the size, and the maps' colours are among them."""
    import matplotlib
    from matplotlib.colors import to_rgb
    from PIL import Image

    maps = [matplotlib.colormaps[name](np.linspace(0, 1, 86))[:, :3] for name in (COLORMAP, RESIDUAL_MAP)]
    # single colours fade to the white that they lie on
    fades = [1 - np.linspace(0.125, 1, 8)[:, None] * (1 - np.array(to_rgb(c))) for c in COLOURS[:-1]]
    greys = np.linspace(0, 1, 36)[:, None].repeat(3, 1)
    image = Image.new("P", (1, 1))
    image.putpalette((255 * np.concatenate([*maps, *fades, greys])).round().astype(np.uint8).tobytes())
    return image


def _nothing(axis: Any, why: str) -> None:
    axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", va="center", color="0.4")


def _spots(
    axis: Any, centre_um: npt.NDArray[np.float64], values: FloatArray, colours: str, ends: tuple[float, float],
    pitch: float,
) -> Any:  # fmt: skip
    """Draw spots `pitch` points apart; where they are many as squares that touch, which a PNG holds in little room."""
    known = np.isfinite(values)
    (y, x), unknown = centre_um[known].T, centre_um[~known]
    axis.scatter(unknown[:, 1], unknown[:, 0], s=(0.5 * pitch) ** 2, marker="x", color="0.6", linewidths=0.6)
    style: dict[str, Any] = {"s": (_DISC * pitch) ** 2, "linewidths": 0.25, "edgecolors": "0.55"}
    if pitch < _DENSE_PT:
        style = {"s": (1.05 * pitch) ** 2, "linewidths": 0, "marker": "s", "antialiased": False}
    return axis.scatter(x, y, c=values[known], cmap=colours, vmin=ends[0], vmax=ends[1], **style)


def _scale_bar(axis: Any, x: float, y: float, um: float) -> None:
    axis.plot([x, x + um], [y, y], color="black", linewidth=2.5, solid_capstyle="butt")
    label = f"{um:g} µm" if um < 1000 else f"{um / 1000:g} mm"
    axis.annotate(label, (x + um, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)


def _colour_bar(figure: Any, axis: Any, drawn: Any, unit: str, values: FloatArray, ends: tuple[float, float]) -> None:
    finite = values[np.isfinite(values)]
    below, above = bool((finite < ends[0]).any()), bool((finite > ends[1]).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = figure.colorbar(drawn, cax=axis, orientation="horizontal", extend=extend)
    bar.set_label(unit, labelpad=1, fontsize=8)
    bar.ax.tick_params(labelsize=8, pad=1, length=2)
    bar.locator.set_params(nbins=6)
    bar.formatter.set_useOffset(False)


def _agreement(axis: Any, spots: GeneMap) -> None:
    both = np.isfinite(spots.residual)
    t, p = spots.truth[both], spots.predicted[both]
    axis.scatter(t, p, s=9 if len(t) < 1000 else 3, c=COLOURS[0], alpha=0.6 if len(t) < 1000 else 0.3, linewidths=0)
    if len(t):
        low, high = float(min(t.min(), p.min())), float(max(t.max(), p.max()))
        pad = 0.05 * (high - low) or 0.5
        axis.plot([low, high], [low, high], color="black", linewidth=0.8)
        axis.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad))
    axis.set(aspect="equal", xlabel="measured", ylabel="predicted")
    axis.tick_params(labelsize=8)
    for side in (axis.xaxis, axis.yaxis):
        side.get_major_locator().set_params(nbins=5)
