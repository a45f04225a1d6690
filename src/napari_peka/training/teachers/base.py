"""What a teacher reads, and what it is: something that turns the counts of a spot into an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from napari_peka.core.errors import SectionError, SettingError, TrainingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.training.targets import MIN_SEEN, log1p_cp10k, seen_in

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Expression:
    """Counts of ``n`` spots of several sections.

    Parameters
    ----------
    counts
        Raw counts, CSR ``(n, g)``.
    genes
        Names of the columns.
    totals
        Counts of **all** genes of each spot, ``(n,)``.
    spot_ids
        Barcodes.
    section
        Section of each spot, str ``(n,)``.
    adatas
        Each section's whole AnnData, by name: a stored embedding may lie in its ``obsm``.
    rows
        Row of each spot in the AnnData of its section, int ``(n,)``.
    """

    counts: sparse.csr_matrix
    genes: tuple[str, ...]
    totals: npt.NDArray[np.floating]
    spot_ids: tuple[str, ...]
    section: npt.NDArray[Any]
    adatas: Mapping[str, Any]
    rows: npt.NDArray[np.integer]

    def __post_init__(self) -> None:
        n, g = self.counts.shape
        lengths = {len(self.totals), len(self.spot_ids), len(self.section), len(self.rows)}
        if lengths != {n} or len(self.genes) != g:
            raise SectionError(
                f"expression of {n} spots and {g} genes needs as many totals, barcodes, sections, rows and names"
            )

    def __len__(self) -> int:
        return len(self.section)

    @cached_property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in the order of their first spots."""
        return tuple(dict.fromkeys(self.section.tolist()))

    def of(self, section: str) -> npt.NDArray[np.intp]:
        """Return which spots are of a section."""
        return np.flatnonzero(self.section == section)

    def take(self, spots: npt.NDArray[np.integer]) -> Expression:
        """Return some of the spots, in that order."""
        return replace(
            self, counts=self.counts[spots], totals=np.asarray(self.totals)[spots],
            spot_ids=tuple(self.spot_ids[i] for i in spots), section=self.section[spots], rows=self.rows[spots],
        )  # fmt: skip

    def columns(self, genes: tuple[str, ...]) -> sparse.csr_matrix:
        """Return the counts of some genes, CSR ``(n, len(genes))``.

        Raises
        ------
        SectionError
            If one is missing.
        """
        if genes == self.genes:
            return self.counts
        at = {g: i for i, g in enumerate(self.genes)}
        if missing := [g for g in genes if g not in at]:
            raise SectionError(
                f"{len(missing)} of {len(genes)} genes of the teacher are not measured here, such as {missing[0]}"
            )
        return self.counts[:, [at[g] for g in genes]]


class Teacher(Protocol):
    """From counts to an embedding for each spot. Fitted on training spots alone, then asked for any."""

    name: str

    def fit(self, train: Expression, *, progress: Progress = NULL) -> None:
        """Learn from the training spots."""

    def embed(self, expression: Expression) -> Float32Array:
        """Return the embeddings of any spots, float32 ``(n, d)``; each depends on its own spot alone."""

    def record(self) -> dict[str, Any]:
        """Return what made the embeddings, fit for JSON."""


def variable_genes(train: Expression, n: int) -> npt.NDArray[np.intp]:
    """Return the columns of the `n` genes that vary most within sections, ascending.

    Only genes that more than 10 % of the spots show are taken. Variance of log1p CP10K is measured from each section's
    own mean: genes that only tell sections or patients apart teach nothing of what a tile shows.

    Raises
    ------
    TrainingError
        If no gene can be taken.
    """
    x = log1p_cp10k(train.counts, train.totals)
    squares = np.asarray(x.multiply(x).sum(0)).ravel()
    for name in train.sections:
        spots = train.of(name)
        squares -= np.asarray(x[spots].sum(0)).ravel() ** 2 / len(spots)
    usable = (seen_in(train.counts) > MIN_SEEN * len(train)) & (squares > 1e-6)
    if not usable.any():
        raise TrainingError(
            f"no gene that more than {MIN_SEEN:.0%} of the {len(train)} training spots show varies within a section, "
            "so the teacher has nothing to learn; leave out spots with few counts, or use another teacher"
        )
    return np.sort(np.argsort(np.where(usable, -squares, np.inf), kind="stable")[: min(n, int(usable.sum()))])


def require(module: str, package: str, teacher: str) -> None:
    """Look, without importing it, whether what a teacher needs is installed.

    Raises
    ------
    SettingError
        If it is not; how to install it.
    """
    if find_spec(module) is None:
        raise SettingError(
            f"the teacher {teacher} needs {package}, which is not installed: pip install 'napari-peka[{teacher}]'"
        )


def not_fitted(name: str) -> RuntimeError:
    """Return the error for a teacher that is asked before it has learnt: a mistake of the program, not of a person."""
    return RuntimeError(f"the teacher {name} was asked for embeddings before it was fitted")
