"""Before a slide is predicted: whether the model can be believed on it, by a thumbnail and a few of its tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import PredictConfig
from napari_peka.core.errors import MissingResolution, NoTissue
from napari_peka.core.geometry import TileTable
from napari_peka.core.progress import NULL, Progress
from napari_peka.infer.tissue import Tissue, find_tissue
from napari_peka.io.trust import ordinal, percent
from napari_peka.training.baselines import colour_features
from napari_peka.trust import slide_qc
from napari_peka.trust.slide_qc import COLOUR, FOCUS, HUE, Line, SlideCheck, percentiles, state_of
from napari_peka.trust.stain import METHODS, StainedSlide, StainMap, fit_stain, target_of, tensor_name
from napari_peka.workflows.predict import load_forward, plan_tiles
from napari_peka.workflows.sampling import Sample, sampled_tiles

if TYPE_CHECKING:
    from napari_peka.infer.forward import Forward
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model
    from napari_peka.training.paired import Paired
    from napari_peka.workflows.folds import Goal

#: training tiles by which a bundle tells what is sharp and how it was stained
_KEPT = 400


def check_slide(
    slide: Slide, model: Model, *, config: PredictConfig | None = None, region: Any = None,
    tissue: Tissue | None = None, progress: Progress = NULL,
) -> SlideCheck:  # fmt: skip
    """Say before a prediction whether the model can be believed on a slide; a second or two, no encoder is loaded.

    Parameters
    ----------
    slide, model, config, region, tissue
        As :func:`predict` takes them. With ``config.stain`` the stain is judged as the model will be shown it;
        ``config.organ`` says of which organ the slide is.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Returns
    -------
    SlideCheck
        A line a question: each with ``state``, ``text`` and ``mend``; its ``verdict`` is one sentence.
    """
    config = config or PredictConfig()
    progress.stage("looking at the slide")
    if tissue is None and config.find_tissue:
        tissue = find_tissue(slide, threshold=config.tissue_threshold)
    try:
        table = plan_tiles(slide, model, config, tissue=tissue, region=region)
    except MissingResolution:
        return SlideCheck(_of_slide(slide, model, config))
    except NoTissue:
        share = tissue.share if tissue else None
        return SlideCheck((*_of_slide(slide, model, config), slide_qc.tissue_line(share, 0)))
    stain = stain_map(slide, model, config, progress=progress)
    some = sampled_tiles(slide, table, tissue, progress=progress)
    return check_tiles(slide, model, table, tissue, some, config=config, stain=stain)


def check_tiles(
    slide: Slide, model: Model, table: TileTable, tissue: Tissue | None, some: Sample, *, config: PredictConfig,
    stain: StainMap | None,
) -> SlideCheck:  # fmt: skip
    """Say what :func:`check_slide` does of tiles of which some were read, shown as `stain` makes them."""
    seen, after = (some.tiles, "") if stain is None else (stain(some.tiles), f"normalisation by {config.stain}")
    carried, damage = model.carried, [w for w in slide.warnings if "decode" in w]
    return SlideCheck((
        *_of_slide(slide, model, config),
        slide_qc.tissue_line(tissue.share if tissue else None, len(table)),
        slide_qc.stain_line(
            colour_features(seen), percentiles(carried, COLOUR, (101, 6)), percentiles(carried, HUE, (101, 3)),
            after=after,
            can=any(tensor_name(method) in carried for method in METHODS),
        ),
        slide_qc.focus_line(slide_qc.sharpness(some.tiles), percentiles(carried, FOCUS, (101,))),
        slide_qc.reading_line(some.unreadable, some.asked, sampled=True, damage=damage[0] if damage else ""),
    ))  # fmt: skip


def _of_slide(slide: Slide, model: Model, config: PredictConfig) -> tuple[Line, Line]:
    """Return what is known before a tile is looked at: of the resolution and of the organ."""
    said = slide.resolution
    return (
        slide_qc.resolution_line(said.mpp if said else None, said.source if said else "", model.tile_spec().mpp),
        slide_qc.organ_line(model.spec.tissue, config.organ),
    )


def stain_map(slide: Slide, model: Model, config: PredictConfig, *, progress: Progress = NULL) -> StainMap | None:
    """Fit what brings a slide's stain to that of a model's training data; None where the stain is to stay.

    It is fitted on tiles from all over the slide's tissue, whatever region is predicted: the same slide is always
    shown in the same colours.

    Raises
    ------
    SettingError
        If the model does not say what stain it was trained on, or torchstain is not installed.
    NoTissue
        If the slide has too little stained tissue.
    """
    if config.stain == "none":
        return None
    target = target_of(model.carried, config.stain, model.name)
    tissue: Tissue | None = find_tissue(slide)
    try:
        table = plan_tiles(slide, model, tissue=tissue)
    except NoTissue:  # too pale or too odd to be found
        table, tissue = plan_tiles(slide, model, PredictConfig(find_tissue=False)), None
    return StainMap(
        config.stain, fit_stain(sampled_tiles(slide, table, tissue, progress=progress).tiles, config.stain), target
    )


def shown(slide: Slide, model: Model, config: PredictConfig) -> Slide | StainedSlide:
    """Return what reads a slide as the model is shown it."""
    stain = stain_map(slide, model, config)
    return slide if stain is None else stain.over(slide)


def stain_effect(
    slide: Slide, model: Model, config: PredictConfig, *, region: Any = None, tissue: Tissue | None = None,
    forward: Forward | None = None, progress: Progress = NULL,
) -> Line:  # fmt: skip
    """Say whether normalising the stain brings a slide's tiles nearer to the training data; loads the encoder.

    Parameters
    ----------
    slide, model, config, region, tissue, forward
        As :func:`predict` takes them; ``config.stain`` says how.
    """
    if model.likeness is None:
        return Line("normalisation", "unknown", "The model cannot tell whether normalising the stain helps.",
                    "train it again with this version to know")  # fmt: skip
    if tissue is None and config.find_tissue:
        tissue = find_tissue(slide, threshold=config.tissue_threshold)
    table = plan_tiles(slide, model, config, tissue=tissue, region=region)
    some = sampled_tiles(slide, table, tissue, progress=progress)
    stain = stain_map(slide, model, config, progress=progress)
    if stain is None or not len(some.tiles):
        return Line("normalisation", "unknown", "The stain is left as it is.")
    forward = forward or load_forward(model, config)
    progress.stage("embedding tiles as they are, and normalised")
    before, after = (model.ood(forward(t)) for t in (some.tiles, stain(some.tiles)))
    return effect_line(before, after)


def effect_line(before: npt.NDArray[np.floating], after: npt.NDArray[np.floating]) -> Line:
    """Say what normalising did to tiles, by how unlike the training data they were and are, percentiles ``(n,)``."""
    was, now = (float(np.nanmedian(x)) for x in (before, after))
    like = [float((x < slide_qc.OUTSIDE).mean()) for x in (before, after)]
    said = (
        f"Normalising the stain brings the tiles from the {_th(was)} to the {_th(now)} percentile; {percent(like[0])} "
        f"of them were like the training data, {percent(like[1])} are"
    )
    if now > was - 1 and like[1] <= like[0]:
        return Line("normalisation", "doubtful", f"{said}: no nearer.", "leave the stain as it is (--stain none)")
    state = state_of(1 - like[1])
    mend = "" if state == "good" else "many tiles stay unlike the training data: believe little of them"
    return Line("normalisation", state, f"{said}.", mend)


def pixel_reference(paired: Paired, goal: Goal, train: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.float32]]:
    """Return what a bundle keeps of its training tiles' colours, sharpness and stain, by which slides are checked.

    Parameters
    ----------
    paired, goal
        On what it was trained.
    train
        The spots that it was trained on, bool ``(n,)``.
    """
    from napari_peka.trust.stain import stain_reference

    rows = np.flatnonzero(train)
    rows = np.unique(rows[np.linspace(0, len(rows) - 1, _KEPT).round().astype(int)])
    tiles = paired.bank.read(rows)
    return {
        **slide_qc.colour_reference(goal.colour[train]),
        **slide_qc.focus_reference(slide_qc.sharpness(tiles)),
        **stain_reference(tiles),
    }


def _th(percentile: float) -> str:
    """Return a percentile as an ordinal, with a digit where whole numbers would all be the hundredth."""
    if 99 < percentile < 100:
        return f"{np.floor(10 * percentile) / 10:.1f}th"
    return ordinal(round(percentile))
