"""How long a prediction will take, and what is there of it already."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import shapely

import napari_peka as peka
from napari_peka.core.errors import NoResult, OutputMismatch, SettingError
from napari_peka.core.progress import Cancelled, JobProgress
from napari_peka.infer.forward import Forward
from napari_peka.workflows import estimate as estimate_module
from napari_peka.workflows.standing import read_what_is_there, standing

CPU = peka.PredictConfig(device="cpu", precision="fp32")
pytestmark = pytest.mark.usefixtures("brief")


@pytest.fixture
def slide(tissue_tiff):
    with peka.open_slide(tissue_tiff) as opened:
        yield opened


@pytest.fixture
def stop_after(slide, tiny_model):
    """Predict, and stop after some blocks; returns how many tiles were done and the growing prediction."""

    def go(output, blocks):
        job, seen, live = JobProgress(), [], []

        def on_block(block, *_):
            seen.append(len(block))
            if len(seen) == blocks:
                job.cancel()

        with pytest.raises(Cancelled):
            peka.predict(
                slide, tiny_model, output=output, config=CPU, progress=job, on_block=on_block,
                on_start=lambda prediction, schedule: live.append(prediction),
            )  # fmt: skip
        return sum(seen), live[0]

    return go


def test_it_counts_the_tiles_and_times_a_few(slide, tiny_model, monkeypatch):
    passes = []
    monkeypatch.setattr(estimate_module, "ENOUGH_S", 600.0)  # however busy the machine is
    call = Forward._pass
    monkeypatch.setattr(Forward, "_pass", lambda self, t: passes.append(len(t)) or call(self, t))
    found = peka.estimate(slide, tiny_model, config=CPU.model_copy(update={"batch_size": 32}), tiles=16)
    tiles = peka.plan_tiles(slide, tiny_model, CPU)
    assert found.tiles == found.tiles_left == len(tiles)
    assert found.tile_um == tiles.spec.footprint_um
    assert passes[:6] == [1, 1, 2, 4, 8, 16], "each size of a pass is tried before it counts"
    assert sum(passes) < len(tiles), "a few tiles, not the slide"
    assert min(found.reading_s, found.computing_s, found.seconds, found.memory_free) > 0
    assert found.seconds >= found.tiles_left * found.computing_s
    assert found.device == "cpu"
    assert found.device_name.startswith("CPU, ")
    assert found.text.startswith("about ")
    assert "reading" in found.text
    assert found.as_dict()["tiles"] == len(tiles)


def test_a_region_has_fewer_tiles_and_the_size_of_the_result_is_about_right(slide, tiny_model, tmp_path):
    whole = peka.estimate(slide, tiny_model, config=CPU, tiles=1)
    part = peka.estimate(slide, tiny_model, config=CPU, tiles=1, region=shapely.box(1000, 1000, 2500, 2000))
    assert part.tiles < whole.tiles
    assert part.result_bytes < whole.result_bytes
    done = peka.predict(slide, tiny_model, output=tmp_path / "a.zarr", config=CPU)
    on_disk = sum(p.stat().st_size for p in (tmp_path / "a.zarr").rglob("*") if p.is_file())
    assert done.embeddings.nbytes < whole.result_bytes < 3 * on_disk


def test_what_is_there_need_not_be_computed(slide, tiny_model, tmp_path, stop_after, monkeypatch):
    path = tmp_path / "a.peka.zarr"
    tiles = peka.plan_tiles(slide, tiny_model, CPU)
    assert standing(slide, tiny_model, tiles, path, config=CPU).state == "new"
    with pytest.raises(NoResult):
        read_what_is_there(slide, tiny_model, tiles, path, config=CPU)
    done, live = stop_after(path, 3)
    assert live.partial
    assert live.record["partial"] == f"{done} of {len(tiles)} tiles"
    there = standing(slide, tiny_model, tiles, path, config=CPU)
    assert (there.state, there.done, there.left) == ("begun", done, len(tiles) - done)
    found = peka.estimate(slide, tiny_model, config=CPU, output=path, tiles=1)
    assert (found.state, found.tiles_left) == ("begun", len(tiles) - done)

    partial = read_what_is_there(slide, tiny_model, tiles, path, config=CPU)
    assert partial.partial
    np.testing.assert_array_equal(partial.embeddings, live.embeddings)
    assert np.isfinite(partial.values("ERBB2")).sum() == done
    assert partial.to_anndata().uns["napari_peka"]["partial"] == partial.record["partial"]

    whole = peka.predict(slide, tiny_model, output=path, config=CPU)
    assert not whole.partial
    assert not peka.read_prediction(path).partial
    monkeypatch.setattr(Forward, "_pass", lambda *_: pytest.fail("something was computed"))
    found = peka.estimate(slide, tiny_model, config=CPU, output=path)
    assert (found.state, found.tiles_left, found.seconds) == ("finished", 0, 0)
    assert "0 s" in found.text
    ready = read_what_is_there(slide, tiny_model, tiles, path, config=CPU)
    np.testing.assert_array_equal(ready.values("KRT8"), whole.values("KRT8"))


def test_what_is_in_the_way_is_said(slide, tiny_model, tmp_path):
    path = tmp_path / "a.peka.zarr"
    region = shapely.box(1000, 1000, 2500, 2000)
    peka.predict(slide, tiny_model, output=path, config=CPU, region=region)
    tiles = peka.plan_tiles(slide, tiny_model, CPU)
    there = standing(slide, tiny_model, tiles, path, config=CPU)
    assert there.state == "other"
    assert "another region or tissue" in there.why
    with pytest.raises(OutputMismatch):
        peka.predict(slide, tiny_model, output=path, config=CPU)
    (tmp_path / "b.zarr").mkdir()
    there = standing(slide, tiny_model, tiles, tmp_path / "b.zarr", config=CPU)
    assert there.state == "foreign"
    assert "is not a napari-peka result" in there.why


def test_another_head_of_the_same_encoder_reads_the_map_at_once(slide, tiny_model, tmp_path, monkeypatch):
    import dataclasses

    path = tmp_path / "a.peka.zarr"
    before = peka.predict(slide, tiny_model, output=path, config=CPU)
    head = dataclasses.replace(tiny_model.head, weights=2 * tiny_model.head.weights)
    other = dataclasses.replace(tiny_model, head=head, digest="another")
    tiles = peka.plan_tiles(slide, other, CPU)
    monkeypatch.setattr(Forward, "_pass", lambda *_: pytest.fail("something was computed"))
    assert peka.estimate(slide, other, config=CPU, output=path).state == "other head"
    read = read_what_is_there(slide, other, tiles, path, config=CPU)
    np.testing.assert_allclose(read.values("ERBB2"), 2 * before.values("ERBB2"), rtol=1e-5)
    assert peka.read_prediction(path).record["model"] == before.record["model"], "nothing is written"


def test_it_can_be_stopped_and_refuses_no_tile(slide, tiny_model):
    job = JobProgress()
    job.cancel()
    with pytest.raises(Cancelled):
        peka.estimate(slide, tiny_model, config=CPU, progress=job)
    with pytest.raises(SettingError, match="at least one tile"):
        peka.estimate(slide, tiny_model, config=CPU, tiles=0)


def test_a_stop_reaches_an_encoder_within_a_pass(slide, tiny_model, tmp_path):
    """A block of a large encoder takes longer than a person waits."""
    forward = peka.load_forward(tiny_model, CPU)
    job, within, go_on = JobProgress(), threading.Event(), threading.Event()
    first, *_, last = (m for m in forward.module.encoder.modules() if not list(m.children()))

    def hold(*_):
        within.set()
        assert go_on.wait(60)

    first.register_forward_hook(hold)
    reached = []
    last.register_forward_hook(lambda *_: reached.append(1))
    ended = []

    def work():
        try:
            peka.predict(slide, tiny_model, output=tmp_path / "a.zarr", config=CPU, forward=forward, progress=job)
        except Cancelled as e:
            ended.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    assert within.wait(60)
    job.cancel()
    go_on.set()
    thread.join(60)
    assert ended
    assert not reached, "the rest of the pass was not computed"
    assert not forward.brake.asked(), "the encoder serves the next job"


def test_many_slides_one_broken(tiny_model, tissue_tiff, sample, tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    slides = [tissue_tiff, tmp_path / "broken.svs", sample]
    done = list(peka.predict_many(slides, tiny_model, lambda s: tmp_path / s.stem, config=CPU))
    assert [o.slide for o in done] == slides
    assert [o.error is None for o in done] == [True, False, True]
    for o in (done[0], done[2]):
        assert peka.read_prediction(o.entry["output"]).n_done == o.entry["tiles"]
        assert o.entry["output"] == str(tmp_path / o.slide.stem / f"{o.slide.stem}.peka.zarr")
