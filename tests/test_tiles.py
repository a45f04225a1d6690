"""Spots' tiles: the right pixels, once on the disk, whole or not there."""

from __future__ import annotations

import numpy as np
import pytest

from napari_peka.core.errors import StoreError, Undecodable
from napari_peka.core.geometry import Rect, TileSpec
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.io import tiles as tiles_module
from napari_peka.io.slide import open_slide
from napari_peka.io.tiles import TileBank, spot_tiles

SPEC = TileSpec(32, 1.0)


@pytest.fixture
def slide(tissue_tiff):
    with open_slide(tissue_tiff) as opened:
        yield opened


@pytest.fixture
def spots(slide):
    rng = np.random.default_rng(0)
    return rng.uniform(100, np.array(slide.shape) - 100, (150, 2))


def test_a_tile_shows_what_lies_around_its_spot(slide, spots):
    tiles = spot_tiles(slide, spots, SPEC)
    size = SPEC.size0(slide.mpp)
    for i in (0, 7, 149):
        y, x = spots[i] - np.array(size) / 2
        straight = slide.read_block(Rect(y, x, *size), SPEC.mpp)
        # a block's tiles are cut at whole pixels: at most half of one away
        assert np.abs(tiles.read(np.array([i]))[0].astype(int) - straight).mean() < 12
    assert tiles.read_ok.all()


def test_kept_tiles_are_those_that_were_cut(slide, spots, tmp_path):
    fresh = spot_tiles(slide, spots, SPEC)
    first = spot_tiles(slide, spots, SPEC, cache=tmp_path)
    progress = JobProgress()
    again = spot_tiles(slide, spots, SPEC, cache=tmp_path, progress=progress)
    rows = np.array([149, 3, 3, 77])
    for tiles in (first, again, again.in_memory(), again.take(np.arange(150))):
        np.testing.assert_array_equal(tiles.read(rows), fresh.read(rows))
    assert progress.snapshot().stage == ""  # nothing was cut
    assert len(list(tmp_path.iterdir())) == 1


def test_other_spots_or_another_size_are_other_tiles(slide, spots, tmp_path):
    spot_tiles(slide, spots, SPEC, cache=tmp_path)
    spot_tiles(slide, spots + 1, SPEC, cache=tmp_path)
    spot_tiles(slide, spots, TileSpec(16, 1.0), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


class StopsSoon(JobProgress):
    def changed(self):
        if self.snapshot().done:
            self.cancel()


def test_an_interrupted_cut_leaves_nothing_behind(slide, spots, tmp_path):
    with pytest.raises(Cancelled):
        spot_tiles(slide, spots, SPEC, cache=tmp_path, progress=StopsSoon())
    assert not list(tmp_path.iterdir())


def test_a_damaged_cache_is_said(slide, spots, tmp_path):
    spot_tiles(slide, spots, SPEC, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    (kept / "read_ok" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"cannot be read .* remove them"):
        spot_tiles(slide, spots, SPEC, cache=tmp_path)


def test_tiles_that_cannot_be_decoded_are_marked(slide, spots, monkeypatch):
    bad = spots[5]
    read = slide.read_block

    def broken(rect, mpp=None):
        if rect.y <= bad[0] < rect.y1 and rect.x <= bad[1] < rect.x1:
            raise Undecodable("damaged")
        return read(rect, mpp)

    monkeypatch.setattr(slide, "read_block", broken)
    tiles = spot_tiles(slide, spots, SPEC)
    assert not tiles.read_ok[5]
    assert tiles.read_ok.sum() > 140
    assert not tiles.read(np.array([5])).any()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_bank_numbers_sections_one_after_another(slide, spots, tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(tiles_module, "IN_MEMORY", 1 << 30 if in_memory else 0)
    parts = [spot_tiles(slide, spots[:100], SPEC, cache=tmp_path), spot_tiles(slide, spots[100:], SPEC, cache=tmp_path)]
    bank = TileBank(parts)
    whole = spot_tiles(slide, spots, SPEC)
    assert len(bank) == 150
    rows = np.array([120, 0, 99, 100, 149])
    difference = bank.read(rows).astype(int) - whole.read(rows)
    assert np.abs(difference).mean() < 12  # other neighbours make other blocks: again half a pixel
    np.testing.assert_array_equal(bank.read(rows)[[1, 2]], parts[0].read(np.array([0, 99])))
    np.testing.assert_array_equal(bank.read(rows)[[0, 3, 4]], parts[1].read(np.array([20, 0, 49])))
    seen = [r.tolist() for r, _ in bank.batches(np.arange(150), 64)]
    assert [len(s) for s in seen] == [64, 64, 22]
