"""Order of work: every block once, evenly spread at any moment, and the view first when asked."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from napari_peka.core.geometry import Rect, TileSpec, TileTable
from napari_peka.infer.schedule import Schedule, coarse_to_fine


def blocks(h: int, w: int):
    return TileTable.grid((h, w), (1.0, 1.0), TileSpec(100, 1.0)).blocks()


@given(st.integers(50, 9000), st.integers(50, 9000))
def test_every_block_comes_exactly_once(h, w):
    some = blocks(h, w)
    order = coarse_to_fine(some)
    assert sorted(order) == list(range(len(some)))


def test_the_first_blocks_touch_every_quadrant():
    some = blocks(12800, 12800)  # 16 x 16 blocks
    centres = np.array([some[i].centre_yx for i in coarse_to_fine(some)])
    assert len({(y > 6400, x > 6400) for y, x in centres[:4].tolist()}) == 4
    first = centres[:16] // 3200
    assert len(np.unique(first, axis=0)) == 16


def test_a_view_comes_first_and_can_change():
    some = blocks(12800, 12800)
    schedule = Schedule(some)
    view = Rect(6000, 6000, 900, 900)
    schedule.prefer(view)
    wanted = {
        b.index for b in some if b.rect.y < view.y1 and view.y < b.rect.y1 and b.rect.x < view.x1 and view.x < b.rect.x1
    }
    got = {schedule.take().index for _ in wanted}
    assert got == wanted
    schedule.prefer(None)
    rest = []
    while (b := schedule.take()) is not None:
        rest.append(b.index)
    assert len(rest) == len(some) - len(wanted)
    assert not set(rest) & wanted


def test_finished_blocks_are_left_out():
    some = blocks(3000, 3000)
    assert len(Schedule(some, done=[0, 3])) == len(some) - 2


def test_tiles_left_count_down():
    some = blocks(4000, 3000)
    schedule = Schedule(some, done=[b.index for b in some[:3]])
    left = 40 * 30 - sum(map(len, some[:3]))
    assert schedule.tiles_left == left
    assert schedule.tiles_left == left - len(schedule.take()) + 64
