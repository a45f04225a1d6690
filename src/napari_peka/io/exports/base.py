"""What every export is made from, and what a format is.

Frame of reference: level-0 pixels; (x, y) where the format has x first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.raster import Raster
from napari_peka.io.statistics import SCORE_UNIT, gene_set_score, known_genes
from napari_peka.io.store import Prediction

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: obs column that names the region in which a tile lies
ANNOTATION = "annotation"
#: attribute at the root of every zarr that is written here
MARK = "napari_peka_export"
#: what no file name may hold on one platform or another; "%" too, so that two genes never share a name
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f<>:"/\\|?*%]')
#: what no column's name may hold in SpatialData (and "/" not in HDF5)
_NOT_IN_COLUMNS = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, eq=False)
class Export:
    """Tiles, the values of some genes, and regions.

    Parameters
    ----------
    prediction
        The map.
    genes
        Names as the head has them, ``g``.
    regions
        shapely polygons in level-0 pixels, x first, by name.
    slide
        Where it is at hand: formats that carry a picture show it.
    figure
        Further arguments of :func:`napari_peka.io.figure.write_map`, for figures.
    sets
        Sets of genes by name, each of which has a score.
    """

    prediction: Prediction
    genes: tuple[str, ...]
    regions: Mapping[str, Any]
    slide: Slide | None = None
    figure: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def scores(self) -> npt.NDArray[np.float32]:
        """Score of each set, float32 ``(n, s)``; NaN where a tile could not be read."""
        each = [gene_set_score(self.prediction, genes) for genes in self.sets.values()]
        return np.stack(each, 1) if each else np.empty((len(self.prediction.tiles), 0), np.float32)

    @property
    def score_columns(self) -> list[str]:
        """The sets' names as columns of a table: ``score_`` and the name without spaces and marks, each once."""
        out: list[str] = []
        for name in self.sets:
            column = "score_" + _NOT_IN_COLUMNS.sub("_", name).strip("_")
            while column.lower() in {c.lower() for c in out}:
                column += "_"
            out.append(column)
        return out

    @property
    def labels(self) -> list[str]:
        """Genes and then sets, each with its unit."""
        unit = self.prediction.unit
        return [f"{g} ({unit})" for g in self.genes] + [f"{s} ({SCORE_UNIT})" for s in self.sets]

    @property
    def columns(self) -> npt.NDArray[np.float32]:
        """Values of genes and scores of sets, as :attr:`labels` names them, float32 ``(n, g + s)``."""
        return np.concatenate([self.values, self.scores], 1) if self.sets else self.values

    @cached_property
    def values(self) -> npt.NDArray[np.float32]:
        """Predicted expression, float32 ``(n, g)``; NaN where a tile could not be read."""
        head = self.prediction.head
        return head.matrix(self.prediction.embeddings, self.genes, self.prediction.neighbours)

    @cached_property
    def annotation(self) -> list[str | None]:
        """The region in which each tile's centre lies, the smallest of several; None outside all of them."""
        return annotated(self.prediction.tiles.centre_yx, self.regions)

    def rasters(self) -> list[Raster]:
        """Return a map a gene and a set, one pixel a tile."""
        return [self.prediction.tiles.raster(v, self.prediction.unit) for v in self.columns.T]

    @property
    def mark(self) -> dict[str, Any]:
        """What made it, for a root's attributes."""
        record = self.prediction.record
        return {MARK: {k: record[k] for k in ("unit", "model", "slide", "versions", "notice") if k in record}}

    def anndata(self) -> Any:
        """Return tiles and genes in scverse layout, with scores and regions in ``obs`` and the overview in ``uns``."""
        import pandas as pd

        adata = self.prediction.to_anndata(self.genes)
        told: dict[str, Any] = {}
        for column, (name, genes), score in zip(self.score_columns, self.sets.items(), self.scores.T):
            adata.obs[column] = score
            told[column] = {"name": name, "genes": known_genes(self.prediction, genes)[0]}
        if told:
            adata.uns["napari_peka"] = {**adata.uns["napari_peka"], "gene_sets": told}
        if self.regions:
            adata.obs[ANNOTATION] = pd.Categorical(self.annotation, categories=list(self.regions))
        if self.slide is not None:
            (library,) = adata.uns["spatial"]
            overview = self.slide.thumbnail(1024)
            adata.uns["spatial"][library]["images"] = {"hires": overview}
            factors = adata.uns["spatial"][library]["scalefactors"]
            factors["tissue_hires_scalef"] = overview.shape[0] / self.slide.shape[0]
        return adata


@dataclass(frozen=True)
class Format:
    """A file format of others.

    Parameters
    ----------
    name
        As ``--to`` has it.
    endings
        Of its files; the first is taken where only a folder is named.
    what
        In a phrase.
    write
        Writes an export at a path that is not there.
    most_values
        Tiles times genes beyond which genes must be named; None: no limit.
    best
        Without names so many of the best predicted genes are taken; None: all.
    a_gene
        A file a gene.
    """

    name: str
    endings: tuple[str, ...]
    what: str
    write: Callable[[Export, Path], None]
    most_values: int | None = None
    best: int | None = None
    a_gene: bool = False


def is_export(folder: Path) -> bool:
    """Whether a folder is a zarr that an export of this package has written, by its root's attributes."""
    import zarr

    try:
        return MARK in zarr.open_group(str(folder), mode="r").attrs
    except Exception:  # noqa: BLE001 - no zarr, or a damaged one
        return False


def annotated(centre_yx: npt.NDArray[np.float64], regions: Mapping[str, Any]) -> list[str | None]:
    """Return for each point the name of the region in which it lies, the smallest of several, or None.

    Parameters
    ----------
    centre_yx
        Level-0 pixels (y, x), float64 ``(n, 2)``.
    regions
        shapely polygons in level-0 pixels, x first.
    """
    import shapely

    out: list[str | None] = [None] * len(centre_yx)
    for name, region in sorted(regions.items(), key=lambda item: -float(item[1].area)):
        shapely.prepare(region)
        for i in np.flatnonzero(shapely.contains_xy(region, centre_yx[:, 1], centre_yx[:, 0])).tolist():
            out[i] = name
    return out


def file_name(gene: str) -> str:
    """Return a gene or set as a file may be called on every platform; what cannot stand there is ``%2F`` or such."""
    return _NOT_IN_NAMES.sub(lambda hit: f"%{ord(hit[0]):02X}", gene)
