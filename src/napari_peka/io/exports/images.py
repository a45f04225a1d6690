"""Exports as images: heatmaps with a channel a gene, in µm, and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError
from napari_peka.io.exports.base import Export
from napari_peka.io.figure import contrast_limits, write_map

_UM = "micrometer"


def write_ome_zarr(export: Export, path: Path) -> None:
    """Write an OME-Zarr (0.4) of axes c, y, x: a pixel a tile, float32, NaN where there is none, placed in µm.

    The frame is that of the slide's own OME-Zarr: the centre of its first level-0 pixel is at 0 µm.
    """
    try:
        from ome_zarr.format import FormatV04
        from ome_zarr.writer import write_image
    except ImportError as e:
        raise SettingError("OME-Zarr needs a package that is not here: pip install 'napari-peka[export]'") from e
    import zarr

    data, scale, translation = _stack(export)
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    transforms: list[dict[str, Any]] = [
        {"type": "scale", "scale": [1.0, *scale]},
        {"type": "translation", "translation": [0.0, *translation]},
    ]
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": _UM} for n in "yx"]
    write_image(
        data, root, fmt=FormatV04(), axes=axes, scale_factors=[], coordinate_transformations=[transforms],
        name=str(export.prediction.record.get("slide", {}).get("name", "map")),
    )  # fmt: skip
    root.attrs["omero"] = {"channels": _channels(export, data), "rdefs": {"model": "color"}}
    root.attrs.update(export.mark)


def write_ome_tiff(export: Export, path: Path) -> None:
    """Write an OME-TIFF of axes C, Y, X: a pixel a tile, float32, NaN where there is none; size and place in µm."""
    import tifffile

    data, scale, translation = _stack(export)
    n = len(data)
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": export.labels},
        "PhysicalSizeY": scale[0], "PhysicalSizeYUnit": "µm", "PhysicalSizeX": scale[1], "PhysicalSizeXUnit": "µm",
        "Plane": {
            "PositionY": [translation[0]] * n, "PositionYUnit": ["µm"] * n,
            "PositionX": [translation[1]] * n, "PositionXUnit": ["µm"] * n,
        },
    }  # fmt: skip
    tifffile.imwrite(path, data, ome=True, photometric="minisblack", compression="zlib", metadata=metadata)


def write_figure(export: Export, path: Path) -> None:
    """Write one gene or set as a figure: beside the slide where that is at hand, with scale and colour bar."""
    (name,) = export.genes or export.sets
    given: dict[str, Any] = {"gene_set": export.sets.get(name), "regions": export.regions, **export.figure}
    write_map(export.prediction, export.slide, name, path, **given)


def _stack(export: Export) -> tuple[npt.NDArray[np.float32], tuple[float, float], tuple[float, float]]:
    """Return the maps, float32 ``(g + s, h, w)``, their pixel in µm and the centre of the first one in µm, (y, x)."""
    rasters = export.rasters()
    scale, translation = rasters[0].place_um(export.prediction.tiles.slide_mpp)
    return np.stack([r.data for r in rasters]).astype(np.float32), scale, translation


def _channels(export: Export, data: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for label, values in zip(export.labels, data):
        low, high = contrast_limits(values)
        finite = values[np.isfinite(values)]
        reach = (float(finite.min()), float(finite.max())) if len(finite) else (low, high)
        window = {"start": low, "end": high, "min": min(low, reach[0]), "max": max(high, reach[1])}
        out.append({"label": label, "color": "FFFFFF", "active": not out, "window": window})
    return out
