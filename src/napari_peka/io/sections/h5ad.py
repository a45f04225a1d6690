"""AnnData files in scverse layout, and those of HEST-1k.

``obsm["spatial"]`` holds (x, y) in pixels of the full-resolution image, ``uns["spatial"][library_id]`` images and
scale factors. HEST-1k (Jaume et al., NeurIPS 2024) keeps such files as ``st/NAME.h5ad``, the scan as
``wsis/NAME.tif`` and what is known as ``metadata/NAME.json``.
"""

from __future__ import annotations

import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_peka.core import files
from napari_peka.core.errors import SectionError
from napari_peka.io.cache import IMAGES, kept_in, touch
from napari_peka.io.sections.base import ST, VISIUM, Found, Overview, Request, images_in, unique_rows
from napari_peka.io.sections.scverse import embeddings, genes_of, mapping, number, platform_of, raw_counts, spots_of

if TYPE_CHECKING:
    from anndata import AnnData

#: columns of `obs` that name the section of each spot in a file that holds several
_LIBRARY = ("library_id", "library", "sample", "sample_id", "batch", "section")
#: uns["spatial"][library_id]["images"][key] belongs to scalefactors["tissue_<key>_scalef"]; lowres shows no tissue
_IMAGES = ("hires", "downscaled_fullres")
_TECHNOLOGY = {"visium": VISIUM, "spatial transcriptomics": ST}


def read_h5ad(path: Path, request: Request) -> Found:
    """Read one section of an AnnData file.

    Raises
    ------
    SectionError
        If it holds no positions, no raw counts, or several sections and none was named.
    """
    import anndata

    try:
        adata = anndata.read_h5ad(path, backed="r")
    except Exception as e:  # h5py and anndata raise what they like on a damaged file
        raise SectionError(f"{path} is no AnnData file that can be read ({type(e).__name__}: {e})") from e
    try:
        return _read(adata, path, request)
    finally:
        adata.file.close()


def _read(adata: AnnData, path: Path, request: Request) -> Found:
    if "spatial" not in adata.obsm:
        has = ", ".join(adata.obsm.keys()) or "none"
        raise SectionError(f'{path} has no positions of spots in obsm["spatial"]; its obsm holds: {has}')
    library, rows = _library(adata, path, request.section)
    held = mapping(mapping(adata.uns.get("spatial")).get(library)) if library is not None else {}
    obs = adata.obs if rows is None else adata.obs.iloc[rows]
    counts, var, where = raw_counts(adata, path)
    counts = counts if rows is None else counts[rows]
    xy = np.asarray(adata.obsm["spatial"], np.float64)[:, :2]
    spots = spots_of(obs, xy if rows is None else xy[rows])
    names = obs.index.astype(str).to_numpy(object)
    unique_rows(names, "spots", path)
    genes, ids = genes_of(var)
    scales = mapping(held.get("scalefactors"))
    found = Found(
        name=path.stem if library is None or rows is None else library,
        counts=counts,
        barcodes=names,
        genes=genes,
        gene_ids=ids,
        spots=spots,
        images=_scans(path, held),
        looked=f"wsis/{path.stem}.tif (HEST), {path.stem}.tif or .jpg beside it, uns['spatial']",
        overview=_overview(held, scales),
        platform=platform_of(obs),
        diameter_px=number(scales.get("spot_diameter_fullres")),
        mpp=_microns(scales),
        warnings=[f"raw counts are taken from {where}"] if where != "X" else [],
        obsm=embeddings(adata, rows),
    )
    if (about := hest_metadata(path)) is not None:
        _as_hest(found, about, path)
    return found


def _library(adata: AnnData, path: Path, section: str | None) -> tuple[str | None, np.ndarray | None]:
    """Return the library's id and, in a file of several sections, the rows of the one that was asked for."""
    libraries = [str(k) for k in mapping(adata.uns.get("spatial"))]
    if len(libraries) < 2:
        return (libraries[0] if libraries else None), None
    listed = ", ".join(libraries)
    if section not in libraries:
        raise SectionError(f"{path} holds {len(libraries)} sections ({listed}): say which with --section or section=")
    for name in _LIBRARY:
        if name in adata.obs and set(adata.obs[name].astype(str)) <= set(libraries):
            return section, np.flatnonzero((adata.obs[name].astype(str) == section).to_numpy())
    raise SectionError(
        f"{path} holds {len(libraries)} sections ({listed}), but no column of obs says which spot is of which; "
        'put it into obs["library_id"]'
    )


def _scans(path: Path, held: dict[str, Any]) -> list[Path]:
    said = mapping(held.get("metadata")).get("source_image_path")  # as scanpy.read_visium keeps it
    named = [Path(str(said))] if said and Path(str(said)).is_file() else []
    hest = images_in(path.parent.parent / "wsis", path.stem) if path.parent.name == "st" else []
    return [*hest, *images_in(path.parent, path.stem), *named]


def _overview(held: dict[str, Any], scales: dict[str, Any]) -> Overview | None:
    for key in _IMAGES:
        scale = number(scales.get(f"tissue_{key}_scalef"))
        image = mapping(held.get("images")).get(key)
        if scale and image is not None and np.ndim(image) == 3 and min(np.shape(image)) > 0:
            return Overview(partial(keep_image, np.asarray(image)), scale, f"the {key} image inside the file")
    return None


def keep_image(image: np.ndarray) -> Path:
    """Write an image that exists only inside a file as a PNG into the user's cache, once; return where.

    Parameters
    ----------
    image
        ``(h, w, 3 or 4)``, uint8 or 0 to 1.
    """
    from PIL import Image

    if image.dtype != np.uint8:
        image = (np.clip(np.nan_to_num(image), 0, 1) * 255).round().astype(np.uint8)
    image = np.ascontiguousarray(image[..., :3])
    digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    path = kept_in(IMAGES) / f"{digest[:32]}.png"
    if not path.is_file():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.write_whole(path, buffer.getvalue())
    touch(path)
    return path


def hest_metadata(path: Path) -> dict[str, Any] | None:
    """Return what HEST knows of a section, empty without its JSON; None when the file is not in HEST's layout."""
    root = path.parent.parent
    if path.parent.name != "st" or not ((root / "wsis").is_dir() or (root / "metadata").is_dir()):
        return None
    try:
        found = json.loads((root / "metadata" / f"{path.stem}.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise SectionError(f"{root / 'metadata' / path.stem}.json cannot be read ({e})") from e
    return mapping(found)


def _as_hest(found: Found, about: dict[str, Any], path: Path) -> None:
    found.platform_name = "hest"
    if technology := str(about.get("st_technology") or "").casefold():
        found.platform = _TECHNOLOGY.get(technology)
    if patient := str(about.get("patient") or ""):
        found.patient = patient
    for key in ("pixel_size_um_estimated", "pixel_size_um_embedded"):
        if value := number(about.get(key)):
            found.mpp = value, f"HEST's metadata ({key})"
            return


def _microns(scales: dict[str, Any]) -> tuple[float, str] | None:
    value = number(scales.get("microns_per_pixel"))  # Visium HD
    return (value, "scale factors") if value else None
