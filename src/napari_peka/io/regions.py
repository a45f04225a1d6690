"""Regions of interest: GeoJSON as QuPath writes it.

Frame of reference: level-0 pixels, **x first**, as GeoJSON and shapely have it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from napari_peka.core.errors import RegionError
from napari_peka.core.files import write_whole

_DRAW = "draw a polygon, rectangle or ellipse in QuPath and export it as GeoJSON"
_POLYGONS = ("Polygon", "MultiPolygon")
#: coordinate reference systems that mean plain pixels; all others are geographic
_PLAIN_CRS = ("local", "pixel", "cartesian", "engineering")


def read_regions(path: str | Path) -> Any:
    """Read all polygons of a GeoJSON file as one geometry.

    Parameters
    ----------
    path
        A FeatureCollection, one feature, a list of features or a bare geometry.

    Returns
    -------
    shapely Polygon or MultiPolygon
        In level-0 pixels, x first, valid; polygons that overlap are united, holes are kept.

    Raises
    ------
    RegionError
        If the file cannot be read or is no GeoJSON of polygons in pixels.
    """
    import shapely

    return _polygonal(shapely.union_all([g for _, g in _named(Path(path))]))


def regions_by_name(path: str | Path) -> dict[str, Any]:
    """Read the polygons of a GeoJSON file by name.

    A feature's name is its ``properties.name``, else that of its classification, else ``"region N"``. Features
    of one name are united.

    Raises
    ------
    RegionError
        As :func:`read_regions`.
    """
    import shapely

    parts: dict[str, list[Any]] = {}
    for i, (name, geometry) in enumerate(_named(Path(path)), 1):
        parts.setdefault(name or f"region {i}", []).append(geometry)
    return {name: _polygonal(shapely.union_all(each)) for name, each in parts.items()}


def write_regions(path: str | Path, regions: Mapping[str, Any]) -> None:
    """Write named polygons as GeoJSON that QuPath imports: whole, or not at all.

    Parameters
    ----------
    path
        File to write; one that is there is replaced.
    regions
        shapely polygons in level-0 pixels, x first. Self-crossing ones are mended.

    Raises
    ------
    RegionError
        If one of them is no polygon.
    StoreError
        If the file cannot be written.
    """
    features = [region_feature(name, region) for name, region in regions.items()]
    text = json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False, allow_nan=False)
    # a lone half of a character, which JSON can hold and UTF-8 cannot, becomes its JSON escape again
    write_whole(Path(path), text.encode(errors="backslashreplace"))


def region_feature(name: str, region: Any) -> dict[str, Any]:
    """Return a named polygon as a GeoJSON feature that QuPath imports as an annotation.

    Raises
    ------
    RegionError
        If it is no polygon.
    """
    import shapely
    from shapely.geometry.polygon import orient

    geometry = _mended(region, f"the region {name!r}")
    rings = [orient(p) for p in shapely.get_parts(geometry)]  # outer rings anticlockwise, as RFC 7946 asks
    geometry = rings[0] if len(rings) == 1 else shapely.MultiPolygon(rings)
    return {
        "type": "Feature",
        "id": str(uuid.uuid4()),
        "geometry": shapely.geometry.mapping(geometry),
        "properties": {"objectType": "annotation", "name": name},
    }


def check_region(region: Any, shape: tuple[int, int]) -> Any:
    """Return a region clipped to the slide.

    Parameters
    ----------
    region
        shapely geometry in level-0 pixels, x first.
    shape
        Height and width of level 0.

    Raises
    ------
    RegionError
        If it is no polygon, or none of it lies on the slide.
    """
    import shapely

    whole = _mended(region, "the region")
    if whole.area < 1:
        raise RegionError(
            f"the region covers {whole.area:.2g} of a pixel; its coordinates must be level-0 pixels of the slide, not "
            "shares of it"
        )
    h, w = shape
    inside = _polygonal(shapely.intersection(whole, shapely.box(0, 0, w, h)))
    if inside.is_empty:
        x0, y0, x1, y1 = whole.bounds
        raise RegionError(
            f"the region (x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}) lies outside the slide, which is "
            f"{w} px wide and {h} px high; draw it on this slide, in level-0 pixels"
        )
    return inside


def _named(path: Path) -> list[tuple[str, Any]]:
    data = _loaded(path)
    try:
        _check_crs(data, path)
        found = [(name, _shape(g, path)) for name, g in _geometries(data, path)]
    except RecursionError as e:
        raise RegionError(f"{path} is nested too deeply to be GeoJSON; {_DRAW}") from e
    if not found:
        raise RegionError(f"{path} holds no region; {_DRAW}")
    return found


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise RegionError(f"the region {path} cannot be read: {e.strerror or e}; check the path") from e
    except (ValueError, RecursionError) as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise RegionError(f"{path} is not GeoJSON ({e}); {_DRAW}") from e


def _check_crs(data: Any, path: Path) -> None:
    crs = data.get("crs") if isinstance(data, dict) else None
    if crs is None:
        return
    said = json.dumps(crs)
    if not any(word in said.lower() for word in _PLAIN_CRS):
        raise RegionError(
            f"{path} has geographic coordinates (crs {said[:80]}), not pixels of a slide; "
            "give a region in level-0 pixels, without crs"
        )


def _geometries(data: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and GeoJSON geometry of all features, whatever holds them."""
    if isinstance(data, list):
        for each in data:
            yield from _geometries(each, path)
        return
    kind = data.get("type") if isinstance(data, dict) else None
    if kind == "FeatureCollection":
        yield from _geometries(data.get("features") or [], path)
    elif kind == "Feature":
        if data.get("geometry") is not None:  # GeoJSON allows a feature without a place
            name = _name(data.get("properties"))
            yield from ((name, g) for _, g in _geometries(data["geometry"], path))
    elif kind == "GeometryCollection":
        yield from _geometries(data.get("geometries") or [], path)
    elif kind in _POLYGONS:
        yield "", data
    elif kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise RegionError(f"{path} holds a {kind}, which has no area; {_DRAW}")
    else:
        said = f"type {kind!r}" if isinstance(data, dict) else type(data).__name__
        raise RegionError(f"{path} is JSON but not GeoJSON (found {said}, wanted polygons); {_DRAW}")


def _name(properties: Any) -> str:
    if not isinstance(properties, dict):
        return ""
    kind = properties.get("classification")
    if isinstance(kind, dict):  # QuPath writes "names" for a class derived from another, and shows them so
        names = kind.get("names")
        kind = ": ".join(map(str, names)) if isinstance(names, list) else kind.get("name")
    return str(properties.get("name") or kind or "")


def _shape(geometry: dict[str, Any], path: Path) -> Any:
    import numpy as np
    import shapely.geometry

    try:
        with np.errstate(invalid="ignore"):  # NaN is refused below, in words
            made = shapely.geometry.shape(geometry)
    # shapely lets through whatever its C library or the loop over wrong nesting says
    except Exception as e:
        raise RegionError(f"{path} holds a {geometry['type']} with unusable coordinates ({e}); {_DRAW}") from e
    return _mended(made, f"a {geometry['type']} in {path}")


def _mended(region: Any, what: str) -> Any:
    """Return a valid polygonal geometry; what make_valid leaves as lines and points is dropped."""
    import numpy as np
    import shapely

    if not isinstance(region, shapely.Geometry):
        raise RegionError(f"{what} must be a shapely polygon, got {type(region).__name__}; read it with read_regions")
    if region.geom_type not in (*_POLYGONS, "GeometryCollection"):
        raise RegionError(f"{what} is a {region.geom_type}, which has no area; {_DRAW}")
    if not np.isfinite(shapely.get_coordinates(region)).all():
        raise RegionError(f"{what} has coordinates that are not finite numbers; {_DRAW}")
    mended = _polygonal(region if region.is_valid else shapely.make_valid(region))
    if mended.is_empty:
        raise RegionError(f"{what} is empty: it has no area; {_DRAW}")
    return mended


def _polygonal(geometry: Any) -> Any:
    import shapely

    flat = shapely.force_2d(geometry)
    if flat.geom_type in _POLYGONS:
        return flat
    parts = shapely.get_parts(shapely.get_parts(flat))
    return shapely.union_all([p for p in parts if p.geom_type == "Polygon"])
