"""Tiles: each kept once, none drifts, and what is cut out of a block is what lies under the tile."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from napari_peka.core.errors import SettingError
from napari_peka.core.geometry import BLOCK_SIDE, BLOCK_TILES, Block, Rect, TileSpec, TileTable
from napari_peka.core.raster import Raster
from napari_peka.io.slide import open_slide

EPS = np.finfo(np.float64).eps
MPP = st.floats(0.1, 2.0)
SPECS = st.builds(
    TileSpec, st.integers(16, 512), MPP, st.one_of(st.none(), st.integers(32, 600))
)  # overlap, gaps, neither
SEEDS = st.integers(0, 2**32 - 1)


def grid(*args, **kwargs) -> TileTable:
    """Lay a grid; a drawn case that is refused for its size is no case."""
    try:
        return TileTable.grid(*args, **kwargs)
    except SettingError as e:
        assume("larger stride" not in str(e))
        raise


def exact(spec: TileSpec, slide_mpp: float, k: int) -> Fraction:
    """Centre of the k-th tile along an axis, without any rounding."""
    to_level0 = Fraction(spec.mpp) / Fraction(slide_mpp)
    return k * spec.stride * to_level0 + spec.size_px * to_level0 / 2


def random_tissue(rng: np.random.Generator, shape: tuple[int, int]) -> Raster:
    """A mask of large and small pieces and holes over a slide, coarse enough to cut through tiles."""
    h, w = (int(n) for n in rng.integers(2, 24, 2))
    return Raster(rng.random((h, w)) < rng.uniform(0.1, 0.95), (shape[0] / h, shape[1] / w))


def covered(tissue: Raster, rects: np.ndarray) -> np.ndarray:
    """Share of each rectangle on tissue, by the overlap with every single pixel."""

    def overlap(start: np.ndarray, length: np.ndarray, axis: int) -> np.ndarray:
        edge = tissue.origin_yx[axis] + np.arange(tissue.data.shape[axis] + 1) * tissue.scale_yx[axis]
        low, high = np.maximum(start[:, None], edge[:-1]), np.minimum((start + length)[:, None], edge[1:])
        return np.maximum(high - low, 0) / length[:, None]

    y, x, h, w = rects.T
    return np.einsum("ni,ij,nj->n", overlap(y, h, 0), tissue.data.astype(float), overlap(x, w, 1))


def check_blocks(tiles: TileTable) -> list[Block]:
    """Every tile in exactly one block; a block holds its tiles and no more, each at its own place."""
    blocks = tiles.blocks()
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(len(tiles)))
    assert [b.index for b in blocks] == list(range(len(blocks)))
    rects, size = tiles.rects(), tiles.spec.size_px
    px0 = np.array(tiles.size0_yx) / size
    for b in blocks:
        y, x, _, _ = rects[b.start : b.stop].T
        slack = 0.5 * px0 if tiles.grid_yx is None else 1e-9 * np.array([b.rect.y1, b.rect.x1]).clip(1)
        assert np.abs(b.rect.y + b.offsets_px[:, 0] * px0[0] - y).max() <= slack[0] * (1 + 1e-6)
        assert np.abs(b.rect.x + b.offsets_px[:, 1] * px0[1] - x).max() <= slack[1] * (1 + 1e-6)
        assert b.offsets_px.min(0).tolist() == [0, 0]
        assert b.shape_px == tuple((b.offsets_px.max(0) + size).tolist())
        assert (b.rect.h / px0[0], b.rect.w / px0[1]) == pytest.approx(b.shape_px, rel=1e-12)
    return blocks


# -- the regular grid --------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(SPECS, MPP, MPP)
def test_centres_do_not_drift_over_200_000_px(spec, mpp_y, mpp_x):
    tiles = grid((200_000, 600), (mpp_y, mpp_x), spec)
    rows, cols = tiles.grid_shape
    assert len(tiles) == rows * cols
    for k in {0, 1, rows // 3, rows // 2, rows - 2, rows - 1} & set(range(rows)):
        got = tiles.centre_yx[tiles.grid_yx[:, 0] == k, 0]
        want = exact(spec, mpp_y, k)
        assert len(set(got.tolist())) == 1
        assert abs(Fraction(float(got[0])) - want) <= 4 * EPS * want
    for k in range(cols):
        got, want = tiles.centre_yx[tiles.grid_yx[:, 1] == k, 1], exact(spec, mpp_x, k)
        assert abs(Fraction(float(got[0])) - want) <= 4 * EPS * want
    # the next tile's centre would lie off the slide, so none is missing
    assert exact(spec, mpp_y, rows) >= 200_000 * (1 - 4 * Fraction(EPS))
    assert rows == 1 or exact(spec, mpp_y, rows - 1) < 200_000


@settings(max_examples=60, deadline=None)
@given(SPECS, MPP, MPP)
def test_a_tile_is_as_large_as_the_model_wants_in_um(spec, mpp_y, mpp_x):
    tiles = grid((3000, 2000), (mpp_y, mpp_x), spec)
    y, x, h, w = tiles.rects().T
    assert h * mpp_y == pytest.approx(spec.size_px * spec.mpp)
    assert w * mpp_x == pytest.approx(spec.size_px * spec.mpp)
    assert np.stack([y + h / 2, x + w / 2], 1) == pytest.approx(tiles.centre_yx)
    step_um = np.array([spec.stride * spec.mpp] * 2)
    rows = dict(zip(tiles.grid_yx[:, 0].tolist(), y.tolist()))
    for a, b in pairwise(sorted(rows)):
        assert (rows[b] - rows[a]) * mpp_y == pytest.approx(step_um[0], rel=1e-6)
    assert (y[0], x[0]) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(SPECS, MPP, MPP, SEEDS, st.floats(0, 1))
def test_every_tile_with_enough_tissue_is_in_exactly_one_block(spec, mpp_y, mpp_x, seed, least):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 8000, 2))
    everywhere = grid(shape, (mpp_y, mpp_x), spec)
    assume(len(everywhere) < 20_000)
    tissue = random_tissue(rng, shape)
    tiles = grid(shape, (mpp_y, mpp_x), spec, tissue=tissue, min_tissue=least)

    share = covered(tissue, everywhere.rects())
    kept = set(map(tuple, tiles.grid_yx.tolist()))
    assert len(kept) == len(tiles)
    for place, s in zip(map(tuple, everywhere.grid_yx.tolist()), share.tolist()):
        if abs(s - max(least, 1e-9)) > 1e-8:
            assert (place in kept) == (s > least), (place, s)

    blocks = check_blocks(tiles)
    cells = [np.unique(tiles.grid_yx[b.start : b.stop] // BLOCK_SIDE, axis=0) for b in blocks]
    assert all(len(c) == 1 for c in cells)  # so a block spans at most 8 x 8 places
    assert len({tuple(c[0].tolist()) for c in cells}) == len(blocks)  # and no cell is torn into two blocks
    for b in blocks:
        rows = tiles.grid_yx[b.start : b.stop].tolist()
        assert rows == sorted(rows)


@pytest.mark.parametrize("stride", [None, 100, 112, 300])
def test_tiles_wholly_on_tissue_pass_a_least_share_of_one(stride):
    # 1 - 2e-16 is less than 1: rounding must not empty a slide that is all tissue
    spec = TileSpec(224, 0.5, stride)
    full = Raster(np.ones((97, 89), bool), (9700 / 97 / 1.0, 8900 / 89 / 1.0))
    everywhere = grid((9700, 8900), (0.2527, 0.2531), spec)
    y, x, h, w = everywhere.rects().T
    inside = (y + h <= 9700) & (x + w <= 8900)
    tiles = grid((9700, 8900), (0.2527, 0.2531), spec, tissue=full, min_tissue=1.0)
    assert len(tiles) == inside.sum() > 0


def test_no_tile_without_any_tissue_is_kept_even_when_none_is_asked_for():
    empty = Raster(np.zeros((50, 50), bool), (100.0, 100.0))
    assert len(grid((5000, 5000), (0.5, 0.5), TileSpec(224, 0.5), tissue=empty, min_tissue=0)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (40, 90), (223, 100), (224, 224)])
def test_a_slide_smaller_than_a_tile_has_one_tile(shape):
    tiles = grid(shape, (0.5, 0.5), TileSpec(224, 0.5))
    assert tiles.centre_yx.tolist() == [[112, 112]]
    assert tiles.blocks()[0].rect == Rect(0, 0, 224, 224)


def test_pixels_that_are_not_square():
    tiles = grid((1000, 1000), (0.25, 0.5), TileSpec(100, 1.0))
    assert tiles.size0_yx == (400, 200)
    assert tiles.grid_shape == (2, 5)
    assert tiles.centre_yx[0].tolist() == [200, 100]
    block = tiles.blocks()[0]
    assert block.shape_px == (200, 500)  # square tiles for the model, whatever the slide's pixels are
    assert block.rect == Rect(0, 0, 800, 1000)


# -- regions -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SPECS, MPP, SEEDS, st.floats(0, 1))
def test_a_region_and_its_holes_decide_what_is_kept(spec, mpp, seed, least):
    import shapely

    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(500, 5000, 2))
    at = rng.uniform(-0.1, 1, 2) * shape
    size = rng.uniform(0.3, 1, 2) * shape
    outer = shapely.box(at[1], at[0], at[1] + size[1], at[0] + size[0])
    hole = shapely.affinity.scale(shapely.Point(at[1] + size[1] / 2, at[0] + size[0] / 2).buffer(1), *(size[::-1] / 4))
    region = outer - hole
    everywhere = grid(shape, (mpp, mpp), spec)
    assume(len(everywhere) < 3000)
    tiles = grid(shape, (mpp, mpp), spec, region=region, min_region=least)
    kept = set(map(tuple, tiles.grid_yx.tolist()))
    for place, (y, x, h, w) in zip(everywhere.grid_yx.tolist(), everywhere.rects().tolist()):
        share = region.intersection(shapely.box(x, y, x + w, y + h)).area / (h * w)
        if abs(share - max(least, 1e-9)) > 1e-7:
            assert (tuple(place) in kept) == (share > least)
    check_blocks(tiles)


def test_a_hole_is_left_out_and_the_grid_is_the_slides():
    import shapely

    region = shapely.box(100, 100, 900, 900) - shapely.box(300, 300, 700, 700)
    tiles = grid((1000, 1000), (1, 1), TileSpec(100, 1.0), region=region)
    assert len(tiles) == 64 - 16
    assert not ((tiles.centre_yx > 300) & (tiles.centre_yx < 700)).all(1).any()
    # a region never moves the tiles: two regions of one slide can be laid side by side
    assert (tiles.centre_yx % 100 == 50).all()


def test_tiles_inside_a_region_pass_a_least_share_of_one():
    import shapely

    spec = TileSpec(224, 0.5)
    mpp = (0.2527, 0.2531)
    h, w = spec.size0(mpp)
    region = shapely.box(2 * w, 3 * h, 5 * w, 7 * h)  # its edge runs along the tiles' edges
    tiles = grid((9000, 9000), mpp, spec, region=region, min_region=1.0)
    assert len(tiles) == 12


@pytest.mark.parametrize("region", ["POLYGON EMPTY", "POLYGON ((9000 0, 9999 0, 9999 50, 9000 0))"])
def test_a_region_off_the_slide_keeps_nothing(region):
    import shapely

    tiles = grid((3000, 4000), (0.5, 0.5), TileSpec(224, 0.5), region=shapely.from_wkt(region))
    assert len(tiles) == 0
    assert tiles.blocks() == []
    assert np.isnan(tiles.raster(np.empty(0)).data).all()


# -- spots -------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1500), st.floats(1, 20_000), MPP, MPP, SEEDS)
def test_spots_and_grid_are_one_type(n, extent, mpp_y, mpp_x, seed):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-50, extent, (n, 2))
    centre[: n // 4] = centre[n // 4 : 2 * (n // 4)]  # some lie on one another
    spec = TileSpec(224, 0.5)
    ids = [f"spot{i}" for i in range(n)]
    tiles, order = TileTable.spots(centre, (mpp_y, mpp_x), spec, ids)
    assert type(tiles) is type(grid((500, 500), (mpp_y, mpp_x), spec))
    assert sorted(order.tolist()) == list(range(n))
    assert (tiles.centre_yx == centre[order]).all()  # not moved by a bit
    assert tiles.names == tuple(ids[i] for i in order)
    reach = BLOCK_SIDE * np.array(spec.stride0((mpp_y, mpp_x)))
    for b in check_blocks(tiles):
        assert len(b) <= BLOCK_TILES
        assert (np.ptp(tiles.centre_yx[b.start : b.stop], axis=0) <= reach * (1 + 1e-9)).all()


def test_dense_spots_do_not_make_a_huge_block():
    # bins of 8 µm under tiles of 112 µm: a cell of 8 x 8 tiles holds 12,544 of them, 1.9 GB of tiles
    side = np.arange(112) * 16.0
    centre = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    tiles, _ = TileTable.spots(centre, (0.5, 0.5), TileSpec(224, 0.5))
    blocks = check_blocks(tiles)
    assert BLOCK_TILES / 2 < max(map(len, blocks)) <= BLOCK_TILES
    # and each is compact: 8 x 8 bins, not a line of 64
    assert max(max(b.shape_px) for b in blocks) <= 224 + 2 * BLOCK_SIDE * 16


def test_spots_that_cannot_be_placed_are_refused():
    spec = TileSpec(224, 0.5)
    with pytest.raises(SettingError, match="1 of 2 spots have no finite position"):
        TileTable.spots(np.array([[1.0, 2.0], [np.nan, 3.0]]), (0.5, 0.5), spec)
    with pytest.raises(SettingError, match="2 spots need as many ids, got 3"):
        TileTable.spots(np.ones((2, 2)), (0.5, 0.5), spec, ["a", "b", "c"])


# -- the map -----------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(SPECS, MPP, MPP, SEEDS)
def test_a_raster_puts_each_value_under_its_tile(spec, mpp_y, mpp_x, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(200, 5000, 2))
    tiles = grid(shape, (mpp_y, mpp_x), spec, tissue=random_tissue(rng, shape))
    assume(0 < len(tiles) < 20_000)
    values = rng.normal(size=len(tiles)).astype(np.float32)
    raster = tiles.raster(values, "log1p CP10K")
    assert raster.units == "log1p CP10K"
    assert raster.data.dtype == np.float32
    # world position of a raster pixel's centre, as a viewer computes it
    at = np.array(raster.origin_yx) + (np.argwhere(~np.isnan(raster.data)) + 0.5) * np.array(raster.scale_yx)
    there = {tuple(np.round(p, 4)): v for p, v in zip(at, raster.data[~np.isnan(raster.data)].tolist())}
    assert len(there) == len(tiles)
    near = {tuple(np.round(p, 4)) for p in tiles.centre_yx}
    assert max(min(abs(np.subtract(p, q)).max() for q in list(there)[:1]) for p in list(near)[:1]) < max(shape) * 2
    for centre, value in zip(tiles.centre_yx, values.tolist()):
        row, col = np.floor((centre - raster.origin_yx) / raster.scale_yx).astype(int)
        assert raster.data[row, col] == np.float32(value)
        middle = np.array(raster.origin_yx) + (np.array([row, col]) + 0.5) * raster.scale_yx
        assert middle == pytest.approx(centre, abs=1e-6)
    assert np.isnan(raster.data).sum() == raster.data.size - len(tiles)


def test_a_raster_of_tiles_without_overlap_covers_them_exactly():
    tiles = grid((1000, 1200), (0.5, 0.25), TileSpec(100, 1.0))
    raster = tiles.raster(np.arange(len(tiles), dtype=np.float32))
    assert raster.origin_yx == (0, 0)
    assert raster.scale_yx == tiles.size0_yx == (200, 400)
    assert raster.data.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]]


def test_only_a_grid_is_drawn_and_only_with_a_value_a_tile():
    tiles = grid((1000, 1000), (1, 1), TileSpec(100, 1.0))
    with pytest.raises(ValueError, match="100 tiles need 100 values"):
        tiles.raster(np.zeros(99, np.float32))
    spots, _ = TileTable.spots(np.ones((3, 2)), (1, 1), TileSpec(100, 1.0))
    with pytest.raises(ValueError, match="draw spots as points"):
        spots.raster(np.zeros(3, np.float32))


# -- bad geometry cannot exist -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(0, 0, 0, 1), (0, 0, 1, -1), (0, 0, np.nan, 1), (np.inf, 0, 1, 1), (0, 0, 1, np.inf)])
def test_a_rectangle_has_a_size(bad):
    with pytest.raises(SettingError, match="positive, finite"):
        Rect(*bad)


@pytest.mark.parametrize("bad", [(0, 0.5), (224, 0), (224, -1), (224, np.nan), (224, 0.5, 0), (224, 0.5, -3)])
def test_a_tile_has_a_size_and_a_stride(bad):
    with pytest.raises(SettingError):
        TileSpec(*bad)


def test_a_table_must_be_in_order():
    spec, one = TileSpec(224, 0.5), np.ones((2, 2))
    with pytest.raises(ValueError, match="sorted by block"):
        TileTable(one, spec, (1, 1), None, None, np.array([1, 0], np.int32))
    with pytest.raises(ValueError, match="2 ids"):
        TileTable(one, spec, (1, 1), None, ("a",), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="finite centres"):
        TileTable(one * np.nan, spec, (1, 1), None, None, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="positive slide mpp"):
        grid((100, 100), (-0.5, -0.5), spec)


def test_an_image_of_another_size_is_not_cut():
    block = grid((1000, 1000), (1, 1), TileSpec(100, 1.0)).blocks()[0]
    assert block.cut(np.zeros((*block.shape_px, 3), np.uint8), 100).shape == (64, 100, 100, 3)
    with pytest.raises(ValueError, match="another mpp"):
        block.cut(np.zeros((block.shape_px[0] + 4, block.shape_px[1], 3), np.uint8), 100)


# -- from the file to the tile -----------------------------------------------------------------------------------

CELL = 64  # px of level 0 that have one colour
EXTENT = (4700, 5100)


def colours(row: np.ndarray, col: np.ndarray) -> np.ndarray:
    """A colour that says which cell this is: neighbours differ widely, none comes twice."""
    return np.stack([37 + 2 * row, 11 + 2 * col, 90 * ((row + col) % 2) + 5 * (row % 7) + 30], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A lossless pyramid of three levels whose colours tell the level-0 position."""
    row, col = np.meshgrid(np.arange(EXTENT[0]) // CELL, np.arange(EXTENT[1]) // CELL, indexing="ij")
    image = colours(row, col)
    path = tmp_path_factory.mktemp("coded") / "coded.tif"
    with tifffile.TiffWriter(path) as tif:
        for level in (1, 2, 4):  # cells are whole pixels at every level
            small = np.ascontiguousarray(image[: EXTENT[0] // 4 * 4 : level, : EXTENT[1] // 4 * 4 : level])
            tif.write(
                image if level == 1 else small, tile=(256, 256), photometric="rgb", compression="zlib",
                subfiletype=int(level > 1), metadata=None,
            )  # fmt: skip
    return path


RATIOS = [
    ((0.5, 0.5), 0.5, 224, None),  # level 0 as it is
    ((0.5, 0.5), 0.7, 224, None),
    ((0.25, 0.25), 0.5, 224, 112),  # the second level as it is, overlapping tiles
    ((0.2527, 0.2531), 0.5, 96, 75),  # nothing is whole
    ((0.4991, 0.4991), 1.13, 100, None),
    ((0.25, 0.25), 1.3, 64, 90),  # far between, from the third level
]


@pytest.mark.parametrize(("slide_mpp", "mpp", "px", "stride"), RATIOS)
def test_tiles_cut_from_blocks_are_the_tiles_themselves(coded, slide_mpp, mpp, px, stride):
    from napari_peka.io.tiles import read_tiles

    spec = TileSpec(px, mpp, stride)
    rng = np.random.default_rng(0)
    with open_slide(coded, mpp=slide_mpp) as slide:
        tiles = grid(slide.shape, slide.mpp, spec)
        blocks = tiles.blocks()
        for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
            images, ok = read_tiles(slide, tiles, block)
            assert ok.all()
            # the last tile is farthest from the block's corner: drift would show there
            for i in {0, len(block) - 1, *rng.integers(0, len(block), 3).tolist()}:
                rect = Rect(*tiles.rects()[block.start + i].tolist())
                alone = slide.read_block(rect, mpp)
                assert np.abs(images[i].astype(int) - alone).max() <= 1
                check_against_position(images[i], rect, spec, slide.downsamples)


def check_against_position(image: np.ndarray, rect: Rect, spec: TileSpec, downsamples: list[float]) -> None:
    """Whatever way a pixel took, its colour is that of the cell at its own level-0 position."""
    ratio = np.array([rect.h, rect.w]) / spec.size_px  # level-0 px per tile px
    # a pixel mixes what lies within a pixel of the tile, or of the level that was read
    reach = max(ratio.max(), max(d for d in downsamples if d <= ratio.min() * 1.001)) * 1.01
    wanted, sharp = [], []
    for start, step, extent in zip((rect.y, rect.x), ratio, EXTENT):
        at = start + (np.arange(spec.size_px) + 0.5) * step
        low, high = at - reach, at + reach
        wanted.append(np.floor(at / CELL).astype(int))
        sharp.append((np.floor(low / CELL) == np.floor(high / CELL)) & (low >= 0) & (high < extent - 4))
    clear = sharp[0][:, None] & sharp[1][None]
    assert clear.any()
    want = colours(*np.meshgrid(*wanted, indexing="ij"))
    assert np.abs(image[clear].astype(int) - want[clear]).max() <= 1
    # the colour changes where the cell changes, to half a pixel: no shift hides behind the clear pixels
    assert clear.mean() > 0.2


def test_a_table_laid_out_at_another_mpp_is_refused(coded):
    from napari_peka.io.tiles import read_tiles

    tiles = grid(EXTENT, (0.5, 0.5), TileSpec(224, 0.5))
    with open_slide(coded, mpp=0.25) as slide, pytest.raises(ValueError, match="another mpp"):
        read_tiles(slide, tiles, tiles.blocks()[0])


def test_a_grid_that_no_memory_holds_is_refused_at_once():
    import shapely

    with pytest.raises(SettingError, match="larger stride or a smaller region"):
        TileTable.grid((200_000, 150_000), (0.5, 0.5), TileSpec(224, 0.5, 2))
    region = shapely.box(70_000, 90_000, 71_000, 91_000)
    assert len(TileTable.grid((200_000, 150_000), (0.5, 0.5), TileSpec(224, 0.5, 20), region=region)) > 2000


# -- tiles that look beyond their footprint ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SPECS, st.integers(0, 300), MPP, MPP, SEEDS)
def test_a_wider_look_moves_no_tile(spec, more, mpp_y, mpp_x, seed):
    """The grid, what counts as tissue, and the map are those of the footprint; only what is read is larger."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(200, 5000, 2))
    tissue = random_tissue(rng, shape)
    wide = TileSpec(spec.size_px + more, spec.mpp, spec.stride_px, spec.size_px)
    a, b = (grid(shape, (mpp_y, mpp_x), s, tissue=tissue) for s in (spec, wide))
    assume(0 < len(a) < 10_000)
    np.testing.assert_array_equal(a.centre_yx, b.centre_yx)
    np.testing.assert_array_equal(a.block, b.block)
    assert a.grid_shape == b.grid_shape
    values = rng.normal(size=len(a)).astype(np.float32)
    one, two = a.raster(values), b.raster(values)
    np.testing.assert_array_equal(one.data, two.data)
    assert (one.origin_yx, one.scale_yx) == (two.origin_yx, two.scale_yx)
    check_blocks(b)  # each block still holds the whole of its tiles
    y, x, h, w = b.rects().T
    assert np.stack([y + h / 2, x + w / 2], 1) == pytest.approx(b.centre_yx)
    assert h * mpp_y == pytest.approx(wide.size_px * spec.mpp)


def test_a_footprint_lies_within_its_tile():
    assert TileSpec(448, 0.5, None, 224).stride == 224
    assert TileSpec(448, 0.5, 112, 224).footprint_um == 112
    assert TileSpec(448, 0.5).footprint == 448
    for bad in (0, 449):
        with pytest.raises(SettingError, match="footprint"):
            TileSpec(448, 0.5, None, bad)


def test_some_tiles_of_a_block_are_cut_as_all_are():
    tiles = grid((1000, 1000), (1, 1), TileSpec(160, 1.0, 100))
    block = tiles.blocks()[0]
    image = np.random.default_rng(0).integers(0, 255, (*block.shape_px, 3), np.uint8)
    np.testing.assert_array_equal(block.cut(image, 160, slice(10, 13)), block.cut(image, 160)[10:13])
