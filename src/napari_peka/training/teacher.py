"""Which teacher a setting asks for. Each is a file of :mod:`napari_peka.training.teachers`."""

from __future__ import annotations

from pathlib import Path

from napari_peka.config import TrainConfig
from napari_peka.core.errors import SettingError, near_names
from napari_peka.training.teachers.base import Expression, Teacher
from napari_peka.training.teachers.pathways import PathwayTeacher
from napari_peka.training.teachers.pca import PcaTeacher
from napari_peka.training.teachers.precomputed import FORMATS, PLACE, FileTeacher, ObsmTeacher
from napari_peka.training.teachers.scvi import ScviTeacher

__all__ = ["Expression", "Teacher", "make_teacher"]

#: dimensions where nobody says: as many components as her2st's HVG50 gain from; scvi-tools' own default
PCA_DIMS, SCVI_DIMS = 50, 10
NAMES = ("pca", "scvi", "pathways")
_OBSM = "obsm:"


def make_teacher(config: TrainConfig) -> Teacher:
    """Return the teacher that the settings name, not fitted yet.

    Parameters
    ----------
    config
        ``teacher`` (``"pca"``, ``"scvi"``, ``"pathways"``, ``"obsm:KEY"``, or a file, folder or pattern of embeddings),
        ``teacher_dims`` (of a teacher that is fitted here), ``pathways`` (file of weights), ``seed`` and ``device``.

    Raises
    ------
    SettingError
        If there is no such teacher, or its file is not there.
    """
    name = config.teacher
    if name == "pca":
        return PcaTeacher(config.teacher_dims or PCA_DIMS)
    if name == "scvi":
        return ScviTeacher(config.teacher_dims or SCVI_DIMS, seed=config.seed, device=config.device)
    if name == "pathways":
        return PathwayTeacher(config.pathways)
    if name.startswith(_OBSM) and len(name) > len(_OBSM):
        return ObsmTeacher(name.removeprefix(_OBSM))
    path = Path(name)
    if PLACE in name or path.suffix in FORMATS or path.is_dir():
        return FileTeacher(path)
    raise SettingError(
        f"there is no teacher {name!r}; it is {', '.join(NAMES)}, obsm:KEY, or a file of embeddings "
        f"({' or '.join(FORMATS)}){near_names(name, NAMES)}"
    )
