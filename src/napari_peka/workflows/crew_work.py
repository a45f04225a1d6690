"""What a worker of a cluster does: it embeds some blocks of a slide, and writes each where the whole map is made."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_peka.config import PredictConfig
from napari_peka.core.errors import CrewError
from napari_peka.core.geometry import Block, TileTable
from napari_peka.core.progress import JobProgress, NullProgress
from napari_peka.io.block_files import BlockFiles

if TYPE_CHECKING:
    from napari_peka.infer.forward import Forward
    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model
    from napari_peka.trust.stain import StainMap
    from napari_peka.workflows.many import Task

#: slides that a worker keeps open
_OPEN = 4
#: what a worker was given, by its ``digest``
models: dict[str, Model] = {}
_lock = threading.Lock()
_forward: tuple[tuple[str, PredictConfig], Forward] | None = None
_slides: OrderedDict[tuple[Path, str, tuple[float, float]], Slide] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Item:
    """Some blocks of one slide.

    Parameters
    ----------
    slide, fingerprint
        File of the slide, and what it holds.
    tiles
        Tiles of these blocks alone.
    indices
        What the blocks are called in the whole map, in the order of the tiles.
    files
        Where finished blocks go.
    config
        Settings.
    model
        ``digest`` of one of :data:`models`.
    maker
        Format and kind of device that all workers have; see :func:`describe`.
    stain
        What changes the colours that the model is shown; None: they stay.
    """

    slide: Path
    fingerprint: str
    tiles: TileTable
    indices: tuple[int, ...]
    files: BlockFiles
    config: PredictConfig
    model: str
    maker: tuple[str, str]
    stain: StainMap | None = None


@dataclass(frozen=True)
class Done:
    """What became of an item.

    Parameters
    ----------
    tiles
        Tiles of its blocks.
    computed
        Blocks that were computed; the others were there, from a worker that ended before it could say so.
    seconds
        What they took, without the loading of the encoder.
    costs
        Seconds that a tile takes to be read and to be computed, as a progress is told.
    """

    tiles: int
    computed: int
    seconds: float
    costs: dict[str, float] = field(default_factory=dict)


def describe(model: str, config: PredictConfig) -> tuple[str, str]:
    """Return in what format this worker computes one of its models, and on what kind of device."""
    forward = _encoder(model, config)
    return forward.precision, forward.device.type


def find_tissue_of(path: Path, mpp: tuple[float, float], threshold: float | None) -> Tissue:
    """Return the tissue of a slide."""
    from napari_peka.infer.tissue import find_tissue
    from napari_peka.io.slide import open_slide

    _check_seen(path)
    with open_slide(path, mpp=mpp) as slide:
        return find_tissue(slide, threshold=threshold)


def work(item: Item) -> Done:
    """Embed an item's blocks and write each; what is there already is left alone.

    Raises
    ------
    CrewError
        If this worker does not see what the others see, or computes otherwise.
    """
    from napari_peka.infer.engine import embed
    from napari_peka.infer.schedule import Schedule
    from napari_peka.workflows.predict import readers_of

    forward = _encoder_as_agreed(item.model, item.config, item.maker)
    _check_seen(item.slide)
    _check_seen(item.files.folder)
    slide = _slide(item) if item.stain is None else item.stain.over(_slide(item))
    _ = forward.module
    began = perf_counter()
    blocks = item.tiles.blocks()
    there = [b.index for b in blocks if item.files.read(item.indices[b.index], len(b)) is not None]

    def keep(block: Block, embeddings: npt.NDArray[np.float16], ok: npt.NDArray[np.bool_]) -> None:
        item.files.write(item.indices[block.index], embeddings, ok)

    costs = _Costs()
    schedule, readers = Schedule(blocks, there), readers_of(item.config, forward)
    embed(
        slide, item.tiles, forward, schedule, keep, readers=readers, more_readers=item.config.readers is None,
        progress=costs,
    )  # fmt: skip
    return Done(len(item.tiles), len(blocks) - len(there), perf_counter() - began, costs.last)


def work_on_slide(task: Task, model: str, config: PredictConfig, maker: tuple[str, str]) -> dict[str, Any]:
    """Predict a whole slide, and return what the command line says of it; what is done is not done again."""
    from napari_peka.workflows.many import predict_file

    forward = _encoder_as_agreed(model, config, maker)
    _check_seen(task.slide)
    _check_seen(task.folder)
    return predict_file(task, models[model], config=config, forward=forward, progress=JobProgress())


def _encoder_as_agreed(model: str, config: PredictConfig, maker: tuple[str, str]) -> Forward:
    forward = _encoder(model, config)
    if (here := (forward.precision, forward.device.type)) != maker:
        raise CrewError(f"a worker computes in {' on '.join(here)}, others in {' on '.join(maker)}; say which")
    return forward


def _check_seen(path: Path) -> None:
    if not path.exists():
        raise CrewError(f"a worker does not see {path}; slides and results must lie where all machines see them")


def _encoder(model: str, config: PredictConfig) -> Forward:
    from napari_peka.workflows.predict import load_forward

    global _forward
    key = model, config
    with _lock:
        if _forward is None or _forward[0] != key:
            _forward = None  # two large encoders may not fit
            _forward = key, load_forward(models[model], config)
        return _forward[1]


def _slide(item: Item) -> Slide:
    from napari_peka.io.slide import open_slide

    key = item.slide, item.fingerprint, item.tiles.slide_mpp
    with _lock:
        if key not in _slides:
            slide = open_slide(item.slide, mpp=item.tiles.slide_mpp)
            if slide.fingerprint != item.fingerprint:
                slide.close()
                raise CrewError(f"{item.slide} is another file on a worker; put slides where all see them")
            _slides[key] = slide
            if len(_slides) > _OPEN:
                _slides.popitem(last=False)[1].close()
        _slides.move_to_end(key)
        return _slides[key]


class _Costs(NullProgress):
    """Remembers what a tile costs."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def advance(self, n: int = 1, **metrics: float) -> None:
        """See :class:`napari_peka.core.progress.Progress`."""
        self.last = metrics
