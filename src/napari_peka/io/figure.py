"""A picture of a map that a person can open: slide, heat, colour bar with unit, scale bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.io.store import RESEARCH_USE, Prediction

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: perceptual and readable with colour-blind eyes, dark at the low end
COLORMAP = "magma"
#: percentiles between which colours are spread: single extreme tiles do not bleach the map
CONTRAST = (2.0, 98.0)
#: height by width below which slide and map stand one above the other
WIDE = 0.45
#: lengths a scale bar may have, µm
BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10000)


def contrast_limits(values: npt.NDArray[Any], percentiles: tuple[float, float] = CONTRAST) -> tuple[float, float]:
    """Return the values at two percentiles, widened when they are equal; NaN is left out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite, percentiles)
    return (float(low), float(high)) if high - low > 1e-6 else (float(low) - 0.5, float(low) + 0.5)


def trust_text(pcc: float | None) -> str:
    """Return a gene's held-out correlation in words."""
    if pcc is None or not np.isfinite(pcc):
        return "held-out PCC not measured"
    word = "good" if pcc >= 0.5 else "fair" if pcc >= 0.3 else "weak" if pcc >= 0.15 else "not predicted"
    return f"held-out PCC {pcc:.2f} ({word})"


def write_map(prediction: Prediction, slide: Slide, gene: str, path: Path | str, *, max_px: int = 1200) -> Path:
    """Write a PNG of the predicted map of `gene` beside the slide that it lies on.

    Parameters
    ----------
    prediction
        From :func:`predict` or :func:`read_prediction`.
    slide
        The slide; its thumbnail is shown.
    gene
        Symbol or Ensembl id.
    path
        Where to write.
    max_px
        Longer side of the slide's picture.

    Raises
    ------
    UnknownName
        If the model does not know the gene.
    """
    path = Path(path)
    index = prediction.head.index(gene)
    raster = prediction.raster(gene)
    image = slide.thumbnail(max_px)
    figure, (left, right) = _figure(image.shape[0] / image.shape[1])
    extent = (0.0, float(slide.shape[1]), float(slide.shape[0]), 0.0)
    for axis in (left, right):
        axis.imshow(image, extent=extent, interpolation="antialiased")
        axis.set_axis_off()
    (y0, x0), (sy, sx), (h, w) = raster.origin_yx, raster.scale_yx, raster.data.shape
    low, high = contrast_limits(raster.data)
    heat = right.imshow(
        np.ma.masked_invalid(raster.data), extent=(x0, x0 + w * sx, y0 + h * sy, y0), cmap=COLORMAP, vmin=low,
        vmax=high, alpha=0.75, interpolation="nearest",
    )  # fmt: skip
    for axis in (left, right):
        axis.set_xlim(extent[:2])
        axis.set_ylim(extent[2:])
    bar = figure.colorbar(heat, ax=right, fraction=0.05, pad=0.02)
    bar.set_label(f"{prediction.genes[index]} ({prediction.unit})")
    pcc = None if prediction.head.pcc is None else float(prediction.head.pcc[index])
    left.set_title(slide.name, fontsize=10)
    right.set_title(f"{prediction.genes[index]}, predicted; {trust_text(pcc)}", fontsize=10)
    _scale_bar(left, slide.shape, prediction.tiles.slide_mpp[1])
    figure.text(0.01, 0.01, RESEARCH_USE, fontsize=8, color="0.35")
    if bad := prediction.n_unreadable:
        figure.text(0.99, 0.01, f"{bad} tiles could not be read", fontsize=8, color="#b00020", ha="right")
    files.write_beside(path, lambda p: figure.savefig(p, dpi=120))
    return path


def _figure(aspect: float) -> tuple[Any, Any]:
    """Return a figure with two axes: side by side, or one above the other for a slide that is much wider than high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = aspect < WIDE
    height = float(np.clip(2 * 12 * aspect + 1.2 if wide else 6.2 * aspect + 0.6, 3.0, 12.0))
    figure = Figure(figsize=(13, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*((2, 1) if wide else (1, 2)))


def _scale_bar(axis: Any, shape: tuple[int, int], mpp_x: float) -> None:
    target = shape[1] * mpp_x / 4
    um = max((b for b in BARS_UM if b <= target), default=BARS_UM[0])
    px, y, x = um / mpp_x, shape[0] * 0.96, shape[1] * 0.03
    axis.plot([x, x + px], [y, y], color="black", linewidth=4, solid_capstyle="butt")
    label = f"{um} µm" if um < 1000 else f"{um / 1000:g} mm"
    axis.text(
        x + px / 2, y - shape[0] * 0.012, label, ha="center", va="bottom", fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
    )  # fmt: skip
