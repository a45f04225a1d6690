"""Measured spots as Points layers: a section's spots on its slide, and what a model says of them while it learns.

Frames of reference: as in :mod:`napari_peka.gui.layers`; (x, y) points are level-0 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.gui.layers import INK, KEY, UM, LayerTuple
from napari_peka.io.figure import COLORMAP

if TYPE_CHECKING:
    from napari_peka.io.section import Section

FloatArray = npt.NDArray[np.float64]

MEASURED, PREDICTED = "measured", "predicted"
#: px on the screen under which a spot is not drawn smaller
_LEAST_PX = 3
#: between two pictures side by side, in parts of a slide's width
_GAP = 0.05
_COLOURS = {"counts": "viridis"}


def spots_layer(section: Section) -> LayerTuple:
    """Return a section's spots as they lie on its slide, coloured by their counts."""
    totals = np.asarray(section.counts.sum(1), np.float64).ravel()
    settings = {
        "name": f"spots of {section.section_id}",
        "size": section.spot_diameter_um,
        "features": {"counts": totals},
        "face_color": "counts",
        "face_colormap": _COLOURS["counts"],
        "face_contrast_limits": _limits(totals),
        "border_width": 0.0,
        "opacity": 0.5,
        "units": UM,
        "metadata": {KEY: {"spots": section.slide.fingerprint, "section": section.section_id}},
    }
    return _world(section.centre_yx, section.slide.mpp), settings, "points"


def move_spots(layer: Any, xy: FloatArray, mpp: tuple[float, float]) -> None:
    """Put the spots of a layer elsewhere, in place."""
    colours = layer.face_color.copy()
    layer.data = _world(xy[:, ::-1], mpp)
    layer.face_color = colours


def learning_layer(
    kind: str, section: str, fingerprint: str, centre_um: FloatArray, size_um: float, mpp: tuple[float, float],
    beside_um: float = 0.0,
) -> LayerTuple:  # fmt: skip
    """Return the spots of a left-out section, to be coloured by :func:`show_learning`.

    Parameters
    ----------
    kind
        :data:`MEASURED` or :data:`PREDICTED`.
    section, fingerprint
        Whose: the section's name, its slide's fingerprint.
    centre_um, size_um
        Centres (y, x) from the slide's upper left corner, and diameter of a spot.
    mpp
        Of the slide (y, x).
    beside_um
        How far to the right of the slide they are drawn, not to hide each other.
    """
    settings = {
        "name": kind,
        "size": size_um,
        "features": {"value": np.zeros(len(centre_um)), "title": _title(kind, centre_um)},
        "text": {
            "string": "{title}",
            "size": 14,
            "color": INK,
            "anchor": _anchor(centre_um),
            "translation": (-2 * size_um, 0),
        },
        "face_color": "value",
        "face_colormap": COLORMAP,
        "face_contrast_limits": (0.0, 1.0),
        "border_width": 0.0,
        "translate": (0.0, beside_um * (1 + _GAP)),
        "units": UM,
        "metadata": {KEY: {"learning": kind, "section": section, "of": fingerprint}},
    }
    return centre_um - np.array(mpp) / 2, settings, "points"


def show_learning(
    layer: Any, gene: str, unit: str, values: npt.NDArray[np.floating], limits: tuple[float, float], more: str = ""
) -> None:
    """Colour the spots of a :func:`learning_layer`, in place."""
    title = _title(str(kind_of(layer)), np.asarray(layer.data))  # which gene, the dock says: more words would not fit
    layer.features = {"value": np.asarray(values, np.float64), "title": title}
    layer.face_contrast_limits = limits
    layer.face_color = "value"
    layer.name = f"{gene} {kind_of(layer)}{more} ({unit})"


def _title(text: str, centre: FloatArray) -> npt.NDArray[np.object_]:
    """Return a text for the highest spot and none for the others."""
    title = np.full(len(centre), "", object)
    if len(centre):
        title[int(np.argmin(centre[:, 0]))] = text
    return title


def _anchor(centre: FloatArray) -> str:
    """Return the corner of a title that lies at the highest spot: the words go on over the spots, not beside them."""
    if not len(centre):
        return "lower_left"
    x = centre[:, 1]
    return "lower_right" if x[int(np.argmin(centre[:, 0]))] > (x.min() + x.max()) / 2 else "lower_left"


def limits_of(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the values at both ends of a colour scale for measured values; predicted ones share it."""
    return _limits(np.asarray(values, np.float64))


def kind_of(layer: Any) -> str | None:
    """Return which of the two kinds of :func:`learning_layer` a layer is, or None."""
    entry = layer.metadata.get(KEY)
    return entry.get("learning") if isinstance(entry, dict) else None


def spots_of(layer: Any) -> str | None:
    """Return the name of the section whose spots a layer shows, or None."""
    entry = layer.metadata.get(KEY)
    return entry.get("section") if isinstance(entry, dict) and "spots" in entry else None


def points_xy(layer: Any, mpp: tuple[float, float]) -> FloatArray:
    """Return what was picked in a Points layer as (x, y) in level-0 pixels, in the order of picking.

    Raises
    ------
    SectionError
        If there are fewer than three points.
    """
    world = np.array([layer.data_to_world(p)[-2:] for p in np.asarray(layer.data)]).reshape(-1, 2)
    if len(world) < 3:
        raise SectionError(f"the layer {layer.name!r} has {len(world)} points; pick three or more, in the same order")
    return np.ascontiguousarray((world / np.array(mpp) + 0.5)[:, ::-1])


def _world(centre_yx: FloatArray, mpp: tuple[float, float]) -> FloatArray:
    return np.asarray((centre_yx - 0.5) * np.array(mpp))


def _limits(values: FloatArray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = np.percentile(finite, (1, 99))
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)
