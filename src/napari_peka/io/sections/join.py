"""Counts and positions joined by barcode; what is left out is counted and said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_peka.core.errors import SectionError
from napari_peka.io.sections.base import Found

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse


@dataclass(eq=False)
class Joined:
    """Spots that have a position and counts.

    Parameters
    ----------
    spots
        As in :class:`Found`, index = barcode.
    counts
        Their counts, CSR float32 ``(n_spots, n_genes)``.
    """

    spots: pd.DataFrame
    counts: sparse.csr_matrix

    def keep(self, which: np.ndarray) -> Joined:
        """Return the spots for which `which` (bool) holds."""
        return self if which.all() else Joined(self.spots[which], self.counts[np.flatnonzero(which)])


def join(found: Found, path: Path) -> Joined:
    """Join counts and positions in the counts' order; warnings are added to those of `found`.

    Raises
    ------
    SectionError
        If no barcode matches, or no spot with counts is left.
    """
    at = found.spots.index.get_indexer(found.barcodes)
    rows = np.flatnonzero(at >= 0)
    if not len(rows):
        raise SectionError(
            f"{path}: none of the {len(found.barcodes):,} barcodes with counts is among the {len(found.spots):,} spots "
            f"under tissue ({_first(found.barcodes)} there, {_first(found.spots.index)} here): counts and positions "
            "are of different sections, or their barcodes were renamed"
        )
    if lone := len(found.spots) - len(rows):
        found.warnings.append(f"{lone:,} of {len(found.spots):,} spots under tissue have no counts: left out")
    if lone := len(found.barcodes) - len(rows):
        found.warnings.append(f"{lone:,} of {len(found.barcodes):,} barcodes with counts are no spot under tissue")
    joined = Joined(found.spots.iloc[at[rows]], found.counts[rows])
    if not np.isfinite(joined.counts.data).all() or (len(joined.counts.data) and joined.counts.data.min() < 0):
        raise SectionError(f"{path}: its counts hold negative numbers or numbers that are not finite")
    placed = np.isfinite(joined.spots[["x", "y"]].to_numpy()).all(1)
    if lost := int((~placed).sum()):
        found.warnings.append(f"{lost:,} spots have no finite position: left out")
    joined = joined.keep(placed)
    seen = np.asarray(joined.counts.sum(1)).ravel() > 0
    if empty := int((~seen).sum()):
        found.warnings.append(f"{empty:,} of {len(seen):,} spots have zero counts: left out")
    if not seen.any():
        raise SectionError(f"{path}: no spot under tissue has a position and any counts")
    return joined.keep(seen)


def _first(names: object) -> str:
    first = next(iter(names), None)  # type: ignore[call-overload]
    return "nothing" if first is None else repr(str(first))
