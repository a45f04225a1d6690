"""A predicted map as files of other programs: AnnData, SpatialData, OME-Zarr, OME-TIFF, GeoJSON, CSV, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.core import files
from napari_peka.core.doubt import LEVEL
from napari_peka.core.errors import OutputMismatch, SettingError, UnknownName, near_names
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.exports.base import MARK, Export, Format, file_name, is_export
from napari_peka.io.exports.geojson import write_geojson
from napari_peka.io.exports.images import write_figure, write_ome_tiff, write_ome_zarr
from napari_peka.io.exports.spatial_data import write_spatialdata
from napari_peka.io.exports.tables import csv_description, write_csv, write_h5ad
from napari_peka.io.prediction import Prediction
from napari_peka.io.statistics import known_genes

if TYPE_CHECKING:
    from napari_peka.io.slide import Slide

#: genes up to which ends of intervals are written where nobody says: three values for one are soon many
MOST_WITH_INTERVALS = 1000
#: a new format is a function and a line here
FORMATS = {
    f.name: f
    for f in (
        Format("h5ad", (".h5ad",), "AnnData, for scanpy", write_h5ad, value_bytes=4, intervals=True),
        Format("spatialdata", (".zarr",), "SpatialData, for squidpy and napari-spatialdata", write_spatialdata,
               value_bytes=3, intervals=True),
        Format("ome-zarr", (".ome.zarr", ".zarr"), "heatmap with a channel a gene", write_ome_zarr, 3, best=20),
        Format("ome-tiff", (".ome.tif", ".ome.tiff"), "heatmap with a channel a gene", write_ome_tiff, 3, best=20),
        Format("geojson", (".geojson", ".json"), "tiles with measurements, for QuPath", write_geojson, 30,
               intervals=True, best=20),
        Format("csv", (".csv", ".csv.gz"), "a row a tile", write_csv, value_bytes=8, intervals=True,
               describe=csv_description),
        Format("png", (".png",), "figure with scale bar, colour bar and unit", write_figure, best=1, a_gene=True),
        Format("svg", (".svg",), "the same as vectors", write_figure, best=1, a_gene=True),
    )
}  # fmt: skip


def export(
    prediction: Prediction,
    to: str,
    output: Path | str,
    *,
    genes: Sequence[str] | None = None,
    sets: Mapping[str, Sequence[str]] | None = None,
    regions: Mapping[str, Any] | None = None,
    slide: Slide | None = None,
    figure: Mapping[str, Any] | None = None,
    intervals: bool | None = None,
    overwrite: bool = False,
    progress: Progress = NULL,
) -> list[Path]:
    """Write a map in another program's format: each file whole, or not at all.

    Parameters
    ----------
    prediction
        From :func:`predict` or :func:`read_prediction`.
    to
        ``"h5ad"``, ``"spatialdata"``, ``"ome-zarr"``, ``"ome-tiff"``, ``"geojson"``, ``"csv"``, ``"png"`` or ``"svg"``.
    output
        A file with the format's ending, or a folder, in which the file is named after the slide. Figures of several
        genes have the gene's name before the ending.
    genes
        Symbols or Ensembl ids. None: all of them in ``h5ad``, ``spatialdata`` and ``csv``, the 20 with the highest
        held-out correlation in ``ome-zarr``, ``ome-tiff`` and ``geojson``, and the best one in figures; none in these
        two kinds when there are `sets`.
    sets
        Sets of genes by name, as :func:`read_gene_sets` gives them; each adds its score: a column ``score_NAME`` (in
        ``obs`` of AnnData and SpatialData), a channel, a measurement, or a figure.
    regions
        shapely polygons in level-0 pixels, x first, by name, as :func:`regions_by_name` reads them. Tiles are told in
        which they lie (``obs["annotation"]``), and formats with shapes hold them.
    slide
        The slide, for formats that show it.
    figure
        Colours and limits of figures: further arguments of :func:`write_map`.
    intervals
        Whether both ends of each value's 90 % interval are written too, which takes three times the room: layers
        ``lower`` and ``upper``, columns, measurements or channels. None: in tables and GeoJSON, of up to 1,000 genes,
        where the model has intervals. Of more genes they follow from ``obs["spread"]`` and
        ``varm["peka_residuals"]``.
    overwrite
        Replace a file that is there.
    progress
        Where to report: tiles of tables and GeoJSON, channels of images, files of figures. Raises :class:`Cancelled`
        to stop; nothing is left then of the file that was being written.

    Returns
    -------
    list of Path
        What was written. Beside a CSV lies ``NAME.csv-metadata.json``, which says what its columns are and how far to
        believe them (W3C's *CSV on the Web*).

    Raises
    ------
    SettingError
        If there is no such format, or it needs a package that is not here, or no gene was named; if intervals are asked
        for that the model or the format does not have.
    UnknownName
        If the model does not know a gene, or none of a set's.
    OutputMismatch, StoreError
        If a file is there already, or cannot be written; if it would not fit on the disk, before it is begun.
    """
    kind = format_of(to)
    scored = dict(sets or {})
    for name, of in scored.items():
        if not known_genes(prediction, of)[0]:
            raise UnknownName(f"the model knows none of the genes of the set {name} ({', '.join(list(of)[:3])}, …)")
    names = _chosen(prediction, kind, [] if genes is None and scored and kind.best is not None else genes, len(scored))
    tasks = dict(_targets(prediction, kind, Path(output).expanduser(), names, scored))
    level = _level(prediction, kind, len(names), intervals, progress)
    values = len(names) * (1 if level is None else 3) + len(scored) + (prediction.ood is not None)
    for path in tasks:
        _check_free(path, overwrite)
        if kind.describe is not None:
            _check_free(_beside(path), overwrite or _is_ours(_beside(path)))
        _check_room(path, kind, len(prediction.tiles) * values)
    progress.stage(f"writing {kind.name}", len(tasks) if kind.a_gene else None)
    for path, (part, some) in tasks.items():
        one = Export(prediction, part, dict(regions or {}), slide, dict(figure or {}), some, progress, level)
        files.make_folder(path.parent)
        files.write_beside(path, lambda p, one=one: kind.write(one, p))  # type: ignore[misc]
        if kind.describe is not None:
            said = json.dumps(kind.describe(one, path.name), indent=1, ensure_ascii=False)
            files.write_whole(_beside(path), said.encode())
        if kind.a_gene:  # others tell of tiles or channels
            progress.advance()
    return list(tasks)


def _beside(path: Path) -> Path:
    """Return where W3C's *CSV on the Web* looks for what a table's columns are."""
    return path.with_name(f"{path.name}-metadata.json")


def _is_ours(path: Path) -> bool:
    """Whether a description was written by an export: where its table is gone, it may be replaced."""
    try:
        return MARK in path.read_text("utf-8")
    except (OSError, ValueError):
        return False


def format_of(name: str) -> Format:
    """Return the format of a name.

    Raises
    ------
    SettingError
        If there is none; near names are offered.
    """
    if name not in FORMATS:
        raise SettingError(f"there is no format {name!r}{near_names(name, FORMATS)}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def _check_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace what is there, and whatever is asked a folder that no export has written."""
    if not path.exists():
        return
    if not overwrite:
        raise OutputMismatch(f"{path} is there already; choose another output, or overwrite it (--overwrite)")
    if path.is_dir() and not is_export(path):
        raise OutputMismatch(f"{path} is no export of napari-peka and is not replaced; choose another output")


def _check_room(path: Path, kind: Format, values: int) -> None:
    size = int(values * kind.value_bytes)
    instead = "choose another output, or name the genes that you want (--genes)"
    files.check_room(path, size // 2 if path.suffix == ".gz" else size, instead)


def _level(prediction: Prediction, kind: Format, genes: int, wanted: bool | None, progress: Progress) -> float | None:
    """Return the level of the intervals that are written; None: none are."""
    if wanted is None:
        wanted = kind.intervals and prediction.intervals is not None
        if wanted and genes > MOST_WITH_INTERVALS:
            wanted = False
            progress.note(
                f"the values of {genes:,} genes are written without the ends of their intervals, which would take "
                f"three times the room; name up to {MOST_WITH_INTERVALS:,} genes, or ask for intervals"
            )
    if not wanted or not genes:
        return None
    if kind.a_gene:
        raise SettingError(f"a figure ({kind.name}) shows no intervals; choose h5ad, csv, geojson or another format")
    return min(LEVEL, prediction.needed_intervals().most)


def _chosen(prediction: Prediction, kind: Format, genes: Sequence[str] | None, n_sets: int) -> tuple[str, ...]:
    head = prediction.head
    if genes is not None:
        at = list(dict.fromkeys(head.index(g) for g in genes))
    elif kind.best is None:
        at = list(range(len(head.genes)))
    else:
        pcc = np.full(len(head.genes), np.nan) if head.pcc is None else head.pcc
        best_first = np.lexsort((-np.nan_to_num(pcc, nan=-2.0), ~head.predictable))  # stable
        at = best_first[: kind.best].tolist()
    if not at and not n_sets:
        raise SettingError("no gene was named; leave --genes away for the usual ones")
    return tuple(head.genes[i] for i in at)


def _targets(
    prediction: Prediction, kind: Format, output: Path, genes: tuple[str, ...], sets: dict[str, Sequence[str]]
) -> list[tuple[Path, tuple[tuple[str, ...], dict[str, Sequence[str]]]]]:
    """Return the files to write, each with its genes and its sets."""
    low = output.name.lower()
    ending = next((e for e in sorted(kind.endings, key=len, reverse=True) if low.endswith(e)), None)
    if ending is None and not output.is_dir():
        other = next((f for f in FORMATS.values() if low.endswith(f.endings)), None)
        if other is not None:
            raise SettingError(
                f"{output.name} is a name for {other.name}, not for {kind.name}: end it in {kind.endings[0]}, or name "
                "a folder"
            )
    is_file = ending is not None and (not output.is_dir() or kind.endings[0].endswith(".zarr"))
    if is_file:
        assert ending is not None
        stem, ending = output.name[: -len(ending)], output.name[-len(ending) :]
        folder = output.parent
    else:
        stem, ending, folder = str(prediction.record.get("slide", {}).get("name") or "map"), kind.endings[0], output
    if not kind.a_gene:
        return [(folder / f"{stem}{ending}", (genes, sets))]
    each: dict[str, tuple[tuple[str, ...], dict[str, Sequence[str]]]] = {gene: ((gene,), {}) for gene in genes}
    each |= {name: ((), {name: of}) for name, of in sets.items()}
    if is_file and len(each) == 1:
        return [(output, next(iter(each.values())))]
    return [(folder / f"{stem}.{file_name(name)}{ending}", part) for name, part in each.items()]
