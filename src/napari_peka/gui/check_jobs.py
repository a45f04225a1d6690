"""What the dock *Check against spots* has done beside the window: nothing here touches Qt or a layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SectionError
from napari_peka.gui.places import default_folder
from napari_peka.gui.session import OpenSection, Session
from napari_peka.gui.spot_layers import Values

if TYPE_CHECKING:
    from napari_peka.core.progress import Progress
    from napari_peka.io.prediction import Prediction
    from napari_peka.io.section import Section
    from napari_peka.workflows.calibration import Calibration
    from napari_peka.workflows.check import Check
    from napari_peka.workflows.check_places import Place


@dataclass(frozen=True, eq=False)
class Look:
    """One gene within a region: its values, the spots that count, bool ``(n,)``, and its scores over them."""

    values: Values
    rows: npt.NDArray[np.bool_]
    score: dict[str, float]


@dataclass(frozen=True, eq=False)
class Doubt:
    """What bounds a look: attainable PCC, places where errors lie together, how many spots intervals hold."""

    look: Look
    attainable: float
    places: list[Place]
    calibration: Calibration


def measured_on(session: Session, prediction: Prediction) -> list[OpenSection]:
    """Return the open sections whose image is the map's slide, told by its content."""
    wanted = prediction.record.get("slide", {}).get("fingerprint")
    return [s for s in session.sections() if s.section.slide.fingerprint == wanted]


def read(path: Path, prediction: Prediction, slide: Path | None) -> OpenSection:
    """Read a section for a map; where it has no image of its own, the map's slide is its image.

    Raises
    ------
    SectionError
        If it cannot be read, or is of another slide.
    """
    from napari_peka.io.section import read_section
    from napari_peka.workflows.check_input import same_slide

    request: dict[str, Any] = {}
    try:
        section = read_section(path)
    except SectionError:
        if slide is None:
            raise
        request = {"image": slide}
        section = read_section(path, **request)
    try:
        same_slide(prediction, section)
    except SectionError:
        section.close()
        raise
    return OpenSection(section, request)


def grows(prediction: Prediction) -> bool:
    """Whether tiles of a map are still to come."""
    known = np.isfinite(prediction.embeddings[:, 0])
    return not bool(known[prediction.read_ok].all())


def compare(prediction: Prediction, section: Section) -> Check:
    """Return the check of a map against a section."""
    from napari_peka.workflows.check import check

    return check(prediction, section)


def look(check: Check, gene: str, region: Any) -> Look:
    """Return a gene's values and scores; what a person waits for."""
    rows = check.inside if region is None else check.inside & check.rows_in(region)
    return Look(Values.of(check, gene), rows, check.score(gene, rows))


def doubt(seen: Look) -> Doubt:
    """Return what takes longer than a look."""
    check, gene = seen.values.check, seen.values.gene
    attainable = float(check.attainable(seen.rows, [gene])[0])
    return Doubt(seen, attainable, check.places(gene), check.calibration(seen.rows, [gene]))


def score_all(check: Check, region: Any, shared: bool) -> tuple[Check, Any]:
    """Return the table of all genes within a region; with the share of attainable when asked, which takes longer."""
    from napari_peka.workflows.check import share_of_attainable

    rows = None if region is None else check.rows_in(region)
    table = check.scores(rows)
    if shared:
        table["share"] = share_of_attainable(table["pcc"].to_numpy(), check.attainable(rows))
    return check, table


def hold_all(check: Check, region: Any) -> tuple[Check, Calibration]:
    """Return how many spots within a region the intervals of all genes hold."""
    return check, check.calibration(None if region is None else check.rows_in(region))


def fit(check: Check, progress: Progress) -> tuple[Prediction, Prediction]:
    """Fit the intervals of a check's map to its spots; return the map, and the one with the new intervals."""
    from napari_peka.workflows.recalibrate import recalibrate

    return check.prediction, recalibrate(check.prediction, check.section, progress=progress)


def told_of_fit(fitted: Prediction) -> str:
    """Return what a fit gave, and where it is kept."""
    from napari_peka.workflows.calibration import proof_words

    where = f"written: {fitted.path}" if fitted.path is not None else "the map lies nowhere, so they are in memory only"
    return f"{proof_words(fitted)}; {where}"


def take_intervals(prediction: Prediction, fitted: Prediction) -> None:
    """Give a map that is shown the intervals that were fitted: whoever holds it has them too."""
    prediction.intervals, prediction.model_intervals = fitted.intervals, fitted.model_intervals
    prediction.record = fitted.record


def report_folder(check: Check) -> Path:
    """Return where a report goes: beside the map, or in the person's own folder when it lies nowhere."""
    path = check.prediction.path
    name = str(check.prediction.record.get("slide", {}).get("name") or check.section.section_id)
    folder = default_folder(path if path is not None else check.section.slide.path)[0]
    return folder / f"{name}.check"
