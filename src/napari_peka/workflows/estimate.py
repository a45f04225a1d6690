"""How long a prediction will take on this machine: a few of its own tiles are read and computed, and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from napari_peka.config import PredictConfig
from napari_peka.core.errors import SettingError, Undecodable
from napari_peka.core.geometry import Block, TileTable
from napari_peka.core.progress import NULL, Cancelled, Progress, costs_in_words, human_time, rate_in_words
from napari_peka.infer.schedule import coarse_to_fine
from napari_peka.infer.tissue import find_tissue
from napari_peka.io.regions import read_regions
from napari_peka.io.slide import open_slide
from napari_peka.workflows.many import Outcome, ProgressOf, result_of
from napari_peka.workflows.predict import load_forward, plan_tiles, readers_of
from napari_peka.workflows.slide_check import check_slide, shown
from napari_peka.workflows.standing import Standing, State, standing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from napari_peka.infer.forward import Forward
    from napari_peka.infer.read_ahead import BlockSource
    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.slide import Slide
    from napari_peka.models.bundle import Model

#: tiles that are timed unless it takes too long
TILES = 64
#: s of computing that are enough, and a pass that takes longer than half of it is not made larger
ENOUGH_S = 3.0
#: blocks of tiles that are read
BLOCKS = 3
#: bytes of a result a tile besides its embedding: where it is, and whether it could be decoded
_BYTES_A_TILE = 40


@dataclass(frozen=True)
class Estimate:
    """How large a prediction is and how long it will take.

    Parameters
    ----------
    tiles
        Tiles of the whole map.
    tiles_left
        Those of them that are still to be computed.
    passes
        Passes of the encoder a tile.
    tile_um
        Side of the square that a tile's value stands for, in µm.
    seconds
        What is left will take about so long; loading the model comes on top, as far as it is not loaded.
    reading_s, computing_s
        Seconds a tile, measured here; 0 where nothing is left, since nothing is measured then.
    device, device_name
        Where it is computed, as the settings call it and as people do.
    precision
        Number format of the encoder.
    memory_free
        Bytes of the device's memory that nobody uses; None where the system does not say.
    result_bytes
        What the result takes on the disk, about.
    state
        What is there already; see :class:`Standing`.
    why
        What is in the way of it, as a sentence; empty where nothing is.
    """

    tiles: int
    tiles_left: int
    passes: int
    tile_um: float
    seconds: float
    reading_s: float
    computing_s: float
    device: str
    device_name: str
    precision: str
    memory_free: int | None
    result_bytes: int
    state: State = "new"
    why: str = ""

    @property
    def tiles_per_second(self) -> float:
        """Rate at which what is left will be computed; 0 where nothing is left."""
        return self.tiles_left / self.seconds if self.seconds > 0 else 0.0

    @property
    def text(self) -> str:
        """One line: ``about 2 min 30 s on CPU, 2 threads (8.0/s; reading 1.2 ms, computing 110 ms a tile)``."""
        if not self.tiles_left:
            return "all tiles are there: 0 s"
        costs = costs_in_words(self.reading_s, self.computing_s)
        rate = rate_in_words(self.tiles_per_second)
        return f"about {human_time(self.seconds)} on {self.device_name} ({rate} tiles/s; {costs})"

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as data for JSON."""
        return asdict(self) | {"tiles_per_second": round(self.tiles_per_second, 2), "text": self.text}


def estimate(
    slide: Slide,
    model: Model,
    *,
    config: PredictConfig | None = None,
    region: Any = None,
    tissue: Tissue | None = None,
    output: Path | str | None = None,
    forward: Forward | None = None,
    tiles: int = TILES,
    progress: Progress = NULL,
) -> Estimate:
    """Say how many tiles a prediction has and how long it will take, by timing a few of them.

    Takes some seconds: the encoder is loaded, a few blocks of tiles from all over the slide are read, and as many of
    them are computed as fit into three seconds. The first pass of each size is not counted. Nothing is kept.

    Parameters
    ----------
    slide, model, config, region, tissue, forward
        As :func:`predict` takes them.
    output
        Where the result will go: what is there already need not be computed.
    tiles
        Tiles that are timed at most.
    progress
        Where to report; raises :class:`Cancelled` to stop.

    Raises
    ------
    EncoderUnavailable
        If the encoder's weights cannot be had.
    """
    from napari_peka.models.devices import describe

    if tiles < 1:
        raise SettingError(f"at least one tile must be timed, got {tiles}")
    config = config or PredictConfig()
    forward = forward or load_forward(model, config)
    progress.stage("finding tissue")
    table = plan_tiles(slide, model, config, tissue=tissue, region=region)
    there = standing(slide, model, table, output, config=config, forward=forward)
    reading = computing = 0.0
    if there.left:
        reading, computing = _measure(shown(slide, model, config), table, forward, tiles, progress)
    device = describe(forward.device)
    return Estimate(
        tiles=len(table),
        tiles_left=there.left,
        passes=model.passes,
        tile_um=table.spec.footprint_um,
        seconds=seconds_needed(there, reading, computing, forward, config),
        reading_s=reading,
        computing_s=computing,
        device=device.name,
        device_name=device.title,
        precision=forward.precision,
        memory_free=device.free,
        result_bytes=len(table) * (2 * model.head.embedding_dims + _BYTES_A_TILE) + model.head.weights.nbytes,
        state=there.state,
        why=there.why,
    )


def estimate_many(
    slides: Sequence[Path | str], model: Model, output: Path, *, roi: Path | None = None,
    mpp: float | Callable[[Path], float | None] | None = None, config: PredictConfig | None = None,
    overwrite: bool = False, progress_of: ProgressOf | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """Yield for each slide what :func:`predict_many` would take for it, and its check; nothing is written.

    Parameters
    ----------
    slides, model, output, roi, mpp, config, overwrite, progress_of
        As :func:`predict_many` takes them.
    """
    config = config or PredictConfig()
    forward = load_forward(model, config)
    for i, slide in enumerate(map(Path, slides)):
        entry: dict[str, Any] = {"slide": str(slide)}
        error: Exception | None = None
        try:
            with progress_of(i, slide) if progress_of else nullcontext(NULL) as progress:
                region = read_regions(roi) if roi else None
                target = result_of(slide, output)
                with open_slide(slide, mpp=mpp(slide) if callable(mpp) else mpp) as opened:
                    tissue = find_tissue(opened, threshold=config.tissue_threshold) if config.find_tissue else None
                    found = estimate(
                        opened, model, config=config, region=region, tissue=tissue, output=target, forward=forward,
                        progress=progress,
                    )  # fmt: skip
                    check = check_slide(opened, model, config=config, region=region, tissue=tissue, progress=progress)
                if overwrite and found.state in ("other", "other head"):
                    found = replace(found, why="")
                entry |= {"output": str(target), **found.as_dict(), "warnings": list(opened.warnings)}
                entry |= check.as_dict()
        except Cancelled:
            raise
        except Exception as e:  # noqa: BLE001 - as in predict_many
            error = e
        yield Outcome(slide, entry, error, i)


def seconds_needed(there: Standing, reading: float, computing: float, forward: Forward, config: PredictConfig) -> float:
    """Return the seconds that what is left will take, from what a tile takes to be read and to be computed.

    Both go on at once. On a GPU the slower one decides; on a CPU they share its cores.
    """
    import torch

    if forward.device.type == "cpu":
        threads: int = torch.get_num_threads()
        return there.left * (computing + reading / threads)
    return there.left * max(computing, reading / readers_of(config, forward))


def _measure(
    slide: BlockSource, table: TileTable, forward: Forward, tiles: int, progress: Progress
) -> tuple[float, float]:
    """Return the seconds that a tile takes to be read and to be computed."""
    blocks = table.blocks()
    some = [blocks[i] for i in coarse_to_fine(blocks)[:BLOCKS]]
    progress.stage("reading a few tiles", sum(map(len, some)))
    images, seconds = [], 0.0
    for block in some:
        began = perf_counter()
        cut = _read(slide, table, block)
        seconds += perf_counter() - began
        images += [cut] if cut is not None else []
        progress.advance(len(block))
    reading = seconds / sum(map(len, some))
    if not images:
        return reading, 0.0
    progress.stage("loading the model")
    _ = forward.module
    progress.stage("computing a few tiles", 2 * tiles)  # as many again to warm up, at most
    with forward.brake.heeding(progress):
        return reading, _computing(cycle(images), forward, tiles, progress)


def _computing(images: Iterator[npt.NDArray[np.uint8]], forward: Forward, tiles: int, progress: Progress) -> float:
    """Return the seconds that a tile takes to be computed, in passes as large as fit into the time."""
    size, done, spent = 1, 0, 0.0
    _pass(images, forward, size)  # the very first allocates, and says nothing of those that follow
    while True:
        took, n = _pass(images, forward, size)
        progress.advance(n)
        if n >= min(forward.batch_size, tiles) or n < size or took > ENOUGH_S / 2:
            break
        size *= 2
    while done < tiles and spent < ENOUGH_S:
        took, n = _pass(images, forward, size)
        progress.advance(min(n, tiles - done))
        done, spent = done + n, spent + took
    return spent / done


def _pass(images: Iterator[npt.NDArray[np.uint8]], forward: Forward, size: int) -> tuple[float, int]:
    """Compute `size` tiles, or as many as a block has; return the seconds and how many."""
    batch = next(images)[: min(size, forward.batch_size)]
    began = perf_counter()
    forward(batch)  # its result is on the CPU when it returns, so the device has finished
    return perf_counter() - began, len(batch)


def _read(slide: BlockSource, table: TileTable, block: Block) -> npt.NDArray[np.uint8] | None:
    """Return a block's tiles as they are cut; None where none could be decoded."""
    from napari_peka.infer.read_ahead import CUT_AHEAD
    from napari_peka.io.tiles import read_tiles

    size = table.spec.size_px
    if len(block) * size * size * 3 > CUT_AHEAD:
        try:
            image = slide.read_block(block.rect, table.spec.mpp)
        except Undecodable:
            return None
        return block.cut(image, size, slice(0, max(1, CUT_AHEAD // (size * size * 3))))
    tiles, ok = read_tiles(slide, table, block)
    return tiles[ok] if ok.any() else None
