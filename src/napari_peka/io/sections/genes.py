"""Names of genes: symbols or Ensembl ids, each name once."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Ensembl's gene ids of any species, with or without a version: ENSG00000141736.14, ENSMUSG00000062312
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d{11})(?:\.\d+)?(_PAR_Y)?")
_NOTHING = {"", "nan", "none", "na", "<na>"}

Names = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Genes:
    """Names of genes, each once.

    Parameters
    ----------
    names
        Symbols; the id where a gene has no symbol.
    ids
        Ensembl ids without version; None when no file has them.
    warnings
        What a person should know.
    """

    names: Names
    ids: Names | None
    warnings: tuple[str, ...] = ()


def name_genes(names: Names, ids: Names | None = None) -> Genes:
    """Make names unique as scverse does, and tell symbols from Ensembl ids.

    Parameters
    ----------
    names
        Names of genes as a file has them, object ``(n,)``.
    ids
        Their ids, object ``(n,)``; None when there is only one column.

    Notes
    -----
    A name that occurs again gets ``-1``, ``-2``, …, as :meth:`anndata.AnnData.var_names_make_unique` does. A version
    behind an Ensembl id (``.12``) is dropped: it says which annotation was used, not which gene is meant.
    """
    warnings: list[str] = []
    given = np.array([_plain(n) for n in names], object)
    known = None if ids is None else np.array([_plain(i) for i in ids], object)
    if known is not None:
        blank = np.array([str(n).casefold() in _NOTHING for n in names], bool)
        given[blank] = known[blank]
    as_ids = np.array([bool(_ENSEMBL.fullmatch(n)) for n in given], bool)
    if len(given) and as_ids.mean() > 0.5:
        if known is None or (known == given).all():
            known = given.copy()
        warnings.append(
            f"{int(as_ids.sum()):,} of {len(given):,} genes are named by Ensembl ids, not symbols: they match only a "
            "model or list that uses ids"
        )
    unique, renamed = make_unique(given)
    if renamed:
        warnings.append(f"{renamed:,} gene names occur more than once; -1, -2, … was added to the later ones")
    return Genes(unique, known, tuple(warnings))


def make_unique(names: Names) -> tuple[Names, int]:
    """Return the names with ``-1``, ``-2``, … added to those that occur again, and how many were changed."""
    taken, count, changed = set(names.tolist()), {}, 0  # type: set[str], dict[str, int], int
    seen: set[str] = set()
    out = names.copy()
    for i, name in enumerate(names.tolist()):
        if name not in seen:
            seen.add(name)
            continue
        n = count.get(name, 0) + 1
        while f"{name}-{n}" in taken:
            n += 1
        count[name] = n
        out[i] = f"{name}-{n}"
        taken.add(out[i])
        changed += 1
    return out, changed


def is_ensembl(name: str) -> bool:
    """Return whether a name is an Ensembl gene id, with or without a version."""
    return _ENSEMBL.fullmatch(name) is not None


def _plain(name: object) -> str:
    text = str(name).strip()
    match = _ENSEMBL.fullmatch(text)
    return text if match is None else match[1] + (match[2] or "")
