"""A predicted map as a person holds it, and as it lies on the disk: AnnData with tiles as observations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import LEVEL, Intervals
from napari_peka.core.errors import NoResult, SettingError, StoreError
from napari_peka.core.geometry import Block, TileSpec, TileTable
from napari_peka.core.head import MEASURED, GeneHead
from napari_peka.core.neighbours import Neighbours, neighbour_mean
from napari_peka.core.raster import Raster

#: 2: values need more than embedding times weights, or the tiles have a footprint; other results keep 1
FORMAT = 2
UNS = "napari_peka"
EMBEDDINGS = "X_peka"
WEIGHTS, RESIDUALS = "peka_weights", "peka_residuals"
#: the model's own quantiles, where those of a result were fitted to measured spots
RESIDUALS_OF_MODEL = "peka_residuals_of_model"
#: entry of a stored record: every part was written, also those that are zero all over
COMPLETE = "complete"
#: characters of another library's words that are repeated
_SAID = 120
#: entry of ``record["intervals"]`` that says by which measured spots they were fitted
FITTED = "fitted"
#: columns of ``obs``: how unlike the training data a tile is, and how much wider intervals are there
OOD, SPREAD = "ood", "spread"
RESEARCH_USE = "Research use only. Not for diagnosis."
SMOOTHED = "measured on counts averaged over neighbouring spots, which flatters"


@dataclass(eq=False, repr=False)
class Prediction:
    """A predicted map: tiles, their embeddings, and the head that turns these into any gene.

    Parameters
    ----------
    tiles
        Where the tiles are.
    embeddings
        float16 ``(n, d)``, each tile's own; NaN rows where a tile could not be read or is not done yet.
    head
        The gene head; what it reads of a tile's neighbours is computed from their embeddings when it is asked for.
    read_ok
        False where a tile could not be decoded, bool ``(n,)``.
    record
        What made this: slide, model, settings, versions.
    path
        Where it lies; None while it is only in memory.
    ood
        How unlike the training data each tile is, float32 ``(n,)``, 0 to 100: a percentile. At 99 a tile is less like
        the training spots than 99 % of these are like those of other sections. NaN where it is not done; None where
        the model cannot tell.
    spread
        By how much intervals are wider at each tile than where the head knows most, float32 ``(n,)``, 1 or more; None:
        nowhere.
    intervals
        Around the values of each gene; None where the model has none.
    model_intervals
        Those of the model, where `intervals` were fitted to spots measured on this slide; else None.
    """

    tiles: TileTable
    embeddings: npt.NDArray[np.float16]
    head: GeneHead
    read_ok: npt.NDArray[np.bool_]
    record: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    ood: npt.NDArray[np.float32] | None = None
    spread: npt.NDArray[np.float32] | None = None
    intervals: Intervals | None = None
    model_intervals: Intervals | None = None

    def __repr__(self) -> str:
        where = f", {self.path}" if self.path else ""
        return f"<Prediction of {len(self.genes)} genes ({self.unit}) on {len(self.tiles)} tiles{where}>"

    @property
    def pcc_split(self) -> str:
        """On what the genes' held-out correlations were measured, in words; empty when nobody says."""
        model = self.record.get("model", {})
        split = str(model.get("pcc_split", ""))
        return f"{split}; {SMOOTHED}".removeprefix("; ") if model.get("neighbour_smoothing") else split

    @property
    def genes(self) -> tuple[str, ...]:
        """Genes that can be asked for."""
        return self.head.genes

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return self.head.unit

    @property
    def n_unreadable(self) -> int:
        """Number of tiles that could not be decoded."""
        return int((~self.read_ok).sum())

    @property
    def n_done(self) -> int:
        """Number of tiles that are done, whether they could be decoded or not; fewer than all while it grows."""
        known = ~np.isnan(self.embeddings[:, :1]).any(1) if self.embeddings.shape[1] else self.read_ok
        return int((known | ~self.read_ok).sum())

    @property
    def done_in_words(self) -> str:
        """How much of an unfinished map there is: ``312 of 1,234 tiles``."""
        return f"{self.n_done:,} of {len(self.tiles):,} tiles"

    @property
    def partial(self) -> bool:
        """Whether tiles are still missing: the map grows, or its job was stopped."""
        return "partial" in self.record

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """The tiles within the head's context; None when it reads none. Found once, at the first need."""
        um = self.head.context_um
        return None if um is None else neighbour_mean(self.tiles.centre_um, um)

    def values(self, gene: str, rows: npt.NDArray[np.integer] | None = None) -> npt.NDArray[np.float32]:
        """Return the predicted expression of `gene` a tile, shape ``(n,)``, in :attr:`unit`; NaN if unreadable.

        Parameters
        ----------
        gene
            Symbol or Ensembl id.
        rows
            Ascending numbers of the tiles that are asked for; None: all. A few cost little in a large map.
        """
        near = self.neighbours
        if rows is None:
            return self.head.values(self.embeddings, gene, near)
        if near is None:
            return self.head.values(self.embeddings[rows], gene)
        around = near.touched(rows)  # what these rows read: they and their neighbours
        return self.head.values(self.embeddings[around], gene, near.among(around))[np.searchsorted(around, rows)]

    def interval(
        self, gene: str, level: float = LEVEL, rows: npt.NDArray[np.integer] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the lower and the upper end of the interval in which the measured expression lies, ``(n,)`` each.

        Parameters
        ----------
        gene
            Symbol or Ensembl id.
        level
            Share of measured values that it is to hold, on another section of the kind that the model was trained on.
        rows
            As for :meth:`values`.

        Raises
        ------
        SettingError
            If the model has no intervals, or none of that level.
        """
        at, known = self.head.index(gene), self.needed_intervals()
        values = self.values(gene, rows)
        return known.around(values, self.spread_of(slice(None) if rows is None else rows), level, at)

    def spread_of(self, rows: npt.NDArray[np.integer] | slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return :attr:`spread` of some tiles, 1 where nothing is known of it, not to be written to."""
        return (np.broadcast_to(np.float32(1), (len(self.tiles),)) if self.spread is None else self.spread)[rows]

    @property
    def fitted(self) -> dict[str, Any]:
        """By which spots, measured on this slide, :attr:`intervals` were fitted; empty where they are the model's."""
        return dict((self.record.get("intervals") or {}).get(FITTED) or {})

    def needed_intervals(self) -> Intervals:
        """Return :attr:`intervals`, for what cannot be done without them.

        Raises
        ------
        SettingError
            If the model has none.
        """
        if self.intervals is None:
            raise SettingError(
                f"the model {self.record.get('model', {}).get('name', '')} of this map says nothing of its errors: it "
                "was made without held-out spots, or by an older version; train it again"
            )
        return self.intervals

    def changed_by(self, blocks: Sequence[Block]) -> npt.NDArray[np.intp]:
        """Return the tiles whose values change when `blocks` are done, ascending: theirs, and those that read them."""
        rows = np.concatenate([np.arange(b.start, b.stop) for b in blocks]) if blocks else np.empty(0, np.intp)
        return np.unique(rows) if self.neighbours is None else self.neighbours.touched(rows)

    def raster(self, gene: str) -> Raster:
        """Return the map of `gene`, one pixel a tile."""
        return self.tiles.raster(self.values(gene), self.unit)

    def only(self, genes: Sequence[str]) -> Prediction:
        """Return the map of some genes, in their order, each once; tiles and embeddings are shared.

        Raises
        ------
        UnknownName
            If the model does not know a gene.
        """
        at = list(dict.fromkeys(self.head.index(g) for g in genes))
        both = (None if of is None else of.only(at) for of in (self.intervals, self.model_intervals))
        intervals, of_model = both
        return replace(self, head=self.head.only(genes), intervals=intervals, model_intervals=of_model)

    def to_anndata(self, genes: Sequence[str] | None = None, *, values: bool = True) -> Any:
        """Return an AnnData in scverse layout with the values of `genes` (all by default) in ``X``.

        Parameters
        ----------
        genes
            Symbols or Ensembl ids.
        values
            False: without ``X``, which is as large as tiles times genes.
        """
        some = self if genes is None else self.only(genes)
        adata = anndata_of(some)
        if values:
            adata.X = some.head.matrix(self.embeddings, None, self.neighbours)
        adata.obsm[EMBEDDINGS] = self.embeddings
        return adata

    def export(self, output: Path | str, to: str, **options: Any) -> list[Path]:
        """Write the map in another program's format, as :func:`napari_peka.io.export.export`, which takes `options`."""
        from napari_peka.io.export import export

        return export(self, to, output, **options)


def read_prediction(path: Path | str) -> Prediction:
    """Read a finished result.

    Raises
    ------
    StoreError
        If there is none, it is unfinished, or it was not written by this package.
    """
    import anndata

    path = Path(path)
    if path.suffix == ".partial":
        raise NoResult(f"{path.with_suffix('')} is not finished; run the same prediction again, it resumes")
    if not path.exists():
        if path.with_name(path.name + ".partial").exists():
            raise NoResult(f"{path} is not finished; run the same prediction again, it resumes")
        raise NoResult(f"there is no result at {path}")
    try:
        record = json.loads(record_text(path))
        if record["format"] > FORMAT:
            raise NoResult(f"{path} is of a newer version of napari-peka; update to read it")
        _refuse_missing(path, everywhere=bool(record.pop(COMPLETE, False)))
        adata = anndata.read_zarr(path)
        spec = TileSpec(**record["tile_spec"])
        embeddings = np.asarray(adata.obsm[EMBEDDINGS])
        weights = np.ascontiguousarray(np.asarray(adata.varm[WEIGHTS], np.float32).T)
        var = adata.var
        ids = tuple(var["gene_ids"].astype(str)) if "gene_ids" in var else ()
        measured = {k: var[k].to_numpy(np.float32) for k in MEASURED if k in var}
        head = GeneHead(
            weights, var["bias"].to_numpy(np.float32), tuple(map(str, var.index)), record["unit"], ids,
            context_um=record.get("context_um"), **measured,
        )  # fmt: skip
        grid = adata.obs[["row", "col"]].to_numpy(np.int32) if "row" in adata.obs else None
        tiles = TileTable(
            np.asarray(adata.obsm["spatial"], np.float64)[:, ::-1].copy(),
            spec,
            (record["mpp"][0], record["mpp"][1]),
            grid,
            None if grid is not None else tuple(map(str, adata.obs_names)),
            adata.obs["block"].to_numpy(np.int32),
            tuple(record["grid_shape"]) if record.get("grid_shape") else None,
        )
        made = Prediction(
            tiles, embeddings, head, adata.obs["read_ok"].to_numpy(bool), record, path,
            intervals=_intervals(record, adata.varm.get(RESIDUALS)),
            model_intervals=_intervals(record, adata.varm.get(RESIDUALS_OF_MODEL)),
            **{k: adata.obs[k].to_numpy(np.float32) for k in (OOD, SPREAD) if k in adata.obs},
        )  # fmt: skip
    except StoreError:
        raise
    except Exception as e:
        raise NoResult(
            f"{path} is not a napari-peka result, or it is damaged: copy it again, or move it away and predict its "
            f"slide again ({type(e).__name__}: {str(e)[:_SAID]})"
        ) from e
    return made


def record_text(path: Path) -> str:
    """Return what a result's record says, as JSON; nothing else is read."""
    import zarr

    return str(np.asarray(zarr.open_group(str(path), mode="r")[f"uns/{UNS}/record"][()]).item())


def _refuse_missing(path: Path, everywhere: bool) -> None:
    """Refuse a result of which parts are missing: zarr reads them as zeros, without a word.

    Older versions did not write parts that are zero all over; embeddings and weights never are.
    """
    import zarr

    for name, array in zarr.open_group(str(path), mode="r").members(max_depth=None):
        if not isinstance(array, zarr.Array) or not (everywhere or name.rpartition("/")[2] in (EMBEDDINGS, WEIGHTS)):
            continue
        if array.attrs.get("encoding-type") == "null":  # how anndata says that there is nothing
            continue
        if array.nchunks_initialized < array.nchunks:
            raise NoResult(
                f"{path} is damaged, parts of {name} are missing: copy it again, or move it away and "
                "predict its slide again"
            )


def anndata_of(prediction: Prediction) -> Any:
    """Return an AnnData of all that a map is but its embeddings and values."""
    import anndata
    import pandas as pd

    tiles, head, record = prediction.tiles, prediction.head, prediction.record
    obs = pd.DataFrame(index=pd.Index(list(tiles.names), dtype=str))
    if tiles.grid_yx is not None:
        obs["row"], obs["col"] = tiles.grid_yx.T
    obs["block"], obs["read_ok"] = tiles.block, prediction.read_ok
    for name in (OOD, SPREAD):
        if (values := getattr(prediction, name)) is not None:
            obs[name] = values
    var = pd.DataFrame({"bias": head.bias}, index=pd.Index(list(head.genes), dtype=str))
    if head.gene_ids:
        var["gene_ids"] = list(head.gene_ids)
    for name, values in head.measured.items():
        var[name] = values
    varm = {WEIGHTS: np.ascontiguousarray(head.weights.T)}
    for name, of in ((RESIDUALS, prediction.intervals), (RESIDUALS_OF_MODEL, prediction.model_intervals)):
        if of is not None:
            varm[name] = np.ascontiguousarray(of.quantiles.T)
    library = str(record["slide"]["name"])
    spot = float(np.mean(tiles.spec.footprint0(tiles.slide_mpp)))
    return anndata.AnnData(
        obs=obs,
        var=var,
        obsm={"spatial": np.ascontiguousarray(tiles.centre_yx[:, ::-1])},
        varm=varm,
        uns={
            UNS: {**_flat(record), "record": json.dumps(record)},
            "spatial": {library: {"scalefactors": {"spot_diameter_fullres": spot, "tissue_hires_scalef": 1.0}}},
        },
    )


def doubt_record(intervals: Intervals | None) -> dict[str, Any]:
    """Return what a record says of intervals, fit for JSON: all that is not a number a gene."""
    if intervals is None:
        return {"intervals": None}
    p = [round(float(v), 9) for v in intervals.probabilities]
    return {"intervals": {"probabilities": p, "floor": intervals.floor}}


def _intervals(record: dict[str, Any], quantiles: Any) -> Intervals | None:
    told = record.get("intervals")
    if not told or quantiles is None:
        return None
    values = np.ascontiguousarray(np.asarray(quantiles, np.float32).T)
    return Intervals(np.array(told["probabilities"]), values, told["floor"])


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return the plain entries of the record, for people who look into ``uns`` without parsing JSON."""
    out: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            out[key] = _flat(value)
        elif isinstance(value, (str, int, float, bool)):
            out[key] = value
        elif isinstance(value, (list, tuple)) and value and not isinstance(value[0], dict):
            out[key] = np.asarray(value) if not isinstance(value[0], str) else np.asarray(value, dtype=object)
    return out
