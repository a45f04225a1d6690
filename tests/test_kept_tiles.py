"""What a model saw is kept: another region, gene head or run takes it from the cache, and nothing is computed twice."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest
import shapely

import napari_peka as peka
from napari_peka.core.errors import SettingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.infer.forward import Forward
from napari_peka.io import cache
from napari_peka.io.kept_tiles import ENVIRONMENT
from napari_peka.models.bundle import read_bundle

CONFIG = peka.PredictConfig(device="cpu", precision="fp32", batch_size=8)
LEFT, RIGHT = shapely.box(0, 0, 1400, 1600), shapely.box(700, 700, 1900, 1700)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setenv(ENVIRONMENT, "1")


@pytest.fixture
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as opened:
        yield opened


@pytest.fixture
def computed(monkeypatch):
    """Counts the tiles that the encoder is given."""
    counts: list[int] = []
    call = Forward._pass
    monkeypatch.setattr(Forward, "_pass", lambda self, tiles: counts.append(len(tiles)) or call(self, tiles))
    return counts


def kept_files():
    return [e for e in cache.listing() if e.kind == "embeddings"]


def test_a_second_run_computes_nothing_and_gives_the_same(slide, tiny_model, computed, tmp_path):
    first = peka.predict(slide, tiny_model, output=tmp_path / "a.peka.zarr", config=CONFIG)
    assert sum(computed) == len(first.tiles)
    computed.clear()
    blocks = []
    again = peka.predict(
        slide, tiny_model, output=tmp_path / "b.peka.zarr", config=CONFIG, on_block=lambda b, *_: blocks.append(b.index)
    )
    assert not computed
    assert again.record["run"]["resumed_tiles"] == len(again.tiles)
    assert len(blocks) == len(again.tiles.blocks())
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    np.testing.assert_array_equal(first.embeddings, peka.read_prediction(tmp_path / "b.peka.zarr").embeddings)
    assert len(kept_files()) == 1


def test_a_copy_is_the_same_slide_and_at_another_resolution_it_is_not(tissue_tiff, tiny_model, computed, tmp_path):
    copy = tmp_path / "tissue.tif"
    shutil.copy(tissue_tiff, copy)
    for path, expected in ((tissue_tiff, True), (copy, False)):
        computed.clear()
        with peka.open_slide(path) as opened:
            peka.predict(opened, tiny_model, config=CONFIG, region=LEFT)
        assert bool(computed) == expected
    computed.clear()
    with peka.open_slide(copy, mpp=0.55) as opened:  # other tiles
        peka.predict(opened, tiny_model, config=CONFIG, region=LEFT)
    assert computed


def test_a_region_computes_only_blocks_that_were_not_seen(slide, tiny_model, computed, tmp_path):
    peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
    left = sum(computed)
    computed.clear()
    output = tmp_path / "a.peka.zarr"
    there = peka.estimate(slide, tiny_model, config=CONFIG, tiles=1, output=output)
    assert 0 < there.tiles_left < there.tiles
    assert there.state == "new"
    nowhere = peka.estimate(slide, tiny_model, config=CONFIG, tiles=1)
    assert nowhere.tiles_left == nowhere.tiles, "what is timed for other plans is timed as if nothing were known"
    computed.clear()
    whole = peka.predict(slide, tiny_model, config=CONFIG)
    assert sum(computed) == there.tiles_left
    assert left + there.tiles_left >= len(whole.tiles)
    computed.clear()
    right = peka.predict(slide, tiny_model, config=CONFIG, region=RIGHT)  # inside what is known now
    assert not computed
    place = {tuple(g): e for g, e in zip(whole.tiles.grid_yx.tolist(), whole.embeddings)}
    for grid, embedding in zip(right.tiles.grid_yx.tolist(), right.embeddings):
        np.testing.assert_array_equal(embedding, place[tuple(grid)])


def test_another_head_reads_what_was_seen_and_another_encoder_does_not(slide, bundle_folder, computed, tmp_path):
    model = read_bundle(bundle_folder)
    peka.predict(slide, model, config=CONFIG, region=LEFT)
    head = dataclasses.replace(model.head, weights=model.head.weights * 2)
    computed.clear()
    done = peka.predict(slide, dataclasses.replace(model, head=head, digest="0" * 64), config=CONFIG, region=LEFT)
    assert not computed
    np.testing.assert_allclose(done.values("ERBB2"), head.values(done.embeddings, "ERBB2"))
    other = dataclasses.replace(model, digest="1" * 64, embedding_digest="1" * 64)
    peka.predict(slide, other, config=CONFIG, region=LEFT)
    assert computed


def test_another_stride_or_format_is_computed(slide, tiny_model, computed):
    peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
    for change in ({"stride_px": 16}, {"precision": "bf16"}):
        computed.clear()
        peka.predict(
            slide, tiny_model, config=CONFIG.model_copy(update=change), region=shapely.box(900, 900, 1300, 1300)
        )
        assert computed


def test_what_a_stopped_run_saw_is_kept_even_without_an_output(slide, tiny_model, computed):
    class Stops(JobProgress):
        def changed(self):
            if self.snapshot().stage == "predicting" and self.snapshot().done > 30:
                self.cancel()

    with pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, config=CONFIG, progress=Stops())
    done = sum(computed)
    computed.clear()
    whole = peka.predict(slide, tiny_model, config=CONFIG)
    assert sum(computed) <= len(whole.tiles) - 30
    assert sum(computed) + done >= len(whole.tiles)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40])
def test_a_damaged_file_is_made_again(slide, tiny_model, computed, damage):
    first = peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
    (kept,) = kept_files()
    kept.path.write_bytes(damage)
    computed.clear()
    again = peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
    assert sum(computed) == len(again.tiles)
    np.testing.assert_array_equal(first.embeddings, again.embeddings)
    assert kept.path.stat().st_size > len(damage)


def test_tiles_that_could_not_be_read_are_tried_again(slide, tiny_model, computed, monkeypatch):
    from napari_peka.core.errors import Undecodable
    from napari_peka.io.slide import Slide

    read = Slide.read_block

    def hiccup(self, rect, mpp=None):
        if rect.x < 1200:
            raise Undecodable("the drive is away")
        return read(self, rect, mpp)

    with monkeypatch.context() as m:
        m.setattr(Slide, "read_block", hiccup)
        first = peka.predict(slide, tiny_model, config=CONFIG)
    assert first.n_unreadable
    computed.clear()
    again = peka.predict(slide, tiny_model, config=CONFIG)
    assert not again.n_unreadable
    assert first.n_unreadable <= sum(computed) < len(again.tiles)


def test_nothing_is_kept_where_that_is_not_wanted(slide, tiny_model, computed, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "0")
    for _ in range(2):
        computed.clear()
        done = peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
        assert sum(computed) == len(done.tiles)
    assert not kept_files()


def test_a_cache_that_cannot_be_written_costs_time_only(slide, tiny_model, computed, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "file"))
    for _ in range(2):
        computed.clear()
        done = peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
        assert sum(computed) == len(done.tiles)


def test_the_cache_stays_in_its_room(slide, tiny_model, monkeypatch):
    monkeypatch.setenv(cache.ROOM_ENVIRONMENT, "0.000001")
    peka.predict(slide, tiny_model, config=CONFIG, region=LEFT)
    (kept,) = kept_files()  # used today
    os.utime(kept.path, (1e9, 1e9))
    finer = CONFIG.model_copy(update={"stride_px": 48})
    peka.predict(slide, tiny_model, config=finer, region=shapely.box(900, 900, 1800, 1800))
    (new,) = kept_files()
    assert new.path != kept.path


@pytest.mark.parametrize(
    ("name", "said"),
    [(ENVIRONMENT, "yes"), (cache.ROOM_ENVIRONMENT, "many"), (cache.ROOM_ENVIRONMENT, "-1")],
)
def test_nonsense_in_the_environment_is_told_before_anything_is_computed(
    slide, tiny_model, computed, monkeypatch, name, said
):
    monkeypatch.setenv(name, said)
    with pytest.raises(SettingError, match=f"{name} must be .*, got '{said}'"):
        peka.predict(slide, tiny_model, config=CONFIG)
    assert not computed
    cache.tidy()  # after a job it disturbs nobody


def test_nonsense_for_the_memory_of_a_slide_is_no_fault_of_the_file(tissue_tiff, monkeypatch):
    monkeypatch.setenv("NAPARI_PEKA_SLIDE_MEMORY", "1GB")
    with pytest.raises(SettingError, match="NAPARI_PEKA_SLIDE_MEMORY must be MiB"):
        peka.open_slide(tissue_tiff)
