"""Predictions on disk: the finished AnnData-zarr, and the folder beside it from which an interrupted run resumes.

While a run works, its state is ``<name>.partial/``: ``run.json`` (what this run is), ``tiles.safetensors`` and one
small file a finished block, each written beside, pushed to the disk and renamed. When the last block is there the
zarr is assembled inside that folder and renamed to its final name. So a result is whole or not there, and whatever
stops a run (cancel, kill, full disk, power) costs at most the blocks in flight.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core import files
from napari_peka.core.errors import OutputMismatch, SettingError, StoreError
from napari_peka.core.geometry import Block, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.io.block_files import BlockFiles
from napari_peka.io.prediction import COMPLETE, EMBEDDINGS, UNS, Prediction, anndata_of, record_text

RUN_FILE = "run.json"
#: what two runs may differ in, for a person
DIFFERS = {
    "slide": "another slide", "model": "another model", "mpp": "other µm per pixel",
    "tile size": "tiles of another size or distance", "region or tissue": "another region or tissue",
    "precision": "another number format", "device": "another kind of device",
    "stain": "another way to normalise the stain",
}  # fmt: skip
#: rows of a zarr chunk of embeddings: 4096 x 384 float16 is 3 MB, a good read over a network too
CHUNK_ROWS = 4096
#: held while a result is put together
_ASSEMBLING = threading.Lock()


def result_path(output: Path | str) -> Path:
    """Return the path of a result; its name must end in ``.zarr``."""
    path = Path(output).expanduser()
    if path.suffix != ".zarr":
        raise SettingError(f"the output {path} must end in .zarr (such as {path.name or 'case'}.peka.zarr)")
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
    seen_dims
        Numbers of a tile in a block; None: its embedding alone.
    overwrite
        Replace a result or unfinished run of something else; what this package did not write is never replaced.
    """

    def __init__(
        self, path: Path, tiles: TileTable, head: GeneHead, record: dict[str, Any], *, seen_dims: int | None = None,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.tiles, self.head, self.record = path, tiles, head, record
        self.n_dims = head.embedding_dims
        self.partial = path.with_name(path.name + ".partial")
        # a worker of a run that was given up may still write: never where another run looks for blocks
        run = hashlib.sha256(json.dumps(record["identity"], sort_keys=True).encode()).hexdigest()[:8]
        self.blocks = BlockFiles(self.partial / f"blocks-{run}", seen_dims or self.n_dims)
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

    def finish(self, done: Prediction) -> None:
        """Write the zarr of all tiles, rename it into place and drop the partial folder.

        Parameters
        ----------
        done
            The whole map; its record counts for nothing, that of this store is written.
        """
        scratch = self.partial / "result.zarr"
        files.remove_tree(scratch)
        try:
            _assemble(scratch, dataclasses.replace(done, record=self.record))
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


def save_result(done: Prediction, path: Path | str, *, overwrite: bool = False) -> Prediction:
    """Write a finished map as a result: whole, or not at all.

    Parameters
    ----------
    done
        The map.
    path
        Where to; its name must end in ``.zarr``.
    overwrite
        Replace a result that is there; what this package did not write is never replaced.

    Raises
    ------
    OutputMismatch, StoreError
        If there is something already, or it cannot be written.
    """
    path = result_path(path)
    lock = files.take_lock(path)
    try:
        if path.exists():
            identity_of_result(path)
            if not overwrite:
                raise OutputMismatch(f"{path} is there already; choose another output, or overwrite it (--overwrite)")
        files.check_room(path, done.embeddings.nbytes + done.head.weights.nbytes)
        files.write_beside(path, lambda beside: _assemble(beside, done))
    finally:
        files.drop_lock(lock)
    return dataclasses.replace(done, path=path)


def amend_record(done: Prediction) -> None:
    """Put a stored map's record as it is now into its result, whole or not at all; what else is there stays.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    import anndata
    import zarr

    assert done.path is not None
    parts: dict[str, Any] = {}
    root = zarr.open_group(zarr.storage.MemoryStore(parts), mode="w", zarr_format=2)
    complete = {COMPLETE: True} if COMPLETE in json.loads(record_text(done.path)) else {}
    record = {k: v for k, v in done.record.items() if k != "run"} | complete
    anndata.io.write_elem(root, "record", json.dumps(record))
    files.write_whole(done.path / "uns" / UNS / "record" / "0", parts["record/0"].to_bytes())


def _assemble(target: Path, done: Prediction) -> None:
    import zarr

    # parts that are zero all over are written too, so that one that is missing is known to be. The setting is the whole
    # process's: another thread that ends its own result would take it back
    with _ASSEMBLING, zarr.config.set({"array.write_empty_chunks": True}):
        _write_parts(target, dataclasses.replace(done, record=done.record | {COMPLETE: True}))


def _write_parts(target: Path, done: Prediction) -> None:
    import anndata
    import zarr

    embeddings, dims = done.embeddings, done.head.embedding_dims
    adata = anndata_of(done)
    adata.obsm[EMBEDDINGS] = np.zeros((len(done.tiles), 0), np.float16)  # anndata makes the group; filled below
    # hundreds of small parts, each of which anndata writes, looks up and amends: a third of the time in memory
    parts: dict[str, Any] = {}
    # format 2: every anndata that people still have opens it
    root = zarr.open_group(zarr.storage.MemoryStore(parts), mode="w", zarr_format=2)
    adata.strings_to_categoricals()
    anndata.io.write_elem(root, "/", adata)
    group = root["obsm"]
    attrs = dict(group[EMBEDDINGS].attrs)
    del group[EMBEDDINGS]
    array = group.create_array(EMBEDDINGS, shape=(len(done.tiles), dims), chunks=(CHUNK_ROWS, dims), dtype="float16")
    array.attrs.update(attrs)
    zarr.consolidate_metadata(root.store)
    for name, part in parts.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part.to_bytes())
    array = zarr.open_array(str(target / "obsm" / EMBEDDINGS), mode="r+")
    for at in range(0, len(embeddings), CHUNK_ROWS):
        array[at : at + CHUNK_ROWS] = embeddings[at : at + CHUNK_ROWS]


def identity_of_result(path: Path) -> dict[str, Any]:
    """Return what a finished result is, without reading it.

    Raises
    ------
    StoreError
        If there is something else at `path`.
    """
    try:
        return dict(json.loads(record_text(path))["identity"])
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
        what = ", ".join(_in_words(name, before.get(name), now.get(name)) for name in names)
        raise OutputMismatch(
            f"{where} belongs to another run, with {what}; choose another output, or overwrite it (--overwrite)"
        )


def differing(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Return in what two runs differ, without what follows from it: other tiles cover another region by themselves."""
    names = tuple(k for k in {**now, **before} if before.get(k) != now.get(k))
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
