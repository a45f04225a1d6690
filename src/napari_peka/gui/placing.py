"""Slides and maps of them lie on each other, whichever came first and whoever knows the µm per pixel. No Qt in here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.core.errors import PekaError
from napari_peka.gui import layers

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: relative difference of two µm per pixel that is rounding
_SAME = 0.005


def give_resolution(viewer: Any, layer: Any, mpp: float | tuple[float, float]) -> None:
    """Open the slide of a layer again with these µm per pixel; what was drawn on it stays where it was drawn.

    Raises
    ------
    PekaError
        If it cannot be opened.
    """
    from napari_peka.io.slide import open_slide

    slide = layers.slide_of(layer)
    assert slide is not None
    before = np.array(layer.scale, float)[:2]
    opened = open_slide(slide.path, mpp=mpp)
    layers.set_resolution(layer, opened)
    layers.show_scale_bar(viewer)
    factor = np.array(layer.scale, float)[:2] / before
    for other in viewer.layers:
        if any(layers.is_part_of(other, kind, slide) for kind in ("regions", "tissue", "associated")):
            layers.adopt(other, opened)
            layers.rescale(other, factor)
    layers.keep_view(viewer, factor)


def agree(viewer: Any, added: Any) -> str:
    """Let a slide and its maps lie on each other after one of them was added.

    A slide of which nobody knows the µm per pixel takes those with which its map was predicted.

    Returns
    -------
    str
        Why they do not; empty where they do.
    """
    try:
        return _agree(viewer, added)
    except (PekaError, OSError) as e:  # a file that is gone
        return f"a slide and its map may not lie on each other, for the slide cannot be read: {e}"


def below_maps(viewer: Any, slide: Slide) -> None:
    """Let a slide's layer lie below its maps, which it would cover."""
    layer = layers.layer_of_slide(viewer, slide.fingerprint)
    maps = [i for i, x in enumerate(viewer.layers) if layers.is_map_of(x, slide)]
    if layer is not None and maps and viewer.layers.index(layer) > maps[0]:
        viewer.layers.move(viewer.layers.index(layer), maps[0])


def _plain(viewer: Any, added: Any) -> str:
    """Return that a map's slide was opened as a plain picture, which nothing brings to µm; empty where it was not."""
    files = {str(p.record.get("slide", {}).get("file")) for x in viewer.layers if (p := layers.prediction_of(x))}
    maps_too = layers.prediction_of(added) is not None
    for x in viewer.layers if maps_too else [added]:
        path = layers.image_path(x)
        if path is not None and layers.slide_of(x) is None and path.name in files:
            return (
                f"{path.name} was opened as a plain picture, so that its map does not lie on it: open it in the dock "
                "Slide, and take the picture away"
            )
    return ""


def _agree(viewer: Any, added: Any) -> str:
    prediction, slide = layers.prediction_of(added), layers.slide_of(added)
    if prediction is not None:
        layer = layers.layer_of_slide(viewer, layers.fingerprint_of(added))
        slide = layers.slide_of(layer)
    elif slide is not None:
        layer = added
        maps = [p for x in viewer.layers if (p := layers.prediction_of(x)) and layers.is_map_of(x, slide)]
        prediction = maps[-1] if maps else None
    if prediction is None or slide is None:
        return _plain(viewer, added)
    mpp = prediction.tiles.slide_mpp
    if slide.resolution is None:
        give_resolution(viewer, layer, mpp)
    elif not np.allclose(slide.resolution.mpp, mpp, rtol=_SAME):
        return (
            f"the map was predicted at {mpp[1]:.4g} µm per pixel, and {slide.name} is shown at "
            f"{slide.resolution.mpp[1]:.4g}, so they do not lie on each other: set the µm per pixel in the dock Slide, "
            "or predict it again"
        )
    return ""
