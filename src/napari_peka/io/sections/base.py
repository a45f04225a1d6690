"""What every reader of paired sections hands over, and what is known of the platforms.

Frame of reference: a reader hands over positions as its files have them, (x, y) in pixels of some image.
:mod:`napari_peka.io.section` turns them into level-0 pixels of the slide that is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

Layout = Literal["hex", "square"]

#: names of files that can be the scan beside a section, in the order in which they are looked for
IMAGE_ENDINGS = (
    ".tif", ".tiff", ".btf", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vsi", ".czi", ".jpg", ".jpeg", ".png",
)  # fmt: skip


@dataclass(frozen=True)
class Platform:
    """The geometry of a capture array.

    Parameters
    ----------
    name
        "visium", "visium-hd" or "st".
    pitch_um
        Distance between neighbouring centres, µm.
    diameter_um
        Diameter of a spot, or side of a bin, µm.
    layout
        "hex": `array_col` steps by two within a row (Visium); "square": by one.
    """

    name: str
    pitch_um: float
    diameter_um: float
    layout: Layout


#: 10x Genomics, Visium slides of 6.5 and 11 mm: spots of 55 µm, 100 µm from centre to centre
VISIUM = Platform("visium", 100.0, 55.0, "hex")
#: Ståhl et al., Science 2016; arrays of Andersson et al. 2021: spots of 100 µm, 200 µm from centre to centre
ST = Platform("st", 200.0, 100.0, "square")


def visium_hd(bin_um: float) -> Platform:
    """Return the geometry of Visium HD at one size of bins (2 µm squares without gaps, summed)."""
    return Platform("visium-hd", float(bin_um), float(bin_um), "square")


@dataclass(frozen=True)
class Overview:
    """A reduced image, for when the scan itself is not there.

    Parameters
    ----------
    path
        Returns the image's file; called only when it is needed, since it may have to be written first.
    scale
        Pixels of this image per pixel of the positions.
    name
        What to call it, in words.
    """

    path: Callable[[], Path]
    scale: float
    name: str


@dataclass(eq=False)
class Found:
    """One section as its files have it: nothing joined, nothing dropped.

    Parameters
    ----------
    name
        The section's name by its files.
    counts
        Raw counts, CSR float32 ``(n_barcodes, n_genes)``.
    barcodes
        Names of the rows of `counts`.
    genes, gene_ids
        Names of the columns of `counts`; their Ensembl ids where the files have both.
    spots
        Spots under tissue: index = barcode; columns ``x``, ``y`` (float64) and, where known, ``array_row`` and
        ``array_col``.
    images
        Files that may be the scan to which the positions belong, the likeliest first.
    looked
        Where an image was looked for, in words.
    image_chosen
        The image that the caller named is a part of the section's own files: `images` holds it.
    overview
        A reduced image.
    platform
        Its geometry; None when the files do not tell.
    platform_name
        What to call the platform when it is not `platform`'s name.
    diameter_px
        Diameter of a spot in pixels of the positions; None when not said.
    mpp
        µm per pixel of the positions and who says so; None when nobody does.
    patient
        The patient, where the files name one.
    warnings
        What a person should know.
    obsm
        Further arrays with a row a barcode, such as embeddings of another model, by name.
    """

    name: str
    counts: sparse.csr_matrix
    barcodes: npt.NDArray[np.object_]
    genes: npt.NDArray[np.object_]
    gene_ids: npt.NDArray[np.object_] | None
    spots: pd.DataFrame
    looked: str
    images: list[Path] = field(default_factory=list)
    image_chosen: bool = False
    overview: Overview | None = None
    platform: Platform | None = None
    platform_name: str | None = None
    diameter_px: float | None = None
    mpp: tuple[float, str] | None = None
    patient: str | None = None
    warnings: list[str] = field(default_factory=list)
    obsm: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What was asked for besides the path.

    Parameters
    ----------
    section
        Which section of a file that holds several; also its name.
    bin_um
        Size of Visium HD's bins, µm; None for the usual one.
    image
        The image that the caller named: a file, or an image inside a SpatialData zarr.
    """

    section: str | None = None
    bin_um: float | None = None
    image: str | None = None


def images_in(folder: Path, stem: str | None = None) -> list[Path]:
    """Return the files of a folder that can be a scan by their ending (with this stem), by ending, then name."""
    if not folder.is_dir():
        return []
    rank = {ending: i for i, ending in enumerate(IMAGE_ENDINGS)}
    found = [
        p
        for p in folder.iterdir()
        if p.suffix.lower() in rank and not p.name.startswith(".") and (stem is None or _stem(p) == stem)
    ]
    return sorted((p for p in found if p.is_file()), key=lambda p: (rank[p.suffix.lower()], p.name))


def _stem(path: Path) -> str:
    return path.stem.removesuffix(".ome")


def wanted(columns: Any, names: tuple[str, ...], path: Path) -> None:
    """Raise the sentence for columns that a table lacks."""
    if missing := [n for n in names if n not in columns]:
        has = ", ".join(str(c) for c in list(columns)[:10])
        raise SectionError(f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; it has: {has}")


def unique_rows(names: npt.NDArray[np.object_], what: str, path: Path) -> None:
    """Raise the sentence for names that occur twice."""
    import pandas as pd

    twice = pd.Index(names)
    if not twice.is_unique:
        again = list(dict.fromkeys(twice[twice.duplicated()]))
        raise SectionError(
            f"{path} names {len(again)} {what} twice (e.g. {again[0]}): which row belongs to which cannot be told"
        )
