"""What sections kept in AnnData share, whether in a .h5ad or in a SpatialData zarr: counts, genes, spots, platform."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.io.sections.base import ST, VISIUM, Platform, visium_hd
from napari_peka.io.sections.genes import Names, is_ensembl
from napari_peka.io.sections.grid import layout_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

#: values that are looked at to tell counts from something else
_LOOKED_AT = 1_000_000
#: columns of `var` in which files keep symbols when the index holds ids, and ids when it holds symbols
_SYMBOLS = ("gene_symbols", "gene_symbol", "symbol", "symbols", "gene_name", "gene_names", "feature_name")
_IDS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id")
_VISIUM_BARCODE = re.compile(r"(?<![ACGT])[ACGT]{16}-\d+")
_HD_BARCODE = re.compile(r"s_(\d{3})um_\d+_\d+-\d+")
_ST_NAME = re.compile(r"\d{1,3}x\d{1,3}")


def raw_counts(adata: AnnData, path: Path) -> tuple[sparse.csr_matrix, pd.DataFrame, str]:
    """Return raw counts of all rows (CSR float32), their `var`, and where they were found.

    They are looked for in ``layers["counts"]``, ``raw`` and ``X``, in this order: the first that holds counts.

    Raises
    ------
    SectionError
        If none holds whole numbers that are not negative.
    """
    refused = []
    for where, read, var in _places(adata):
        matrix = _csr(read())
        if (why := not_counts(matrix.data)) is None:
            return matrix, var, where
        refused.append(f"{where} {why}")
    raise SectionError(
        f"{path} has no raw counts: {'; '.join(refused) or 'X is empty'}. Put the counts as they were measured into "
        'layers["counts"]'
    )


def not_counts(values: npt.NDArray[np.floating]) -> str | None:
    """Return why numbers are no counts, or None: counts are finite whole numbers, none of them negative."""
    part = values[:: max(1, len(values) // _LOOKED_AT)]
    if not np.isfinite(part).all():
        return "has numbers that are not finite"
    if len(part) and part.min() < 0:
        return f"has negative numbers ({part.min():.4g}): scaled values"
    broken = part[part != np.round(part)]
    return f"has fractions ({broken[0]:.4g}): normalised values" if len(broken) else None


def _places(adata: AnnData) -> Iterator[tuple[str, Callable[[], Any], pd.DataFrame]]:
    if "counts" in adata.layers:
        yield 'layers["counts"]', lambda: adata.layers["counts"], adata.var
    if adata.raw is not None:
        yield "raw", lambda: adata.raw.X, adata.raw.var
    if adata.X is not None:
        yield "X", lambda: adata.X, adata.var


def _csr(matrix: Any) -> sparse.csr_matrix:
    from scipy import sparse

    if hasattr(matrix, "to_memory"):  # a sparse matrix still in the file
        matrix = matrix.to_memory()
    if not sparse.issparse(matrix):
        matrix = np.asarray(matrix[:])
    return sparse.csr_matrix(matrix).astype(np.float32)


def spots_of(obs: pd.DataFrame, xy: npt.NDArray[np.float64]) -> pd.DataFrame:
    """Return the spots under tissue as :class:`napari_peka.io.sections.base.Found` wants them.

    Parameters
    ----------
    obs
        Index = barcode; ``in_tissue``, ``array_row``, ``array_col`` are used where they are.
    xy
        Centres (x, y), px of the files' positions, ``(n, 2)``.
    """
    import pandas as pd

    spots = pd.DataFrame({"x": xy[:, 0], "y": xy[:, 1]}, index=obs.index.astype(str))
    if {"array_row", "array_col"} <= set(obs.columns):
        spots["array_row"], spots["array_col"] = (np.asarray(obs[c]) for c in ("array_row", "array_col"))
    under = np.asarray(obs["in_tissue"]).astype(float) == 1 if "in_tissue" in obs else np.ones(len(obs), bool)
    return spots[under]


def genes_of(var: pd.DataFrame) -> tuple[Names, Names | None]:
    """Return names of genes and, where `var` has both, their Ensembl ids; either may be its index."""
    index = var.index.astype(str).to_numpy(object)
    if len(index) and np.mean([is_ensembl(n) for n in index[:1000]]) > 0.5:
        symbols = next((c for c in _SYMBOLS if c in var), None)
        return (index if symbols is None else var[symbols].astype(str).to_numpy(object)), index
    ids = next((c for c in _IDS if c in var), None)
    return index, None if ids is None else var[ids].astype(str).to_numpy(object)


def platform_of(obs: pd.DataFrame) -> Platform | None:
    """Return the platform by the form of the barcodes, else by the places on the array; None when neither tells."""
    first = [str(n) for n in obs.index[:20]]
    if first and all(m := [_HD_BARCODE.search(n) for n in first]):
        return visium_hd(float(m[0][1]))  # type: ignore[index]
    if first and all(_VISIUM_BARCODE.search(n) for n in first):
        return VISIUM
    if {"array_row", "array_col"} <= set(obs.columns):
        row, col = (np.asarray(obs[c]) for c in ("array_row", "array_col"))
        if np.issubdtype(row.dtype, np.integer) and layout_of(row, col) == "hex":
            return VISIUM
    return ST if first and all(_ST_NAME.fullmatch(n) for n in first) else None


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as a dict, anything else as an empty one."""
    return dict(value) if hasattr(value, "keys") else {}


def number(value: Any) -> float | None:
    """Return a positive finite number, or None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) and found > 0 else None


def embeddings(adata: AnnData, rows: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the numeric arrays of ``obsm`` but the positions, of some rows."""
    out = {}
    for key in adata.obsm:
        values = adata.obsm[key]
        values = values.to_numpy() if hasattr(values, "to_numpy") else values
        if key != "spatial" and isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "fiu":
            out[str(key)] = values if rows is None else values[rows]
    return out
