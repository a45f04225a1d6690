"""A picture of a map that a person can open: slide, heat, colour bar with unit, scale bar."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.core.errors import Undecodable
from napari_peka.core.geometry import Rect, TileTable
from napari_peka.core.raster import Raster
from napari_peka.io.prediction import RESEARCH_USE, Prediction
from napari_peka.io.statistics import SCORE_UNIT, gene_set_score, known_genes
from napari_peka.io.trust import gene_trust, percent, trust_text, unlike, unlike_share

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: perceptual and readable with colour-blind eyes, dark at the low end
COLORMAP = "magma"
#: percentiles between which colours are spread: single extreme tiles do not bleach the map
CONTRAST = (2.0, 98.0)
#: height by width below which slide and map stand one above the other
WIDE = 0.45
#: inches: width of the picture, and the most that a panel may be high
WIDTH_IN, PANEL_IN = 13.0, 11.0
DPI = 200
#: share of the slide's area below which the picture shows only the region that was predicted
CLOSER = 0.25
#: of the map over the slide
OPACITY = 0.75
REGION_COLOUR = "#00692b"
#: where a title's line ends when it is short of room
_BREAK = "\n("
#: inches of a title's letter, on the wide side
CHAR_IN = 0.125
#: the same of the small print below
SMALL_CHAR_IN = 0.08
#: inches of a title's line
LINE_IN = 0.25
#: lengths a scale bar may have, µm
BARS_UM = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)
#: share of a map unlike the training data from which on its title says so
_MOSTLY = 0.5
#: samples along a tile's side by which hatching is drawn
_A_TILE = 6
#: where each kind of file says what it is not for
_NOTICE = {".png": "Disclaimer", ".svg": "Description", ".pdf": "Subject"}
#: fonts with the letters that matplotlib's own lacks, on the platforms that have them
_FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC", "Arial Unicode MS",
    "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
)  # fmt: skip


def contrast_limits(values: npt.NDArray[Any], percentiles: tuple[float, float] = CONTRAST) -> tuple[float, float]:
    """Return the values at two percentiles, widened when they are equal; NaN is left out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite, percentiles)
    rounding = 1e-6 * max(abs(low), abs(high))
    return (float(low), float(high)) if high - low > rounding else (float(low) - 0.5, float(low) + 0.5)


def set_trust_text(prediction: Prediction, genes: Sequence[str]) -> str:
    """Return in words how many genes of a set the model knows, and how far to believe them on average."""
    found, head = known_genes(prediction, genes)[0], prediction.head
    pcc = np.array([np.nan if head.pcc is None else head.pcc[head.index(g)] for g in found])
    measured = pcc[np.isfinite(pcc)]
    trust = trust_text(float(measured.mean()) if len(measured) else None)
    unshown = int((~head.predictable[[head.index(g) for g in found]]).sum())
    also = f"; {unshown} of them not shown to be predicted" if unshown else ""
    return f"{len(found)} of {len(genes)} genes, on average {trust}{also}"


class Shown(NamedTuple):
    """What a figure shows: its name, its values with their unit, and how far to believe them."""

    name: str
    raster: Raster
    trust: str


def write_map(
    prediction: Prediction,
    slide: Slide | None,
    gene: str,
    path: Path | str,
    *,
    gene_set: Sequence[str] | None = None,
    regions: Mapping[str, Any] | None = None,
    max_px: int = 1600,
    colormap: Any = COLORMAP,
    limits: tuple[float, float] | None = None,
) -> Path:
    """Write a figure of the predicted map of `gene` beside the slide that it lies on.

    Parameters
    ----------
    prediction
        From :func:`predict` or :func:`read_prediction`.
    slide
        The slide; its thumbnail is shown. None: the map alone.
    gene
        Symbol or Ensembl id; with `gene_set` the set's name.
    gene_set
        Genes whose score is shown instead of one gene's values: :func:`gene_set_score`.
    regions
        shapely polygons in level-0 pixels, x first, by name: outlined.
    path
        Where to write, by its ending as PNG, SVG or PDF.
    max_px
        Longer side of the slide's picture.
    colormap
        Name of a matplotlib colour map, or one; with opacities of its own these count.
    limits
        Values of the lowest and the highest colour, in the map's unit; None: the 2nd and 98th percentile.

    Raises
    ------
    UnknownName
        If the model does not know the gene.
    StoreError
        If the file cannot be written; nothing is left under its name.
    """
    import matplotlib

    path = Path(path)
    shown = gene_shown(prediction, gene) if gene_set is None else set_shown(prediction, gene, gene_set)
    settings = {"font.family": _fonts(), "font.size": 12, "text.parse_math": False, "text.usetex": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box in a title, no reason to fail
        figure = draw_map(prediction, slide, shown, max_px, colormap, limits, regions)
        told = {_NOTICE[kind]: RESEARCH_USE} if (kind := path.suffix.lower()) in _NOTICE else None
        files.write_beside(path, lambda p: figure.savefig(p, dpi=DPI, metadata=told))
    return path


def gene_shown(prediction: Prediction, gene: str) -> Shown:
    """Return a gene's values and trust."""
    head = prediction.head
    name = head.genes[head.index(gene)]
    return Shown(name, prediction.raster(name), f"{gene_trust(head, name)}{_not_here(prediction)}")


def set_shown(prediction: Prediction, name: str, genes: Sequence[str]) -> Shown:
    """Return the score of a set of genes, and how far to believe them on average."""
    raster = prediction.tiles.raster(gene_set_score(prediction, genes), SCORE_UNIT)
    return Shown(name, raster, set_trust_text(prediction, genes))


def draw_map(
    prediction: Prediction, slide: Slide | None, shown: Shown, max_px: int, colormap: Any = COLORMAP,
    limits: tuple[float, float] | None = None, regions: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Return the figure of :func:`write_map`."""
    name, raster, trust = shown
    shape = prediction.record["slide"]["shape"] if slide is None else slide.shape
    view = _view(prediction.tiles, (shape[0], shape[1]))
    whole = view == Rect(0, 0, *shape)
    figure, axes, stacked = _figure(view.h / view.w, 1 if slide is None else 2)
    left, right = axes[0], axes[-1]
    if slide is not None:
        image, seen = (slide.thumbnail(max_px), view) if whole else _closer(slide, view, max_px)
        extent = (seen.x, seen.x1, seen.y1, seen.y)
        left.imshow(image, extent=extent, interpolation="antialiased")
        # pale and grey: what is pink on the right is the map's pink, not eosin's
        right.imshow(255 - (255 - image.mean(2)) * 0.7, extent=extent, cmap="gray", vmin=0, vmax=255)
    (y0, x0), (sy, sx), (h, w) = raster.origin_yx, raster.scale_yx, raster.data.shape
    low, high = limits or contrast_limits(raster.data)
    heat = right.imshow(
        np.ma.masked_invalid(raster.data), extent=(x0, x0 + w * sx, y0 + h * sy, y0), cmap=colormap, vmin=low,
        vmax=high, alpha=None if _has_opacities(colormap) else OPACITY, interpolation="nearest",
    )  # fmt: skip
    _hatch(right, prediction)
    for axis in axes:
        axis.set_axis_off()
        axis.set_xlim(view.x, view.x1)
        axis.set_ylim(view.y1, view.y)
        for region in (regions or {}).items():
            _outline(axis, *region)
    where: dict[str, Any] = {"orientation": "horizontal", "aspect": 40} if stacked else {"fraction": 0.05, "aspect": 25}
    bar = figure.colorbar(heat, ax=right, pad=0.02, extend=_beyond(raster.data, low, high), **where)
    bar.set_label(f"{name} ({raster.units})")
    bar.formatter.set_useOffset(False)
    room = int(figure.get_figwidth() / (1 if stacked else len(axes)) / CHAR_IN)
    on = _shortened(prediction.record["slide"]["name"] if slide is None else slide.name, room - 8)
    title = on if whole else f"{on}, region"
    if slide is not None:
        left.set_title(title, fontsize=13)
    what = f"{_shortened(name, room - 12)}, predicted\n{trust if room > 40 else trust.replace(' (', _BREAK)}"
    heading = what if slide is not None else f"{title}\n{what}"
    right.set_title(heading, fontsize=13)
    figure.set_figheight(figure.get_figheight() + LINE_IN * max(0, heading.count("\n") - 1))
    _scale_bar(left, view, prediction.tiles.slide_mpp[1])
    footer = textwrap.fill(_footer(prediction), int(figure.get_figwidth() / SMALL_CHAR_IN))
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=10, color="0.3")
    return figure


def _hatch(axis: Any, prediction: Prediction) -> None:
    """Hatch the tiles that are unlike the training data, dark upon light, so that they are seen on any colour."""
    import matplotlib

    odd = unlike(prediction)
    if not odd.any():
        return
    raster = prediction.tiles.raster(odd.astype(np.float32))
    (y0, x0), (sy, sx) = raster.origin_yx, raster.scale_yx
    # contours run between samples: several a tile keep to its square
    mask = np.kron(np.pad(np.nan_to_num(raster.data), 1), np.ones((_A_TILE, _A_TILE)))
    y, x = ((np.arange(n) + 0.5) / _A_TILE - 1 for n in mask.shape)
    for colour, wide in (("white", 2.4), ("black", 1.0)):
        with matplotlib.rc_context({"hatch.linewidth": wide}):
            drawn = axis.contourf(x0 + x * sx, y0 + y * sy, mask, levels=[0.5, 2], colors="none", hatches=["///"])
            drawn.set_edgecolor(colour)
            drawn.set_linewidth(0)


def _has_opacities(colormap: Any) -> bool:
    return callable(colormap) and bool((np.asarray(colormap(np.linspace(0, 1, 16)))[:, 3] < 1).any())


def _outline(axis: Any, name: str, region: Any) -> None:
    """Draw a region's rings and its name, readable on tissue and on a map."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]
    for part in getattr(region, "geoms", [region]):
        for ring in (part.exterior, *part.interiors):
            axis.plot(*np.asarray(ring.coords).T[:2], color=REGION_COLOUR, linewidth=1.5, path_effects=halo)
    x, y, x1, _ = region.bounds
    axis.annotate(
        name, ((x + x1) / 2, y), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=10,
        color=REGION_COLOUR, path_effects=halo, clip_on=True, annotation_clip=True,
    )  # fmt: skip


def _view(tiles: TileTable, shape: tuple[int, int]) -> Rect:
    """Return what to show, in level-0 pixels: the slide, or the tiles and their surroundings where they are few."""
    (y, x), (h, w) = tiles.centre_yx.min(0), np.ptp(tiles.centre_yx, axis=0)
    margin = max(h, w) * 0.15 + 1.5 * max(tiles.size0_yx)
    y0, x0 = max(0.0, y - margin), max(0.0, x - margin)
    view = Rect(y0, x0, min(shape[0], y + h + margin) - y0, min(shape[1], x + w + margin) - x0)
    return view if view.h * view.w < CLOSER * shape[0] * shape[1] else Rect(0, 0, *shape)


def _closer(slide: Slide, view: Rect, max_px: int) -> tuple[npt.NDArray[np.uint8], Rect]:
    """Return the image of a part of the slide, and the rectangle that it covers."""
    mpp = max(view.h * slide.mpp[0], view.w * slide.mpp[1]) / max_px
    try:
        return slide.read_block(view, max(mpp, *slide.mpp)), view
    except Undecodable:
        return slide.thumbnail(max_px), Rect(0, 0, *slide.shape)


def _fonts() -> list[str]:
    from matplotlib import font_manager

    here = {f.name for f in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(f for f in _FALLBACK_FONTS if f in here)]


def _figure(aspect: float, panels: int = 2) -> tuple[Any, list[Any], bool]:
    """Return a figure, its axes, and whether these stand one above the other, as for a very wide slide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stacked = aspect < WIDE
    if stacked:
        width, height = WIDTH_IN, panels * (WIDTH_IN - 0.4) * aspect + 2.8
    else:
        panel = min((WIDTH_IN - 1.6) / 2 * aspect, PANEL_IN)
        width, height = max(panels * panel / aspect + 1.6, 4.0 * panels), panel + 1.5
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    axes = figure.subplots(*((panels, 1) if stacked else (1, panels)), squeeze=False)
    return figure, list(axes.ravel()), stacked


def _beyond(values: npt.NDArray[Any], low: float, high: float) -> str:
    """Return at which ends of the colour bar there are values beyond it."""
    finite = values[np.isfinite(values)]
    below, above = bool((finite < low).any()), bool((finite > high).any())
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _not_here(prediction: Prediction) -> str:
    """Return that a gene's correlation says nothing of this slide, where most of it is unlike the training data."""
    share = unlike_share(prediction) or 0.0
    return f"\nbut {percent(share)} of this map is unlike the training data" if share >= _MOSTLY else ""


def _footer(prediction: Prediction) -> str:
    spec = prediction.tiles.spec
    model = prediction.record.get("model", {}).get("name", "")
    step = spec.stride * spec.mpp
    every = f" every {step:.0f} µm" if spec.stride != spec.size_px else ""
    parts = [f"Partial: {prediction.record['partial']}."] if prediction.partial else []
    parts += [RESEARCH_USE, f"{f'Model {model}, t' if model else 'T'}iles of {spec.size_um:.0f} µm{every}."]
    if prediction.pcc_split and prediction.head.pcc is not None:
        parts.append(f"PCC: {prediction.pcc_split}.")
    if odd := float(unlike(prediction).mean()):
        parts.append(f"Hatched: {percent(odd)} of the tiles, unlike the training data: do not believe the map there.")
    if bad := prediction.n_unreadable:
        parts.append(f"{bad} of {len(prediction.tiles)} tiles could not be read.")
    return "  ".join(parts)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) + 1 :]}"


def _scale_bar(axis: Any, view: Rect, mpp_x: float) -> None:
    um = max((b for b in BARS_UM if b <= view.w * mpp_x / 4), default=BARS_UM[0])
    px, y, x = um / mpp_x, view.y + view.h * 0.96, view.x + view.w * 0.03
    axis.plot([x, x + px], [y, y], color="white", linewidth=7, solid_capstyle="projecting", alpha=0.8)
    axis.plot([x, x + px], [y, y], color="black", linewidth=4, solid_capstyle="butt")
    label = f"{um} µm" if um < 1000 else f"{um / 1000:g} mm"
    axis.annotate(
        label, (x, y), xytext=(0, 6), textcoords="offset points", ha="left", va="bottom",
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip
