"""Exports as tables: AnnData and CSV, written some tiles at a time."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from napari_peka.io.exports.base import ANNOTATION, ARRAY, LOWER, MARK, ROWS, UPPER, Export, even
from napari_peka.io.prediction import OOD, SPREAD
from napari_peka.io.statistics import SCORE_UNIT
from napari_peka.io.trust import UNLIKE, gene_trust

#: genes of a chunk of ``X``, at most: with `ROWS` tiles it is 1 MB, so that a gene of a file of 7 GB is 0.2 GB to read
_GENES = 512
#: digits become a tenth smaller at the highest level, in twenty times the time
_GZIP_LEVEL = 1
#: what the columns of a CSV before the genes are
_KINDS: dict[str, Any] = {
    "tile": "string", "row": "integer", "col": "integer", "read_ok": {"base": "boolean", "format": "True|False"},
    ANNOTATION: "string",
}  # fmt: skip
_OF_TILES = {
    "tile": "name of the tile", "x": "centre, level-0 pixels", "y": "centre, level-0 pixels", "x_um": "centre, µm",
    "y_um": "centre, µm", "read_ok": "whether the tile could be decoded", ANNOTATION: "region in which it lies",
    OOD: UNLIKE, SPREAD: "by how much the intervals are wider than where the model knows most",
}  # fmt: skip
#: byte at which a chunk lies, by its first tile and its first gene
Places = dict[int, dict[int, int]]


def write_h5ad(export: Export, path: Path) -> None:
    """Write an AnnData: ``X`` in the stated unit, ``obsm["spatial"]`` (x, y), ``uns["spatial"]`` as scanpy has it.

    Ends of intervals are the layers ``lower`` and ``upper``. Values are not compressed: the digits of predicted ones
    hardly repeat, so that gzip would take off a fifth at the best, and ten times as long as the disk.
    """
    adata = export.anndata()
    adata.strings_to_categoricals()
    adata.write_h5ad(path)
    names = ["X"] if export.level is None else ["X", f"layers/{LOWER}", f"layers/{UPPER}"]
    made = [_make(path, name, len(export.prediction.tiles), len(export.genes)) for name in names]
    # HDF5 says where its chunks lie, and is not asked to write them: when the disk is full it cannot close the file,
    # holds the space, and takes the process down at its end
    with path.open("rb+") as file:
        for rows, values in export.by_tiles():
            ends = () if export.level is None else export.ends(values, rows)
            for matrix, (width, places) in zip((values, *ends), made):
                _put(file, rows.start, matrix, width, places)


def _put(file: BinaryIO, start: int, values: npt.NDArray[np.float32], width: int, places: Places) -> None:
    """Write the values of tiles from `start` on at the places of their chunks."""
    chunk = np.zeros((ROWS, width), "<f4")
    for i in range(0, len(values), ROWS):
        for first, place in places.get(start + i, {}).items():
            part = values[i : i + ROWS, first : first + width]
            chunk[: len(part), : part.shape[1]] = part
            file.seek(place)
            file.write(chunk[: len(part)].data)


def _make(path: Path, name: str, n: int, g: int) -> tuple[int, Places]:
    """Make a matrix without values; return how many genes a chunk has, and its place by its first tile and gene."""
    import h5py

    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    width = even(g, _GENES)
    places: Places = {}

    def found(chunk: Any) -> None:
        tile, gene = chunk.chunk_offset
        places.setdefault(tile, {})[gene] = chunk.byte_offset

    with h5py.File(path, "r+") as file:
        x = file.create_dataset(name, (n, g), "<f4", chunks=(min(ROWS, n), width) if n and g else None, dcpl=made)
        x.attrs.update(ARRAY)
        if x.chunks:
            x.id.chunk_iter(found)
    return width, places


def write_csv(export: Export, path: Path) -> None:
    """Write a row a tile: where it is, in level-0 pixels and µm, its region, and a column a gene and a set.

    Ends of intervals are columns beside their gene's. How unlike the training data a tile is, and how much wider its
    intervals are, goes before the genes.
    """
    where = _where(export)
    starts: list[str] = []
    rows_of_text = csv.writer(SimpleNamespace(write=starts.append), lineterminator="")
    rows_of_text.writerows(zip(*(column() for column in where.values())))
    # pandas takes five times as long for the numbers
    numbers = ",".join(["%.6g"] * len(export.labels))
    zipped = path.name.endswith(".gz")
    with gzip.open(path, "wt", _GZIP_LEVEL, "utf-8") if zipped else path.open("w", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow([*where, *export.columns])
        for rows, values in export.by_tiles(beside=True):
            for start, row in zip(starts[rows], values):
                text = numbers % tuple(row.tolist())
                file.write(f"{start},{text.replace('nan', '')}\n")


def csv_description(export: Export, name: str) -> dict[str, Any]:
    """Return what the columns of a CSV of that name are, and how far to believe them, fit for JSON.

    It is what W3C's *CSV on the Web* calls metadata and looks for beside the file: a CSV itself has no place for it.
    """
    unit, ends = export.prediction.unit, {LOWER: "lower end of the interval", UPPER: "upper end of the interval"}
    columns: list[dict[str, Any]] = []

    def add(title: str, said: str, kind: Any = "number") -> None:
        columns.append({"titles": title, "datatype": kind} | ({"dc:description": said} if said else {}))

    for title in _where(export):
        add(title, _OF_TILES.get(title, ""), _KINDS.get(title, "number"))
    for gene in export.genes:
        add(gene, f"predicted expression of {gene}, {unit}; {gene_trust(export.prediction.head, gene)}")
        for end, what in ends.items() if export.level is not None else ():
            add(f"{gene}_{end}", f"{what} of {export.level:.0%} of the measured values of {gene}, {unit}")
    for column, name_of_set in zip(export.score_columns, export.sets):
        add(column, f"score of the gene set {name_of_set} ({SCORE_UNIT})")
    return {
        "@context": "http://www.w3.org/ns/csvw",
        "url": name,
        "dc:description": ". ".join([export.mark[MARK]["notice"].rstrip("."), *export.fitted_in_words]) + ".",
        "notes": [export.mark_with_trust],
        "tableSchema": {"columns": columns},
    }


def _where(export: Export) -> dict[str, Callable[[], list[str]]]:
    """Return the columns that say which tile it is: their names, and what makes their text."""
    tiles = export.prediction.tiles
    columns: dict[str, Callable[[], list[str]]] = {"tile": lambda: list(tiles.names)}
    for end, (y, x) in (("", tiles.centre_yx.T), ("_um", tiles.centre_um.T)):
        columns |= {f"x{end}": partial(_digits, x), f"y{end}": partial(_digits, y)}
    if tiles.grid_yx is not None:
        columns |= {name: partial(_texts, of) for name, of in zip(("row", "col"), tiles.grid_yx.T)}
    columns["read_ok"] = partial(_texts, export.prediction.read_ok)
    for name in (OOD, SPREAD):
        if (values := getattr(export.prediction, name)) is not None:
            columns[name] = partial(_digits, values)
    if export.regions:
        columns[ANNOTATION] = lambda: [name or "" for name in export.annotation]
    return columns


def _texts(values: npt.NDArray[Any]) -> list[str]:
    return list(map(str, values.tolist()))


def _digits(values: npt.NDArray[np.floating]) -> list[str]:
    return [f"{v:.6g}".replace("nan", "") for v in values.tolist()]
