"""Embeddings that somebody computed elsewhere: how scFoundation, scGPT, Geneformer and UCE come."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from napari_peka.core.errors import SectionError, SettingError, near_names
from napari_peka.core.progress import NULL, Progress
from napari_peka.training.teachers.base import Expression, Float32Array

#: stands for a section's name in a pattern of files
PLACE = "{section}"
FORMATS = (".npy", ".parquet")
_SECTION, _BARCODE = "section", "barcode"
_NAMED = 3


class ObsmTeacher:
    """Embeddings in each section's ``adata.obsm[key]``.

    Parameters
    ----------
    key
        Which.
    """

    name = "obsm"

    def __init__(self, key: str) -> None:
        self.key, self._width = key, 0

    def fit(self, train: Expression, *, progress: Progress = NULL) -> None:
        """Look whether the training sections have it: nothing is fitted."""
        self._width = self.embed(train).shape[1]

    def embed(self, expression: Expression) -> Float32Array:
        """Return the stored embeddings, float32 ``(n, d)``.

        Raises
        ------
        SectionError
            If a section has no such key, widths differ, or a number is missing.
        """
        parts = {}
        for name in expression.sections:
            obsm = expression.adatas[name].obsm
            if self.key not in obsm:
                have = ", ".join(k for k in obsm if k != "spatial") or "no embedding at all"
                raise SectionError(
                    f'section {name} has no obsm["{self.key}"] (it has {have}){near_names(self.key, obsm.keys())}'
                )
            parts[name] = _dense(obsm[self.key])[expression.rows[expression.of(name)]]
        return _together(expression, parts, f'obsm["{self.key}"]')

    def record(self) -> dict[str, Any]:
        """Return what made the embeddings."""
        return {"name": f"obsm:{self.key}", "n_dims": self._width, "fitted_on": "computed elsewhere; not known"}


class FileTeacher:
    """Embeddings in files.

    Parameters
    ----------
    path
        - ``NAME.parquet``: a row a spot, keyed by barcode (the index, or a column ``barcode``). A column ``section``
          tells several sections apart. All other columns are the embedding, and numbers.
        - ``NAME.npy``: one array for one section, its rows in the order of **all** spots that the section has here.
        - a folder with ``SECTION.parquet`` or ``SECTION.npy`` for each, or a pattern such as
          ``embeddings/{section}_scfoundation.npy``.
    """

    name = "file"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if PLACE not in str(path) and not self.path.exists():
            raise SettingError(f"there is no file or folder of embeddings at {path}")
        self._files: set[Path] = set()
        self._width = 0

    def fit(self, train: Expression, *, progress: Progress = NULL) -> None:
        """Look whether the training sections have embeddings: nothing is fitted."""
        self._width = self.embed(train).shape[1]

    def embed(self, expression: Expression) -> Float32Array:
        """Return the stored embeddings, float32 ``(n, d)``.

        Raises
        ------
        SettingError
            If a file is not there, or not such a file.
        SectionError
            If spots are missing, widths differ, or a number is missing.
        """
        parts = {name: self._section(expression, name) for name in expression.sections}
        return _together(expression, parts, str(self.path))

    def record(self) -> dict[str, Any]:
        """Return what made the embeddings."""
        digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(self._files)}
        return {
            "name": self.name, "file": self.path.name, "sha256": digests, "n_dims": self._width,
            "fitted_on": "computed elsewhere; not known",
        }  # fmt: skip

    def _section(self, expression: Expression, name: str) -> npt.NDArray[Any]:
        file = self._file(name)
        self._files.add(file)
        # one file for all sections must say whose a row is
        mixed = file == self.path and len(expression.adatas) > 1
        if file.suffix == ".parquet":
            return _by_barcode(file, expression, name, mixed)
        if mixed:
            raise SettingError(
                f"{file} is one array, but there are {len(expression.adatas)} sections; give a folder with "
                f"{name}.npy and so on, a pattern with {PLACE}, or a .parquet file with a column {_SECTION}"
            )
        try:
            array = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as e:
            raise SettingError(f"{file} cannot be read as an array of numbers: {e}") from e
        n = expression.adatas[name].n_obs
        if array.ndim != 2 or len(array) != n:
            raise SectionError(
                f"{file} has the shape {array.shape}, section {name} has {n} spots (only those under tissue and with "
                "counts): give a row for each, in their order, or a .parquet file keyed by barcode"
            )
        return np.asarray(array[expression.rows[expression.of(name)]])

    def _file(self, section: str) -> Path:
        if PLACE in str(self.path):
            file = Path(str(self.path).replace(PLACE, section))
            if not file.is_file():
                raise SettingError(f"there are no embeddings of section {section}: {file} is not there")
        elif self.path.is_dir():
            candidates = [self.path / f"{section}{suffix}" for suffix in FORMATS]
            file = next((c for c in candidates if c.is_file()), candidates[0])
            if not file.is_file():
                raise SettingError(
                    f"there are no embeddings of section {section} in {self.path}: neither "
                    f"{' nor '.join(c.name for c in candidates)}"
                )
        else:
            file = self.path
        if file.suffix not in FORMATS:
            raise SettingError(f"{file} is neither .npy nor .parquet; embeddings are read from these")
        return file


def _by_barcode(file: Path, expression: Expression, section: str, mixed: bool) -> npt.NDArray[Any]:
    """Return the rows of a table that belong to a section's spots, in their order."""
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as e:  # pyarrow's errors are ValueErrors
        raise SettingError(f"{file} cannot be read as parquet: {e}") from e
    if _SECTION in table:
        table = table[table[_SECTION].astype(str) == section].drop(columns=_SECTION)
        if table.empty:
            raise SectionError(f"{file} has no row of section {section}")
    elif mixed:
        raise SettingError(f"{file} has no column {_SECTION}, which {len(expression.adatas)} sections need")
    if _BARCODE in table:
        table = table.set_index(_BARCODE)
    table.index = table.index.astype(str)
    wrong = [str(c) for c in table.columns if not pd.api.types.is_numeric_dtype(table[c])]
    if wrong or not len(table.columns):
        raise SettingError(f"{file} must hold numbers beside barcode and section, but has {', '.join(wrong) or 'none'}")
    if (twice := table.index[table.index.duplicated()]).size:
        raise SectionError(f"{file} has {twice[0]!r} more than once in section {section}; give each spot one row")
    barcodes = [expression.spot_ids[i] for i in expression.of(section)]
    at = table.index.get_indexer(barcodes)
    if (at < 0).all():
        raise SectionError(
            f"none of the {len(barcodes)} barcodes of section {section} (such as {barcodes[0]!r}) is in {file} (such "
            f"as {table.index[0]!r}); write barcodes alike in both"
        )
    if len(missing := np.flatnonzero(at < 0)):
        raise SectionError(
            f"{file} has no row for {len(missing)} of {len(barcodes)} spots of section {section}, such as "
            f"{', '.join(barcodes[i] for i in missing[:_NAMED])}; embed these spots too, or take them out of the "
            "section"
        )
    return table.to_numpy()[at]


def _dense(values: Any) -> npt.NDArray[Any]:
    return np.asarray(values.todense() if sparse.issparse(values) else values)


def _together(expression: Expression, parts: dict[str, npt.NDArray[Any]], where: str) -> Float32Array:
    """Return the sections' embeddings in the order of the spots, or say which numbers are missing."""
    widths = {name: p.shape[1] if p.ndim == 2 else 1 for name, p in parts.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {w}" for name, w in widths.items())
        raise SectionError(f"{where} has different widths in the sections ({told}); they must be of one model")
    out = np.empty((len(expression), next(iter(widths.values()))), np.float32)
    for name, part in parts.items():
        spots = expression.of(name)
        out[spots] = part.reshape(len(spots), -1)
        if len(bad := spots[~np.isfinite(out[spots]).all(1)]):
            ids = ", ".join(expression.spot_ids[i] for i in bad[:_NAMED])
            raise SectionError(
                f"{where} holds no numbers (NaN or infinite) for {len(bad)} of {len(spots)} spots of section {name}, "
                f"such as {ids}; embed these spots too, or take them out of the section"
            )
    return out
