"""Spatial Transcriptomics arrays as Andersson et al. 2021 publish them.

``NAME.tsv.gz`` holds raw counts (spots named ``XxY`` × genes), ``NAME_selection.tsv`` the spots under tissue with
their pixels in the image ``NAME.jpg`` (or png, tif, …) beside it.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_peka.core.errors import SectionError
from napari_peka.io.sections.base import ST, Found, Request, images_in, unique_rows, wanted

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

ENDINGS = (".tsv.gz", ".tsv")
_SELECTION = "_selection.tsv"
#: spots that are read at once: a table of 20,000 genes takes 80 MB
_ROWS = 512


def is_st(path: Path) -> bool:
    """Return whether a path is named like a table of ST counts."""
    return path.name.lower().endswith(ENDINGS) and not path.name.endswith(_SELECTION)


def read_st(path: Path, request: Request) -> Found:
    """Read counts and spots of one section.

    Raises
    ------
    SectionError
        If a file is missing, or is not such a table.
    """
    name = path.name[: -next(len(e) for e in ENDINGS if path.name.lower().endswith(e))]
    selection = path.with_name(name + _SELECTION)
    if not selection.is_file():
        raise SectionError(f"{path.name} needs the positions of its spots: {selection.name} is not beside it")
    spots, chosen = read_selection(selection)
    counts, barcodes, genes = read_counts(path)
    unique_rows(barcodes, "spots", path)
    found = Found(
        name=name,
        counts=counts,
        barcodes=barcodes,
        genes=genes,
        gene_ids=None,
        spots=spots[chosen],
        images=images_in(path.parent, name),
        looked=f"{name}.jpg, .png or .tif beside {path.name}",
        platform=ST,
    )
    if missed := int((~chosen).sum()):
        found.warnings.append(f"{missed} of {len(chosen)} spots are not selected as under tissue: left out")
    return found


def read_selection(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Read where spots lie: columns ``x, y, array_row, array_col``, index ``XxY``; and which are under tissue."""
    import pandas as pd

    table = pd.read_csv(path, sep="\t")
    wanted(table.columns, ("x", "y", "pixel_x", "pixel_y"), path)
    col, row = (pd.to_numeric(table[c], errors="coerce") for c in ("x", "y"))
    if col.isna().any() or row.isna().any():
        raise SectionError(f"{path} has spots whose x or y is no number")
    names = np.array([f"{x}x{y}" for x, y in zip(_written(col), _written(row))], object)
    unique_rows(names, "spots", path)
    spots = pd.DataFrame(
        {
            "x": pd.to_numeric(table["pixel_x"], errors="coerce").to_numpy(float),
            "y": pd.to_numeric(table["pixel_y"], errors="coerce").to_numpy(float),
            "array_row": np.round(row).astype(int).to_numpy(),
            "array_col": np.round(col).astype(int).to_numpy(),
        },
        index=names,
    )
    chosen = (table["selected"] == 1).to_numpy() if "selected" in table else np.ones(len(table), bool)
    return spots, chosen


def _written(values: pd.Series) -> list[str]:
    """Return numbers as the counts' names have them: whole ones without a point."""
    return [str(int(v)) if float(v).is_integer() else str(v) for v in values]


def read_counts(path: Path) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Read a table of spots × genes: CSR float32, names of spots, names of genes."""
    import pandas as pd
    from scipy import sparse

    rows, names, genes = [], [], np.empty(0, object)
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as f:
            header = f.readline().rstrip("\r\n").split("\t")  # pandas would rename genes that occur twice
        for part in pd.read_csv(path, sep="\t", index_col=0, chunksize=_ROWS):
            rows.append(sparse.csr_matrix(part.to_numpy(np.float32)))
            names += [str(n) for n in part.index]
            genes = np.array(header[-part.shape[1] :], object)
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise SectionError(f"{path} is no table of spots × genes with tabs between ({e})") from e
    if not rows or not len(genes):
        raise SectionError(f"{path} holds no counts")
    return sparse.vstack(rows, format="csr"), np.array(names, object), genes
