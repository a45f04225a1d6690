"""The only tile geometry.

Frame of reference everywhere: arrays and coordinates are ``(y, x)``; positions are level-0 pixels, float64,
with the centre of the first pixel at ``(0.5, 0.5)``, so that a rectangle's edges are plain numbers; lengths are
µm; ``mpp`` is µm per pixel, ``(y, x)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_peka.core.errors import SettingError
from napari_peka.core.raster import Raster

#: tiles along a block's side: 64 tiles amortise a read and fill a batch, yet a block is done within seconds
BLOCK_SIDE = 8
#: tiles a block at most, however densely spots lie
BLOCK_TILES = BLOCK_SIDE**2
#: places on a grid at most: a slide of 200,000 x 150,000 px has 150,000 for a common model
MAX_PLACES = 10_000_000
#: a share of an area is known to about 1e-12: a tile that lies wholly on tissue must pass a least share of 1
_SHARE_SLACK = 1e-9

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Rect:
    """An axis-aligned rectangle in level-0 pixels; edges may be fractions and may lie outside the slide."""

    y: float
    x: float
    h: float
    w: float

    def __post_init__(self) -> None:
        if not (self.h > 0 and self.w > 0 and np.isfinite([self.y, self.x, self.h, self.w]).all()):
            raise SettingError(f"a rectangle needs a positive, finite height and width, got {self}")

    @property
    def y1(self) -> float:
        """Lower edge."""
        return self.y + self.h

    @property
    def x1(self) -> float:
        """Right edge."""
        return self.x + self.w


@dataclass(frozen=True)
class TileSpec:
    """Size of the tiles that a model reads.

    Parameters
    ----------
    size_px
        Side of the square tile in pixels at `mpp`: what is read and cut, and what the model is fed.
    mpp
        µm per pixel of the tile.
    stride_px
        Distance between neighbouring tiles in pixels at `mpp`; `footprint_px` when None. Smaller: tiles overlap.
    footprint_px
        Side of the square in the tile's middle that its value stands for; `size_px` when None. Smaller for a model
        that looks at a tile's surroundings too: the grid, and what counts as tissue, follow the footprint.
    """

    size_px: int
    mpp: float
    stride_px: int | None = None
    footprint_px: int | None = None

    def __post_init__(self) -> None:
        if self.size_px < 1 or not 0 < self.mpp < 1000:
            raise SettingError(
                f"a tile needs at least 1 px and a positive mpp, got {self.size_px} px at {self.mpp} µm/px"
            )
        if self.stride_px is not None and self.stride_px < 1:
            raise SettingError(f"the stride must be at least 1 px, got {self.stride_px}")
        if self.footprint_px is not None and not 1 <= self.footprint_px <= self.size_px:
            raise SettingError(
                f"a tile's footprint must be at least 1 px and at most its size, got {self.footprint_px} of "
                f"{self.size_px} px"
            )

    @property
    def footprint(self) -> int:
        """Side of the square that a tile's value stands for, in pixels at :attr:`mpp`."""
        return self.size_px if self.footprint_px is None else self.footprint_px

    @property
    def stride(self) -> int:
        """Distance between neighbouring tiles in pixels at :attr:`mpp`."""
        return self.footprint if self.stride_px is None else self.stride_px

    @property
    def size_um(self) -> float:
        """Side of a tile in µm."""
        return self.size_px * self.mpp

    @property
    def footprint_um(self) -> float:
        """Side of the square that a tile's value stands for, in µm."""
        return self.footprint * self.mpp

    def size0(self, slide_mpp: tuple[float, float]) -> tuple[float, float]:
        """Side of a tile in level-0 pixels (y, x); rarely a whole number."""
        return self.size_um / slide_mpp[0], self.size_um / slide_mpp[1]

    def footprint0(self, slide_mpp: tuple[float, float]) -> tuple[float, float]:
        """Side of a tile's footprint in level-0 pixels (y, x)."""
        return self.footprint_um / slide_mpp[0], self.footprint_um / slide_mpp[1]

    def stride0(self, slide_mpp: tuple[float, float]) -> tuple[float, float]:
        """Distance between neighbouring tiles in level-0 pixels (y, x)."""
        return self.stride * self.mpp / slide_mpp[0], self.stride * self.mpp / slide_mpp[1]


@dataclass(frozen=True)
class Block:
    """A run of spatially contiguous tiles: the unit of reading, priority, storage, resume and distribution.

    Parameters
    ----------
    index
        Position among the blocks of its table.
    start, stop
        Rows ``start:stop`` of the table: the block's tiles.
    rect
        Level-0 rectangle that holds all of its tiles; read and decoded once, at the tiles' mpp.
    offsets_px
        Upper left corner (y, x) of each tile inside the block's image, int32 ``(stop - start, 2)``, px at the
        tiles' mpp.
    shape_px
        Height and width of the block's image.
    """

    index: int
    start: int
    stop: int
    rect: Rect
    offsets_px: IntArray = field(repr=False, compare=False)
    shape_px: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def centre_yx(self) -> tuple[float, float]:
        """Centre in level-0 pixels."""
        return self.rect.y + self.rect.h / 2, self.rect.x + self.rect.w / 2

    def cut(self, image: npt.NDArray[np.uint8], size_px: int, rows: slice = slice(None)) -> npt.NDArray[np.uint8]:
        """Cut the block's image into its tiles, or into some of them, shape ``(n, size_px, size_px, 3)``.

        Raises
        ------
        ValueError
            If the image has not the block's shape: it was read at another mpp, and every tile would be shifted.
        """
        if image.shape[:2] != self.shape_px:
            raise ValueError(f"block {self.index} is {self.shape_px} px, its image {image.shape[:2]}: another mpp?")
        offsets = self.offsets_px[rows]
        out = np.empty((len(offsets), size_px, size_px, image.shape[2]), image.dtype)
        for tile, (y, x) in zip(out, offsets):
            tile[:] = image[y : y + size_px, x : x + size_px]
        return out


@dataclass(frozen=True, eq=False)
class TileTable:
    """Where the tiles are. Regular tiles and measured spots are this one type, so one engine serves both.

    Tiles are sorted by block, so that a block is a run of rows.

    Parameters
    ----------
    centre_yx
        Centres in level-0 pixels, float64 ``(n, 2)``.
    spec
        Size of the tiles.
    slide_mpp
        µm per level-0 pixel (y, x) by which the tiles were laid out.
    grid_yx
        Row and column of each tile on the regular grid, int32 ``(n, 2)``; None for measured spots.
    ids
        Names of the tiles (barcodes of spots); ``"row_col"`` when None.
    block
        Block of each tile, int32 ``(n,)``, ascending.
    grid_shape
        Rows and columns of the whole grid; None for measured spots.
    """

    centre_yx: FloatArray
    spec: TileSpec
    slide_mpp: tuple[float, float]
    grid_yx: IntArray | None
    ids: tuple[str, ...] | None
    block: IntArray
    grid_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        n = len(self.centre_yx)
        if self.centre_yx.shape != (n, 2) or self.block.shape != (n,):
            raise ValueError(f"{n} tiles need centres of shape ({n}, 2) and as many blocks")
        if self.grid_yx is not None and self.grid_yx.shape != (n, 2):
            raise ValueError(f"grid_yx must have shape ({n}, 2), got {self.grid_yx.shape}")
        if self.ids is not None and len(self.ids) != n:
            raise ValueError(f"{n} tiles need {n} ids, got {len(self.ids)}")
        if not np.isfinite(self.centre_yx).all() or min(self.slide_mpp) <= 0:
            raise ValueError(f"tiles need finite centres and a positive slide mpp, got {self.slide_mpp}")
        if n and (np.diff(self.block) < 0).any():
            raise ValueError("tiles must be sorted by block")

    def __len__(self) -> int:
        return len(self.centre_yx)

    @property
    def size0_yx(self) -> tuple[float, float]:
        """Side of a tile in level-0 pixels (y, x)."""
        return self.spec.size0(self.slide_mpp)

    @property
    def centre_um(self) -> FloatArray:
        """Centres in µm (y, x) from the slide's upper left corner, float64 ``(n, 2)``."""
        return np.asarray(self.centre_yx * np.array(self.slide_mpp))

    @property
    def names(self) -> tuple[str, ...]:
        """One name a tile."""
        if self.ids is not None:
            return self.ids
        if self.grid_yx is None:
            return tuple(map(str, range(len(self))))
        return tuple(f"{r}_{c}" for r, c in self.grid_yx.tolist())

    def rects(self) -> FloatArray:
        """Level-0 rectangles ``(y, x, h, w)`` of the tiles, float64 ``(n, 4)``."""
        size = np.broadcast_to(np.array(self.size0_yx), self.centre_yx.shape)
        return np.concatenate([self.centre_yx - size / 2, size], axis=1)

    @classmethod
    def grid(
        cls,
        shape: tuple[int, int],
        slide_mpp: tuple[float, float],
        spec: TileSpec,
        *,
        tissue: Raster | None = None,
        min_tissue: float = 0.25,
        region: Any = None,
        min_region: float = 0.5,
    ) -> TileTable:
        """Lay a regular grid over a slide and keep the tiles with enough tissue.

        The grid of footprints starts at the slide's upper left corner; the position of tile *k* is *k* times the
        stride, never a sum, so it does not drift. A tile that hangs over the edge is kept when its centre is on the
        slide.

        Parameters
        ----------
        shape
            Height and width of level 0.
        slide_mpp
            µm per level-0 pixel (y, x).
        spec
            Size and stride of the tiles.
        tissue
            Tissue mask; None keeps every tile.
        min_tissue
            Least share of a footprint's area on tissue, 0 to 1.
        region
            A shapely geometry in level-0 pixels with **x first** (as GeoJSON has it); None for the whole slide.
        min_region
            Least share of a footprint's area inside `region`.

        Raises
        ------
        SettingError
            If the grid has more places than memory is good for.
        """
        step, size = np.array(spec.stride0(slide_mpp)), np.array(spec.footprint0(slide_mpp))
        # the last tile is the one whose centre still lies on the slide
        rows, cols = (int(max(1, np.ceil((shape[i] - size[i] / 2) / step[i]))) for i in (0, 1))
        r0, r1, c0, c1 = 0, rows, 0, cols
        if region is not None and not region.is_empty:
            x_lo, y_lo, x_hi, y_hi = region.bounds
            r0, r1 = max(0, int((y_lo - size[0]) // step[0])), min(rows, int(y_hi // step[0]) + 1)
            c0, c1 = max(0, int((x_lo - size[1]) // step[1])), min(cols, int(x_hi // step[1]) + 1)
        if (places := max(0, r1 - r0) * max(0, c1 - c0)) > MAX_PLACES:
            raise SettingError(
                f"a stride of {spec.stride} px makes a grid of {places:,} tiles, the most is {MAX_PLACES:,}; "
                "give a larger stride or a smaller region"
            )
        index = np.indices((max(0, r1 - r0), max(0, c1 - c0)), np.int32).reshape(2, -1).T + np.array((r0, c0), np.int32)
        keep = np.ones(len(index), bool)
        corner = index * step
        rects = np.concatenate([corner, np.broadcast_to(size, corner.shape)], axis=1)
        if tissue is not None:
            keep &= tissue.fraction(rects) >= _least(min_tissue)
        if region is not None and keep.any():
            keep[keep] = _share_inside(rects[keep], region) >= _least(min_region)
        index, centre = index[keep], (corner + size / 2)[keep]
        across = -(-cols // BLOCK_SIDE)
        cell = (index[:, 0] // BLOCK_SIDE).astype(np.int64) * across + index[:, 1] // BLOCK_SIDE
        order = np.argsort(cell, kind="stable")
        _, block = np.unique(cell[order], return_inverse=True)
        grid = index[order].astype(np.int32)
        return cls(centre[order], spec, slide_mpp, grid, None, block.astype(np.int32), (rows, cols))

    @classmethod
    def spots(
        cls,
        centre_yx: FloatArray,
        slide_mpp: tuple[float, float],
        spec: TileSpec,
        ids: Sequence[str] | None = None,
    ) -> tuple[TileTable, npt.NDArray[np.intp]]:
        """Make a table of tiles centred on measured spots.

        Returns
        -------
        table
            The spots' tiles, sorted by block.
        order
            ``table`` row *i* is spot ``order[i]`` of the input, intp ``(n,)``.

        Raises
        ------
        SettingError
            If a position is not finite, or there are not as many ids as spots.
        """
        centre = np.asarray(centre_yx, np.float64).reshape(-1, 2)
        if ids is not None and len(ids) != len(centre):
            raise SettingError(f"{len(centre)} spots need as many ids, got {len(ids)}")
        if nowhere := int((~np.isfinite(centre).all(1)).sum()):
            raise SettingError(f"{nowhere} of {len(centre)} spots have no finite position; leave them out")
        order, block = _spot_blocks(centre / (np.array(spec.stride0(slide_mpp)) * BLOCK_SIDE))
        names = None if ids is None else tuple(str(ids[i]) for i in order)
        return cls(centre[order], spec, slide_mpp, None, names, block), order

    def blocks(self) -> list[Block]:
        """Return the blocks, in the order of their tiles."""
        return list(self._blocks())

    def of_blocks(self, blocks: Sequence[Block]) -> TileTable:
        """Return a table of the tiles of some blocks alone, whose own blocks have the same tiles, in the same order."""
        rows = np.concatenate([np.arange(b.start, b.stop) for b in sorted(blocks, key=lambda b: b.start)])
        return replace(
            self,
            centre_yx=self.centre_yx[rows],
            grid_yx=None if self.grid_yx is None else self.grid_yx[rows],
            ids=None if self.ids is None else tuple(self.ids[i] for i in rows.tolist()),
            block=self.block[rows],
        )

    def _blocks(self) -> Iterator[Block]:
        starts = np.flatnonzero(np.diff(self.block, prepend=-1)) if len(self) else np.empty(0, int)
        stops = np.append(starts[1:], len(self))
        px0 = np.array(self.spec.mpp) / np.array(self.slide_mpp)  # level-0 px per tile px
        size, size_px = np.array(self.size0_yx), self.spec.size_px
        margin = (size_px - self.spec.footprint) / 2 * px0
        for i, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist())):
            if self.grid_yx is not None:
                grid = self.grid_yx[start:stop]
                first = grid.min(0)
                corner = first * np.array(self.spec.stride0(self.slide_mpp)) - margin
                offsets = (grid - first) * self.spec.stride
            else:  # spots: to the nearest tile pixel, at most half of one away
                corners = self.centre_yx[start:stop] - size / 2
                corner = corners.min(0)
                offsets = np.round((corners - corner) / px0).astype(np.int32)
            shape = offsets.max(0) + size_px
            h, w = shape * px0
            rect = Rect(float(corner[0]), float(corner[1]), float(h), float(w))
            yield Block(i, start, stop, rect, offsets.astype(np.int32), (int(shape[0]), int(shape[1])))

    @cached_property
    def _pixels(self) -> tuple[IntArray, tuple[int, int], IntArray]:
        """Return the grid's first place, the shape of its map, and the pixel of each tile in that."""
        assert self.grid_yx is not None
        if not len(self):
            return np.zeros(2, np.int64), (1, 1), np.zeros(0, np.int64)
        first = self.grid_yx.min(0).astype(np.int64)
        height, width = (self.grid_yx.max(0) - first + 1).tolist()
        y, x = (self.grid_yx - first).T
        return first, (height, width), y * width + x

    def raster(self, values: npt.NDArray[np.floating], units: str = "") -> Raster:
        """Lay one value a tile out as a map with one pixel a tile; NaN where there is no tile.

        Raises
        ------
        ValueError
            For measured spots, which have no grid, or a wrong number of values.
        """
        if self.grid_yx is None or self.grid_shape is None:
            raise ValueError("only tiles on a regular grid can be drawn as a raster; draw spots as points")
        if values.shape != (len(self),):
            raise ValueError(f"{len(self)} tiles need {len(self)} values, got {values.shape}")
        step = np.array(self.spec.stride0(self.slide_mpp))
        first, shape, pixels = self._pixels
        data = np.full(shape, np.nan, np.float32)
        data.ravel()[pixels] = values
        # with overlapping tiles a pixel stands for the tile's centre, one stride wide
        origin = (first * step + (np.array(self.spec.footprint0(self.slide_mpp)) - step) / 2).tolist()
        return Raster(data, (float(step[0]), float(step[1])), (origin[0], origin[1]), units)


def _spot_blocks(at_yx: FloatArray) -> tuple[npt.NDArray[np.intp], IntArray]:
    """Return an order of spots in which each block is a run, and the block of each spot in that order.

    A block is a cell of the unit grid; a cell with more spots than a block may have is halved until it fits: spots
    that overlap many times (bins of 8 µm) must not make a block of gigabytes.
    """
    cell_yx = np.floor(at_yx).astype(np.int64)
    cell_yx -= cell_yx.min(0, initial=0)
    cell = cell_yx[:, 0] * (cell_yx[:, 1].max(initial=0) + 1) + cell_yx[:, 1]
    order = np.argsort(cell, kind="stable")
    cells = np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)
    runs = [run for rows in cells for run in _halved(at_yx, rows)]
    block = np.repeat(np.arange(len(runs), dtype=np.int32), [len(run) for run in runs])
    return np.concatenate(runs), block


def _halved(at_yx: FloatArray, rows: npt.NDArray[np.intp]) -> Iterator[npt.NDArray[np.intp]]:
    """Cut a group of spots across its longer side until no part has more than a block may have."""
    if len(rows) <= BLOCK_TILES:
        yield rows
        return
    along = at_yx[rows, int(np.ptp(at_yx[rows], axis=0).argmax())]
    by_place = rows[np.argsort(along, kind="stable")]
    for half in np.array_split(by_place, 2):
        yield from _halved(at_yx, np.sort(half))


def _least(share: float) -> float:
    """Return the share that a tile must reach: a little less than asked for, but never nothing at all."""
    return max(share - _SHARE_SLACK, _SHARE_SLACK)


def _share_inside(rects: FloatArray, region: Any) -> FloatArray:
    import shapely

    y, x, h, w = rects.T
    boxes = shapely.box(x, y, x + w, y + h)
    shapely.prepare(region)
    share = shapely.contains_properly(region, boxes).astype(np.float64)
    edge = (share == 0) & shapely.intersects(region, boxes)
    share[edge] = shapely.area(shapely.intersection(region, boxes[edge])) / (h * w)[edge]
    return np.asarray(share)
