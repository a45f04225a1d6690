"""Which reader opens a section, by what the path holds."""

from __future__ import annotations

from pathlib import Path

from napari_peka.core.errors import SectionError
from napari_peka.io.sections.base import Found, Request
from napari_peka.io.sections.h5ad import read_h5ad
from napari_peka.io.sections.spaceranger import find_outs, read_spaceranger
from napari_peka.io.sections.st import is_st, read_st

_KINDS = (
    "a Space Ranger outs folder, a .h5ad (scverse or HEST layout), a SpatialData .zarr, or ST counts NAME.tsv.gz "
    "with NAME_selection.tsv beside it"
)


def find_sections(path: Path) -> list[Path]:
    """Return the sections that a path stands for: itself, or those that lie in a folder, by their names.

    A manifest among them is named alone: it says which sections are meant.

    Raises
    ------
    SectionError
        If there is none.
    """
    if not path.exists():
        raise SectionError(f"there is no {path}; a section is {_KINDS}")
    if not path.is_dir() or _is_section_folder(path):
        return [path]
    inside = sorted(path.iterdir())
    if manifest := next((p for p in inside if p.name.lower() == "manifest.csv"), None):
        return [manifest]
    found = [
        p for p in inside
        if (p.is_dir() and _is_section_folder(p)) or (p.is_file() and (p.suffix.lower() == ".h5ad" or is_st(p)))
    ]  # fmt: skip
    if not found:
        raise SectionError(f"the folder {path} holds no section; a section is {_KINDS}")
    return found


def _is_section_folder(path: Path) -> bool:
    marks = ("zarr.json", ".zgroup", ".zattrs")
    return find_outs(path) is not None or any((path / mark).is_file() for mark in marks)


def read_found(path: Path, request: Request) -> Found:
    """Read a section's files.

    Raises
    ------
    SectionError
        If the path is no section, or its reader refuses it.
    """
    if not path.exists():
        raise SectionError(f"there is no {path}; a section is {_KINDS}")
    if path.is_dir():
        if (outs := find_outs(path)) is not None:
            return read_spaceranger(outs, request)
        if any((path / mark).is_file() for mark in ("zarr.json", ".zgroup", ".zattrs")):
            from napari_peka.io.sections.spatialdata_zarr import read_spatialdata

            return read_spatialdata(path, request)
        raise SectionError(f"the folder {path} is no section: no spatial folder, no binned_outputs, no zarr in it")
    if path.suffix.lower() == ".h5ad":
        return read_h5ad(path, request)
    if is_st(path):
        return read_st(path, request)
    raise SectionError(f"{path} is no section that can be read; a section is {_KINDS}")
