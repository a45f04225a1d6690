"""The sample section in other layouts: what other versions and programs would have written."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import io, sparse

from napari_peka.io.sections.matrix import Matrix, read_h5, write_h5

COUNTS = "filtered_feature_bc_matrix.h5"
POSITIONS = "spatial/tissue_positions.csv"
SCALES = "spatial/scalefactors_json.json"


def copied(outs: Path, folder: Path, *, scan: bool = True) -> Path:
    """Copy a sample section; without its scan when asked."""
    name = outs.parent.name
    target = folder / name
    shutil.copytree(outs, target / "outs")
    if scan:
        for file in outs.parent.glob(f"{name}.*"):
            shutil.copy(file, target)
    return target / "outs"


def positions(outs: Path) -> pd.DataFrame:
    return pd.read_csv(outs / POSITIONS)


def write_positions(outs: Path, table: pd.DataFrame) -> None:
    table.to_csv(outs / POSITIONS, index=False)


def change_scales(outs: Path, **values: float) -> None:
    path = outs / SCALES
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_counts(outs: Path, change) -> None:
    """Rewrite the counts by a function from matrix to matrix."""
    write_h5(outs / COUNTS, change(read_h5(outs / COUNTS)))


def write_mtx(folder: Path, matrix: Matrix, *, kinds: list[str] | None = None, zipped: bool = True) -> None:
    folder.mkdir()
    kinds = kinds or ["Gene Expression"] * len(matrix.genes)
    features = "".join(f"{i}\t{n}\t{k}\n" for i, n, k in zip(matrix.gene_ids, matrix.genes, kinds))
    io.mmwrite(folder / "matrix.mtx", matrix.counts.T.tocoo().astype(np.int64), field="integer")
    (folder / "features.tsv").write_text(features)
    (folder / "barcodes.tsv").write_text("".join(f"{b}\n" for b in matrix.barcodes))
    if zipped:
        for file in list(folder.iterdir()):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()


def write_hd(outs: Path, folder: Path, bins_um: tuple[int, ...] = (8, 16)) -> Path:
    """Write Visium HD's layout on the image of a sample section; the first gene counts a bin's column."""
    scan = next(outs.parent.glob(f"{outs.parent.name}.*"))
    target = folder / "hd" / "outs"
    (target / "spatial").mkdir(parents=True)
    shutil.copy(scan, target.parent / f"hd{scan.suffix}")
    for bin_um in bins_um:
        spatial = target / "binned_outputs" / f"square_{bin_um:03}um" / "spatial"
        spatial.mkdir(parents=True)
        row, col = (a.ravel() for a in np.indices((60, 50)))
        barcodes = np.array([f"s_{bin_um:03}um_{r:05}_{c:05}-1" for r, c in zip(row, col)], object)
        table = pd.DataFrame(
            {
                "barcode": barcodes,
                "in_tissue": (row > 5).astype(int),
                "array_row": row,
                "array_col": col,
                "pxl_row_in_fullres": 200 + (row + 0.5) * bin_um,  # the scan has 1 µm/px
                "pxl_col_in_fullres": 150 + (col + 0.5) * bin_um,
            }
        )
        table.to_parquet(spatial / "tissue_positions.parquet")
        scales = {"spot_diameter_fullres": float(bin_um), "bin_size_um": float(bin_um), "microns_per_pixel": 1.0}
        (spatial / "scalefactors_json.json").write_text(json.dumps(scales))
        counts = sparse.csr_matrix(np.column_stack([col + 1, np.full(len(col), 3)]).astype(np.float32))
        genes = np.array(["COL", "EVEN"], object)
        keep = np.flatnonzero(row > 5)
        write_h5(spatial.parent / COUNTS, Matrix(counts[keep], barcodes[keep], genes, genes, 0))
    return target


def as_anndata(outs: Path, *, image: bool = False) -> anndata.AnnData:
    """Return a sample section as scanpy's reader makes it: positions, scale factors, hires image."""
    from PIL import Image

    matrix = read_h5(outs / COUNTS)
    table = positions(outs).set_index("barcode").loc[list(matrix.barcodes)]
    adata = anndata.AnnData(matrix.counts, obs=table[["in_tissue", "array_row", "array_col"]])
    adata.var_names = list(matrix.genes)
    adata.var["gene_ids"] = list(matrix.gene_ids)
    adata.obsm["spatial"] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    scales = json.loads((outs / SCALES).read_text())
    images = {}
    if image:
        pixels = np.asarray(Image.open(outs / "spatial/tissue_hires_image.png"))
        images["hires"] = pixels.astype(np.float32) / 255
    adata.uns["spatial"] = {"lib": {"images": images, "scalefactors": scales, "metadata": {}}}
    return adata
