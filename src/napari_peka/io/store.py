"""Predictions on disk: the finished AnnData-zarr, and the folder beside it from which an interrupted run resumes.

While a run works, its state is ``<name>.partial/``: ``run.json`` (what this run is), ``tiles.safetensors`` and one
small file a finished block, each written beside, pushed to the disk and renamed. When the last block is there the
zarr is assembled inside that folder and renamed to its final name. So a result is whole or not there, and whatever
stops a run (cancel, kill, full disk, power) costs at most the blocks in flight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.core.errors import NoResult, OutputMismatch, StoreError
from napari_peka.core.geometry import Block, TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.core.neighbours import Neighbours, neighbour_mean
from napari_peka.core.raster import Raster
from napari_peka.io.block_files import BlockFiles

#: 2: values need more than embedding times weights, or the tiles have a footprint; other results keep 1
FORMAT = 2
UNS = "napari_peka"
RUN_FILE = "run.json"
EMBEDDINGS = "X_peka"
WEIGHTS = "peka_weights"
RESEARCH_USE = "Research use only. Not for diagnosis."
SMOOTHED = "measured on counts averaged over neighbouring spots, which flatters"
#: what two runs may differ in, for a person
DIFFERS = {
    "slide": "another slide", "model": "another model", "mpp": "other µm per pixel",
    "tile size": "tiles of another size or distance", "region or tissue": "another region or tissue",
    "precision": "another number format", "device": "another kind of device",
}  # fmt: skip
#: rows of a zarr chunk of embeddings: 4096 x 384 float16 is 3 MB, a good read over a network too
CHUNK_ROWS = 4096


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
    """

    tiles: TileTable
    embeddings: npt.NDArray[np.float16]
    head: GeneHead
    read_ok: npt.NDArray[np.bool_]
    record: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

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

    def changed_by(self, blocks: Sequence[Block]) -> npt.NDArray[np.intp]:
        """Return the tiles whose values change when `blocks` are done, ascending: theirs, and those that read them."""
        rows = np.concatenate([np.arange(b.start, b.stop) for b in blocks]) if blocks else np.empty(0, np.intp)
        return np.unique(rows) if self.neighbours is None else self.neighbours.touched(rows)

    def raster(self, gene: str) -> Raster:
        """Return the map of `gene`, one pixel a tile."""
        return self.tiles.raster(self.values(gene), self.unit)

    def to_anndata(self, genes: Sequence[str] | None = None, *, values: bool = True) -> Any:
        """Return an AnnData in scverse layout with the values of `genes` (all by default) in ``X``.

        Parameters
        ----------
        genes
            Symbols or Ensembl ids.
        values
            False: without ``X``, which is as large as tiles times genes.
        """
        head = self.head if genes is None else self.head.only(genes)
        adata = _anndata(self.tiles, head, self.read_ok, self.record)
        if values:
            adata.X = head.matrix(self.embeddings, None, self.neighbours)
        adata.obsm[EMBEDDINGS] = self.embeddings
        return adata

    def export(self, output: Path | str, to: str, **options: Any) -> list[Path]:
        """Write the map in another program's format, as :func:`napari_peka.io.export.export`, which takes `options`."""
        from napari_peka.io.export import export

        return export(self, to, output, **options)


def result_path(output: Path | str) -> Path:
    """Return the path of a result; its name must end in ``.zarr``."""
    path = Path(output).expanduser()
    if path.suffix != ".zarr":
        raise StoreError(f"the output {path} must end in .zarr (such as {path.name or 'case'}.peka.zarr)")
    return path


class RunStore:
    """A run's place on the disk: remembers finished blocks, refuses to mix, and assembles the result.

    Use as a context manager: it holds a lock, so that two processes never write the same result.

    Parameters
    ----------
    path
        Final path of the result.
    tiles, head, record
        As in :class:`Prediction`. ``record["identity"]`` is what must be equal to resume.
    overwrite
        Replace a result or unfinished run of something else; what this package did not write is never replaced.
    """

    def __init__(
        self, path: Path, tiles: TileTable, head: GeneHead, record: dict[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path, self.tiles, self.head, self.record = path, tiles, head, record
        self.n_dims = head.embedding_dims
        self.partial = path.with_name(path.name + ".partial")
        # a worker of a run that was given up may still write: never where another run looks for blocks
        run = hashlib.sha256(json.dumps(record["identity"], sort_keys=True).encode()).hexdigest()[:8]
        self.blocks = BlockFiles(self.partial / f"blocks-{run}", self.n_dims)
        self._overwrite = overwrite
        self._lock: Any = None

    def __enter__(self) -> RunStore:
        self._lock = files.take_lock(self.path)
        try:
            self._prepare()
        except BaseException:
            files.drop_lock(self._lock)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        files.drop_lock(self._lock)

    def _prepare(self) -> None:
        identity = self.record["identity"]
        before = self.unfinished()
        if self.path.exists():
            of_result = identity_of_result(self.path)
            if of_result == identity:
                if before == identity:  # killed after the last rename: only the tidying was left to do
                    files.remove_tree(self.partial)
                return
            if not self._overwrite:
                same_or_raise(of_result, identity, self.path)
        if self.partial.exists() and before != identity:
            if before is not None and not self._overwrite:
                same_or_raise(before, identity, self.partial)
            files.remove_tree(self.partial)
        try:
            self.blocks.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise files.cannot_write(self.partial, e) from e
        if before != identity:
            files.write_whole(self.partial / RUN_FILE, json.dumps(self.record, indent=1).encode())

    def unfinished(self) -> dict[str, Any] | None:
        """Return the identity of the unfinished run in the partial folder, or None."""
        try:
            return dict(json.loads((self.partial / RUN_FILE).read_text("utf-8"))["identity"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # none, or killed before it was described: no block can be there

    def finished(self) -> bool:
        """Whether the final result of this very run is there already."""
        return self.path.exists() and identity_of_result(self.path) == self.record["identity"]

    def read_block(self, block: Block) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_]] | None:
        """Return ``(embeddings, read_ok)`` of a finished block, or None."""
        return self.blocks.read(block.index, len(block))

    def write_block(self, block: Block, embeddings: npt.NDArray[np.float16], ok: npt.NDArray[np.bool_]) -> None:
        """Keep a finished block: ``embeddings (n, d)`` and ``read_ok (n,)``."""
        self.blocks.write(block.index, embeddings, ok)

    def finish(self, embeddings: npt.NDArray[np.float16], read_ok: npt.NDArray[np.bool_]) -> None:
        """Write the zarr of all tiles, rename it into place and drop the partial folder.

        Parameters
        ----------
        embeddings, read_ok
            As in :class:`Prediction`.
        """
        scratch = self.partial / "result.zarr"
        files.remove_tree(scratch)
        try:
            self._assemble(scratch, embeddings, read_ok)
            files.sync_tree(scratch)
            old = self.partial / "replaced.zarr"
            files.remove_tree(old)
            if self.path.exists():
                files.replace(self.path, old)
            files.replace(scratch, self.path)
        except OSError as e:
            if isinstance(e, StoreError):
                raise
            raise files.cannot_write(self.path, e) from e
        files.remove_tree(self.partial)

    def _assemble(self, target: Path, embeddings: npt.NDArray[np.float16], read_ok: npt.NDArray[np.bool_]) -> None:
        import anndata
        import zarr

        adata = _anndata(self.tiles, self.head, read_ok, self.record)
        adata.obsm[EMBEDDINGS] = np.zeros((len(self.tiles), 0), np.float16)  # anndata makes the group; filled below
        # hundreds of small parts, each of which anndata writes, looks up and amends: a third of the time in memory
        parts: dict[str, Any] = {}
        # format 2: every anndata that people still have opens it
        root = zarr.open_group(zarr.storage.MemoryStore(parts), mode="w", zarr_format=2)
        adata.strings_to_categoricals()
        anndata.io.write_elem(root, "/", adata)
        group = root["obsm"]
        attrs = dict(group[EMBEDDINGS].attrs)
        del group[EMBEDDINGS]
        shape = (len(self.tiles), self.n_dims)
        array = group.create_array(EMBEDDINGS, shape=shape, chunks=(CHUNK_ROWS, self.n_dims), dtype="float16")
        array.attrs.update(attrs)
        zarr.consolidate_metadata(root.store)
        for name, part in parts.items():
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(part.to_bytes())
        array = zarr.open_array(str(target / "obsm" / EMBEDDINGS), mode="r+")
        for at in range(0, len(embeddings), CHUNK_ROWS):
            array[at : at + CHUNK_ROWS] = embeddings[at : at + CHUNK_ROWS]


def read_prediction(path: Path | str) -> Prediction:
    """Read a finished result.

    Raises
    ------
    StoreError
        If there is none, it is unfinished, or it was not written by this package.
    """
    import anndata

    path = Path(path)
    if not path.exists():
        if path.with_name(path.name + ".partial").exists():
            raise NoResult(f"{path} is not finished; run the same prediction again, it resumes")
        raise NoResult(f"there is no result at {path}")
    try:
        adata = anndata.read_zarr(path)
        record = json.loads(adata.uns[UNS]["record"])
        if record["format"] > FORMAT:
            raise NoResult(f"{path} is of a newer version of napari-peka; update to read it")
        spec = TileSpec(**record["tile_spec"])
        embeddings = np.asarray(adata.obsm[EMBEDDINGS])
        weights = np.ascontiguousarray(np.asarray(adata.varm[WEIGHTS], np.float32).T)
        var = adata.var
        ids = tuple(var["gene_ids"].astype(str)) if "gene_ids" in var else ()
        pcc, ceiling = (var[k].to_numpy(np.float32) if k in var else None for k in ("pcc", "attainable_pcc"))
        head = GeneHead(
            weights, var["bias"].to_numpy(np.float32), tuple(map(str, var.index)), record["unit"], ids, pcc,
            record.get("context_um"), ceiling,
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
    except StoreError:
        raise
    except Exception as e:
        raise NoResult(f"{path} is not a napari-peka result or is damaged ({type(e).__name__}: {e})") from e
    return Prediction(tiles, embeddings, head, adata.obs["read_ok"].to_numpy(bool), record, path)


def _anndata(tiles: TileTable, head: GeneHead, read_ok: npt.NDArray[np.bool_], record: dict[str, Any]) -> Any:
    import anndata
    import pandas as pd

    obs = pd.DataFrame(index=pd.Index(list(tiles.names), dtype=str))
    if tiles.grid_yx is not None:
        obs["row"], obs["col"] = tiles.grid_yx.T
    obs["block"], obs["read_ok"] = tiles.block, read_ok
    var = pd.DataFrame({"bias": head.bias}, index=pd.Index(list(head.genes), dtype=str))
    if head.gene_ids:
        var["gene_ids"] = list(head.gene_ids)
    for name in ("pcc", "attainable_pcc"):
        if (values := getattr(head, name)) is not None:
            var[name] = values
    library = str(record["slide"]["name"])
    spot = float(np.mean(tiles.spec.footprint0(tiles.slide_mpp)))
    return anndata.AnnData(
        obs=obs,
        var=var,
        obsm={"spatial": np.ascontiguousarray(tiles.centre_yx[:, ::-1])},
        varm={WEIGHTS: np.ascontiguousarray(head.weights.T)},
        uns={
            UNS: {**_flat(record), "record": json.dumps(record)},
            "spatial": {library: {"scalefactors": {"spot_diameter_fullres": spot, "tissue_hires_scalef": 1.0}}},
        },
    )


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


def identity_of_result(path: Path) -> dict[str, Any]:
    """Return what a finished result is, without reading it.

    Raises
    ------
    StoreError
        If there is something else at `path`.
    """
    import zarr

    try:
        text = zarr.open_group(str(path), mode="r")[f"uns/{UNS}/record"][()]
        record = json.loads(str(np.asarray(text).item()))
        return dict(record["identity"])
    except Exception as e:
        raise StoreError(
            f"{path} exists and is not a napari-peka result, or is damaged; move it away or choose another output"
        ) from e


def same_or_raise(before: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Refuse to mix two runs.

    Raises
    ------
    OutputMismatch
        If their identities differ; it says in what.
    """
    if names := differing(before, now):
        what = ", ".join(_in_words(name, before.get(name), now[name]) for name in names)
        raise OutputMismatch(
            f"{where} belongs to another run, with {what}; choose another output, or overwrite it (--overwrite)"
        )


def differing(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Return in what two runs differ, without what follows from it: other tiles cover another region by themselves."""
    names = tuple(k for k in now if before.get(k) != now[k])
    return tuple(k for k in names if k != "region or tissue" or "tile size" not in names)


def _in_words(name: str, before: Any, now: Any) -> str:
    """Return in words what two runs differ in, with values where they say something to a person."""
    said = DIFFERS.get(name, f"another {name}")
    if name == "mpp" and before:
        return f"{said} ({before[-1]:.4g}, now {now[-1]:.4g})"
    if name == "precision" and before:
        return f"{said} or another backend ({_by(before)}, now {_by(now)})"
    return f"{said} ({before}, now {now})" if name == "device" and before else said


def _by(precision: str) -> str:
    """Return a number format and who computes in it, in words."""
    number, _, backend = str(precision).partition(", ")
    return f"{number} by {backend or 'torch'}"
