"""Regions of interest as GeoJSON, the way QuPath writes and reads it.

Geometries are shapely, in level-0 pixels with **x first**, as in GeoJSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from napari_peka.core import files
from napari_peka.core.errors import RegionError

AREAS = ("Polygon", "MultiPolygon")


def read_regions(path: Path | str) -> Any:
    """Read all regions of a GeoJSON file as one (multi)polygon.

    Raises
    ------
    RegionError
        If the file cannot be read, is not GeoJSON, or holds anything but areas.
    """
    import shapely

    return shapely.union_all(list(regions_by_name(path).values()))


def regions_by_name(path: Path | str) -> dict[str, Any]:
    """Read the regions of a GeoJSON file by their names, or classes, or ``region 1`` and so on.

    A file may hold a FeatureCollection, one Feature, a list of Features, or a bare geometry. Regions of one name are
    joined.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except OSError as e:
        raise RegionError(f"cannot read the region file {path}: {e.strerror or e}") from e
    except ValueError as e:
        raise RegionError(f"{path.name} is not GeoJSON ({e}); export it from QuPath with File > Export objects") from e
    out: dict[str, Any] = {}
    for name, geometry in _features(data, path.name):
        out[name] = geometry if name not in out else out[name].union(geometry)
    if not out:
        raise RegionError(f"{path.name} holds no region; draw one and export it again")
    return out


def _features(data: Any, where: str) -> Iterator[tuple[str, Any]]:
    items = data.get("features", [data]) if isinstance(data, dict) else data
    if not isinstance(items, list):
        raise RegionError(f"{where} is not GeoJSON: it holds a {type(data).__name__}")
    for i, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise RegionError(f"{where} is not GeoJSON: its entry {i} is a {type(item).__name__}")
        geometry = item.get("geometry", item) if item.get("type") == "Feature" else item
        properties = item.get("properties") or {}
        label = properties.get("classification")
        label = label.get("name") if isinstance(label, dict) else label
        yield str(properties.get("name") or label or f"region {i}"), _area(geometry, f"{where}, entry {i}")


def _area(geometry: Any, where: str) -> Any:
    import shapely
    from shapely.geometry import shape

    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in AREAS:
        raise RegionError(f"{where} is a {kind or 'thing without a type'}, not an area; draw a polygon or rectangle")
    try:
        made = shape(geometry)
        made = made if made.is_valid else shapely.make_valid(made)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, shapely.GEOSException) as e:
        raise RegionError(f"{where} has coordinates that make no area ({e})") from e
    parts = [p for p in shapely.get_parts(shapely.get_parts(made)) if p.geom_type == "Polygon" and p.area > 0]
    if not parts:
        raise RegionError(f"{where} has no area; draw it again")
    return shapely.union_all(parts)


def check_region(region: Any, shape: tuple[int, int]) -> Any:
    """Return the part of `region` on a slide of ``shape`` (h, w) level-0 pixels.

    Raises
    ------
    RegionError
        If it is no area, is empty, or lies wholly outside the slide.
    """
    import shapely

    if getattr(region, "geom_type", None) not in AREAS or region.is_empty:
        raise RegionError("the region is no area; give a polygon or several")
    clipped = shapely.intersection(shapely.make_valid(region), shapely.box(0, 0, shape[1], shape[0]))
    if not clipped.area > 0:
        x0, y0, x1, y1 = region.bounds
        raise RegionError(
            f"the region (x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}) lies outside the slide of {shape[1]} x {shape[0]} "
            "px; regions are in level-0 pixels: was it drawn on another slide?"
        )
    return clipped


def write_regions(path: Path | str, regions: Mapping[str, Any]) -> Path:
    """Write named regions as QuPath annotations: valid, closed, simple rings; holes are kept."""
    import shapely
    from shapely.geometry import mapping

    features = [
        {
            "type": "Feature",
            "geometry": mapping(shapely.make_valid(geometry)),
            "properties": {"objectType": "annotation", "name": name},
        }
        for name, geometry in regions.items()
    ]
    path = Path(path)
    files.write_whole(path, json.dumps({"type": "FeatureCollection", "features": features}).encode())
    return path
