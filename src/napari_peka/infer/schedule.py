"""The order in which blocks are done: an overall map early, and what somebody looks at first."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from napari_peka.core.geometry import Block, Rect


def coarse_to_fine(blocks: Sequence[Block], extent: Rect | None = None) -> list[int]:
    """Return block indices so that any first part of them is spread evenly over the slide.

    Blocks are placed on a power-of-two grid and visited by the bit-reversed Morton code: the first four fall into
    four different quadrants, the first sixteen into sixteen sixteenths, and so on.
    """
    if not blocks:
        return []
    ys, xs = zip(*(b.centre_yx for b in blocks))
    y0, x0 = (extent.y, extent.x) if extent else (min(ys), min(xs))
    span = max(max(ys) - y0, max(xs) - x0, 1e-9)
    bits = max(1, (len(blocks) - 1).bit_length())
    cells = 1 << bits

    def code(y: float, x: float) -> int:
        iy, ix = (min(int((v - o) / span * cells), cells - 1) for v, o in ((y, y0), (x, x0)))
        out = 0
        for k in range(bits):  # lowest bit of the cell goes to the highest place: that is the reversal
            bit_y, bit_x = iy >> (bits - 1 - k) & 1, ix >> (bits - 1 - k) & 1
            out |= (bit_y << (2 * k)) | ((bit_y ^ bit_x) << (2 * k + 1))
        return out

    return [b.index for _, b in sorted(((code(*b.centre_yx), b) for b in blocks), key=lambda p: (p[0], p[1].index))]


class Schedule:
    """Blocks still to do, in an order that any thread may change while the job runs."""

    def __init__(self, blocks: Sequence[Block], done: Iterable[int] = ()) -> None:
        self._blocks = {b.index: b for b in blocks}
        skip = set(done)
        self._order = [i for i in coarse_to_fine(blocks) if i not in skip]
        self._view: Rect | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._order)

    @property
    def tiles_left(self) -> int:
        """Number of tiles in the blocks that are still to be taken."""
        with self._lock:
            return sum(len(self._blocks[i]) for i in self._order)

    def prefer(self, view: Rect | None) -> None:
        """Do the blocks that touch `view` (level-0 pixels) first from now on; None: none before others."""
        with self._lock:
            self._view = view

    def take(self) -> Block | None:
        """Return the next block, or None when nothing is left."""
        with self._lock:
            if not self._order:
                return None
            place = 0
            if (view := self._view) is not None:
                place = next((k for k, i in enumerate(self._order) if _touch(self._blocks[i].rect, view)), 0)
            return self._blocks[self._order.pop(place)]


def _touch(a: Rect, b: Rect) -> bool:
    return a.y < b.y1 and b.y < a.y1 and a.x < b.x1 and b.x < a.x1
