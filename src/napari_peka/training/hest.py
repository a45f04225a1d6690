"""HEST-bench's folders: patches, expression, splits and gene lists as its authors publish them.

``TASK/splits/train_K.csv`` and ``test_K.csv`` (``sample_id, patches_path, expr_path``, paths within ``TASK``),
``TASK/var_50genes.json``, ``TASK/patches/ID.h5`` (``img``, ``coords``, ``barcode``) and ``TASK/adata/ID.h5ad`` (raw
counts).

Source: Jaume et al., "HEST-1k: a dataset for spatial transcriptomics and histology image analysis", NeurIPS 2024, and
the repository mahmoodlab/HEST. The data are CC BY-NC-SA 4.0 and are not part of this project.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from napari_peka.core.errors import SectionError, SettingError, UnknownName, near_names
from napari_peka.training.splits import Fold

#: patches are as wide, at so many µm per pixel
PATCH_PX, PATCH_MPP = 224, 0.5
#: the unit of HEST-bench's published scores: no division by the spot's total
HEST_UNIT = "log1p counts"
_COLUMNS = ("sample_id", "patches_path", "expr_path")


@dataclass(frozen=True)
class HestSection:
    """One sample of a task: its patches and its counts, read when asked for.

    Parameters
    ----------
    section_id
        HEST's sample id.
    patches
        HDF5 file of the tiles.
    expression
        AnnData file of the raw counts; it may hold spots that have no patch.
    """

    section_id: str
    patches: Path
    expression: Path

    def barcodes(self) -> list[str]:
        """Return the barcode of each patch, in the order of :meth:`tiles`."""
        with _opened(self.patches) as f:
            raw = _member(f, self.patches, "barcode", "barcodes")[:].ravel()
        return [b.decode() if isinstance(b, bytes) else str(b) for b in raw]

    def tiles(self, rows: slice = slice(None)) -> npt.NDArray[np.uint8]:
        """Return patches, uint8 ``(n, 224, 224, 3)`` RGB at 0.5 µm per pixel; some `rows` alone to spare memory."""
        with _opened(self.patches) as f:
            return np.asarray(_member(f, self.patches, "img", "imgs")[rows], np.uint8)

    def images(self) -> Any:
        """Return the patches on disk, an HDF5 dataset uint8 ``(n, 224, 224, 3)``; its file stays open with it."""
        return _member(_opened(self.patches), self.patches, "img", "imgs")

    def source_mpp(self) -> float | None:
        """Return µm per pixel of the image from which patches were cut, in whose pixels spots lie; None: not known."""
        with _opened(self.patches) as f:
            about = _member(f, self.patches, "img", "imgs").attrs
            # HEST-1k calls the patch's side in source pixels so; HEST-bench's own files have it as patch_size
            wide = about.get("patch_size_src", about.get("patch_size"))
            return PATCH_PX * PATCH_MPP / float(wide) if wide else None

    def counts(self) -> Any:
        """Return the AnnData of the spots that have a patch, in the order of :meth:`tiles`.

        Raises
        ------
        SectionError
            If the file cannot be read, or a patch has no counts.
        """
        import anndata

        try:
            adata = anndata.read_h5ad(self.expression)
        except (OSError, KeyError, ValueError) as e:
            raise SectionError(f"{self.expression} is no AnnData file that can be read: {e}; download it again") from e
        barcodes = self.barcodes()
        known = set(adata.obs_names)
        if lost := [b for b in barcodes if b not in known]:
            raise SectionError(
                f"{len(lost)} of {len(barcodes)} patches of {self.section_id} have no counts in {self.expression.name}"
                f" (such as {lost[0]}); the two files do not belong together"
            )
        return adata[barcodes].copy()


@dataclass(frozen=True)
class HestFold:
    """One pair of split files: ids of the sections that train and that are held out."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    def rows(self, sections: Sequence[str]) -> Fold:
        """Return the fold over spots, given the section of each spot."""
        return Fold(self.name, np.isin(sections, self.train), np.isin(sections, self.test))


@dataclass(frozen=True)
class HestTask:
    """One task of the benchmark, such as ``IDC``.

    Parameters
    ----------
    name
        Name of its folder.
    genes
        The gene list, in the order of the file.
    sections
        By sample id. HEST does not name patients here; its splits keep a patient's samples together.
    folds
        In the order of their numbers.
    """

    name: str
    genes: tuple[str, ...]
    sections: dict[str, HestSection]
    folds: tuple[HestFold, ...]


def is_hest_bench(folder: Path) -> bool:
    """Return whether a folder is a task of HEST-bench, or holds some."""
    return any(True for pattern in ("splits/test_*.csv", "*/splits/test_*.csv") for _ in folder.glob(pattern))


def hest_tasks(root: Path) -> list[str]:
    """Return the names of the tasks in a benchmark folder, those that have splits.

    Raises
    ------
    SettingError
        If there is none.
    """
    found = sorted(p.parent.name for p in root.glob("*/splits") if p.is_dir())
    if not found:
        raise SettingError(f"{root} holds no HEST-bench task: a task is a folder with splits/, patches/ and adata/")
    return found


def read_hest_task(folder: Path, gene_list: str = "var_50genes.json") -> HestTask:
    """Read one task's splits and gene list; patches and counts stay on disk.

    Parameters
    ----------
    folder
        The task's folder.
    gene_list
        Name of the file of genes.

    Raises
    ------
    SettingError
        If splits or gene list are missing, damaged or contradict each other, or a section both trains and is held out.
    SectionError
        If a file that a split names is missing.
    UnknownName
        If there is no such task; near names are offered.
    """
    if not folder.is_dir():
        there = hest_tasks(folder.parent) if folder.parent.is_dir() else []
        raise UnknownName(f"there is no HEST-bench task {folder.name!r}{near_names(folder.name, there)}")
    sections: dict[str, HestSection] = {}
    folds = []
    numbers = sorted(int(p.stem[5:]) for p in (folder / "splits").glob("test_*.csv") if p.stem[5:].isdecimal())
    for k in numbers:
        parts = [_read_split(folder, part, k, sections) for part in ("train", "test")]
        if both := sorted(set(parts[0]) & set(parts[1])):
            raise SettingError(f"split {k} of {folder.name} both trains on {both[0]} and holds it out; mend its files")
        folds.append(HestFold(f"split {k}", *parts))
    if not folds:
        raise SettingError(f"{folder} has no splits/train_0.csv and splits/test_0.csv; give a task of HEST-bench")
    return HestTask(folder.name, _read_genes(folder / gene_list), sections, tuple(folds))


def _read_split(folder: Path, part: str, k: int, sections: dict[str, HestSection]) -> tuple[str, ...]:
    path = folder / "splits" / f"{part}_{k}.csv"
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as e:
        raise SettingError(f"{path} cannot be read: {e}; download the task again") from e
    if missing := [c for c in _COLUMNS if c not in table]:
        raise SettingError(f"{path} has no column {missing[0]}; HEST-bench's splits have {', '.join(_COLUMNS)}")
    for sample, patches, expression in table[list(_COLUMNS)].itertuples(index=False):
        entry = HestSection(sample, folder / patches, folder / expression)
        for file in (entry.patches, entry.expression):
            if not file.is_file():
                raise SectionError(f"{path.name} of {folder.name} names {file}, which is not there; download it")
        if sections.setdefault(sample, entry) != entry:
            raise SettingError(f"{path} gives other files for {sample} than another split of {folder.name}")
    return tuple(table["sample_id"])


def _read_genes(path: Path) -> tuple[str, ...]:
    try:
        genes = json.loads(path.read_text("utf-8"))["genes"]
    except OSError as e:
        raise SettingError(f"{path} cannot be read: {e.strerror or e}; download the task again") from e
    except (ValueError, KeyError, TypeError) as e:
        raise SettingError(f'{path} is no gene list: it must be JSON such as {{"genes": ["ERBB2", ...]}}') from e
    return tuple(map(str, genes))


def _opened(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as e:
        raise SectionError(f"{path} is no HDF5 file that can be read: {e}; download it again") from e


def _member(file: Any, path: Path, *names: str) -> Any:
    for name in names:
        if name in file:
            return file[name]
    raise SectionError(f"{path} has no {names[0]!r} (it has {', '.join(file)}); give the patches of HEST-bench")
