"""Which genes several sections have in common, by Ensembl id or by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError, UnknownName, near_names
from napari_peka.core.progress import NULL, Progress

Columns = npt.NDArray[np.intp]
#: genes named in an error
_NAMED = 5
_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{11})(\.\d+)?$")


class Counted(Protocol):
    """What :func:`gene_panel` reads of a section."""

    section_id: str
    adata: Any

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the columns of ``adata.X``."""


@dataclass(frozen=True, eq=False)
class GenePanel:
    """Genes that several sections have, each in its own column.

    Parameters
    ----------
    genes
        Names as the first section has them, unique.
    gene_ids
        Ensembl ids in the same order; empty strings where unknown, empty when none is known.
    columns
        For each section, the column of each gene in its counts, int ``(g,)``.
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    columns: tuple[Columns, ...]

    def __len__(self) -> int:
        return len(self.genes)


def gene_panel(
    sections: Sequence[Counted], genes: Sequence[str] | None = None, *, progress: Progress = NULL
) -> GenePanel:
    """Find the genes that all sections have, or those of a list.

    A gene is the same in two sections when their Ensembl ids are (without version), or else when their names are; ids
    come from ``adata.var["gene_ids"]`` or are the names themselves.

    Parameters
    ----------
    sections
        At least one; with `section_id`, `genes`, and `adata` whose ``var`` may hold ``gene_ids``.
    genes
        Symbols or Ensembl ids that are wanted, in the order of the panel; None for all in common, in the first
        section's order.
    progress
        Told how many genes are left of how many, and of names that were given twice.

    Raises
    ------
    SectionError
        If the sections have no gene in common.
    UnknownName
        If a wanted gene is missing: in which sections, with near names.
    """
    known = [GeneNames.of(s) for s in sections]
    first = known[0]
    if genes is None:
        found = np.stack([k.find(first.genes, first.ids) for k in known])
        shared = np.flatnonzero(found.min(0) >= 0)
        if not len(shared):
            in_common = (found >= 0).sum(1)
            a, b = sections[0], sections[int(in_common.argmin())]
            raise SectionError(
                f"the sections have no gene in common ({b.section_id} has {in_common.min()} of those of "
                f"{a.section_id}; {b.genes[0]!r} and {a.genes[0]!r} are their first); name genes alike in all, as "
                "symbols or as Ensembl ids"
            )
        if len(shared) < len(first.genes):
            progress.note(
                f"{len(shared):,} of {len(first.genes):,} genes of {first.owner} are in all {len(sections)} sections"
            )
        return _panel(first, found[:, shared])
    wanted = list(dict.fromkeys(g.strip() for g in genes))
    if len(wanted) < len(genes):
        progress.note(f"{len(genes) - len(wanted)} of the {len(genes)} genes asked for are given twice")
    # a section that knows both leads from a symbol to the id by which another names the gene
    ids = list(wanted)
    for k in known:
        for i, at in enumerate(k.find(wanted, ids)):
            ids[i] = ids[i] if _ensembl(ids[i]) or at < 0 else k.ids[at] or ids[i]
    found = np.stack([k.find(wanted, ids) for k in known])
    _all_there(known, wanted, found)
    return _panel(first, found)


class GeneNames:
    """Names and Ensembl ids of a section's genes, and where each is."""

    def __init__(self, owner: str, genes: Sequence[str], ids: Sequence[Any] = ()) -> None:
        self.owner, self.genes = owner, tuple(genes)
        self.ids = tuple(_ensembl(i) for i in (ids or genes))
        self._by_name = {g: i for i, g in enumerate(self.genes)}
        self._by_id = {g: i for i, g in enumerate(self.ids) if g}

    @classmethod
    def of(cls, section: Counted) -> GeneNames:
        """Return those of a section."""
        var = section.adata.var
        return cls(section.section_id, section.genes, var["gene_ids"].tolist() if "gene_ids" in var else ())

    def find(self, names: Sequence[str], ids: Sequence[str]) -> Columns:
        """Return the column of each gene, by id or else by name; -1 where it is not."""
        out = np.full(len(names), -1, np.intp)
        for k, (name, gene_id) in enumerate(zip(names, map(_ensembl, ids))):
            at = self._by_id.get(gene_id, -1) if gene_id else -1
            if at < 0:
                at = self._by_name.get(name, -1)
                if at >= 0 and gene_id and self.ids[at]:  # the same name for two genes
                    at = -1
            out[k] = at
        return out

    def lacking(self, missing: Sequence[str]) -> str:
        """Return the first few of some unknown genes, each with the names nearest to it."""
        parts = []
        for gene in missing[:_NAMED]:
            if _ensembl(gene) and not any(self.ids):
                hint = "only symbols are known"
            else:
                hint = near_names(gene, self.genes).removeprefix("; ")
            parts.append(f"{gene} ({hint})" if hint else gene)
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return ", ".join(parts) + more


def _ensembl(text: Any) -> str:
    """Return an Ensembl gene id without its version, or an empty string for anything else."""
    match = _ENSEMBL.match(str(text))
    return match[1] if match else ""


def _panel(first: GeneNames, found: Columns) -> GenePanel:
    genes, ids = tuple(first.genes[i] for i in found[0]), tuple(first.ids[i] for i in found[0])
    return GenePanel(genes, ids if any(ids) else (), tuple(found))


def _all_there(known: Sequence[GeneNames], wanted: list[str], found: Columns) -> None:
    lacking: dict[tuple[int, ...], list[GeneNames]] = {}
    for names, columns in zip(known, found):
        if len(missing := np.flatnonzero(columns < 0)):
            lacking.setdefault(tuple(missing.tolist()), []).append(names)
    if not lacking:
        return
    said = [
        f"{', '.join(n.owner for n in owners)} {'does' if len(owners) == 1 else 'do'} not measure {len(missing)} of "
        f"the {len(wanted)} genes asked for: {owners[0].lacking([wanted[i] for i in missing])}"
        for missing, owners in lacking.items()
    ]
    raise UnknownName("; ".join(said))
