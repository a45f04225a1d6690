"""Reading keeps a model fed: more threads where a disk is waited for, none more where the processor is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import pytest
import torch

from napari_peka.core.geometry import Rect, TileSpec, TileTable
from napari_peka.infer import read_ahead
from napari_peka.infer.engine import embed
from napari_peka.infer.forward import Forward
from napari_peka.infer.schedule import Schedule
from napari_peka.io.slide import Slide, open_slide

#: s that a read waits for others to join it
JOIN_S = 0.05


class Distant:
    """A slide on a slow disk: each read waits, unless as many run at the same time as are wanted."""

    def __init__(self, slide: Slide, wanted: int) -> None:
        self._slide, self._wanted = slide, wanted
        self._running, self.most = 0, 0
        self._changed = threading.Condition()

    def read_block(self, rect: Rect, mpp: float | None = None) -> np.ndarray:
        with self._changed:
            self._running += 1
            self.most = max(self.most, self._running)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self._wanted, JOIN_S)
        try:
            return self._slide.read_block(rect, mpp)
        finally:
            with self._changed:
                self._running -= 1


@pytest.fixture
def slide(tissue_tiff) -> Iterator[Slide]:
    with open_slide(tissue_tiff) as slide:
        yield slide


def run(slide: Slide, wanted: int, tile_px: int = 16, module: type = torch.nn.Flatten, **options: object) -> int:
    """Embed a slide of which reads wait; returns how many ran at the same time."""
    tiles = TileTable.grid(slide.shape, slide.mpp, TileSpec(tile_px, 2.0))
    distant = Distant(slide, wanted)
    forward = Forward(module, torch.device("cpu"), torch.float32)
    blocks = tiles.blocks()
    done: dict[int, np.ndarray] = {}
    embed(distant, tiles, forward, Schedule(blocks), lambda b, e, _: done.update({b.index: e}), **options)
    assert sorted(done) == [b.index for b in blocks]
    return distant.most


def test_readers_grow_where_a_disk_is_waited_for(slide: Slide) -> None:
    assert run(slide, wanted=8, more_readers=True) >= 8


class Slow(torch.nn.Flatten):
    """Computes for longer than a read waits."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        threading.Event().wait(4 * JOIN_S)
        return super().forward(tiles)


def test_they_do_not_where_the_processor_limits_and_the_model_is_busy(
    slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is busy for as long as a read takes."""
    monkeypatch.setattr(read_ahead, "thread_time", perf_counter)
    assert run(slide, wanted=2, tile_px=64, module=Slow, more_readers=True) == 1


def test_they_do_where_the_processor_limits_and_most_of_it_is_idle(
    slide: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_ahead, "thread_time", perf_counter)
    monkeypatch.setattr(read_ahead.os, "cpu_count", lambda: 4)
    assert run(slide, wanted=4, more_readers=True) == 4


def test_a_number_given_by_hand_stays(slide: Slide) -> None:
    assert run(slide, wanted=4, readers=3) == 3


def test_they_stop_where_blocks_would_fill_the_memory(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    block = 2 * 64 * 16 * 16 * 3
    monkeypatch.setattr(read_ahead, "IN_FLIGHT", (read_ahead.READ_AHEAD + 3) * block)
    assert run(slide, wanted=4, more_readers=True) == 3
