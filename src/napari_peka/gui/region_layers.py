"""Regions as Shapes layers: drawn ones to polygons in level-0 pixels, and back.

Frames of reference: as in :mod:`napari_peka.gui.layers`; polygons are x first, as GeoJSON and shapely have them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import RegionError
from napari_peka.gui.layers import INK, KEY, UM, LayerTuple

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: points by which an ellipse is drawn as a polygon; its area is then 0.2 % short
_ELLIPSE_POINTS = 64
#: width of an outline in parts of the slide's longer side, to be seen when the whole slide is
_EDGE = 0.0025


def regions_layer(slide: Slide, regions: Mapping[str, Any]) -> LayerTuple:
    """Return named regions as a Shapes layer on a slide of known resolution; a hole in a region is not shown.

    Parameters
    ----------
    slide
        The slide.
    regions
        shapely polygons in level-0 pixels, x first, by name; a region of several parts is several shapes of one name.
    """
    import pandas as pd
    import shapely

    data, names = [], []
    for name, region in regions.items():
        for part in shapely.get_parts(region):
            corners = np.asarray(part.exterior.coords)[:-1, ::-1]
            data.append((corners - 0.5) * np.array(slide.mpp))
            names.append(name)
    settings = {
        "name": f"regions of {slide.name}",
        "shape_type": "polygon",
        "features": pd.DataFrame({"name": pd.Series(names, dtype=object)}),
        "feature_defaults": pd.DataFrame({"name": [""]}),
        "text": {"string": "{name}", "size": 12, "color": INK},
        "face_color": [1.0, 1.0, 1.0, 0.15],
        "edge_color": INK,
        "edge_width": max(4 * max(slide.mpp), _EDGE * max(np.multiply(slide.shape, slide.mpp))),
        "opacity": 1.0,
        "units": UM,
        "metadata": {KEY: {"regions": slide.fingerprint, "named": len(names)}},
    }
    return data or None, settings, "shapes"


def region_of(shapes: Any, slide: Any) -> Any:
    """Return the union of the areas drawn in a Shapes layer as a shapely geometry in level-0 pixels, x first.

    Parameters
    ----------
    shapes
        A Shapes layer; polygons, rectangles and ellipses count, lines and paths have no area.
    slide
        The slide's layer, by whose transform the shapes are placed.

    Raises
    ------
    RegionError
        If nothing with an area is drawn.
    """
    import shapely

    areas = []
    for vertices, kind in zip(shapes.data, shapes.shape_type):
        if kind not in ("polygon", "rectangle", "ellipse"):
            continue
        corners = np.asarray(vertices, float)
        points = _ellipse(corners) if kind == "ellipse" else corners
        world = _placed(shapes.data_to_world, points)[:, -2:]
        yx = _placed(slide.world_to_data, world)[:, :2] + 0.5
        areas.append(shapely.make_valid(shapely.Polygon(yx[:, ::-1])))
    region = shapely.union_all(areas) if areas else None
    if region is None or not region.area > 0:
        raise RegionError(
            f"there is no area in the layer {shapes.name!r}; draw a polygon, rectangle or ellipse there, or choose "
            "the whole slide"
        )
    return region


def regions_of(shapes: Any, mpp: tuple[float, float]) -> dict[str, Any]:
    """Return the areas drawn in a Shapes layer as shapely geometries in level-0 pixels, x first, by name.

    Parameters
    ----------
    shapes
        A Shapes layer, placed in µm as slides and maps are. An area's name is its feature ``name``, or ``region N``;
        areas of one name are one region.
    mpp
        µm per level-0 pixel (y, x).
    """
    import shapely

    names = names_of(shapes)
    parts: dict[str, list[Any]] = {}
    for i, (vertices, kind) in enumerate(zip(shapes.data, shapes.shape_type)):
        if kind not in ("polygon", "rectangle", "ellipse"):
            continue
        corners = np.asarray(vertices, float)
        points = _ellipse(corners) if kind == "ellipse" else corners
        yx = _placed(shapes.data_to_world, points)[:, -2:] / np.array(mpp) + 0.5
        area = shapely.make_valid(shapely.Polygon(yx[:, ::-1]))
        if area.area > 0:
            parts.setdefault(names[i], []).append(area)
    return {name: shapely.union_all(areas) for name, areas in parts.items()}


def names_of(shapes: Any) -> list[str]:
    """Return the name of each area in a Shapes layer, as :func:`regions_of` gives it; of what has no area too."""
    return [given or f"region {i + 1}" for i, given in enumerate(_given(shapes))]


def name_new(shapes: Any) -> bool:
    """Give what was drawn since the last call the first free ``region N``; returns whether there was any.

    napari gives a new shape the features of the one that was selected last: a name that is there already was not meant.
    """
    given, entry = _given(shapes), shapes.metadata.setdefault(KEY, {})
    known = min(entry.get("named", 0), len(given))
    given = [name if i < known or name not in given[:known] else "" for i, name in enumerate(given)]
    entry["named"] = len(given)
    if all(given):
        return False
    free = (f"region {n}" for n in itertools.count(1) if f"region {n}" not in given)
    _name(shapes, [name or next(free) for name in given])
    return True


def rename(shapes: Any, row: int, name: str) -> None:
    """Name an area; an empty name is none."""
    names = _given(shapes)
    names[row] = name
    _name(shapes, names)


def _given(shapes: Any) -> list[str]:
    names = shapes.features.get("name") if hasattr(shapes.features, "get") else None
    n = len(shapes.data)
    if names is None:
        return [""] * n
    return ["" if i >= len(names) or names.isna().iat[i] else str(names.iat[i]).strip() for i in range(n)]


def _name(shapes: Any, names: list[str]) -> None:
    import pandas as pd

    features = shapes.features.copy()
    features["name"] = pd.Series(names, dtype=object, index=features.index)
    shapes.features = features
    shapes.feature_defaults = {"name": ""}  # not the last one's


def _placed(place: Callable[[Any], Any], points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return points as a layer's transform places them: napari takes one at a time, a drawn outline has thousands."""
    n = points.shape[1]
    zero = np.asarray(place(np.zeros(n)), float)
    axes = np.array([np.asarray(place(e), float) - zero for e in np.eye(n)])
    return np.asarray(points @ axes + zero)


def _ellipse(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return an ellipse, given as napari does by the corners of its box, as a polygon."""
    centre = corners.mean(0)
    a, b = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    t = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(t) * a + np.sin(t) * b)
