"""What every export is made from, and what a format is.

Frame of reference: level-0 pixels; (x, y) where the format has x first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import Genes, Intervals
from napari_peka.core.head import GeneHead
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.prediction import RESEARCH_USE, UNS, Prediction
from napari_peka.io.statistics import SCORE_UNIT, gene_set_score, known_genes
from napari_peka.io.trust import UNLIKE, fitted_to, gene_record

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: obs column that names the region in which a tile lies
ANNOTATION = "annotation"
#: tiles that are computed and written at once are a multiple of this, and files' own chunks have as many: each is
#: written whole, once
ROWS = 512
#: of values at once, about; a few times as much is in memory
_CHUNK_BYTES = 32 * 2**20
#: tiles at once, at most: an export can be stopped between two chunks
_MOST_ROWS = 16 * ROWS
#: attributes by which anndata knows an array
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
#: attribute at the root of every zarr that is written here
MARK = "napari_peka_export"
#: ends of an interval, as layers, channels and columns are called
LOWER, UPPER = "lower", "upper"
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
    progress
        Hears of each chunk of tiles or channel, and stops the export there.
    level
        Of the intervals whose ends are written beside the values; None: none are.
    """

    prediction: Prediction
    genes: tuple[str, ...]
    regions: Mapping[str, Any]
    slide: Slide | None = None
    figure: Mapping[str, Any] = field(default_factory=dict)
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    progress: Progress = NULL
    level: float | None = None

    @cached_property
    def head(self) -> GeneHead:
        """The read-out of the genes alone."""
        head = self.prediction.head
        return head if self.genes == head.genes else head.only(self.genes)

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
        """Genes, each with the ends of its interval where they are written, and then sets; all with their unit."""
        unit = self.prediction.unit
        return [f"{g} ({unit})" for g in self._with_ends(" ")] + [f"{s} ({SCORE_UNIT})" for s in self.sets]

    @property
    def columns(self) -> list[str]:
        """The same as columns of a table."""
        return [*self._with_ends("_"), *self.score_columns]

    @property
    def channels(self) -> list[str]:
        """What an image holds: :attr:`labels`, and how unlike the training data each tile is where that is known."""
        return [*self.labels, *([] if self.prediction.ood is None else [UNLIKE])]

    def _with_ends(self, between: str) -> Iterator[str]:
        for gene in self.genes:
            yield gene
            if self.level is not None:
                yield from (f"{gene}{between}{end}" for end in (LOWER, UPPER))

    @cached_property
    def _intervals(self) -> Intervals:
        head = self.prediction.head
        return self.prediction.needed_intervals().only([head.index(gene) for gene in self.genes])

    def ends(
        self, values: npt.NDArray[np.float32], rows: slice = slice(None), genes: Genes | int | slice = slice(None)
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the lower and the upper end of the interval of each value.

        Parameters
        ----------
        values
            Of some tiles, ``(n, g)``, or ``(n,)`` of one gene.
        rows
            Which tiles.
        genes
            Which of the export's genes.
        """
        assert self.level is not None
        return self._intervals.around(values, self.prediction.spread_of(rows), self.level, genes)

    def by_tiles(self, *, beside: bool = False) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield the tiles from the first to the last, some at a time, and their values.

        The next ones are computed while these are written, so that the slower of the two sets the pace; memory holds
        a few chunks, however many tiles and genes there are.

        Parameters
        ----------
        beside
            Whether ends of intervals and the sets' scores are among the values, as in :attr:`labels`.

        Yields
        ------
        rows
            Which tiles: a multiple of :data:`ROWS` of them, but for the last.
        values
            Predicted expression, float32 ``(n, g)``, or as many columns as :attr:`labels`; NaN where a tile could not
            be read.
        """
        n = len(self.prediction.tiles)
        step = min(-(-_CHUNK_BYTES // (4 * max(len(self.labels), 1) * ROWS)) * ROWS, _MOST_ROWS)

        def compute(at: int) -> tuple[slice, npt.NDArray[np.float32]]:
            rows = slice(at, min(at + step, n))
            values = self.head.matrix(self.prediction.embeddings, None, self.prediction.neighbours, rows)
            if beside and self.level is not None:
                values = np.stack([values, *self.ends(values, rows)], 2).reshape(len(values), -1)
            return rows, np.concatenate([values, self.scores[rows]], 1) if beside and self.sets else values

        self.progress.stage("writing tiles", n)
        with ThreadPoolExecutor(1, thread_name_prefix="peka-export") as pool:
            ahead = pool.submit(compute, 0)
            for at in range(0, n, step):
                rows, values = ahead.result()
                if at + step < n:
                    ahead = pool.submit(compute, at + step)
                yield rows, values
                self.progress.advance(len(values))

    def by_channels(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield each of :attr:`channels` as a map, float32 ``(h, w)``, a pixel a tile; NaN where none is."""
        self.progress.stage("writing channels", len(self.channels))
        tiles = self.prediction.tiles
        for values in self._by_channels():
            self.progress.advance()  # not after: whoever writes does not ask for one more than there are
            yield np.asarray(tiles.raster(values).data, np.float32)

    def _by_channels(self) -> Iterator[npt.NDArray[np.float32]]:
        for i, gene in enumerate(self.genes):
            values = self.prediction.values(gene)
            yield values
            if self.level is not None:
                yield from self.ends(values, genes=i)
        yield from self.scores.T
        if self.prediction.ood is not None:
            yield self.prediction.ood

    @cached_property
    def annotation(self) -> list[str | None]:
        """The region in which each tile's centre lies, the smallest of several; None outside all of them."""
        return annotated(self.prediction.tiles.centre_yx, self.regions)

    @property
    def mark(self) -> dict[str, Any]:
        """What made it, for a root's attributes."""
        record = self.prediction.record
        told = {k: record[k] for k in ("unit", "model", "slide", "versions") if k in record}
        fitted = {"intervals_fitted_to": self.prediction.fitted} if self.prediction.fitted else {}
        return {MARK: told | self._level | fitted | {"notice": RESEARCH_USE}}

    @property
    def fitted_in_words(self) -> list[str]:
        """By which measured spots the intervals were fitted, as a sentence; none where they were not."""
        return [f"Intervals {fitted}"] if (fitted := fitted_to(self.prediction)) else []

    @property
    def trust(self) -> dict[str, Any]:
        """How far to believe its genes, fit for JSON: what was measured of each, and on what; empty: nothing was."""
        head = self.prediction.head
        told = {gene: said for gene in self.genes if (said := gene_record(head, gene))}
        return {"held_out": self.prediction.pcc_split, "genes": told} if told else {}

    @property
    def mark_with_trust(self) -> dict[str, Any]:
        """:attr:`mark`, for formats that have no place of their own for what is known of each gene."""
        return {MARK: self.mark[MARK] | self.trust}

    @property
    def _level(self) -> dict[str, Any]:
        return {} if self.level is None else {"interval_level": self.level}

    def anndata(self) -> Any:
        """Return tiles and genes in scverse layout, with scores and regions in ``obs`` and the overview in ``uns``.

        There are no ``X`` and no layers, which may be larger than memory: :meth:`by_tiles` and :meth:`ends` have their
        values.
        """
        import pandas as pd

        adata = self.prediction.to_anndata(self.genes, values=False)
        if self.head.pcc is not None and self.head.baseline_pcc_high is not None:
            adata.var["predictable"] = self.head.predictable
        adata.uns[UNS] = {**adata.uns[UNS], **self._level, "notice": RESEARCH_USE}
        if (of := self.prediction.intervals) is not None:
            floor = {} if of.floor is None else {"floor": of.floor}
            fitted = {"fitted_to": words[0]} if (words := self.fitted_in_words) else {}
            adata.uns[UNS]["intervals"] = {"probabilities": np.asarray(of.probabilities, float), **floor, **fitted}
        told: dict[str, Any] = {}
        for column, (name, genes), score in zip(self.score_columns, self.sets.items(), self.scores.T):
            adata.obs[column] = score
            told[column] = {"name": name, "genes": known_genes(self.prediction, genes)[0]}
        if told:
            adata.uns[UNS]["gene_sets"] = told
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
    value_bytes
        What a value takes on the disk, about; 0: so few are written that nobody need know.
    intervals
        Whether ends of intervals are written where nobody says.
    best
        Without names so many of the best predicted genes are taken; None: all.
    a_gene
        A file a gene.
    describe
        Returns, for a format that cannot say it itself, what a file of that name holds; it is written beside it.
    """

    name: str
    endings: tuple[str, ...]
    what: str
    write: Callable[[Export, Path], None]
    value_bytes: float = 0
    intervals: bool = False
    best: int | None = None
    a_gene: bool = False
    describe: Callable[[Export, str], dict[str, Any]] | None = None


def even(n: int, most: int) -> int:
    """Return the length of the parts of `n`, none above `most`, so that the last is hardly shorter; 1 at the least."""
    return max(1, -(-n // max(1, -(-n // most))))


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
