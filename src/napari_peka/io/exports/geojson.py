"""Export to QuPath: tiles as objects with measurements, regions as annotations."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.io.exports.base import ANNOTATION, MARK, UNLIKE, Export
from napari_peka.io.regions import region_feature

#: decimals of a coordinate: a hundredth of a pixel
_DECIMALS = 2
#: what of the mark is told: slide and model may hold names that are not to leave with the tiles
_TOLD = ("unit", "versions", "interval_level", "intervals_fitted_to", "held_out", "genes", "notice")


def write_geojson(export: Export, path: Path) -> None:
    """Write a FeatureCollection in level-0 pixels, x first, as QuPath imports it.

    A tile is a closed simple ring, the square that its value stands for; its measurements are named after gene and
    unit. What could not be read has no measurement, since JSON has no NaN. What made the file, and what it is not for,
    is a member beside the features.
    """
    tiles, ood = export.prediction.tiles, export.prediction.ood
    h, w = tiles.spec.footprint0(tiles.slide_mpp) if tiles.grid_yx is None else tiles.spec.stride0(tiles.slide_mpp)
    labels, names = export.labels, tiles.names  # the tiles' are made anew at each asking
    of = export.annotation if export.regions else [None] * len(tiles)
    slide = str(export.prediction.record.get("slide", {}).get("fingerprint", ""))
    centres = tiles.centre_yx.tolist()

    def feature(i: int, row: npt.NDArray[np.float32]) -> dict[str, Any]:
        properties: dict[str, Any] = {"objectType": "tile", "name": names[i]}
        if of[i] is not None:
            properties["metadata"] = {ANNOTATION: of[i]}
        known = np.isfinite(row)
        properties["measurements"] = {n: round(float(v), 5) for n, v, k in zip(labels, row, known) if k}
        if ood is not None and np.isfinite(ood[i]):
            properties["measurements"][UNLIKE] = round(float(ood[i]), 2)
        y, x = centres[i]
        return {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{slide} {names[i]}")),
            "geometry": {"type": "Polygon", "coordinates": [_ring(x - w / 2, y - h / 2, w, h)]},
            "properties": properties,
        }

    told = {MARK: {k: v for k, v in export.mark_with_trust[MARK].items() if k in _TOLD}}
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        between = '{"type": "FeatureCollection", ' + _text(told)[1:-1] + ', "features": [\n'
        for name, region in export.regions.items():
            file.write(between + _text(region_feature(name, region)))
            between = ",\n"
        for rows, columns in export.by_tiles(beside=True):
            for i, row in enumerate(columns, rows.start):
                file.write(between + _text(feature(i, row)))
                between = ",\n"
        file.write("\n]}")


def _text(feature: dict[str, Any]) -> str:
    return json.dumps(feature, ensure_ascii=False, allow_nan=False)


def _ring(x: float, y: float, w: float, h: float) -> list[list[float]]:
    corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))
    return [[round(a, _DECIMALS), round(b, _DECIMALS)] for a, b in corners]
