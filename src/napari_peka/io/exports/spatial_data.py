"""Export to SpatialData: tiles as shapes that a table annotates, regions as shapes, the overview as an image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from napari_peka.core.errors import SettingError
from napari_peka.io.exports.base import ANNOTATION, ARRAY, LOWER, ROWS, UPPER, Export, even

#: names of the elements
TILES, TABLE, REGIONS, OVERVIEW = "tiles", "expression", "annotations", "overview"
#: coordinate systems: level-0 pixels, as others' elements of the same slide have it, and µm
GLOBAL, UM = "global", "um"
#: genes of a chunk, at most: with `ROWS` tiles it is 4 MB, a file
_GENES = 2048


def write_spatialdata(export: Export, path: Path) -> None:
    """Write a SpatialData zarr.

    Shapes ``tiles`` are squares in level-0 pixels; the table ``expression`` annotates them by ``region`` and
    ``tile_id``, its layers ``lower`` and ``upper`` are ends of intervals. The coordinate system ``global`` is level-0
    pixels (the first one covers 0 to 1), ``um`` is µm.
    """
    try:
        import geopandas
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, ShapesModel, TableModel
        from spatialdata.transformations import Identity, Scale, Sequence
    except ImportError as e:
        raise SettingError("SpatialData needs a package that is not here: pip install 'napari-peka[export]'") from e
    import pandas as pd
    import shapely

    tiles = export.prediction.tiles
    um = Scale(np.array(tiles.slide_mpp)[::-1], axes=("x", "y"))
    systems = {GLOBAL: Identity(), UM: um}
    h, w = tiles.spec.footprint0(tiles.slide_mpp) if tiles.grid_yx is None else tiles.spec.stride0(tiles.slide_mpp)
    y, x = tiles.centre_yx.T
    squares = shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    names = list(tiles.names)
    shapes = {TILES: ShapesModel.parse(geopandas.GeoDataFrame(geometry=squares, index=names), transformations=systems)}
    if export.regions:
        frame = geopandas.GeoDataFrame(
            {ANNOTATION: list(export.regions)}, geometry=list(export.regions.values()), index=list(export.regions)
        )
        shapes[REGIONS] = ShapesModel.parse(frame, transformations=systems)
    adata = export.anndata()
    adata.strings_to_categoricals()
    adata.obs["region"] = pd.Categorical([TILES] * len(names))
    adata.obs["tile_id"] = names
    table = TableModel.parse(adata, region=TILES, region_key="region", instance_key="tile_id")
    images: dict[str, Any] = {}
    if export.slide is not None:
        overview = export.slide.thumbnail(1024)
        up = np.array(export.slide.shape, float) / overview.shape[:2]
        grown = Scale(up[::-1], axes=("x", "y"))
        images[OVERVIEW] = Image2DModel.parse(
            overview.transpose(2, 0, 1), dims=("c", "y", "x"), c_coords=["r", "g", "b"],
            transformations={GLOBAL: grown, UM: Sequence([grown, um])},
        )  # fmt: skip
    data = SpatialData(images=images, shapes=shapes, tables={TABLE: table}, attrs=export.mark)
    with warnings.catch_warnings():  # of what anndata's next version will do, which is nothing that a person can mend
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        data.write(path, consolidate_metadata=False)
        _write_x(export, path)
        data.write_consolidated_metadata()


def _write_x(export: Export, path: Path) -> None:
    """Write the values, and the ends of their intervals, into the table, in the format of zarr that it has."""
    import zarr
    from zarr.codecs import BloscCodec

    table = zarr.open_group(str(path / "tables" / TABLE), mode="r+")
    shape = len(export.prediction.tiles), len(export.genes)
    if "X" in table:  # what stands for none
        del table["X"]
    # predicted values become a seventh smaller, in no more time than writing them as they are
    lz4 = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    made = []
    for name in ["X"] if export.level is None else ["X", f"layers/{LOWER}", f"layers/{UPPER}"]:
        x = table.create_array(
            name, shape=shape, chunks=(max(1, min(ROWS, shape[0])), even(shape[1], _GENES)), dtype="float32",
            compressors=lz4 if table.metadata.zarr_format == 3 else "auto", fill_value=0,
        )  # fmt: skip
        x.attrs.update(ARRAY)
        made.append(x)
    for rows, values in export.by_tiles():
        ends = () if export.level is None else export.ends(values, rows)
        for x, matrix in zip(made, (values, *ends)):
            x[rows] = matrix
