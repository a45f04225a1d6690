"""Counts as 10x Genomics writes them: the HDF5 file and the folder in Matrix Market format.

Only features of the type "Gene Expression" are read: antibodies and other features have other scales.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError

if TYPE_CHECKING:
    from scipy import sparse

GENE_EXPRESSION = "Gene Expression"


class Matrix(NamedTuple):
    """Counts of barcodes × genes: CSR float32, names of rows, names and ids of columns, features left out."""

    counts: sparse.csr_matrix
    barcodes: npt.NDArray[np.object_]
    genes: npt.NDArray[np.object_]
    gene_ids: npt.NDArray[np.object_]
    others: int


def read_h5(path: Path) -> Matrix:
    """Read a ``*_feature_bc_matrix.h5``.

    Raises
    ------
    SectionError
        If it is damaged or another HDF5 file.

    Notes
    -----
    The format: group ``matrix`` with the compressed columns of features × barcodes, which are the compressed rows of
    barcodes × features (10x Genomics, "HDF5 Feature-Barcode Matrix Format"; Space Ranger 1 to 4 alike).
    """
    import h5py
    from scipy import sparse

    try:
        with h5py.File(path, "r") as f:
            if "matrix/features" not in f:
                raise SectionError(f"{path} holds no 10x feature-barcode matrix; name a Space Ranger outs folder")
            group = f["matrix"]
            n_features, n_barcodes = (int(v) for v in group["shape"][:])
            parts = group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]
            counts = sparse.csr_matrix(parts, shape=(n_barcodes, n_features))
            barcodes = _text(group["barcodes"][:])
            features = group["features"]
            names, ids = _text(features["name"][:]), _text(features["id"][:])
            kinds = _text(features["feature_type"][:]) if "feature_type" in features else None
    except (OSError, KeyError, ValueError) as e:
        raise e if isinstance(e, SectionError) else SectionError(f"{path} cannot be read ({e}); copy it again") from e
    return _expression(Matrix(counts, barcodes, names, ids, 0), kinds, path)


def read_mtx(folder: Path) -> Matrix:
    """Read a folder with ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` (or ``genes.tsv``), gzipped or not.

    Raises
    ------
    SectionError
        If one of them is missing or damaged.
    """
    import pandas as pd
    from scipy import io

    try:
        counts = io.mmread(_one(folder, "matrix.mtx")).T.tocsr().astype(np.float32)
        table = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False}
        barcodes = pd.read_csv(_one(folder, "barcodes.tsv"), **table)[0].to_numpy(object)
        features = pd.read_csv(_one(folder, "features.tsv", "genes.tsv"), **table)
    except (OSError, ValueError, EOFError, gzip.BadGzipFile) as e:
        if isinstance(e, SectionError):
            raise
        raise SectionError(f"the counts in {folder} cannot be read ({e}); copy them again") from e
    if counts.shape != (len(barcodes), len(features)):
        raise SectionError(
            f"{folder}: the matrix has {counts.shape[1]:,} features × {counts.shape[0]:,} barcodes, the lists beside "
            f"it {len(features):,} and {len(barcodes):,}; copy the folder again"
        )
    ids = features[0].to_numpy(object)
    names = features[1].to_numpy(object) if features.shape[1] > 1 else ids
    kinds = features[2].to_numpy(object) if features.shape[1] > 2 else None
    return _expression(Matrix(counts, barcodes, names, ids, 0), kinds, folder)


def write_h5(path: Path, matrix: Matrix) -> None:
    """Write counts as Space Ranger does; what :func:`read_h5` reads."""
    import h5py

    counts = matrix.counts.tocsr()
    text = {
        "barcodes": matrix.barcodes,
        "features/id": matrix.gene_ids,
        "features/name": matrix.genes,
        "features/feature_type": [GENE_EXPRESSION] * len(matrix.genes),
    }
    with h5py.File(path, "w") as f:
        group = f.create_group("matrix")
        group["data"] = counts.data.astype(np.int32)
        group["indices"], group["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
        group["shape"] = np.array(counts.shape[::-1], np.int32)
        for name, values in text.items():
            group[name] = np.array(values, bytes)


def _expression(matrix: Matrix, kinds: npt.NDArray[np.object_] | None, path: Path) -> Matrix:
    if kinds is None:
        return matrix
    keep = kinds == GENE_EXPRESSION
    if not keep.any():
        has = ", ".join(sorted(set(kinds.tolist())))
        raise SectionError(f"{path} has no features of the type {GENE_EXPRESSION}; it has: {has or 'none'}")
    if keep.all():
        return matrix
    counts, barcodes, genes, ids, _ = matrix
    return Matrix(counts[:, np.flatnonzero(keep)], barcodes, genes[keep], ids[keep], int((~keep).sum()))


def _one(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise SectionError(f"{folder} has no {names[0]} (or {names[0]}.gz)")


def _text(values: Any) -> npt.NDArray[np.object_]:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], object)
