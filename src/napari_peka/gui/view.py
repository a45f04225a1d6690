"""What a person sees of a slide now, as a region. There is no Qt in here.

Frames of reference: as in :mod:`napari_peka.gui.layers`; regions are x first.
"""

from __future__ import annotations

from typing import Any

from napari_peka.core.errors import RegionError
from napari_peka.gui import layers


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

    corners = layers.in_view(viewer, layer)
    if corners is None:
        return None
    (top, left), (bottom, right) = corners
    if bottom <= top or right <= left:
        raise RegionError(f"nothing of {layer.name} is in view; move the view onto it, or choose the whole slide")
    return shapely.box(left, top, right, bottom)
