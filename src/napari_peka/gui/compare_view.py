"""Several genes of one map in the viewer: in one picture, or in a view each. No Qt in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_peka.core.errors import SettingError
from napari_peka.gui import doubt_view, layers, map_layers


def show_blend(viewer: Any, layer: Any, genes: Sequence[str], palette: str) -> str:
    """Show up to three genes of a map as one picture; it lies above the map, which is hidden and stays.

    Parameters
    ----------
    viewer
        The viewer.
    layer
        The map's layer.
    genes
        Symbols or Ensembl ids; an empty text leaves its colour out.
    palette
        One of :data:`napari_peka.core.blend.PALETTES`.

    Returns
    -------
    str
        What is to be seen, and how one comes back.

    Raises
    ------
    SettingError
        If no gene is named.
    UnknownName
        If the model does not know a gene.
    """
    prediction = layers.prediction_of(layer)
    if prediction is None:
        return ""
    if not any(genes):
        raise SettingError("name a gene, or take the picked one")
    data, settings, _ = map_layers.blend_layer(prediction, genes, palette, map_layers.look_of(layer))
    for old in [x for x in viewer.layers if map_layers.is_blend_of(x, prediction)]:
        viewer.layers.remove(old)
    layer.visible = False
    viewer.add_image(data, **settings)
    doubt_view.hatch_above(viewer, layer)
    viewer.layers.selection.active = layer
    return f"{settings['name']}: pick a gene to see a single map again"


def show_single(viewer: Any, layer: Any) -> None:
    """Show a map again where a blend of its genes hides it: a gene that is picked is to be seen."""
    prediction = layers.prediction_of(layer)
    for other in viewer.layers:
        if prediction is not None and map_layers.is_blend_of(other, prediction) and other.visible:
            other.visible = False
            layer.visible = True


def show_beside(viewer: Any, layer: Any, genes: Sequence[str]) -> str:
    """Show a view a gene and one of the slide, which move together; without genes, go back to one view.

    Returns
    -------
    str
        What is to be seen, and how one comes back; nothing where there is one view.

    Raises
    ------
    UnknownName
        If the model does not know a gene; there is then one view.
    """
    prediction = layers.prediction_of(layer)
    if viewer.grid.enabled and prediction is not None:
        map_layers.show_colour_bar(layer)
        layer.opacity = layers.kept(layer).pop("opacity", layer.opacity)
        layer.visible = layers.kept(layer).pop("visible", layer.visible)
        for other in layers.kept(layer).pop("aside", []):
            other.visible = True
    viewer.grid.enabled = False
    for old in [x for x in viewer.layers if map_layers.is_beside(x)]:
        viewer.layers.remove(old)
    if prediction is None or not genes:
        return ""
    look = map_layers.look_of(layer)
    shown = layers.gene_of(layer)  # it has a view already
    others = [g for g in genes if prediction.genes[prediction.head.index(g)] != shown]
    layers.kept(layer)["visible"], layer.visible = layer.visible, True  # its doubt may lie in its place
    aside = [x for x in viewer.layers if x.visible and x is not layer and layers.slide_of(x) is None]
    for other in aside:  # regions and blends would have a view each
        other.visible = False
    for data, settings, _ in [map_layers.heatmap_layer(prediction, gene, look) for gene in others]:
        map_layers.show_small_bar(viewer.add_image(data, **map_layers.as_beside(settings)))
    map_layers.show_small_bar(layer)
    layers.kept(layer)["aside"] = aside
    layers.kept(layer)["opacity"], layer.opacity = layer.opacity, 1.0  # there is no tissue under it
    viewer.layers.selection.active = layer
    viewer.grid.stride = 1
    viewer.grid.enabled = True
    return "a view a layer; they move together. Press again for one view"
