"""What a person sees of a slide now, as a region. There is no Qt in here.

Frames of reference: as in :mod:`napari_peka.gui.layers`; regions are x first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from napari_peka.core.errors import RegionError


def seen_now(viewer: Any, layer: Any) -> Any:
    """Return what the viewer shows of a slide as a shapely box in level-0 pixels; None when it shows all of it.

    Parameters
    ----------
    viewer
        The viewer; one without a canvas shows all.
    layer
        The slide's layer.

    Raises
    ------
    RegionError
        If nothing of the slide is in view.
    """
    import shapely

    height, width = (layer.data[0] if layer.multiscale else layer.data).shape[:2]
    try:
        canvas = np.array(viewer.canvas.size, float)
    except (AttributeError, TypeError):
        return None
    centre, zoom = np.array(viewer.camera.center[-2:], float), float(viewer.camera.zoom)
    if zoom <= 0 or not canvas.all():
        return None
    corners = [np.array(layer.world_to_data(centre + s * canvas / zoom / 2)[:2]) + 0.5 for s in (-1, 1)]
    (top, left), (bottom, right) = np.maximum(corners[0], 0), np.minimum(corners[1], (height, width))
    if bottom <= top or right <= left:
        raise RegionError(f"nothing of {layer.name} is in view; move the view onto it, or choose the whole slide")
    if bottom - top >= 0.999 * height and right - left >= 0.999 * width:
        return None
    return shapely.box(left, top, right, bottom)
