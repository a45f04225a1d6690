"""All spots of all sections under one numbering: what they look like, where they lie, what was counted in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from napari_peka.core.errors import SectionError
from napari_peka.core.geometry import TileSpec
from napari_peka.core.neighbours import Neighbours, neighbour_mean
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.section import Section
from napari_peka.io.tiles import TileBank, spot_tiles
from napari_peka.training.panel import gene_panel

#: µm between sections laid side by side: farther than any neighbourhood
_APART_UM = 1e7


class PairedSection(Protocol):
    """What is read of a section once its spots are laid out; :class:`napari_peka.io.section.Section` has it all."""

    section_id: str
    patient_id: str
    adata: Any
    slide: Any
    warnings: list[str]
    patient_named: bool

    @property
    def split(self) -> str:
        """``"test"`` where a manifest holds it out."""

    @property
    def platform(self) -> str:
        """How it was measured."""

    @property
    def counts(self) -> sparse.csr_matrix:
        """Raw counts of all its genes, CSR ``(n_spots, n_genes)``."""

    @property
    def fingerprint(self) -> str:
        """Hash of what decides a result."""


@dataclass(frozen=True, eq=False)
class Paired:
    """``n`` spots of several sections.

    Parameters
    ----------
    sections
        The sections, in the order of their spots.
    bank
        The spots' tiles.
    section, patient
        Whose each spot is, str ``(n,)``.
    columns
        Where in each section's counts the columns of `counts` are.
    spot_ids
        Barcodes.
    rows
        Row of each spot in its section's ``adata``, ``(n,)``.
    centre_um
        Centres (y, x) in µm of its own slide, float64 ``(n, 2)``.
    counts
        Raw counts of the genes that all sections have, CSR ``(n, g)``.
    totals
        Counts of all genes of the spot's section, float64 ``(n,)``.
    genes, gene_ids
        Names of the columns; ids are empty strings where unknown, and none when none is known.
    warnings
        What was left out, a sentence each.
    """

    sections: tuple[PairedSection, ...]
    bank: TileBank
    section: npt.NDArray[np.str_]
    patient: npt.NDArray[np.str_]
    columns: tuple[npt.NDArray[np.intp], ...]
    spot_ids: tuple[str, ...]
    rows: npt.NDArray[np.intp]
    centre_um: npt.NDArray[np.float64]
    counts: sparse.csr_matrix
    totals: npt.NDArray[np.float64]
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.section)

    @property
    def all_warnings(self) -> list[str]:
        """What was said of each section, with its name, and of all together."""
        return [*(f"{s.section_id}: {w}" for s in self.sections for w in s.warnings), *self.warnings]

    @property
    def unnamed(self) -> list[str]:
        """Sections of which nobody says whose they are: each is taken for a patient of its own."""
        return [s.section_id for s in self.sections if not s.patient_named]

    def whose(self, rows: npt.NDArray[np.bool_] | None = None) -> str:
        """Return whose the spots are, or some of them, in words."""
        if self.unnamed:
            return "patients that nobody named"
        patients = sorted(set(self.patient[slice(None) if rows is None else rows].tolist()))
        return f"{len(patients)} patients" if patients[1:] else f"patient {patients[0]}"

    @cached_property
    def apart_um(self) -> npt.NDArray[np.float64]:
        """Centres with each section so far from the others that none of their spots are neighbours."""
        _, number = np.unique(self.section, return_inverse=True)
        return np.asarray(self.centre_um + np.array([0.0, _APART_UM]) * number[:, None])

    def neighbours(self, radius_um: float) -> Neighbours:
        """Return each spot's neighbours within its section."""
        return neighbour_mean(self.apart_um, radius_um)


def gather(
    sections: Sequence[Section],
    spec: TileSpec,
    *,
    min_counts: int = 0,
    cache: Path | None = None,
    progress: Progress = NULL,
) -> Paired:
    """Cut the tiles of all spots and lay counts of the genes in common side by side.

    Parameters
    ----------
    sections
        Sections of different names.
    spec
        Size of the tiles.
    min_counts
        Spots with fewer counts are left out.
    cache
        Folder to keep the tiles in; None: in memory only.

    Raises
    ------
    SectionError
        If there is no section, two have one name, they have no gene in common, or no spot is left.
    """
    if not sections:
        raise SectionError("no section was given; give one or more paired sections")
    names = [s.section_id for s in sections]
    if twice := [n for n in dict.fromkeys(names) if names.count(n) > 1]:
        raise SectionError(f"two sections are called {twice[0]!r}; give each a name of its own (a manifest can)")
    panel = gene_panel(sections, progress=progress)
    warnings: list[str] = []
    banks, parts = [], []
    for s in sections:
        tiles = spot_tiles(s.slide, s.centre_yx, spec, cache=cache, progress=progress)
        totals = np.asarray(s.counts.sum(1), np.float64).ravel()
        unread, few = ~tiles.read_ok, totals < max(min_counts, 1)
        for bad, why in ((unread, "have a tile that cannot be decoded"), (few & ~unread, "have too few counts")):
            if n := int(bad.sum()):
                warnings.append(f"{s.section_id}: {n} of {len(totals)} spots {why} and are left out")
        kept = np.flatnonzero(~unread & ~few)
        banks.append(tiles.take(kept))
        parts.append((s, kept, totals[kept]))
    n = sum(len(kept) for _, kept, _ in parts)
    if not n:
        raise SectionError("no spot is left: all have too few counts, or tiles that cannot be decoded")
    for text in warnings:
        progress.note(text)
    return Paired(
        sections=tuple(sections),
        bank=TileBank(banks),
        section=np.concatenate([np.full(len(kept), s.section_id) for s, kept, _ in parts]),
        patient=np.concatenate([np.full(len(kept), s.patient_id) for s, kept, _ in parts]),
        columns=panel.columns,
        spot_ids=tuple(str(i) for s, kept, _ in parts for i in s.adata.obs_names[kept]),
        rows=np.concatenate([kept for _, kept, _ in parts]),
        centre_um=np.concatenate([s.centre_um[kept] for s, kept, _ in parts]),
        counts=sparse.vstack(
            [s.counts[kept][:, columns] for (s, kept, _), columns in zip(parts, panel.columns)], format="csr"
        ),
        totals=np.concatenate([totals for _, _, totals in parts]),
        genes=panel.genes,
        gene_ids=panel.gene_ids,
        warnings=tuple(warnings),
    )
