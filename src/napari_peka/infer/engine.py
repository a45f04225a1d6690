"""Read ahead → batch → forward → hand over, block by block."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import Undecodable
from napari_peka.core.geometry import Block, Rect, TileTable
from napari_peka.core.progress import COMPUTING, NULL, READING, Progress
from napari_peka.infer.forward import Embeddings, Forward, Images, Tiles
from napari_peka.infer.schedule import Schedule
from napari_peka.io.tiles import read_tiles

OnBlock = Callable[[Block, Embeddings, npt.NDArray[np.bool_]], None]
OnPart = Callable[[Block, Embeddings], None]

#: blocks decoded and waiting: two keep the model fed, more only cost memory (9.6 MB each at 64 tiles of 224 px)
READ_AHEAD = 2
#: bytes of a block's tiles that are cut as it is read. More, as tiles that overlap widely have, are cut by the batch:
#: 64 tiles of 896 px are 154 MB, the image that they are cut from is 18 MB
CUT_AHEAD = 64 << 20
#: blocks over which it is said what a tile costs
COST_BLOCKS = 8


class BlockSource(Protocol):
    """What the engine asks of a slide."""

    def read_block(self, rect: Rect, mpp: float | None = None) -> Images:
        """See :meth:`napari_peka.io.slide.Slide.read_block`."""


@dataclass(frozen=True, eq=False)
class Uncut:
    """The tiles of a block, cut from its image when they are asked for."""

    block: Block
    image: Images
    size_px: int

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, rows: slice) -> Images:
        return self.block.cut(self.image, self.size_px, rows)


@dataclass
class _Read:
    block: Block
    tiles: Images | Uncut | None = None
    ok: npt.NDArray[np.bool_] | None = None
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def readable(self) -> Tiles:
        """The tiles that could be decoded; where there is none a blank one, which tells how wide embeddings are."""
        assert self.tiles is not None
        assert self.ok is not None
        if isinstance(self.tiles, Uncut) or self.ok.all():
            return self.tiles
        return self.tiles[self.ok] if self.ok.any() else np.zeros_like(self.tiles[:1])


class _Growing:
    """A block whose embeddings come in parts."""

    def __init__(self, read: _Read) -> None:
        assert read.ok is not None
        self.block, self.ok, self.reading_s, self.began = read.block, read.ok, read.seconds, perf_counter()
        self._readable = np.flatnonzero(read.ok)
        self._done = 0
        self.embeddings: Embeddings = np.empty((0, 0), np.float16)

    def add(self, rows: slice, values: Embeddings) -> None:
        """Put in the embeddings of some of the readable tiles."""
        if not self._done:
            self.embeddings = np.full((len(self.block), values.shape[1]), np.nan, np.float16)
        self._done = rows.stop
        if len(self._readable):
            self.embeddings[self._readable[rows]] = values

    @property
    def whole(self) -> bool:
        """Whether all parts are there."""
        return self._done >= len(self._readable)


class _Costs:
    """What a tile of the last blocks took, in seconds: to read, and to compute."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, float, float]] = deque(maxlen=COST_BLOCKS)

    def add(self, tiles: int, reading: float, computing: float) -> dict[str, float]:
        """Count a block; returns the metrics to report."""
        self._last.append((tiles, reading, computing))
        n, read, compute = (sum(column) for column in zip(*self._last))
        return {READING: read / n, COMPUTING: compute / n}


def embed(
    slide: BlockSource,
    tiles: TileTable,
    forward: Forward,
    schedule: Schedule,
    on_block: OnBlock,
    *,
    on_part: OnPart | None = None,
    readers: int = 1,
    progress: Progress = NULL,
) -> None:
    """Embed every block of `schedule`; reading overlaps computing.

    `on_block` is called in this thread after each block, with float16 ``(n, d)`` embeddings (NaN where a tile could
    not be decoded) and ``read_ok (n,)``; `on_part` after each pass of a block but the last, with NaN where a tile is
    still missing. A block is always computed from its own tiles alone, so its numbers do not depend on the order in
    which blocks were done. `progress` hears what a tile takes to read (by one reader) and to compute.

    Raises
    ------
    Cancelled
        From `progress`, or within a block when `progress` says that it is cancelled; blocks handed over before stay
        valid.
    """
    costs = _Costs()
    forward.brake.asked = lambda: getattr(progress, "cancelled", False) is True
    waiting: queue.Queue[_Read | None] = queue.Queue(maxsize=READ_AHEAD)
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=_reader, args=(slide, tiles, schedule, waiting, stop), name=f"peka-read-{i}", daemon=True
        )
        for i in range(readers)
    ]
    for t in threads:
        t.start()

    def read() -> Iterator[tuple[_Growing, Tiles]]:
        running = len(threads)
        while running:
            item = waiting.get()
            if item is None:
                running -= 1
                continue
            if item.error is not None:
                raise item.error
            yield _Growing(item), item.readable

    try:
        since = 0.0
        for one, rows, values in forward.stream(read()):
            one.add(rows, values)
            if not one.whole:
                if on_part is not None:
                    on_part(one.block, one.embeddings)
                continue
            now = perf_counter()
            cost = costs.add(len(one.block), one.reading_s, now - max(since, one.began))
            since = now
            on_block(one.block, one.embeddings, one.ok)
            progress.advance(len(one.block), **cost)
    finally:
        forward.brake.release()
        stop.set()
        while any(t.is_alive() for t in threads):  # a reader may be waiting for a place in the queue
            try:
                waiting.get(timeout=0.05)
            except queue.Empty:
                continue


def _reader(
    slide: BlockSource,
    tiles: TileTable,
    schedule: Schedule,
    out: queue.Queue[_Read | None],
    stop: threading.Event,
) -> None:
    def put(item: _Read | None) -> None:
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    while not stop.is_set() and (block := schedule.take()) is not None:
        try:
            began = perf_counter()
            item = _read(slide, tiles, block)
            item.seconds = perf_counter() - began
            put(item)
        except BaseException as e:  # noqa: BLE001 - raised again in the caller's thread
            put(_Read(block, error=e))
            return
    put(None)


def _read(slide: BlockSource, tiles: TileTable, block: Block) -> _Read:
    size = tiles.spec.size_px
    if len(block) * size * size * 3 > CUT_AHEAD:
        try:
            uncut = Uncut(block, slide.read_block(block.rect, tiles.spec.mpp), size)
            return _Read(block, uncut, np.ones(len(block), bool))
        except Undecodable:
            pass
    return _Read(block, *read_tiles(slide, tiles, block))
