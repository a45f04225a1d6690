"""Read ahead → batch → forward → hand over, block by block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

import numpy as np
import numpy.typing as npt

from napari_peka.core.geometry import Block, TileTable
from napari_peka.core.progress import COMPUTING, NULL, READING, Progress
from napari_peka.infer.forward import Embeddings, Forward
from napari_peka.infer.read_ahead import BlockSource, ReadAhead, ReadBlock
from napari_peka.infer.schedule import Schedule

OnBlock = Callable[[Block, Embeddings, npt.NDArray[np.bool_]], None]
OnPart = Callable[[Block, Embeddings], None]

#: blocks over which it is said what a tile costs
COST_BLOCKS = 8


def embed(
    slide: BlockSource,
    tiles: TileTable,
    forward: Forward,
    schedule: Schedule,
    on_block: OnBlock,
    *,
    on_part: OnPart | None = None,
    readers: int = 1,
    more_readers: bool = False,
    progress: Progress = NULL,
) -> None:
    """Embed every block of `schedule`; reading overlaps computing.

    `on_block` is called in this thread after each block, with float16 ``(n, d)`` embeddings (NaN where a tile could
    not be decoded) and ``read_ok (n,)``; `on_part` after each pass of a block but the last, with NaN where a tile is
    still missing. A block is always computed from its own tiles alone, so its numbers do not depend on the order in
    which blocks were done. `progress` hears what a tile takes to read (by one reader) and to compute. For `readers` and
    `more_readers` see :class:`ReadAhead`.

    Raises
    ------
    Cancelled
        From `progress`, or within a block when `progress` says that it is cancelled; blocks handed over before stay
        valid.
    """
    costs = _Costs()
    ahead = ReadAhead(slide, tiles, schedule, readers, more=more_readers)
    try:
        with forward.brake.heeding(progress):
            since = 0.0
            for one, rows, values in forward.stream((_InParts(read), read.readable) for read in ahead):
                one.add(rows, values)
                if not one.whole:
                    if on_part is not None:
                        on_part(one.block, one.embeddings)
                    progress.advance(0)  # a pause is kept within a block too
                    continue
                now = perf_counter()
                cost = costs.add(len(one.block), one.reading_s, now - max(since, one.began))
                since = now
                on_block(one.block, one.embeddings, one.ok)
                progress.advance(len(one.block), **cost)
    finally:
        ahead.close()


class _InParts:
    """A block whose embeddings come in parts."""

    def __init__(self, read: ReadBlock) -> None:
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
