"""Export to QuPath: tiles as objects with measurements, regions as annotations."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from napari_peka.io.exports.base import ANNOTATION, Export
from napari_peka.io.regions import region_feature

#: decimals of a coordinate: a hundredth of a pixel
_DECIMALS = 2


def write_geojson(export: Export, path: Path) -> None:
    """Write a FeatureCollection in level-0 pixels, x first, as QuPath imports it.

    A tile is a closed simple ring, the square that its value stands for; its measurements are named after gene and
    unit. What could not be read has no measurement, since JSON has no NaN.
    """
    tiles, columns = export.prediction.tiles, export.columns
    h, w = tiles.spec.footprint0(tiles.slide_mpp) if tiles.grid_yx is None else tiles.spec.stride0(tiles.slide_mpp)
    names = export.labels
    of = export.annotation if export.regions else [None] * len(tiles)
    slide = str(export.prediction.record.get("slide", {}).get("fingerprint", ""))
    features: list[dict[str, Any]] = [region_feature(name, region) for name, region in export.regions.items()]
    for i, (y, x) in enumerate(tiles.centre_yx.tolist()):
        properties: dict[str, Any] = {"objectType": "tile", "name": tiles.names[i]}
        if of[i] is not None:
            properties["metadata"] = {ANNOTATION: of[i]}
        row = columns[i]
        known = np.isfinite(row)
        properties["measurements"] = {n: round(float(v), 5) for n, v, k in zip(names, row, known) if k}
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide} {tiles.names[i]}")),
                "geometry": {"type": "Polygon", "coordinates": [_ring(x - w / 2, y - h / 2, w, h)]},
                "properties": properties,
            }
        )
    text = json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False, allow_nan=False)
    path.write_text(text, "utf-8", errors="backslashreplace")


def _ring(x: float, y: float, w: float, h: float) -> list[list[float]]:
    corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))
    return [[round(a, _DECIMALS), round(b, _DECIMALS)] for a, b in corners]
