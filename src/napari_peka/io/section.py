"""Paired sections: a slide and the counts measured on it.

Frame of reference: ``adata.obsm["spatial"]`` is (x, y) in level-0 pixels of `slide`, as scverse has it; everything
else is (y, x). Positions are taken as the files have them: the centre of pixel 10 is at 10.5, and a file that gives
10 for it is half a pixel off, a quarter of a µm.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.manifest import Entry, read_manifest, refuse_twice
from napari_peka.io.registration import THUMBNAIL_PX, Registration, check_registration, read_affine
from napari_peka.io.sections.base import Found, Request
from napari_peka.io.sections.choose import read_found
from napari_peka.io.sections.genes import name_genes
from napari_peka.io.sections.image import Placed, diameter_um, inside, place
from napari_peka.io.sections.join import Joined, join
from napari_peka.io.slide import Slide

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse

FloatArray = npt.NDArray[np.float64]


@dataclass(eq=False)
class Section:
    """A slide and the counts of its spots. Use it in a ``with`` block or `close` it.

    Parameters
    ----------
    section_id
        Its name.
    patient_id
        Whose it is; the section's own name when nobody says, with a warning.
    adata
        Raw counts in `X` (CSR float32) of the spots under tissue that have any; `obs_names` are barcodes, `var_names`
        symbols, each once (ids where a file has only these), ``var["gene_ids"]`` Ensembl ids where known;
        ``obsm["spatial"]`` float64 (x, y), level-0 px; ``uns["spatial"][section_id]`` in scverse layout.
    slide
        The image, open, its µm per pixel known.
    platform
        "visium", "visium-hd", "st", "hest" or "unknown".
    spot_diameter_um
        Diameter of a spot, or side of a bin.
    pitch_um
        Distance between neighbouring spots, measured; None for fewer than three spots.
    path
        Where it was read from.
    warnings
        What a person should know, a sentence each.
    registration
        How well spots and tissue agree.
    split
        What a manifest says of its use ("train", "test", …); empty when nothing.
    patient_named
        Whether somebody said whose it is.
    placed_by
        Affine ``(2, 3)`` that put the files' (x, y) into level-0 pixels; None where nobody knows it.
    """

    section_id: str
    patient_id: str
    adata: AnnData
    slide: Slide
    platform: str
    spot_diameter_um: float
    pitch_um: float | None
    path: Path
    warnings: list[str] = field(default_factory=list)
    registration: Registration | None = None
    split: str = ""
    patient_named: bool = True
    placed_by: FloatArray | None = None

    @property
    def centre_yx(self) -> FloatArray:
        """Centres of the spots (y, x), level-0 px, float64 ``(n, 2)``."""
        return np.ascontiguousarray(self.adata.obsm["spatial"][:, ::-1], np.float64)

    @property
    def centre_um(self) -> FloatArray:
        """Centres of the spots (y, x) in µm from the slide's upper left corner, float64 ``(n, 2)``."""
        return np.asarray(self.centre_yx * np.array(self.slide.mpp))

    @property
    def counts(self) -> sparse.csr_matrix:
        """Raw counts, CSR float32 ``(n_spots, n_genes)``."""
        return self.adata.X

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """Names of the genes, in the order of the columns of `counts`."""
        return tuple(self.adata.var_names)

    def spots(self, spec: TileSpec) -> tuple[TileTable, npt.NDArray[np.intp]]:
        """Return the spots' tiles, and for each row of the table its spot's row in `adata`."""
        return TileTable.spots(self.centre_yx, self.slide.mpp, spec, list(self.adata.obs_names))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over barcodes, genes, counts, positions and the slide's fingerprint."""
        digest = hashlib.sha256(self.slide.fingerprint.encode())
        for names in (self.adata.obs_names, self.adata.var_names):
            digest.update("\n".join(names).encode() + b"\0")
        counts = self.counts
        if not counts.has_canonical_format:  # the order within a row is the writer's whim
            counts = counts.copy()
            counts.sum_duplicates()
        for part in (counts.indptr.astype(np.int64), counts.indices.astype(np.int64), counts.data, self.centre_yx):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the slide."""
        self.slide.close()

    def __enter__(self) -> Section:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        n, g = self.adata.shape
        return f"<Section {self.section_id} ({self.patient_id}), {self.platform}: {n:,} spots × {g:,} genes>"


def read_section(
    path: str | Path,
    *,
    image: str | Path | None = None,
    section: str | None = None,
    patient: str | None = None,
    mpp: float | tuple[float, float] | None = None,
    affine: Any = None,
    bin_um: float | None = None,
    progress: Progress = NULL,
) -> Section:
    """Read one paired section: counts, positions, image; join them, measure the pitch, check the registration.

    Parameters
    ----------
    path
        A Space Ranger ``outs`` folder (versions 1 to 4, Visium HD too), a ``.h5ad`` in scverse or HEST layout, a
        SpatialData ``.zarr``, or ST counts ``NAME.tsv.gz``.
    image
        The scan to which the positions belong; looked for near `path` when None. For a SpatialData zarr also the
        name of one of its images.
    section
        Its name; in a file of several sections also which one.
    patient
        Whose it is.
    mpp
        µm per level-0 pixel of the image, one number or (y, x). By default what the image says, else what the pitch
        of the spots gives.
    affine
        ``[[a, b, c], [d, e, f]]`` that maps the (x, y) of the files to (x, y) in level-0 pixels, or the path of a JSON
        file with it or with point pairs; see :func:`napari_peka.io.registration.read_affine`. No scale factor is
        applied then.
    bin_um
        Size of Visium HD's bins; 16 by default.
    progress
        Is told the warnings as well.

    Raises
    ------
    SectionError
        If a part is missing or damaged, or the parts do not belong together.
    SlideError
        If the image cannot be opened.
    """
    path = Path(path)
    fit = None if affine is None else read_affine(affine)
    found = read_found(path, Request(section, bin_um, None if image is None else str(image)))
    joined = join(found, path)
    file = None if found.image_chosen else image
    placed = place(found, joined.spots, path, image=file, mpp=mpp, affine=None if fit is None else fit.affine)
    try:
        if fit is not None and not fit.exact:
            placed.warnings.append(fit.said(placed.mpp))
        result = _assemble(found, joined, placed, path, section, patient)
        scaled = np.array([[placed.scale, 0.0, 0.0], [0.0, placed.scale, 0.0]])
        result.placed_by = scaled if fit is None else fit.affine
    except BaseException:
        placed.slide.close()
        raise
    for text in result.warnings:
        progress.note(f"{result.section_id}: {text}")
    return result


def _assemble(
    found: Found, joined: Joined, placed: Placed, path: Path, section: str | None, patient: str | None
) -> Section:
    from anndata import AnnData
    from pandas import DataFrame, Index

    slide, name = placed.slide, section or found.name
    warnings = [*found.warnings, *placed.warnings]
    on = inside(placed.xy, slide.shape)
    if outside := int((~on).sum()):
        warnings.append(f"{outside:,} of {len(on):,} spots lie outside the image: left out")
    if not on.any():
        raise SectionError(f"{path}: none of {len(on):,} spots lies inside {slide.path.name}")
    diameter, said = diameter_um(placed, found, path)
    genes = name_genes(found.genes, found.gene_ids)
    var = DataFrame(index=genes.names.astype(str))
    if genes.ids is not None:
        var["gene_ids"] = genes.ids.astype(str)
    kept = joined.keep(on)
    at = Index(found.barcodes).get_indexer(kept.spots.index)
    further = {key: values[at] for key, values in found.obsm.items()}
    adata = AnnData(
        X=kept.counts,
        obs=kept.spots.drop(columns=["x", "y"]),
        var=var,
        obsm={**further, "spatial": placed.xy[on].copy()},
    )
    totals = np.asarray(adata.X.sum(1), np.float64).ravel()
    spot_px = diameter / placed.mpp
    registration = check_registration(slide, adata.obsm["spatial"][:, ::-1].copy(), totals, spot_px)
    adata.uns["spatial"] = {name: _scverse(slide, spot_px, placed)}
    owner = patient or found.patient
    if owner is None:
        warnings.append(
            "nobody says whose section this is: taken for a patient of its own; name it with --patient or patient="
        )
    return Section(
        section_id=name,
        patient_id=owner or name,
        adata=adata,
        slide=slide,
        platform=found.platform_name or (found.platform.name if found.platform else "unknown"),
        spot_diameter_um=diameter,
        pitch_um=placed.pitch_um,
        path=path,
        warnings=[*warnings, *said, *genes.warnings, *registration.warnings],
        registration=registration,
        patient_named=owner is not None,
    )


def _scverse(slide: Slide, spot_px: float, placed: Placed) -> dict[str, Any]:
    """Return ``uns["spatial"][library_id]`` as scanpy and squidpy read it."""
    overview = slide.thumbnail(THUMBNAIL_PX)
    scale = overview.shape[0] / slide.shape[0]
    return {
        "images": {"hires": overview},
        "scalefactors": {
            "tissue_hires_scalef": scale,
            "spot_diameter_fullres": spot_px,
            "microns_per_pixel": placed.mpp,
        },
        "metadata": {"source_image_path": str(slide.path)},
    }


def read_sections(
    paths: str | Path | Iterable[str | Path],
    *,
    patient: str | None = None,
    bin_um: float | None = None,
    progress: Progress = NULL,
) -> list[Section]:
    """Read several sections; manifests among the paths stand for the sections that they name.

    Parameters
    ----------
    paths
        Sections as for :func:`read_section`, and manifests (``.csv``; see
        :func:`napari_peka.io.manifest.read_manifest`), mixed as one likes.
    patient
        Whose the sections are of which no manifest says it.
    bin_um
        Size of Visium HD's bins; 16 by default.
    progress
        Counts the sections and is told the warnings.

    Raises
    ------
    SectionError
        If one cannot be read, is there twice (be it under two names), or two are given the same name. Those already
        open are closed.
    """
    listed = [paths] if isinstance(paths, (str, Path)) else list(paths)
    entries: list[Entry] = []
    for item in map(Path, listed):
        entries += read_manifest(item, progress=progress) if item.suffix.lower() == ".csv" else [Entry(item)]
    if not entries:
        raise SectionError("no section was named")
    refuse_twice(entries, "the arguments")
    progress.stage("sections", total=len(entries))
    opened: list[Section] = []
    try:
        for entry in entries:
            result = read_section(
                entry.path, image=entry.image, section=entry.section, patient=entry.patient or patient, mpp=entry.mpp,
                affine=entry.affine, bin_um=bin_um, progress=progress,
            )  # fmt: skip
            result.split = entry.split
            opened.append(result)
            progress.advance()
        _name_apart(opened, entries)
        _refuse_copies(opened)
    except BaseException:
        for result in opened:
            result.close()
        raise
    return opened


def as_sections(given: Any) -> list[Section]:
    """Return opened sections as a list, one by itself too.

    Raises
    ------
    SectionError
        For names in place of opened sections.
    """
    listed: list[Any] = [given] if isinstance(given, (Section, str, Path)) else list(given)
    for item in listed:
        if isinstance(item, (str, Path)):
            raise SectionError(f"{str(item)!r} is a name; open it first: napari_peka.read_sections([{str(item)!r}])")
    return listed


def _name_apart(sections: list[Section], entries: list[Entry]) -> None:
    """Give sections that took the same name from their files different ones; given names are left alone."""
    given = {e.section for e in entries if e.section}
    taken = set(given)
    for section, entry in zip(sections, entries):
        if entry.section is None:
            name_apart(section, taken)
        taken.add(section.section_id)


def name_apart(section: Section, taken: Container[str]) -> None:
    """Give a section another name, and a warning that says so, where its own is taken."""
    old = section.section_id
    if old in taken:
        name = next(f"{old}-{n}" for n in itertools.count(2) if f"{old}-{n}" not in taken)
        rename(section, name)
        section.warnings.append(f"another section is named {old} too: this one, {section.path}, is {name}")


def _refuse_copies(sections: list[Section]) -> None:
    """Raise the sentence for the same data under two names: held out, they would still be trained on."""
    seen: dict[str, Section] = {}
    for section in sections:
        twin = seen.setdefault(section.fingerprint, section)
        if twin is not section:
            raise SectionError(
                f"{twin.section_id} ({twin.path}) and {section.section_id} ({section.path}) are the same spots, counts "
                "and image; name them once"
            )


def rename(section: Section, name: str) -> None:
    """Call a section otherwise, before its spots are used."""
    old = section.section_id
    section.adata.uns["spatial"] = {name: section.adata.uns["spatial"][old]}
    section.section_id = name
    if not section.patient_named:
        section.patient_id = name
