"""Exports as images: heatmaps with a channel a gene, in µm, and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError
from napari_peka.io.exports.base import Export
from napari_peka.io.figure import contrast_limits, write_map
from napari_peka.io.prediction import RESEARCH_USE
from napari_peka.io.trust import gene_trust

_UM = "micrometer"
#: bytes of pixels that a TIFF with 32-bit places holds
_CLASSIC_TIFF = 2**32 - 2**25


def write_ome_zarr(export: Export, path: Path) -> None:
    """Write an OME-Zarr (0.4) of axes c, y, x: a pixel a tile, float32, NaN where there is none, placed in µm.

    The frame is that of the slide's own OME-Zarr: the centre of its first level-0 pixel is at 0 µm.
    """
    try:
        from ome_zarr.format import FormatV04
        from ome_zarr.writer import write_multiscales_metadata
    except ImportError as e:
        raise SettingError("OME-Zarr needs a package that is not here: pip install 'napari-peka[export]'") from e
    import zarr

    shape, scale, translation = _place(export)
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    array = root.create_array(
        "0", shape=shape, chunks=(1, *shape[1:]), dtype="float32", fill_value=np.nan,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )  # fmt: skip
    channels: list[dict[str, Any]] = []
    for label, data in zip(export.channels, export.by_channels()):
        array[len(channels)] = data
        channels.append(_channel(label, data, active=not channels))
    transforms: list[dict[str, Any]] = [
        {"type": "scale", "scale": [1.0, *scale]},
        {"type": "translation", "translation": [0.0, *translation]},
    ]
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": _UM} for n in "yx"]
    write_multiscales_metadata(
        root, [{"path": "0", "coordinateTransformations": transforms}], fmt=FormatV04(), axes=axes,
        name=str(export.prediction.record.get("slide", {}).get("name", "map")),
    )  # fmt: skip
    root.attrs["omero"] = {"channels": channels, "rdefs": {"model": "color"}}
    root.attrs.update(export.mark_with_trust)


def write_ome_tiff(export: Export, path: Path) -> None:
    """Write an OME-TIFF of axes C, Y, X: a pixel a tile, float32, NaN where there is none; size and place in µm."""
    import tifffile

    shape, scale, translation = _place(export)
    n, size = shape[0], 4 * int(np.prod(shape))
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": export.channels},
        "Description": _description(export),
        "PhysicalSizeY": scale[0], "PhysicalSizeYUnit": "µm", "PhysicalSizeX": scale[1], "PhysicalSizeXUnit": "µm",
        "Plane": {
            "PositionY": [translation[0]] * n, "PositionYUnit": ["µm"] * n,
            "PositionX": [translation[1]] * n, "PositionXUnit": ["µm"] * n,
        },
    }  # fmt: skip
    tifffile.imwrite(
        path, export.by_channels(), shape=shape, dtype=np.float32, bigtiff=size > _CLASSIC_TIFF, ome=True,
        photometric="minisblack", compression="zlib", metadata=metadata,
    )  # fmt: skip


def _description(export: Export) -> str:
    """Return what a TIFF is not for, and how far to believe each of its genes."""
    head = export.prediction.head
    said = [f"{gene}: {gene_trust(head, gene)}" for gene in export.genes]
    split = [f"Held out: {export.prediction.pcc_split}"] if export.prediction.pcc_split else []
    ends = [] if export.level is None else [f"lower, upper: ends of the {export.level:.0%} interval"]
    return "\n".join([RESEARCH_USE, *said, *split, *ends, *export.fitted_in_words])


def write_figure(export: Export, path: Path) -> None:
    """Write one gene or set as a figure: beside the slide where that is at hand, with scale and colour bar."""
    (name,) = export.genes or export.sets
    given: dict[str, Any] = {"gene_set": export.sets.get(name), "regions": export.regions, **export.figure}
    write_map(export.prediction, export.slide, name, path, **given)


def _place(export: Export) -> tuple[tuple[int, int, int], tuple[float, float], tuple[float, float]]:
    """Return the maps' shape ``(c, h, w)``, their pixel in µm and the centre of the first one in µm, (y, x)."""
    tiles = export.prediction.tiles
    raster = tiles.raster(np.zeros(len(tiles), np.float32))
    scale, translation = raster.place_um(tiles.slide_mpp)
    h, w = raster.data.shape
    return (len(export.channels), h, w), scale, translation


def _channel(label: str, data: npt.NDArray[np.float32], *, active: bool) -> dict[str, Any]:
    """Return how a channel is shown."""
    low, high = contrast_limits(data)
    finite = data[np.isfinite(data)]
    reach = (float(finite.min()), float(finite.max())) if len(finite) else (low, high)
    window = {"start": low, "end": high, "min": min(low, reach[0]), "max": max(high, reach[1])}
    return {"label": label, "color": "FFFFFF", "active": active, "window": window}
