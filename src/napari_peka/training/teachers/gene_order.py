"""Counts in the gene order that a single-cell model was trained with, such as scFoundation's 19,264 genes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from napari_peka.core.errors import SettingError
from napari_peka.core.progress import NULL, Progress

#: column of genes in scFoundation's ``OS_scRNA_gene_index.19264.tsv``
_COLUMN = "gene_name"


def read_gene_order(path: str | Path) -> tuple[str, ...]:
    """Return the genes of a list in its order.

    Parameters
    ----------
    path
        A table with a column ``gene_name`` (scFoundation's gene list), or a plain text with a gene a line.

    Raises
    ------
    SettingError
        If there is no such file, or a gene is in it twice.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingError(f"there is no gene list at {path}; it comes with the model that needs it")
    lines = path.read_text("utf-8").splitlines()
    header = lines[0].split("\t") if lines else []
    if _COLUMN in header:
        genes = tuple(pd.read_csv(path, sep="\t", usecols=[_COLUMN], keep_default_na=False)[_COLUMN].astype(str))
    else:
        genes = tuple(line.strip() for line in lines if line.strip())
    if not genes:
        raise SettingError(f"{path} holds no gene")
    if len(set(genes)) < len(genes):
        twice = next(g for i, g in enumerate(genes) if g in genes[:i])
        raise SettingError(f"{path} has {twice} more than once, so it is no gene order")
    return genes


def to_gene_order(
    counts: sparse.csr_matrix, genes: Sequence[str], order: Sequence[str], *, progress: Progress = NULL
) -> sparse.csr_matrix:
    """Lay counts out in another gene order; genes that were not measured are zero.

    Parameters
    ----------
    counts
        CSR ``(n, g)``.
    genes
        Names of its columns.
    order
        The genes wanted, from :func:`read_gene_order`.
    progress
        Told how many were not measured.

    Returns
    -------
    CSR
        Shape ``(n, len(order))``, the numbers unchanged.

    Raises
    ------
    SettingError
        If none of the genes is in the order.
    """
    place = {g: i for i, g in enumerate(order)}
    to = np.array([place.get(g, -1) for g in genes])
    found = int((to >= 0).sum())
    if not found:
        raise SettingError(
            f"none of the {len(genes)} genes (such as {genes[0]}) is among the {len(order)} of the order (such as "
            f"{order[0]}); name genes alike in both"
        )
    if found < len(order):
        progress.note(f"{len(order) - found:,} of the order's {len(order):,} genes are not measured and set to zero")
    kept = np.flatnonzero(to >= 0)
    move = sparse.csr_matrix((np.ones(found, counts.dtype), (np.arange(found), to[kept])), shape=(found, len(order)))
    return sparse.csr_matrix(counts[:, kept] @ move)
