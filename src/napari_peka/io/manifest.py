"""Manifests: a CSV that names sections, whose they are, and what they are for."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from napari_peka.core.errors import SectionError, near_names
from napari_peka.core.progress import NULL, Progress

COLUMNS = ("path", "section", "patient", "image", "split", "mpp", "affine")


@dataclass(frozen=True)
class Entry:
    """One section of a manifest.

    Parameters
    ----------
    path, image
        Where section and image are; None: the image is looked for.
    section, patient
        Its name and whose it is; None: by the files.
    split
        What it is for ("train", "test", …); empty when nothing is said.
    mpp
        µm per level-0 px of the image; None: by the files.
    affine
        JSON file that maps positions to the image; see :func:`napari_peka.io.registration.read_affine`.
    """

    path: Path
    section: str | None = None
    patient: str | None = None
    image: Path | None = None
    split: str = ""
    mpp: float | None = None
    affine: Path | None = None


def read_manifest(path: str | Path, *, progress: Progress = NULL) -> list[Entry]:
    """Read a manifest: columns ``path, section, patient, image, split, mpp, affine``; only `path` must be filled.

    Relative paths are relative to the manifest's folder. Other columns are named to `progress` and not used.

    Raises
    ------
    SectionError
        If it cannot be read, has no column `path`, names nothing, or a path or a section twice.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = list(csv.reader(f))
    except OSError as e:
        raise SectionError(f"the manifest {path} cannot be read: {e.strerror or e}") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise SectionError(f"the manifest {path} cannot be read ({e})") from e
    rows = [[cell.strip() for cell in row] for row in rows]
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    header = [cell.casefold() for cell in rows[0]] if rows else []
    _check_header(header, path)
    for column in (c for c in header if c and c not in COLUMNS):
        progress.note(f"{path.name} has a column {column} that is not used{near_names(column, COLUMNS)}")
    entries = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) > len(header):
            raise SectionError(f"{path}, row {number}: {len(row)} cells for {len(header)} columns; quote commas")
        cells = dict(zip(header, row))
        if not cells.get("path"):
            raise SectionError(f"{path}, row {number}: the path is empty")
        image, affine = (path.parent / name if (name := cells.get(c)) else None for c in ("image", "affine"))
        entries.append(
            Entry(
                path.parent / cells["path"],
                cells.get("section") or None,
                cells.get("patient") or None,
                image,
                cells.get("split") or "",
                _number(cells.get("mpp"), f"{path}, row {number}"),
                affine,
            )
        )
    if not entries:
        raise SectionError(f"the manifest {path} names no section")
    refuse_twice(entries, f"the manifest {path}")
    return entries


def _number(text: str | None, where: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError as e:
        raise SectionError(f"{where}: mpp is µm per pixel of the image, such as 0.25; got {text!r}") from e


def _check_header(header: list[str], path: Path) -> None:
    if "path" not in header:
        raise SectionError(
            f"the manifest {path} needs a header with a column path; further ones may be {', '.join(COLUMNS[1:])}"
        )
    if twice := sorted({c for c in header if header.count(c) > 1}):
        raise SectionError(f"the manifest {path} has the column {twice[0]} twice")


def refuse_twice(entries: list[Entry], where: str) -> None:
    """Raise the sentence for a section that is named twice.

    Raises
    ------
    SectionError
        If two entries have the same path, or the same name.
    """
    for i, entry in enumerate(entries):
        for before in entries[:i]:
            # one file may hold several sections, then each row names its own
            apart = entry.section and before.section and entry.section != before.section
            if entry.path.resolve() == before.path.resolve() and not apart:
                raise SectionError(f"{where}: the section {entry.path} is there twice; name it once")
            if entry.section and entry.section == before.section:
                raise SectionError(f"{where}: two sections are named {entry.section}; give each its own name")
