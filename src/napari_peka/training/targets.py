"""What is to be predicted: which genes, and their expression in a stated unit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from napari_peka.core.errors import SectionError, SettingError, UnknownName
from napari_peka.core.neighbours import Neighbours
from napari_peka.core.progress import NULL, Progress
from napari_peka.training.panel import GeneNames

Float32Array = npt.NDArray[np.float32]
Columns = npt.NDArray[np.intp]

#: units of expression: logarithm of 1 + x, where x is counts per ten thousand of all the spot's counts, or the counts
UNITS: dict[str, Callable[[Any], Any]] = {
    "log1p CP10K": np.log1p,
    "log2(1+CP10K)": lambda x: np.log1p(x) / np.log(2),
    "log1p counts": np.log1p,
}
#: units whose x is the counts as they are
_UNDIVIDED = ("log1p counts",)
#: genes by which a model is scored
N_VARIABLE = 50
#: a gene must be seen in more than this share of the spots to rank among the most variable
MIN_SEEN = 0.10
_PER = 1e4
#: spots (or genes) worked on at once: few enough that beside the result no array of its size is made
_AT_ONCE = 512


def choose_genes(
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    totals: npt.NDArray[np.floating],
    section: npt.NDArray[Any],
    *,
    wanted: Sequence[str] | None = None,
    min_detected: float = 0.0,
    min_spots: int = 0,
    n_top: int | None = None,
    gene_ids: Sequence[str] = (),
    progress: Progress = NULL,
) -> Columns:
    """Choose the genes to predict, by training spots alone.

    Parameters
    ----------
    counts
        Raw counts of the training spots, CSR ``(n, g)``.
    genes, gene_ids
        Names of the columns, and their Ensembl ids where known.
    totals
        Counts of all genes of each spot, ``(n,)``.
    section
        Section of each spot, ``(n,)``.
    wanted
        Exactly these genes, symbols or Ensembl ids; the other choices are then not made.
    min_detected, min_spots
        Least share and least number of the spots in which a gene must be seen.
    n_top
        Only so many of the most variable, chosen per section (:func:`highly_variable`); None for all.
    progress
        Told how many genes were left out.

    Returns
    -------
    int array
        Columns, ascending; for `wanted` in its order.

    Raises
    ------
    UnknownName
        If a wanted gene is not there; near names are offered.
    SettingError
        If no gene is left.
    """
    if wanted is not None:
        names = GeneNames("the sections", genes, gene_ids)
        listed = list(dict.fromkeys(wanted))
        columns = names.find(listed, listed)
        if len(missing := np.flatnonzero(columns < 0)):
            raise UnknownName(f"the sections do not all measure {names.lacking([listed[i] for i in missing])}")
        return columns
    spots = seen_in(counts)
    least = max(min_spots, int(np.ceil(min_detected * counts.shape[0])))
    kept = np.flatnonzero(spots >= least)
    if not len(kept):
        raise SettingError(
            f"no gene is seen in {least} of the {counts.shape[0]} spots (the most often seen one in "
            f"{spots.max(initial=0)}); lower min_detected"
        )
    if len(kept) < len(spots):
        progress.note(
            f"{len(spots) - len(kept):,} of {len(spots):,} genes are seen in fewer than {least} spots, and left out"
        )
    if n_top is not None and n_top < len(kept):
        kept = np.sort(kept[highly_variable(counts[:, kept], totals, section, n_top)])
    return kept


def expression(
    counts: sparse.csr_matrix | npt.NDArray[Any], totals: npt.NDArray[np.floating], unit: str = "log1p CP10K"
) -> Float32Array:
    """Return expression from raw counts.

    Parameters
    ----------
    counts
        Raw counts of any genes, CSR or dense ``(n, g)``.
    totals
        Counts of **all** genes of each spot, ``(n,)``.
    unit
        ``"log1p CP10K"``: natural logarithm of 1 + counts per ten thousand; ``"log2(1+CP10K)"``, as the PEKA paper has
        it (arXiv 2504.07061); ``"log1p counts"``, as HEST-bench has it: no division by the spot's total.

    Returns
    -------
    float32 array
        Dense, ``(n, g)``.

    Raises
    ------
    SettingError
        If the unit is not known.
    SectionError
        If a spot has no counts by which to divide.
    """
    if unit not in UNITS:
        raise SettingError(f"there is no unit {unit!r}; it is one of {', '.join(UNITS)}")
    totals = np.asarray(totals, np.float64).ravel()
    if unit in _UNDIVIDED:
        totals = np.full(len(totals), _PER)
    elif n := int((~(totals > 0)).sum()):
        raise SectionError(
            f"{n} of {len(totals)} spots have no counts, so their expression has no meaning; leave them out"
        )
    out = np.empty(counts.shape, np.float32)
    for at in range(0, len(totals), _AT_ONCE):
        rows = slice(at, at + _AT_ONCE)
        part: Any = counts[rows]
        part = np.asarray(part.todense() if sparse.issparse(part) else part)
        out[rows] = UNITS[unit](part * (_PER / totals[rows, None]))
    return out


def log1p_cp10k(counts: sparse.csr_matrix, totals: npt.NDArray[np.floating]) -> sparse.csr_matrix:
    """Return log1p CP10K without making it dense, CSR float64 ``(n, g)``; see :func:`expression`."""
    x = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    x.data *= np.repeat(_PER / np.asarray(totals, np.float64).ravel(), np.diff(x.indptr))
    np.log1p(x.data, out=x.data)
    return x


def seen_in(counts: sparse.csr_matrix | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return in how many spots each gene has a count, int64 ``(g,)``."""
    return np.asarray((counts > 0).sum(0), np.int64).ravel()


def most_variable(y: Float32Array, counts: sparse.csr_matrix | npt.NDArray[Any], n: int | None = None) -> Columns:
    """Rank genes by the variance of their expression over the training spots, greatest first.

    Parameters
    ----------
    y
        Expression of the training spots, ``(n_spots, g)``.
    counts
        Their raw counts, same shape.
    n
        Return the first `n`, and only genes seen in more than 10 % of the spots: 50 makes the HVG50 by which models are
        scored. None for all genes; those seen more rarely come last.

    Returns
    -------
    int array
        Columns of `y`.
    """
    seen = seen_in(counts) > MIN_SEEN * len(y)
    variance = np.concatenate(
        [y[:, at : at + _AT_ONCE].var(0, dtype=np.float64) for at in range(0, y.shape[1], _AT_ONCE)]
    )
    order = np.lexsort((-variance, ~seen))
    return order if n is None else order[: min(n, int(seen.sum()))]


def highly_variable(
    counts: sparse.csr_matrix, totals: npt.NDArray[np.floating], section: npt.NDArray[Any], n: int
) -> Columns:
    """Choose variable genes section by section, so that differences between sections do not count as variation.

    Parameters
    ----------
    counts
        Raw counts of the training spots, CSR ``(n_spots, g)``.
    totals
        Counts of all genes of each spot, ``(n_spots,)``.
    section
        Section of each spot, ``(n_spots,)``.
    n
        How many; all when there are not more.

    Returns
    -------
    int array
        Columns, ascending; fewer than `n` when fewer vary.

    Raises
    ------
    SettingError
        If there are too few spots or genes to rank.

    Notes
    -----
    ``scanpy.pp.highly_variable_genes`` with ``batch_key`` on log1p CP10K: genes are ranked by the number of sections in
    which they are variable, then by their mean dispersion. Its flavour "seurat" is the one that bears few spots:
    "cell_ranger" fails where many genes have one mean, and the loess of "seurat_v3" can end the process.
    """
    if n >= counts.shape[1]:
        return np.arange(counts.shape[1])
    import anndata as ad
    import pandas as pd
    import scanpy as sc

    x = log1p_cp10k(counts, totals).astype(np.float32)
    obs = pd.DataFrame({"section": pd.Categorical(section)}, index=[str(i) for i in range(x.shape[0])])
    adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[str(i) for i in range(x.shape[1])]))
    batch = "section" if obs["section"].nunique() > 1 else None
    try:
        # constant genes make scanpy divide by zero and say that fewer than n are left
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = sc.pp.highly_variable_genes(adata, n_top_genes=n, flavor="seurat", batch_key=batch, inplace=False)
    except (ValueError, IndexError) as e:
        raise SettingError(
            f"{x.shape[0]} spots of {x.shape[1]} genes are too few to rank the most variable genes ({e}); give more "
            "sections, or no number of genes"
        ) from e
    return np.flatnonzero(table["highly_variable"].to_numpy())


def smooth_neighbours(y: Float32Array, neighbours: Neighbours) -> Float32Array:
    """Average expression over each spot and its neighbours. It flatters every score: say so in every result.

    Parameters
    ----------
    y
        Expression, ``(n, g)``.
    neighbours
        Of the same spots, never across sections (:func:`napari_peka.core.neighbours.neighbour_mean`).
    """
    count = neighbours.counts[:, None].astype(np.float32)
    return np.asarray((neighbours.mean(y) * count + y) / (count + 1), np.float32)
