"""Predicted maps as layers: how one is made, shows another gene, fills in, and looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.blend import PALETTES, blend
from napari_peka.core.geometry import Block
from napari_peka.gui import doubt_layers
from napari_peka.gui.layers import KEY, LayerTuple, gene_of, kept, output_of, prediction_of, raster_place
from napari_peka.gui.look import Look, colours, for_matplotlib
from napari_peka.gui.preferences import usual_look
from napari_peka.io.statistics import SCORE_UNIT

if TYPE_CHECKING:
    from napari_peka.io.prediction import Prediction

OPACITY = 0.6
#: px (width, height): tall enough for several ticks
BAR_SIZE = (20.0, 260.0)
_SMALL_BAR = (12.0, 130.0)


def heatmap_layer(prediction: Prediction, gene: str, look: Look | None = None) -> LayerTuple:
    """Return the map of `gene` as one layer with a pixel a tile, lying on the slide in µm.

    Parameters
    ----------
    prediction
        The map.
    gene
        Symbol or Ensembl id.
    look
        How it is to look; None: as the preferences say.

    Raises
    ------
    UnknownName
        If the model does not know the gene.
    """
    look = look or usual_look()
    raster = prediction.raster(gene)
    name = prediction.genes[prediction.head.index(gene)]
    data = look.values(raster.data, prediction.unit)
    settings = {
        "name": f"{name} ({look.unit(prediction.unit)})",
        **raster_place(prediction, raster),
        "colormap": colours(look.colormap, look.fade),
        "contrast_limits": look.limits(data),
        "blending": "translucent",
        "opacity": OPACITY,
        "interpolation2d": "linear" if look.smooth else "nearest",
        "metadata": {
            KEY: {
                "prediction": prediction,
                "gene": name,
                "path": prediction.path,
                "look": look,
                "unit": look.unit(prediction.unit),
            }
        },
    }
    return data, settings, "image"


def update_heatmap(layer: Any, prediction: Prediction, gene: str) -> None:
    """Show another gene (or prediction of the same tiles) in a map's layer, in place."""
    name, look = prediction.genes[prediction.head.index(gene)], look_of(layer)
    layer.data = look.values(prediction.raster(gene).data, prediction.unit)
    _keep(layer, prediction, name, look.unit(prediction.unit))
    layer.name = f"{name} ({look.unit(prediction.unit)})"
    fit_contrast(layer)
    doubt_layers.refresh(layer, doubt_layers.OF_VALUES)


def show_score(
    layer: Any, prediction: Prediction, name: str, genes: Sequence[str], values: npt.NDArray[np.float32]
) -> None:
    """Show the score of a set of genes in a map's layer, in place; no gene is then shown there.

    Parameters
    ----------
    layer
        The map's layer.
    prediction
        The map.
    name, genes
        The set, which is kept with the layer.
    values
        What :func:`napari_peka.gene_set_score` gives, ``(n,)``.
    """
    show_values(layer, prediction, name, SCORE_UNIT, values)
    layer.metadata[KEY]["set"] = {"name": name, "genes": list(genes)}


def set_of(layer: Any) -> dict[str, Any] | None:
    """Return name and genes of the set whose score a map's layer shows, or None."""
    found: dict[str, Any] | None = kept(layer).get("set")
    return found


def show_values(layer: Any, prediction: Prediction, name: str, unit: str, values: npt.NDArray[np.float32]) -> None:
    """Show any number a tile in a map's layer, in place; no gene is then shown there."""
    layer.data = prediction.tiles.raster(values, unit).data
    _keep(layer, prediction, None, unit)
    layer.name = f"{name} ({unit})"
    fit_contrast(layer, anew=True)
    doubt_layers.refresh(layer, doubt_layers.OF_VALUES)


def fill_blocks(layer: Any, blocks: Sequence[Block]) -> None:
    """Write newly finished blocks of a growing prediction into its map's layer: cheap at any number of tiles."""
    prediction, gene = prediction_of(layer), gene_of(layer)
    if prediction is None or gene is None or not blocks:
        return
    grid = prediction.tiles.grid_yx
    assert grid is not None
    rows = prediction.changed_by(blocks)
    at = grid[rows] - grid.min(0)
    layer.data[at[:, 0], at[:, 1]] = look_of(layer).values(prediction.values(gene, rows), prediction.unit)
    fit_contrast(layer)
    layer.refresh()
    doubt_layers.refresh(layer)


def blend_layer(prediction: Prediction, genes: Sequence[str], palette: str, look: Look) -> LayerTuple:
    """Return up to three genes as one picture, each in its colour of a palette, lying on the slide in µm.

    Parameters
    ----------
    prediction
        The map.
    genes
        Symbols or Ensembl ids; an empty text leaves its colour out.
    palette
        One of :data:`napari_peka.core.blend.PALETTES`.
    look
        Whose percentiles and scale count.

    Raises
    ------
    UnknownName
        If the model does not know a gene.
    """
    named = [(g, c, w) for g, c, w in zip(genes, PALETTES[palette], palette.split(", ")) if g]
    names = [prediction.genes[prediction.head.index(g)] for g, _, _ in named]
    rasters = [prediction.raster(g) for g in names]
    maps = [look.values(r.data, prediction.unit) for r in rasters]
    picture = blend(maps, [look.limits(m) for m in maps], [c for _, c, _ in named])
    settings = raster_place(prediction, rasters[0]) | {
        "name": " + ".join(f"{name} ({word})" for name, (_, _, word) in zip(names, named)),
        "rgb": True,
        "blending": "translucent",
        "interpolation2d": "linear" if look.smooth else "nearest",
        "metadata": {KEY: {"blend": prediction}},
    }
    return picture, settings, "image"


def is_blend_of(layer: Any, prediction: Prediction) -> bool:
    """Whether a layer is the :func:`blend_layer` of a prediction."""
    return kept(layer).get("blend") is prediction


def as_beside(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a map's settings for a view of its own: it is looked at only, and no dock takes it for a map."""
    own = settings["metadata"][KEY]
    entry = {"beside": True, "unit": own["unit"]}
    return settings | {"name": f"{own['gene']}, {own['unit']}", "metadata": {KEY: entry}, "opacity": 1.0}


def is_beside(layer: Any) -> bool:
    """Whether a layer is a map in a view of its own."""
    return bool(kept(layer).get("beside"))


def unreadable_layer(prediction: Prediction) -> LayerTuple:
    """Return the tiles that could not be decoded as a layer of one colour, lying on the slide in µm."""
    raster = prediction.tiles.raster(np.where(prediction.read_ok, np.nan, 1.0), "unreadable")
    settings = {
        "name": "unreadable tiles",
        **raster_place(prediction, raster),
        "colormap": "red",
        "contrast_limits": (0.0, 1.0),
        "blending": "translucent",
        "opacity": OPACITY,
        "interpolation2d": "nearest",
        "metadata": {KEY: {"unreadable": prediction}},
    }
    return raster.data, settings, "image"


def shows_unreadable(layer: Any, prediction: Prediction | None) -> bool:
    """Whether a layer is the :func:`unreadable_layer` of a prediction."""
    return prediction is not None and kept(layer).get("unreadable") is prediction


def look_of(layer: Any) -> Look:
    """Return how a map's layer looks."""
    found: Look = kept(layer).get("look") or Look()
    return found


def set_look(layer: Any, look: Look) -> None:
    """Give a map's layer another look; colours are spread anew where contrast or scale change."""
    before, prediction, gene = look_of(layer), prediction_of(layer), gene_of(layer)
    layer.metadata[KEY]["look"] = look
    if (look.colormap, look.fade) != (before.colormap, before.fade) or look.smooth != before.smooth:
        look.dress(layer)
    rescaled = look.linear != before.linear
    if rescaled and prediction is not None and gene is not None:
        layer.data = look.values(prediction.raster(gene).data, prediction.unit)
        _keep(layer, prediction, gene, look.unit(prediction.unit))
        layer.name = f"{gene} ({look.unit(prediction.unit)})"
    if rescaled or look.percentiles != before.percentiles:
        fit_contrast(layer, anew=True)
    doubt_layers.refresh(layer, (doubt_layers.FADED,))


def fit_contrast(layer: Any, anew: bool = False) -> None:
    """Spread the colours over the values that are there; those of a locked look stay, unless they are wanted anew."""
    look = look_of(layer)
    low, high = colours_of(layer) if look.locked and not anew else look.limits(layer.data)
    finite = layer.data[np.isfinite(layer.data)]
    reach = (min(low, float(finite.min())), max(high, float(finite.max()))) if len(finite) else (low, high)
    layer.contrast_limits_range = reach
    layer.contrast_limits = (low, high)


def colours_of(layer: Any) -> tuple[float, float]:
    """Return the values at both ends of a map's colour bar, in the gene's unit."""
    low, high = layer.contrast_limits
    return float(low), float(high)


def figure_look(layer: Any) -> dict[str, Any]:
    """Return a map's colours and limits as :func:`napari_peka.write_map` takes them, which shows the map's own unit."""
    look, prediction = look_of(layer), prediction_of(layer)
    same = prediction is not None and not look.shows_linear(prediction.unit)
    return {"colormap": for_matplotlib(look.colormap, look.fade)} | ({"limits": colours_of(layer)} if same else {})


def show_colour_bar(layer: Any) -> None:
    """Show a map's colour bar, titled by the layer's name: gene and unit."""
    layer.colorbar.size = BAR_SIZE
    layer.colorbar.position = "top_right"
    layer.colorbar.visible = True
    layer.name_overlay.position = layer.colorbar.position
    layer.name_overlay.visible = True


def show_small_bar(layer: Any) -> None:
    """Show a map's colour bar and name so that they fit into one view of several."""
    layer.colorbar.size = _SMALL_BAR
    layer.colorbar.position = "bottom_left"  # beside the name there is no room
    layer.colorbar.visible = True
    layer.name_overlay.position = "top_left"
    layer.name_overlay.visible = True


def best_gene(prediction: Prediction, wish: Iterable[str] = ("ERBB2",), asked: str | None = None) -> str:
    """Return the gene to begin with: one that the model was shown to predict, as far as there is one.

    Parameters
    ----------
    prediction
        The map.
    wish
        The first of these goes before the gene with the highest held-out correlation.
    asked
        What a person asked for goes before all, also where the model was not shown to predict it.
    """
    head = prediction.head
    if asked and (at := head.find(asked)) is not None:
        return prediction.genes[at]
    shown = head.predictable if head.predictable.any() else np.ones(len(prediction.genes), bool)
    for gene in wish:
        if (at := head.find(gene)) is not None and shown[at]:
            return prediction.genes[at]
    if head.pcc is None or not np.isfinite(head.pcc).any():
        return prediction.genes[0]
    return prediction.genes[int(np.nanargmax(np.where(shown, head.pcc, -np.inf)))]


def _keep(layer: Any, prediction: Prediction, gene: str | None, unit: str) -> None:
    path = prediction.path or output_of(layer)
    stays = {
        k: v for k, v in kept(layer).items() if k in ("opacity", "hidden", "aside", "doubts", "doubt_layers")
    }  # of the view, not of the gene
    layer.metadata[KEY] = stays | {
        "prediction": prediction, "gene": gene, "path": path, "look": look_of(layer), "unit": unit,
    }  # fmt: skip
