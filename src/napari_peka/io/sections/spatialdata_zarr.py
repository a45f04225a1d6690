"""SpatialData zarr: a table that annotates shapes, and an image in the same coordinate system.

Positions are mapped through the elements' transformations into the pixels of the image, whose pixel centres are at
+0.5 in SpatialData too. The image is an OME-Zarr inside the store and is opened as any other slide.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.io.sections.base import Found, Request, unique_rows, visium_hd
from napari_peka.io.sections.scverse import embeddings, genes_of, platform_of, raw_counts, spots_of
from napari_peka.io.sections.spaceranger import BIN_UM

if TYPE_CHECKING:
    from anndata import AnnData

_BIN = re.compile(r"square_(\d+)um")
#: images that show no stained tissue at a useful size
_NOT_SCANS = ("lowres", "cytassist", "umi")


def read_spatialdata(path: Path, request: Request) -> Found:
    """Read one section of a SpatialData zarr.

    Raises
    ------
    SectionError
        If the library is missing, or the store has no table of shapes, several and none was named, or no image.
    """
    try:
        import spatialdata
    except ImportError as e:
        raise SectionError(f"{path.name} needs spatialdata: pip install spatialdata") from e
    try:
        store = spatialdata.read_zarr(path, selection=("images", "shapes", "tables"))
    except Exception as e:  # zarr and spatialdata raise what they like on a damaged store
        raise SectionError(f"{path} is no SpatialData store that can be read ({type(e).__name__}: {e})") from e
    name, table = _table(store, path, request)
    region, table = _region(table, path, request)
    image = _image(store, path, region, request)
    xy, diameter = _on_image(store, path, region, image)
    attributes = table.uns["spatialdata_attrs"]
    shapes = store.shapes[region]
    at = shapes.index.get_indexer(table.obs[attributes["instance_key"]])
    if (at < 0).all():
        raise SectionError(f"{path}: no row of the table {name} names one of the shapes {region}")
    table, at = table[at >= 0], at[at >= 0]
    counts, var, where = raw_counts(table, path)
    genes, ids = genes_of(var)
    names = table.obs_names.to_numpy(object)
    unique_rows(names, "spots", path)
    bins = _BIN.search(name) or _BIN.search(region)
    return Found(
        name=request.section or path.stem,
        counts=counts,
        barcodes=names,
        genes=genes,
        gene_ids=ids,
        spots=spots_of(table.obs, xy[at]),
        images=[] if image is None else [path / "images" / image],
        image_chosen=image is not None and request.image == image,
        looked="an image with the coordinate system of its shapes",
        platform=visium_hd(float(bins[1])) if bins else platform_of(table.obs),
        diameter_px=diameter,
        warnings=[f"raw counts are taken from {where}"] if where != "X" else [],
        obsm=embeddings(table, None),
    )


def _table(store: Any, path: Path, request: Request) -> tuple[str, AnnData]:
    """Return the table that annotates shapes; of Visium HD's that of the bins asked for."""
    tables = {str(n): t for n, t in store.tables.items() if _regions(t) & set(store.shapes)}
    listed = ", ".join(tables)
    if not tables:
        raise SectionError(f"{path} has no table that annotates shapes (spots or bins)")
    sizes = {float(m[1]): n for n in tables if (m := _BIN.search(n))}
    wish = request.bin_um or BIN_UM
    if request.bin_um is not None and wish not in sizes:
        raise SectionError(f"{path} has no table of bins of {wish:g} µm; it has: {listed}")
    if len(tables) == 1:
        name = next(iter(tables))
    elif request.section in tables:
        name = request.section
    elif wish in sizes:
        name = sizes[wish]
    else:
        named = [n for n, t in tables.items() if request.section in _regions(t)]
        if len(named) != 1:
            raise SectionError(f"{path} has several tables ({listed}): say which with --section or section=")
        name = named[0]
    return name, tables[name]


def _regions(table: AnnData) -> set[str]:
    region = table.uns.get("spatialdata_attrs", {}).get("region", [])
    return {region} if isinstance(region, str) else {str(r) for r in region or []}


def _region(table: AnnData, path: Path, request: Request) -> tuple[str, AnnData]:
    """Return the shapes to read and the rows of the table that belong to them."""
    regions = sorted(_regions(table))
    if len(regions) == 1:
        return regions[0], table
    if request.section not in regions:
        raise SectionError(
            f"{path} holds {len(regions)} sections ({', '.join(regions)}): say which with --section or section="
        )
    rows = table.obs[table.uns["spatialdata_attrs"]["region_key"]].astype(str) == request.section
    return request.section, table[rows.to_numpy()]


def _image(store: Any, path: Path, region: str, request: Request) -> str | None:
    """Return the name of the image: the one that was asked for, else the largest that shares a coordinate system."""
    from spatialdata.transformations import get_transformation

    if region not in store.shapes:
        raise SectionError(f"{path}: its table annotates {region}, which is no shapes element of it")
    if request.image in store.images:
        return request.image
    systems = set(get_transformation(store.shapes[region], get_all=True))
    sizes = {
        str(name): int(np.prod(_shape(image)))
        for name, image in store.images.items()
        if systems & set(get_transformation(image, get_all=True)) and not any(n in name.lower() for n in _NOT_SCANS)
    }
    return max(sizes, key=lambda n: sizes[n]) if sizes else None


def _shape(image: Any) -> tuple[int, ...]:
    if hasattr(image, "children"):  # a pyramid: its first level is the finest
        image = next(iter(next(iter(image.children.values())).data_vars.values()))
    return tuple(image.shape)


def _on_image(store: Any, path: Path, region: str, image: str | None) -> tuple[npt.NDArray[np.float64], float | None]:
    """Return the centres of shapes (x, y) and their diameter in pixels of the image; of the shapes without one."""
    from spatialdata.transformations import get_transformation_between_coordinate_systems

    shapes = store.shapes[region]
    centre = shapes.geometry.centroid
    xy = np.column_stack([centre.x, centre.y]).astype(np.float64)
    if "radius" in shapes:
        diameter = 2 * float(np.median(shapes["radius"]))
    else:
        diameter = float(np.sqrt(np.median(shapes.geometry.area)))
    if image is not None:
        try:
            found = get_transformation_between_coordinate_systems(store, shapes, store.images[image])
            matrix = np.asarray(found.to_affine_matrix(("x", "y"), ("x", "y")), np.float64)
        except (ValueError, RuntimeError) as e:
            raise SectionError(f"{path}: the shapes {region} and the image {image} cannot be aligned ({e})") from e
        xy = xy @ matrix[:2, :2].T + matrix[:2, 2]
        diameter *= float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    return xy, diameter if diameter > 0 else None
