"""Space Ranger's output, versions 1 to 4: Visium and Visium HD.

The trap of this format: the last two columns of the positions are (row, column) of the full-resolution pixel, that is
(y, x). Versions differ in the name of the positions' file and in whether it has a header; the header is decided by
the content. The full-resolution image is an input of Space Ranger and not among its outputs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_peka.core.errors import SectionError
from napari_peka.io.sections import matrix
from napari_peka.io.sections.base import VISIUM, Found, Overview, Request, images_in, unique_rows, visium_hd, wanted

if TYPE_CHECKING:
    import pandas as pd

#: bins of this size give about the counts of a cell or two, and 100,000 of them cover a section
BIN_UM = 16
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_SCALES = "scalefactors_json.json"
#: reduced images are rounded to whole pixels: 1 of 600
_SAME_SIZE = 0.02
_BIN = re.compile(r"square_(\d+)um")
#: folders in which people and 10x keep the scan (``microscope_image``: Visium HD's own)
_IMAGE_FOLDERS = ("", "microscope_image", "image", "images")


def find_outs(path: Path) -> Path | None:
    """Return the folder of outputs: `path` itself or its ``outs``; None when it holds none."""
    for folder in (path, path / "outs"):
        if (folder / "binned_outputs").is_dir() or (folder / "spatial").is_dir():
            return folder
    return None


def read_spaceranger(outs: Path, request: Request) -> Found:
    """Read a folder of Space Ranger's outputs, or one of Visium HD's ``square_*um`` folders in it.

    Raises
    ------
    SectionError
        If counts, positions or scale factors are missing or damaged.
    """
    folder, warnings = _bin_folder(outs, request.bin_um)
    root = outs.parent.parent if outs.parent.name == "binned_outputs" else outs
    spatial = folder / "spatial"
    scales = _scales(spatial / _SCALES)
    found_counts, filtered = _counts(folder)
    if not filtered:
        warnings.append("no filtered counts are there: the raw ones of spots under tissue are read")
    if found_counts.others:
        warnings.append(f"{found_counts.others:,} features are not gene expression: left out")
    positions = read_positions(spatial)
    under = positions["in_tissue"].to_numpy() == 1
    bin_um = scales.get("bin_size_um") or (m and float(m[1]) if (m := _BIN.fullmatch(folder.name)) else None)
    name = _section_name(root)
    found = Found(
        name=name,
        counts=found_counts.counts,
        barcodes=found_counts.barcodes,
        genes=found_counts.genes,
        gene_ids=found_counts.gene_ids,
        spots=positions.loc[under].drop(columns="in_tissue"),
        images=_scans(root, name),
        looked=f"the scan beside or in {root}, and {spatial / 'tissue_hires_image.png'}",
        overview=_overview(spatial, scales) or _overview(root / "spatial", scales),
        platform=visium_hd(float(bin_um)) if bin_um else VISIUM,
        diameter_px=scales.get("spot_diameter_fullres"),
        warnings=warnings + _scale_doubts(spatial, scales),
    )
    if not under.any():
        raise SectionError(f"{spatial}: none of {len(under):,} spots is under tissue (in_tissue = 1)")
    return found


def read_positions(spatial: Path) -> pd.DataFrame:
    """Read where spots lie: columns ``x, y`` (full-resolution px), ``in_tissue, array_row, array_col``.

    Raises
    ------
    SectionError
        If there is no such file, or its columns are others.
    """
    import pandas as pd

    path = next((spatial / n for n in _POSITIONS if (spatial / n).is_file()), None)
    if path is None:
        raise SectionError(f"{spatial} has no positions of spots; looked for {', '.join(_POSITIONS)}")
    try:
        if path.suffix == ".parquet":
            table = _parquet(path)
        elif _has_header(path):
            table = pd.read_csv(path)
        else:
            table = pd.read_csv(path, header=None)
            if table.shape[1] != len(_COLUMNS):
                raise SectionError(f"{path} has {table.shape[1]} columns, not the {len(_COLUMNS)} of Space Ranger")
            table.columns = list(_COLUMNS)
    except (OSError, ValueError) as e:
        raise e if isinstance(e, SectionError) else SectionError(f"{path} cannot be read ({e})") from e
    wanted(table.columns, _COLUMNS, path)
    names = table["barcode"].astype(str).to_numpy(object)
    unique_rows(names, "spots", path)
    return pd.DataFrame(
        {
            "x": table["pxl_col_in_fullres"].to_numpy(float),
            "y": table["pxl_row_in_fullres"].to_numpy(float),
            "in_tissue": table["in_tissue"].to_numpy(),
            "array_row": table["array_row"].to_numpy(),
            "array_col": table["array_col"].to_numpy(),
        },
        index=names,
    )


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as f:
        second = f.readline().split(",")[1:2]
    return bool(second) and not second[0].strip().strip('"').isdigit()


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except ImportError as e:
        raise SectionError(f'{path.name} needs pyarrow: pip install "napari-peka[train]"') from e
    return table if "barcode" in table.columns else table.rename_axis("barcode").reset_index()


def _bin_folder(outs: Path, asked: float | None) -> tuple[Path, list[str]]:
    binned = outs / "binned_outputs"
    if not binned.is_dir():
        own = _BIN.fullmatch(outs.name)
        if asked is not None and (own is None or float(own[1]) != asked):
            raise SectionError(f"bins of {asked:g} µm were asked for, but {outs} has no binned_outputs with such")
        return outs, []
    sizes = {int(m[1]): p for p in binned.iterdir() if (m := _BIN.fullmatch(p.name)) and (p / "spatial").is_dir()}
    has = ", ".join(f"{s} µm" for s in sorted(sizes)) or "none"
    if asked is not None:
        if asked not in sizes:
            raise SectionError(f"{outs} has no bins of {asked:g} µm; it has: {has}")
        return sizes[int(asked)], []
    if BIN_UM in sizes:
        return sizes[BIN_UM], []
    if not sizes:
        raise SectionError(f"{binned} has no square_*um folder with positions in it")
    best = max(sizes)
    return sizes[best], [f"it has no bins of {BIN_UM} µm: those of {best} µm are read (it has: {has})"]


def _counts(folder: Path) -> tuple[matrix.Matrix, bool]:
    for kind in ("filtered", "raw"):
        stem = f"{kind}_feature_bc_matrix"
        # files downloaded from 10x carry the sample's name before this one
        named = [p for p in sorted(folder.glob(f"*{stem}.h5")) if not p.name.startswith(".")]
        if (folder / f"{stem}.h5") in named:
            named = [folder / f"{stem}.h5"]
        if len(named) > 1:
            raise SectionError(f"{folder} has several counts ({', '.join(p.name for p in named)}); keep one of them")
        if named:
            return matrix.read_h5(named[0]), kind == "filtered"
        if (folder / stem).is_dir():
            return matrix.read_mtx(folder / stem), kind == "filtered"
    raise SectionError(f"{folder} has no counts; looked for filtered_feature_bc_matrix.h5, its folder, and raw_…")


def _scales(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SectionError(f"{path.parent} has no {path.name}: the size of spots and images is not known") from None
    except (OSError, ValueError) as e:
        raise SectionError(f"{path} cannot be read ({e})") from e
    if not isinstance(found, dict):
        raise SectionError(f"{path} holds no scale factors")
    return found


def _overview(spatial: Path, scales: dict[str, Any]) -> Overview | None:
    for ending in (".png", ".jpg", ".jpeg", ".tif", ".tiff"):
        path = spatial / f"tissue_hires_image{ending}"
        if path.is_file() and scales.get("tissue_hires_scalef"):
            return Overview(path.absolute, float(scales["tissue_hires_scalef"]), "Space Ranger's hires image")
    return None


def _scale_doubts(spatial: Path, scales: dict[str, Any]) -> list[str]:
    """Return a warning when the two reduced images have other sizes than their scale factors say."""
    from PIL import Image

    sizes = {}
    for kind in ("hires", "lowres"):
        path, scale = spatial / f"tissue_{kind}_image.png", scales.get(f"tissue_{kind}_scalef")
        if not path.is_file() or not scale:
            return []
        try:
            with Image.open(path) as image:
                sizes[kind] = max(image.size) / float(scale)
        except (OSError, ValueError):  # said when it is opened, if it is needed
            return []
    if abs(sizes["hires"] / sizes["lowres"] - 1) <= _SAME_SIZE:
        return []
    return [
        f"by their scale factors the hires and lowres images are reductions of a scan of {sizes['hires']:,.0f} and of "
        f"{sizes['lowres']:,.0f} px: scale factors and images do not belong together"
    ]


def _scans(root: Path, name: str) -> list[Path]:
    folders = [root / sub for sub in _IMAGE_FOLDERS]
    if root.name == "outs":  # a folder of this sample's own
        folders += [root.parent / sub for sub in _IMAGE_FOLDERS]
    beside = images_in(root.parent, root.name) + (images_in(root.parent.parent, name) if root.name == "outs" else [])
    found = dict.fromkeys([p for folder in folders for p in images_in(folder)] + beside)
    return sorted(found, key=lambda p: name not in p.name)  # those that carry the sample's name first


def _section_name(root: Path) -> str:
    root = root.resolve()
    return root.parent.name if root.name == "outs" else root.name
