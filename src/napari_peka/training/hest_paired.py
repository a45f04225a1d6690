"""A task of HEST-bench as paired spots: patches in place of a slide, its own genes and folds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from napari_peka.core.errors import SectionError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.fingerprint import fingerprint
from napari_peka.io.tiles import SpotTiles, TileBank
from napari_peka.training.hest import PATCH_MPP, PATCH_PX, HestSection, HestTask
from napari_peka.training.paired import Paired
from napari_peka.training.panel import gene_panel
from napari_peka.training.splits import Fold


class Patches:
    """A sample's patches as :class:`SpotTiles` reads them: opened at the first look, and once more in another process.

    Parameters
    ----------
    section
        The sample.
    px
        Side to which patches are brought, as HEST-bench does for encoders that read another one.

    Raises
    ------
    SectionError
        If they are not 224 px wide, or cannot be read.
    """

    def __init__(self, section: HestSection, px: int) -> None:
        self._section, self._px = section, px
        self._file: Any = None
        n, *pixels = self._images.shape
        if pixels != [PATCH_PX, PATCH_PX, 3]:
            raise SectionError(
                f"the patches of {section.patches} are of shape {tuple(pixels)}, those of HEST-bench are "
                f"{PATCH_PX} px wide and RGB; download them again"
            )
        self.shape = (n, px, px, 3)

    @property
    def _images(self) -> Any:
        if self._file is None:
            self._file = self._section.images()
        return self._file

    def __getitem__(self, which: int | slice) -> npt.NDArray[np.uint8]:
        """Return one patch ``(px, px, 3)`` or some ``(n, px, px, 3)``."""
        found = np.asarray(self._images[which], np.uint8)
        if self._px == PATCH_PX:
            return found
        return _resized(found, self._px) if found.ndim == 3 else np.stack([_resized(p, self._px) for p in found])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


@dataclass(frozen=True)
class PatchSource:
    """What stands for the slide, which the benchmark does not have: what the pixels are, µm per pixel (y, x)."""

    fingerprint: str
    mpp: tuple[float, float]


@dataclass(eq=False)
class Sample:
    """A sample, as far as what was written for sections asks for it.

    Parameters
    ----------
    section_id
        HEST's sample id.
    patient_id
        The samples that are held out together; HEST-bench names no patients.
    adata
        Raw counts of the spots that have a patch.
    slide
        What stands for it.
    platform, split, warnings, patient_named
        As a section has them.
    """

    section_id: str
    patient_id: str
    adata: Any
    slide: PatchSource
    platform: str = "hest"
    split: str = ""
    warnings: list[str] = field(default_factory=list)
    patient_named: bool = True

    @cached_property
    def counts(self) -> sparse.csr_matrix:
        """Raw counts of all genes, CSR float32 ``(n, g)``."""
        return sparse.csr_matrix(self.adata.X, dtype=np.float32)

    @property
    def genes(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(map(str, self.adata.var_names))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over barcodes, genes, counts and the patches' fingerprint."""
        digest = hashlib.sha256(self.slide.fingerprint.encode())
        for names in (self.adata.obs_names, self.adata.var_names):
            digest.update("\n".join(names).encode() + b"\0")
        for part in (self.counts.indptr.astype(np.int64), self.counts.indices.astype(np.int64), self.counts.data):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def pair_task(task: HestTask, px: int = PATCH_PX, *, progress: Progress = NULL) -> Paired:
    """Lay out all spots of a task that have a patch.

    Parameters
    ----------
    task
        From :func:`napari_peka.training.hest.read_hest_task`.
    px
        Side of the tiles that the encoder reads.
    progress
        Told what is not known of the task.

    Returns
    -------
    Paired
        ``patient`` is the first split that holds the spot's sample out: samples of one patient are held out together,
        and which ones those are HEST-bench does not say.

    Raises
    ------
    SectionError
        If a file is damaged, or samples have no gene in common.
    """
    warnings = [
        f"{task.name}: HEST-bench names no patients; samples that are held out together count as one, so that "
        "intervals are rather too wide than too narrow"
    ]
    progress.stage(f"reading {task.name}", len(task.sections))
    groups = {s: f.name for f in reversed(task.folds) for s in f.test}
    samples, kept, banks, centres, unknown = [], [], [], [], []
    for name, section in task.sections.items():
        adata, own = section.counts(), section.source_mpp()
        if own is None:
            unknown.append(name)
        mpp = own or PATCH_MPP
        source = PatchSource(fingerprint(section.patches), (mpp, mpp))
        sample = Sample(name, groups.get(name, name), adata, source)
        rows = np.flatnonzero(np.asarray(sample.counts.sum(1)).ravel() > 0)
        if empty := len(adata) - len(rows):
            warnings.append(f"{name}: {empty} of {len(adata)} spots have no counts and are left out")
        samples.append(sample)
        kept.append(rows)
        banks.append(SpotTiles(Patches(section, px), rows, np.ones(len(rows), bool)))
        centres.append(np.asarray(adata.obsm["spatial"], np.float64)[rows, 1::-1] * mpp)
        progress.advance()
    if unknown:
        warnings.append(
            f"{task.name}: µm per pixel of {', '.join(unknown)} are not known and taken as {PATCH_MPP}; radii in µm "
            "mean nothing there"
        )
    for text in warnings:
        progress.note(text)
    panel = gene_panel(samples, progress=progress)
    sizes = [len(rows) for rows in kept]
    return Paired(
        sections=tuple(samples),
        bank=TileBank(banks),
        section=np.repeat([s.section_id for s in samples], sizes),
        patient=np.repeat([s.patient_id for s in samples], sizes),
        columns=panel.columns,
        spot_ids=tuple(str(i) for s, rows in zip(samples, kept) for i in s.adata.obs_names[rows]),
        rows=np.concatenate(kept),
        centre_um=np.concatenate(centres),
        counts=sparse.vstack([s.counts[r][:, c] for s, r, c in zip(samples, kept, panel.columns)], format="csr"),
        totals=np.concatenate([np.asarray(s.counts[r].sum(1), np.float64).ravel() for s, r in zip(samples, kept)]),
        genes=panel.genes,
        gene_ids=panel.gene_ids,
        warnings=tuple(warnings),
    )


def task_folds(task: HestTask, paired: Paired) -> list[Fold]:
    """Return the task's own folds over the spots."""
    return [f.rows(paired.section.tolist()) for f in task.folds]


def _resized(patch: npt.NDArray[np.uint8], px: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(patch).resize((px, px), Image.Resampling.BILINEAR))
