"""Some tiles of a slide, from all over it: read for themselves, or picked up while all tiles are read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import Undecodable
from napari_peka.core.geometry import Rect, TileTable
from napari_peka.core.progress import NULL, Progress

if TYPE_CHECKING:
    from napari_peka.infer.tissue import Tissue
    from napari_peka.io.slide import Slide

Images = npt.NDArray[np.uint8]
#: tiles that are looked at: with 40 a share of a quarter is known to 7 %
LOOKED_AT = 40
#: least share of a tile on tissue for it to be looked at, where there are such tiles: training spots lie on tissue
_ON_TISSUE = 0.5


@dataclass(frozen=True, eq=False)
class Sample:
    """Some tiles of a slide.

    Parameters
    ----------
    tiles
        Those that could be decoded, uint8 ``(n, S, S, 3)``.
    asked
        How many were to be read.
    """

    tiles: Images
    asked: int

    @property
    def unreadable(self) -> int:
        """How many could not be decoded."""
        return self.asked - len(self.tiles)


class Sampler:
    """Reads a slide by blocks for whoever predicts it, and keeps a few of the tiles that come by.

    Parameters
    ----------
    slide
        What is read.
    table
        Its tiles.
    tissue
        Where there are tiles well on tissue, only these are taken; None: any.
    n
        How many at most; of a table they are always the same ones.
    """

    def __init__(self, slide: Slide, table: TileTable, tissue: Tissue | None = None, n: int = LOOKED_AT) -> None:
        self._slide, self._table = slide, table
        self._rects = table.rects()
        rows = np.arange(len(self._rects))
        if tissue is not None and len(rows):
            well = np.flatnonzero(tissue.mask.fraction(self._rects) >= _ON_TISSUE)
            rows = well if len(well) else rows
        self.rows = np.unique(rows[np.linspace(0, len(rows) - 1, n).round().astype(int)])
        self._tiles: dict[int, Images] = {}
        #: the row and the upper left corner of each wanted tile in the image of a block
        self._in_block: dict[Rect, list[tuple[int, int, int]]] = {}
        for block in table.blocks():
            first, last = np.searchsorted(self.rows, (block.start, block.stop))
            wanted = self.rows[first:last].tolist()
            if wanted:
                self._in_block[block.rect] = [(row, *block.offsets_px[row - block.start].tolist()) for row in wanted]

    def read_block(self, rect: Rect, mpp: float | None = None) -> Images:
        """See :meth:`napari_peka.io.slide.Slide.read_block`; of a block of the table its wanted tiles are kept."""
        image = self._slide.read_block(rect, mpp)
        size = self._table.spec.size_px
        for row, y, x in self._in_block.get(rect, ()):
            self._tiles[row] = image[y : y + size, x : x + size].copy()
        return image

    def sample(self, progress: Progress = NULL) -> Sample:
        """Return the wanted tiles; those that did not come by are read."""
        size = self._table.spec.size_px
        missing = [row for row in self.rows.tolist() if row not in self._tiles]
        if missing:
            progress.stage("looking at tiles", len(missing))
        for row in missing:
            with contextlib.suppress(Undecodable):
                self._tiles[row] = self._slide.read_block(Rect(*self._rects[row].tolist()), self._table.spec.mpp)
            progress.advance()
        read = [self._tiles[row] for row in self.rows.tolist() if row in self._tiles]
        return Sample(np.stack(read) if read else np.zeros((0, size, size, 3), np.uint8), len(self.rows))


def sampled_tiles(
    slide: Slide, table: TileTable, tissue: Tissue | None = None, n: int = LOOKED_AT, *, progress: Progress = NULL
) -> Sample:
    """Read some tiles from all over a table, always the same ones; those well on tissue where there are any."""
    return Sampler(slide, table, tissue, n).sample(progress)
