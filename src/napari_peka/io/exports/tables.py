"""Exports as tables: AnnData and CSV."""

from __future__ import annotations

from pathlib import Path

from napari_peka.io.exports.base import ANNOTATION, Export


def write_h5ad(export: Export, path: Path) -> None:
    """Write an AnnData: ``X`` in the stated unit, ``obsm["spatial"]`` (x, y), ``uns["spatial"]`` as scanpy has it."""
    adata = export.anndata()
    adata.strings_to_categoricals()
    adata.write_h5ad(path, compression="gzip")


def write_csv(export: Export, path: Path) -> None:
    """Write a row a tile: where it is, in level-0 pixels and µm, its region, and a column a gene and a set."""
    import pandas as pd

    tiles = export.prediction.tiles
    columns: dict[str, object] = {"tile": tiles.names}
    columns |= {"x": tiles.centre_yx[:, 1], "y": tiles.centre_yx[:, 0]}
    columns |= {"x_um": tiles.centre_um[:, 1], "y_um": tiles.centre_um[:, 0]}
    if tiles.grid_yx is not None:
        columns |= {"row": tiles.grid_yx[:, 0], "col": tiles.grid_yx[:, 1]}
    columns["read_ok"] = export.prediction.read_ok
    if export.regions:
        columns[ANNOTATION] = export.annotation
    where = pd.DataFrame(columns)
    values = pd.DataFrame(export.columns, columns=[*export.genes, *export.score_columns])
    pd.concat([where, values], axis=1).to_csv(path, index=False, float_format="%.6g")
