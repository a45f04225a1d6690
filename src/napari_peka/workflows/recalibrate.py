"""Intervals of a map fitted to spots that were measured on its own slide; the values stay."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.doubt import LEVEL, Intervals
from napari_peka.core.errors import OutputMismatch, SectionError, SettingError
from napari_peka.core.progress import NULL, Progress
from napari_peka.io.prediction import FITTED, Prediction, doubt_record
from napari_peka.io.store import result_path, save_result
from napari_peka.training import splits
from napari_peka.training.metrics import nan_mean
from napari_peka.trust.conformal import MIN_SPOTS, OWN_SPOTS, recalibrated
from napari_peka.workflows.check import Check, check

if TYPE_CHECKING:
    from napari_peka.io.section import Section

#: genes worked on at once
_AT_ONCE = 512
#: parts of the section that are left out in turn, to see what the fit is worth
_BLOCKS = 4
#: by which µm per pixel of map and spots may differ: the pitch of spots tells them to a few per cent
_SCALE = 0.1


def recalibrate(
    prediction: Prediction,
    section: Section,
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = NULL,
) -> Prediction:
    """Fit a map's intervals to spots that were measured on its slide, and write them into its result.

    The values and embeddings stay. Each gene's new intervals are those of a mixture of the model's own residuals and
    the measured spots': 50 spots weigh as much as the model's calibration, and genes that were not measured keep the
    model's. Where the map was fitted before, the model's own intervals are what is begun from, so that to fit twice
    changes nothing.

    These spots prove nothing of the new intervals any more. What does is told by the record: the share of spots
    within the 90 % intervals before, and after a fit to other parts of the section (``coverage_90``).

    Parameters
    ----------
    prediction
        From :func:`predict` or :func:`read_prediction`.
    section
        Spots measured on the same slide, from :func:`read_section`.
    output
        Where to write the map with its new intervals; None: in its own place, or nowhere where it is in memory only.
    overwrite
        Replace another result at `output`.
    progress
        Where to report; raises :class:`Cancelled` to stop, and nothing is written then.

    Returns
    -------
    Prediction
        With the new intervals. ``record["intervals"]["fitted"]`` says by which spots.

    Raises
    ------
    SectionError
        If the section is of another slide, none of its spots lies on the map, or the model was trained on it.
    SettingError
        If the map has no intervals or is not finished, or there are fewer than 20 spots on it.
    OutputMismatch, StoreError
        If the output is there already, or cannot be written.
    """
    for value, opener in ((prediction, "read_prediction"), (section, "read_section")):
        if isinstance(value, (str, os.PathLike)):
            said = os.fspath(value)
            raise SettingError(f"{said!r} is a name; open it first: napari_peka.{opener}({said!r})")
    prediction.needed_intervals()
    if prediction.partial or prediction.n_done < len(prediction.tiles):
        raise SettingError("the map is not finished; finish it first, then fit its intervals")
    target = prediction.path if output is None else result_path(output)
    same = target is not None and prediction.path is not None and target.resolve() == prediction.path.resolve()
    if target is not None and target.exists() and not (overwrite or same):
        raise OutputMismatch(f"{target} is there already; choose another output, or overwrite it (--overwrite)")
    own = dataclasses.replace(prediction, intervals=prediction.model_intervals or prediction.intervals)
    made = check(own, section)
    if made.seen:
        raise SectionError(
            f"the model was trained on {section.section_id}, where its errors are smaller than elsewhere: fit "
            "intervals to spots that it has not seen"
        )
    _refuse_namesake(prediction, section)
    _refuse_scale(prediction, section)
    rows = np.flatnonzero(made.inside)
    if len(rows) < MIN_SPOTS:
        raise SettingError(
            f"{len(rows)} spots of {section.section_id} lie on the map, and intervals need at least {MIN_SPOTS}"
        )
    progress.stage("fitting intervals", 2 * len(made.genes))
    proof = _proof(made, rows, progress)
    fitted = dataclasses.replace(
        own, intervals=_fitted(made, rows, progress), model_intervals=own.intervals,
        record=_record(own, section, len(rows), len(made.genes), proof),
    )  # fmt: skip
    if target is None:
        return fitted
    progress.stage("writing the result")
    return save_result(fitted, target, overwrite=overwrite or same)


def _refuse_namesake(prediction: Prediction, section: Section) -> None:
    """Refuse a section that is called as one of training: with another image its own fingerprint is another."""
    known = prediction.record.get("model", {}).get("trained_on", ())
    if section.section_id in {t.get("name") for t in known if t.get("part", "train") == "train"}:
        raise SectionError(
            f"the model was trained on a section called {section.section_id}: if these are its spots, fit intervals to "
            "those of another; if they are not, read them under their own name (--section or section=)"
        )


def _refuse_scale(prediction: Prediction, section: Section) -> None:
    """Refuse spots whose slide has other µm per pixel than the map."""
    theirs, ours = (float(np.mean(mpp)) for mpp in (section.slide.mpp, prediction.tiles.slide_mpp))
    if not np.isclose(theirs, ours, rtol=_SCALE):
        raise SectionError(
            f"{section.section_id} has {theirs:.4g} µm per pixel, and the map was predicted at {ours:.4g}: give the "
            "same to both (--mpp or mpp=)"
        )


def _fitted(made: Check, rows: npt.NDArray[np.intp], progress: Progress) -> Intervals:
    """Return the new intervals of all of the map's genes."""
    before = made.prediction.needed_intervals()
    quantiles = before.quantiles.copy()
    for columns in _parts(len(made.genes)):
        new = _mixed(made, columns, rows)
        quantiles[:, made.in_model[columns]] = new.quantiles
        progress.advance(len(columns))
    return Intervals(before.probabilities, quantiles, before.floor)


def _mixed(made: Check, columns: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]) -> Intervals:
    assert made.intervals is not None
    truth, predicted = made.values_of(columns)
    return recalibrated(made.intervals.only(columns), (truth - predicted)[rows], made.spread[rows])


def _proof(made: Check, rows: npt.NDArray[np.intp], progress: Progress) -> dict[str, float | None]:
    """Return what share of spots intervals hold before, and after a fit to the other parts of the section."""
    before, after = [], []
    level = min(LEVEL, made.prediction.needed_intervals().most)
    try:
        blocks = splits.by_block(["spots"] * len(rows), made.centre_um[rows], _BLOCKS)
    except SettingError:  # too few spots to leave any out
        blocks = []
    for columns in _parts(len(made.genes)):
        assert made.intervals is not None
        own, (truth, predicted) = made.intervals.only(columns), made.values_of(columns)
        varies = np.ptp(truth[rows], axis=0) > 0

        def held(of: Intervals, some: npt.NDArray[np.intp], t: Any = truth, p: Any = predicted) -> Any:
            return of.shares_held(t[some], p[some], made.spread[some], (level,))[0]

        before.append(np.where(varies, held(own, rows), np.nan))
        left_out = [
            held(recalibrated(own, (truth - predicted)[rows[b.train]], made.spread[rows[b.train]]), rows[b.test])
            for b in blocks
        ]
        after.append(np.where(varies, nan_mean(np.stack(left_out), 0) if left_out else np.nan, np.nan))
        progress.advance(len(columns))
    both = {"before": nan_mean(np.concatenate(before)), "left_out": nan_mean(np.concatenate(after))}
    return {k: round(float(v), 4) if np.isfinite(v) else None for k, v in both.items()}


def _parts(n: int) -> list[npt.NDArray[np.intp]]:
    return [np.arange(at, min(at + _AT_ONCE, n)) for at in range(0, n, _AT_ONCE)]


def _record(
    prediction: Prediction, section: Section, spots: int, genes: int, proof: dict[str, float | None]
) -> dict[str, Any]:
    told = {
        "section": section.section_id, "fingerprint": section.fingerprint, "spots": spots, "genes": genes,
        "own_spots": OWN_SPOTS, "coverage_90": proof,
    }  # fmt: skip
    intervals = doubt_record(prediction.intervals)["intervals"]
    return prediction.record | {"intervals": intervals | {FITTED: told}}
