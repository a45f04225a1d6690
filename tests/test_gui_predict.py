"""The dock *Predict expression* through its stories; a window is needed (Xvfb will do)."""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent

from napari_peka.core.progress import JobProgress, rate_in_words
from napari_peka.gui import layers, reader, recent
from napari_peka.gui.explore_widget import ExploreWidget
from napari_peka.gui.places import default_folder
from napari_peka.gui.predict_widget import PredictWidget
from napari_peka.gui.session import session_of

WAIT_MS = 60_000
pytestmark = [
    # anndata announces that its default zarr format changes
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
]


def threads() -> list[str]:
    """Return the threads of jobs; those of `gui/aside.py` end by themselves."""
    return [t.name for t in threading.enumerate() if t.name.startswith("peka-") and t.name != "peka-aside"]


def wait_for(qtbot, condition) -> None:
    qtbot.waitUntil(condition, timeout=WAIT_MS)


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def predict(viewer, qtbot, bundle_folder, tmp_path) -> PredictWidget:
    """The dock with the embedded slide, the tiny model and an output folder."""
    dock = PredictWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Predict expression")
    for data, settings, _ in reader.sample_slide_data():
        viewer.add_image(data, **settings)
    dock.model.add(bundle_folder)
    dock.device.choose("cpu")
    dock.output.edit.setText(str(tmp_path / "out"))
    return dock


def shown(dock: PredictWidget):
    """Return the layer of the map in work, or None."""
    return None if dock.growing is None else dock.growing.layer


@pytest.fixture
def slowly(monkeypatch):
    """Each pass takes 0.15 s."""
    from napari_peka.infer.forward import Forward

    call = Forward._pass

    def slow(self, tiles):
        time.sleep(0.15)
        return call(self, tiles)

    monkeypatch.setattr(Forward, "_pass", slow)


def press(qtbot, dock: PredictWidget) -> None:
    qtbot.mouseClick(dock.panel.run_button, Qt.MouseButton.LeftButton)


def the_map(viewer):
    (layer,) = [x for x in viewer.layers if layers.prediction_of(x) is not None]
    return layer


def test_predict_cancel_resume_explore(viewer, predict, slowly, qtbot, tmp_path):
    explore = ExploreWidget(viewer)
    viewer.window.add_dock_widget(explore, name="Explore expression")
    assert not explore.table.isEnabled()
    assert predict.form.isRowVisible(predict.mpp) is False
    assert "0.499 µm/px (from the file: " in predict.about.text()

    press(qtbot, predict)
    wait_for(qtbot, lambda: shown(predict) is not None and np.isfinite(predict.growing.layer.data).any())
    wait_for(qtbot, lambda: any((tmp_path / "out").glob("*.partial/blocks-*/*.safetensors")))  # what is kept
    partial = np.isfinite(the_map(viewer).data).sum()
    assert predict.panel.running, "the map fills in while the job runs"
    qtbot.mouseClick(predict.panel.cancel_button, Qt.MouseButton.LeftButton)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert "goes on from there" in predict.panel.status.text()
    assert np.isfinite(the_map(viewer).data).sum() >= partial
    assert (tmp_path / "out" / "cmu_small_region.peka.zarr.partial").is_dir()

    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    assert "from before" in predict.panel.status.text()
    heat = the_map(viewer)
    prediction = layers.prediction_of(heat)
    np.testing.assert_allclose(heat.data, prediction.raster("ERBB2").data, rtol=1e-4)
    assert (tmp_path / "out" / "cmu_small_region.peka.zarr").is_dir()
    explore_story(viewer, explore, heat, qtbot)
    assert not threads()


def explore_story(viewer, explore, heat, qtbot) -> None:
    assert explore.map.layer() is heat
    assert explore.genes.rowCount() == 5
    assert heat.colorbar.visible
    assert heat.name_overlay.visible

    explore.table.setFocus()
    explore.table.selectRow(0)
    qtbot.keyClick(explore.table, Qt.Key.Key_Down)
    wait_for(qtbot, lambda: layers.gene_of(heat) == "KRT8")
    assert heat.name == "KRT8 (log1p CP10K)"
    assert "Held-out PCC 0.35 (none: random weights), fair." in explore.about.text()
    heat.contrast_limits = (0.5, 1.25)
    assert "colours from 0.5 to 1.25" in explore.about.text()

    qtbot.keyClicks(explore.search, "col1")
    assert explore.genes.rowCount() == 1
    qtbot.keyClick(explore.search, Qt.Key.Key_Return)
    wait_for(qtbot, lambda: layers.gene_of(heat) == "COL1A1")
    assert len(viewer.layers) == 2, "one layer for all genes"

    explore.search.setText("ERBB3")
    assert "did you mean ERBB2" in explore.list.said.text()
    explore.search.clear()
    assert explore.error.isHidden()
    explore.pick("cd3e")
    assert layers.gene_of(heat) == "CD3E"
    assert "not measured" in explore.about.text()

    explore.opacity.setValue(30)
    assert heat.opacity == pytest.approx(0.3)
    explore.bar.setChecked(False)
    assert not heat.colorbar.visible
    viewer.layers.remove(heat)
    assert not explore.table.isEnabled()


def test_a_drawn_region(viewer, predict, qtbot):
    corners = np.array([[200, 200], [200, 700], [900, 700], [900, 200]])  # µm
    predict.region.choose(viewer.add_shapes(corners, shape_type="ellipse", name="mine"))
    assert predict.region.currentText() == "mine"
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    tiles = layers.prediction_of(the_map(viewer)).tiles
    um = tiles.centre_yx * 0.499
    assert (um.min(0) > (180, 180)).all()
    assert (um.max(0) < (920, 720)).all()

    predict.tissue.setChecked(False)
    predict.replace.setChecked(True)
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    every = layers.prediction_of(the_map(viewer)).tiles
    assert len(every) > len(tiles), "glass inside the region counts too"
    predict.tissue.setChecked(True)
    predict.replace.setChecked(False)

    predict.region.setCurrentIndex(0)  # the whole slide: another run, which must not mix into this one
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert "belongs to another run" in predict.panel.error.text()
    predict.replace.setChecked(True)
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden()
    assert len(layers.prediction_of(the_map(viewer)).tiles) > len(tiles)


def test_a_slide_without_resolution(viewer, qtbot, bundle_folder, tmp_path, sample):
    from PIL import Image as Pil

    from napari_peka.io.slide import open_slide

    with open_slide(sample) as slide:
        Pil.fromarray(slide.thumbnail(800)).save(tmp_path / "photo.jpg")
    dock = PredictWidget(viewer)
    viewer.window.add_dock_widget(dock)
    dock.open_slide(tmp_path / "photo.jpg")
    wait_for(qtbot, lambda: dock.slide.layer() is not None)
    dock.model.add(bundle_folder)
    assert dock.form.isRowVisible(dock.mpp)
    assert dock.output.folder() == tmp_path
    press(qtbot, dock)
    assert "fill in the µm per pixel" in dock.panel.error.text()
    region = viewer.add_shapes(np.array([[0, 0], [0, 599], [799, 599], [799, 0]]), shape_type="rectangle")
    dock.region.choose(region)
    dock.mpp.setValue(1.85)
    assert "at 1.850 µm/px (given by you)" in dock.about.text()
    viewer.camera.center, viewer.camera.zoom = (300.0, 200.0), 1.5
    press(qtbot, dock)
    wait_for(qtbot, lambda: not dock.panel.running)
    assert dock.panel.error.isHidden(), dock.panel.error.text()
    assert tuple(dock.slide.layer().scale) == pytest.approx((1.85, 1.85))
    assert tuple(region.scale) == pytest.approx((1.85, 1.85))
    assert the_map(viewer).extent.world[1].max() < 800 * 1.85 + 64
    # the same place is looked at, from as near
    assert tuple(viewer.camera.center)[-2:] == pytest.approx((300 * 1.85, 200 * 1.85))
    assert viewer.camera.zoom == pytest.approx(1.5 / 1.85)
    assert not dock.form.isRowVisible(dock.mpp)


def test_what_is_wrong_is_one_sentence(viewer, predict, qtbot, tmp_path):
    def error() -> str:
        press(qtbot, predict)
        wait_for(qtbot, lambda: not predict.panel.running)
        return predict.panel.error.text()

    (tmp_path / "file").touch()
    predict.output.edit.setText(str(tmp_path / "file" / "below"))
    assert "cannot write" in error()
    predict.output.edit.setText("")
    assert error() == "choose a folder for the result"
    predict.output.edit.setText(str(tmp_path))
    predict.device.choose("toaster")
    assert "toaster" in error()
    predict.device.choose("cpu")
    predict.model.add(tmp_path / "file")
    assert "neither a bundle folder nor" in error()
    predict.region.choose(viewer.add_shapes(name="empty"))
    assert "no area in the layer 'empty'" in error()
    viewer.layers.clear()
    assert error() == "there is no slide; open one first"
    predict.open_slide(tmp_path / "nothing.svs")
    assert "nothing.svs" in predict.panel.error.text()
    assert len(viewer.layers) == 0


def test_a_runtime_error_of_torch_is_told(predict, qtbot, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("napari_peka.workflows.predict._embed", fail)
    with qtbot.waitSignal(predict.panel.failed, timeout=WAIT_MS):
        press(qtbot, predict)
    assert predict.panel.error.text() == "unexpected: RuntimeError: shapes cannot be multiplied"


def test_closing_the_viewer_mid_run_leaves_no_thread(viewer, predict, slowly, qtbot):
    press(qtbot, predict)
    wait_for(qtbot, lambda: shown(predict) is not None)
    assert threads()
    viewer.close()
    assert not threads()


def test_napari_asks_before_a_running_job_is_closed(viewer, predict, slowly, qtbot):
    from napari.utils.task_status import TaskStatusManager

    manager: TaskStatusManager = viewer.window._task_status_manager
    press(qtbot, predict)
    wait_for(qtbot, lambda: shown(predict) is not None)
    wait_for(qtbot, lambda: any("Predict" in line for line in manager.get_status()))
    manager.cancel_all()  # what napari does after the answer "close"
    wait_for(qtbot, lambda: not predict.panel.running)
    assert "goes on from there" in predict.panel.status.text()
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    wait_for(qtbot, lambda: not manager.is_busy())


def test_what_is_looked_at_comes_first(viewer, predict, qtbot, tiny_model, tissue_tiff, monkeypatch):
    """The view is that of the real canvas: a block that would come last comes first, and the work follows the view."""
    from napari_peka.infer import read_ahead
    from napari_peka.infer.forward import Forward
    from napari_peka.infer.schedule import Schedule, coarse_to_fine
    from napari_peka.workflows.predict import plan_tiles

    predict.open_slide(tissue_tiff)
    slide = predict.slide.layer()
    blocks = plan_tiles(layers.slide_of(slide), tiny_model).blocks()
    *_, second, first = (blocks[i] for i in coarse_to_fine(blocks))
    assert len(blocks) > 8
    taken: list[int] = []
    take, call, go_on = Schedule.take, Forward._pass, threading.Event()

    def told(self):
        block = take(self)
        taken.extend([block.index] if block else [])
        return block

    def held(self, tiles):
        assert go_on.wait(WAIT_MS / 1000)
        return call(self, tiles)

    monkeypatch.setattr(Schedule, "take", told)
    monkeypatch.setattr(Forward, "_pass", held)

    def look_at(block):
        viewer.camera.center = np.array(block.centre_yx) * 0.5
        viewer.camera.zoom = 20.0
        rect = layers.visible_rect(viewer, slide)
        assert rect is not None
        assert rect.y < block.centre_yx[0] < rect.y1
        assert rect.x < block.centre_yx[1] < rect.x1
        return rect

    look_at(first)
    press(qtbot, predict)
    wait_for(qtbot, lambda: bool(taken) and shown(predict) is not None)
    rect = look_at(second)
    wait_for(qtbot, lambda: predict.growing.schedule._view == rect)
    go_on.set()
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    assert taken[0] == first.index
    # before it: the block in work, those read ahead and the one in the reader's hands
    assert taken.index(second.index) <= read_ahead.READ_AHEAD + 2


def test_the_map_may_be_removed_mid_run(viewer, predict, slowly, qtbot):
    press(qtbot, predict)
    wait_for(qtbot, lambda: shown(predict) is not None)
    viewer.layers.remove(predict.growing.layer)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden()


def test_a_finer_map(viewer, predict, qtbot):
    predict.detail.setCurrentIndex(predict.detail.findData(2))
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    assert layers.prediction_of(the_map(viewer)).tiles.spec.stride_px == 32
    assert viewer.layers.selection.active is predict.slide.layer(), "shapes drawn next take the slide's scale"


def test_a_slide_opened_later_lies_below_the_map(viewer, predict, qtbot, sample, tmp_path):
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    predict.open_slide(sample)
    assert layers.prediction_of(viewer.layers[-1]) is not None
    assert predict.slide.layer() is viewer.layers[0]


def test_the_model_box(qtbot, bundle_folder, tmp_path, monkeypatch):
    from qtpy.QtWidgets import QFileDialog

    from napari_peka.gui.choosers import ModelChooser

    monkeypatch.setenv("NAPARI_PEKA_MODELS", str(tmp_path))
    box = ModelChooser()
    qtbot.addWidget(box)
    assert box.model() == "demo"
    assert box.currentText().startswith("demo")
    shutil.copytree(bundle_folder, tmp_path / "late")
    box.showPopup()
    box.hidePopup()
    assert box.findText("late") > 0, "a bundle that came later is listed"
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(bundle_folder))
    browse = box.findText("Browse for a folder…")
    box.setCurrentIndex(browse)
    box.activated.emit(browse)
    assert box.model() == str(bundle_folder)
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_, **__: ("", ""))
    browse = box.findText("Browse for a .zip…")
    box.setCurrentIndex(browse)
    box.activated.emit(browse)
    assert box.model() == str(bundle_folder), "nothing chosen: nothing changed"
    assert box.currentText() == bundle_folder.name


def test_a_model_that_another_dock_chose_is_taken(viewer, qtbot, bundle_folder):
    session = session_of(viewer)
    dock = PredictWidget(viewer)
    qtbot.addWidget(dock)
    session.model = str(bundle_folder)  # as by "Use this model"
    assert dock.model.model() == str(bundle_folder)
    later = PredictWidget(viewer)
    qtbot.addWidget(later)
    assert later.model.model() == str(bundle_folder)
    dock.model.setCurrentIndex(0)
    dock.model.activated.emit(0)
    assert session.model == "demo"
    assert later.model.model() == "demo"


def test_by_default_the_result_lies_beside_the_slide(tmp_path, sample, monkeypatch):
    assert default_folder(tmp_path / "a.svs") == (tmp_path, "")
    assert default_folder(sample)[0].name == "napari-peka"
    monkeypatch.setattr(os, "access", lambda *_: False)
    folder, note = default_folder(tmp_path / "a.svs")
    assert folder.name == "napari-peka"
    assert "You may not write beside the slide" in note


def click(qtbot, button) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def unfold(qtbot, fold, inside) -> None:
    click(qtbot, fold.toggleButton())
    wait_for(qtbot, lambda: inside.height() > 15)


def planned(qtbot, dock: PredictWidget) -> str:
    """Return what is said beforehand, once the form has been left alone."""
    wait_for(qtbot, lambda: not dock.plan.busy)
    return dock.plan.words.text()


def finish(qtbot, dock: PredictWidget) -> None:
    wait_for(qtbot, lambda: not dock.panel.running)
    assert dock.panel.error.isHidden(), dock.panel.error.text()


def slide_with_tissue(path: Path, seed: int = 0) -> Path:
    """Write a slide of 600 x 700 px at 0.5 µm/px with tissue in the middle."""
    import tifffile

    rng = np.random.default_rng(seed)
    image = np.full((600, 700, 3), 244, np.uint8)
    image[80:-80, 80:-80] = np.clip(np.array([200, 130, 180]) + rng.integers(-25, 25, (440, 540, 1)), 0, 255)
    path.parent.mkdir(exist_ok=True, parents=True)
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None,
        resolution=(20000, 20000), resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def test_how_many_tiles_and_how_long(viewer, predict, qtbot, sample, tiny_model):
    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        n = len(peka.plan_tiles(slide, tiny_model))
        fine = len(peka.plan_tiles(slide, tiny_model, peka.PredictConfig(stride_px=32)))
    assert planned(qtbot, predict) == f"{n:,} tiles of 64 µm"
    assert not predict.plan.show_button.isEnabled()
    assert predict.plan.time.text() == ""
    click(qtbot, predict.plan.time_button)
    assert predict.plan.time_button.text() == "Stop"
    wait_for(qtbot, lambda: predict.plan.time.text().startswith("about"))
    text = predict.plan.time.text()
    assert "on CPU, " in text
    assert "tiles/s; reading" in text
    assert predict.plan.time_button.text() == "How long?"
    predict.device.look()  # as when it is first seen
    wait_for(qtbot, lambda: predict.device.has_gpu is not None)
    if not predict.device.has_gpu:
        assert "the whole slide takes about" in predict.device_note.text()
    predict.detail.setCurrentIndex(predict.detail.findData(2))
    assert planned(qtbot, predict) == f"{fine:,} tiles of 64 µm, 32 µm apart"
    assert predict.plan.time.text().startswith("about"), "what was timed counts for more tiles as well"
    assert not (predict.output.folder()).exists(), "nothing was written"
    press(qtbot, predict)
    wait_for(qtbot, lambda: predict.panel.status.text().startswith("done"))
    run = layers.prediction_of(the_map(viewer)).record["run"]
    predict.detail.setCurrentIndex(predict.detail.findData(1))
    predict.output.edit.setText(str(predict.output.folder() / "other"))
    assert planned(qtbot, predict) == f"{n:,} tiles of 64 µm"
    assert "tiles/s of the last run" in predict.plan.time.text(), "what was done counts more than what was estimated"
    assert rate_in_words(run["tiles"] / run["seconds"]) in predict.plan.time.text()


def test_timing_can_be_stopped(viewer, predict, slowly, qtbot):
    planned(qtbot, predict)
    click(qtbot, predict.plan.time_button)
    wait_for(qtbot, lambda: "computing" in predict.plan.time.text())
    click(qtbot, predict.plan.time_button)
    wait_for(qtbot, lambda: not predict.plan.timing.running)
    assert predict.plan.time.text() == ""
    assert predict.plan.time_button.text() == "How long?"


def test_pause_go_on_cancel_partial_and_again(viewer, predict, slowly, qtbot, tmp_path):
    press(qtbot, predict)
    wait_for(qtbot, lambda: "reading" in predict.panel.status.text())
    assert re.search(r"/s .* left .* reading .* computing .* a tile", predict.panel.status.text())
    click(qtbot, predict.panel.pause_button)
    assert predict.panel.pause_button.text() == "Go on"
    wait_for(qtbot, lambda: predict.panel.status.text().startswith("paused"))
    qtbot.wait(1400)  # the pass in work ends, and is shown
    held = np.isfinite(the_map(viewer).data).sum()
    qtbot.wait(600)
    assert np.isfinite(the_map(viewer).data).sum() == held, "nothing is done in a pause"
    assert predict.panel.running
    click(qtbot, predict.panel.pause_button)
    assert predict.panel.pause_button.text() == "Pause"
    wait_for(qtbot, lambda: np.isfinite(the_map(viewer).data).sum() > held)
    assert "partial" not in the_map(viewer).name, "while it grows one sees it grow"
    click(qtbot, predict.panel.cancel_button)
    wait_for(qtbot, lambda: not predict.panel.running)

    heat = the_map(viewer)
    prediction = layers.prediction_of(heat)
    share = int(100 * prediction.n_done / len(prediction.tiles))
    assert 0 < share < 100
    assert heat.name == f"ERBB2 (log1p CP10K) (partial, {share} %)"
    assert prediction.record["partial"] == f"{prediction.n_done:,} of {len(prediction.tiles):,} tiles"
    assert f"cancelled at {share} %" in predict.panel.status.text()
    explore = ExploreWidget(viewer)
    qtbot.addWidget(explore)
    explore.pick("KRT8")
    assert heat.name == f"KRT8 (log1p CP10K) (partial, {share} %)", "whatever gene it shows"
    assert f"{prediction.n_done:,} of {len(prediction.tiles):,} tiles are done" in planned(qtbot, predict)

    press(qtbot, predict)
    finish(qtbot, predict)
    heat = the_map(viewer)
    assert heat.name == "KRT8 (log1p CP10K)", "the gene that was looked at stays"
    assert not layers.prediction_of(heat).partial
    assert "from before" in predict.panel.status.text()
    assert "finished already" in planned(qtbot, predict)


def test_a_paused_job_is_cancelled_at_once(viewer, predict, slowly, qtbot):
    press(qtbot, predict)
    wait_for(qtbot, lambda: shown(predict) is not None)
    click(qtbot, predict.panel.pause_button)
    click(qtbot, predict.panel.cancel_button)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.pause_button.text() == "Pause"
    assert not predict.panel.pause_button.isEnabled()


def test_what_is_there_is_shown_at_once_also_after_a_restart(
    viewer, predict, qtbot, tmp_path, sample, tiny_model, monkeypatch
):
    """A finished map, a part of one, and one by another gene head of the same encoder."""
    import napari_peka as peka
    from napari_peka.core.progress import Cancelled
    from napari_peka.infer.forward import Forward

    path = tmp_path / "out" / "cmu_small_region.peka.zarr"
    job, blocks = JobProgress(), []
    config = peka.PredictConfig(device="cpu")

    def stop(block, *_):
        blocks.append(len(block))
        if len(blocks) == 2:
            job.cancel()

    with peka.open_slide(sample) as slide, pytest.raises(Cancelled):
        peka.predict(slide, tiny_model, output=path, config=config, progress=job, on_block=stop)
    predict.plan.later()
    assert f"{sum(blocks)} of" in planned(qtbot, predict)
    click(qtbot, predict.plan.show_button)
    wait_for(qtbot, lambda: len(viewer.layers) == 2)
    heat = the_map(viewer)
    assert "(partial, " in heat.name
    assert np.isfinite(heat.data).sum() == sum(blocks)
    assert f"shown: {sum(blocks)} of" in predict.panel.status.text()

    press(qtbot, predict)
    finish(qtbot, predict)
    whole = layers.prediction_of(the_map(viewer)).values("KRT8")
    monkeypatch.setattr(Forward, "_pass", lambda *_: pytest.fail("something was computed"))
    viewer.layers.remove(the_map(viewer))
    assert "finished already: shown at once" in planned(qtbot, predict)
    click(qtbot, predict.plan.show_button)
    wait_for(qtbot, lambda: len(viewer.layers) == 2)
    assert the_map(viewer).name == "ERBB2 (log1p CP10K)"
    viewer.layers.remove(the_map(viewer))
    press(qtbot, predict)
    finish(qtbot, predict)
    np.testing.assert_array_equal(layers.prediction_of(the_map(viewer)).values("KRT8"), whole)

    other = another_head(tiny_model, tmp_path / "models" / "other")
    predict.model.add(other)
    assert "no tile is computed anew" in planned(qtbot, predict)
    viewer.layers.remove(the_map(viewer))
    click(qtbot, predict.plan.show_button)
    wait_for(qtbot, lambda: len(viewer.layers) == 2)
    np.testing.assert_allclose(layers.prediction_of(the_map(viewer)).values("KRT8"), 2 * whole, rtol=1e-5)
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert "another gene head" in predict.panel.error.text()
    predict.replace.click()
    press(qtbot, predict)
    finish(qtbot, predict)
    np.testing.assert_allclose(peka.read_prediction(path).values("KRT8"), 2 * whole, rtol=1e-5)


def another_head(model, folder: Path) -> Path:
    from napari_peka.models.bundle import save_bundle

    tensors = {"head.weights": 2 * model.head.weights, "head.bias": model.head.bias}
    save_bundle(folder, model.spec.model_copy(update={"name": "other"}), tensors)
    return folder


def test_what_is_in_the_way_is_said_beforehand(viewer, predict, qtbot, tmp_path):
    corners = np.array([[200, 200], [200, 700], [900, 700], [900, 200]])  # µm
    shapes = viewer.add_shapes(corners, shape_type="polygon", name="mine")
    whole = predict.plan
    planned(qtbot, predict)
    n = whole.plan.tiles
    predict.region.choose(shapes)
    planned(qtbot, predict)
    assert 0 < whole.plan.tiles < n
    assert whole.plan.whole == n
    press(qtbot, predict)
    finish(qtbot, predict)
    predict.region.setCurrentText("whole slide")
    text = planned(qtbot, predict)
    assert "a result of something else is there (another region or tissue): tick" in text
    shapes.data = []
    predict.region.choose(shapes)
    assert "no area in the layer 'mine'" in planned(qtbot, predict)
    assert not predict.plan.time_button.isEnabled()


def test_what_i_see_now(viewer, predict, qtbot, tissue_tiff, sample):
    predict.open_slide(tissue_tiff)
    predict.region.setCurrentText("what I see now")
    planned(qtbot, predict)
    n = predict.plan.plan.tiles
    assert predict.plan.plan.whole == n, "all of it is seen"
    viewer.camera.center = (400.0, 600.0)  # µm
    viewer.camera.zoom = 2.0
    wait_for(qtbot, lambda: predict.plan.busy)  # the window is followed
    planned(qtbot, predict)
    assert 0 < predict.plan.plan.tiles < n
    half = np.array(viewer.canvas.size) / 2 / 2.0  # µm
    low, high = np.array((400, 600)) - half - 32, np.array((400, 600)) + half + 32
    press(qtbot, predict)
    assert predict.region.currentText().startswith("the view of ")
    viewer.camera.center = (700.0, 900.0)  # what was seen then is predicted, and gone on with
    finish(qtbot, predict)
    wait_for(qtbot, lambda: predict.plan.plan is not None and predict.plan.plan.there.state == "finished")
    tiles = layers.prediction_of(the_map(viewer)).tiles
    centre = tiles.centre_yx * 0.5
    assert (centre.min(0) > low).all()
    assert (centre.max(0) < high).all()
    predict.region.setCurrentText("what I see now")
    viewer.camera.center = (1e5, 1e5)
    assert "nothing of tissue is in view" in planned(qtbot, predict)
    press(qtbot, predict)
    assert (
        predict.panel.error.text() == "nothing of tissue is in view; move the view onto it, or choose the whole slide"
    )
    assert predict.region.layer() is None
    predict.open_slide(sample)  # of another slide nothing was seen
    wait_for(qtbot, lambda: layers.image_path(predict.slide.layer()) == sample)
    texts = [predict.region.itemText(i) for i in range(predict.region.count())]
    assert texts == ["whole slide", "what I see now"]


def test_a_queue_of_three_with_one_broken(viewer, predict, qtbot, tmp_path):
    queue = predict.queue
    predict.resize(340, 900)
    unfold(qtbot, predict.queue_fold, queue.panel.run_button)
    folder = tmp_path / "slides"
    for name in ("a.tif", "c.tif"):
        slide_with_tissue(folder / name)
    (folder / "b.svs").write_text("this is no slide")
    (folder / "notes.txt").write_text("neither is this")
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(folder))])
    queue.table.dropEvent(
        QDropEvent(
            QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        )
    )
    queue.add([folder / "a.tif"])
    assert [(p.name, state) for p, state in queue.states()] == [
        ("a.tif", "waiting"), ("b.svs", "waiting"), ("c.tif", "waiting"),
    ]  # fmt: skip
    click(qtbot, queue.panel.run_button)
    press(qtbot, predict)
    assert "are being predicted" in predict.panel.error.text()
    wait_for(qtbot, lambda: not queue.running)
    assert queue.panel.error.isHidden(), queue.panel.error.text()
    states = [state for _, state in queue.states()]
    assert states[0] == states[2] == "done"
    assert states[1].startswith("failed: ")
    assert "b.svs" in states[1]
    assert queue.panel.status.text() == "2 of 3 done, 1 failed"
    assert (folder / "a.peka.zarr").is_dir()
    assert (folder / "c.peka.zarr").is_dir()
    assert len(viewer.layers) == 1, "nothing is opened unasked"

    queue.table.itemDoubleClicked.emit(queue.table.item(1, 0))
    assert "b.svs is not done yet" in queue.words.text()
    queue.table.itemDoubleClicked.emit(queue.table.item(2, 0))
    wait_for(qtbot, lambda: not queue.busy)
    assert layers.prediction_of(viewer.layers[-1]).record["slide"]["file"] == "c.tif"
    assert predict.slide.currentText() == "c"
    assert predict.slide.layer() in viewer.layers

    slide_with_tissue(folder / "b.svs")  # the mistake is mended
    queue.folder.edit.setText(str(tmp_path / "results"))
    click(qtbot, queue.panel.run_button)
    wait_for(qtbot, lambda: not queue.running)
    assert [state for _, state in queue.states()] == ["done"] * 3
    assert (tmp_path / "results" / "b.peka.zarr").is_dir()
    click(qtbot, queue.panel.run_button)
    assert "no slide that waits" in queue.panel.error.text()
    queue.table.selectRow(0)
    click(qtbot, queue.remove_button)
    assert [p.name for p, _ in queue.states()] == ["b.svs", "c.tif"]


def test_a_queue_is_paused_and_cancelled_and_goes_on(viewer, predict, slowly, qtbot, tmp_path, sample):
    queue = predict.queue
    unfold(qtbot, predict.queue_fold, queue.panel.run_button)
    queue.folder.edit.setText(str(tmp_path / "results"))
    queue.add([sample, slide_with_tissue(tmp_path / "z.tif")])
    predict.detail.setCurrentIndex(predict.detail.findData(2))
    click(qtbot, queue.panel.run_button)
    wait_for(qtbot, lambda: bool(re.fullmatch(r"[1-9]\d* %", queue.states()[0][1])))
    assert "1/2 cmu_small_region.svs: predicting" in queue.panel.status.text()
    click(qtbot, queue.panel.pause_button)
    wait_for(qtbot, lambda: queue.panel.status.text().startswith("paused"))
    click(qtbot, queue.panel.pause_button)
    click(qtbot, queue.panel.cancel_button)
    wait_for(qtbot, lambda: not queue.running)
    states = [state for _, state in queue.states()]
    assert re.fullmatch(r"stopped at \d+ %; what is done is kept", states[0])
    assert states[1] == "waiting"
    click(qtbot, queue.panel.run_button)
    wait_for(qtbot, lambda: not queue.running)
    assert [state for _, state in queue.states()] == ["done", "done"]


def test_devices_are_listed_by_name_and_memory(viewer, predict, qtbot):
    predict.device.look()  # as when it is first seen
    wait_for(qtbot, lambda: predict.device.has_gpu is not None)
    texts = [predict.device.itemText(i) for i in range(predict.device.count())]
    assert texts[0].startswith("auto: ")
    assert any(re.fullmatch(r"CPU, \d+ threads?, \d+ GB free", t) for t in texts)
    assert predict.device.name() == "cpu"
    assert not predict.device.isEditable()
    predict.device.choose("cuda:7")
    assert predict.device.currentText() == "cuda:7 (not found)"
    assert "cuda:7" in planned(qtbot, predict)


def test_about_the_model(viewer, predict, qtbot):
    predict.resize(340, 900)
    unfold(qtbot, predict.models.fold, predict.models.words)
    wait_for(qtbot, lambda: "tiny-random" in predict.models.words.text())
    text = predict.models.words.text()
    assert "5, log1p CP10K; tiles of 64 µm" in text
    assert "0.30 (fair), mean over 4 genes" in text
    assert "not gated" in text
    predict.model.setCurrentIndex(predict.model.findData("demo"))
    predict.model.activated.emit(predict.model.currentIndex())
    wait_for(qtbot, lambda: "dinov2" in predict.models.words.text())
    text = predict.models.words.text()
    assert "44 MB, on this disk" in text
    assert "Demonstration: HER2-positive breast cancer, one patient" in text
    assert "4 passes each" in text
    assert predict.models.weights.isHidden()


def test_weights_that_are_not_on_this_disk_are_never_fetched_unasked(viewer, predict, qtbot, tiny_model, tmp_path):
    from napari_peka.models.bundle import save_bundle
    from napari_peka.models.registry import encoder_card

    card = encoder_card("UNI")
    spec = tiny_model.spec
    spec = spec.model_copy(
        update={
            "name": "large",
            "encoder": spec.encoder.model_copy(update={"name": card.name, "sha256": None}),
            "preprocessing": spec.preprocessing.model_copy(update={"tile_px": card.px}),
            "head": spec.head.model_copy(update={"n_dims": card.dim}),
        }
    )
    n = len(spec.head.genes)
    tensors = {"head.weights": np.zeros((card.dim, n), np.float32), "head.bias": np.zeros(n, np.float32)}
    save_bundle(tmp_path / "large", spec, tensors)
    predict.model.add(tmp_path / "large")
    assert "tiles of 224 µm" in planned(qtbot, predict), "counting tiles needs no weights"
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.text() == f"the weights of {card.name} are not here; see About the model"
    predict.resize(340, 900)
    unfold(qtbot, predict.models.fold, predict.models.words)
    wait_for(qtbot, lambda: "not on this disk" in predict.models.words.text())
    assert "gated: access is asked for on its page" in predict.models.words.text()
    assert not predict.models.weights.isHidden()
    assert "Offline" in predict.models.weights.words.text()


class TestHub:
    @pytest.fixture
    def hub(self, monkeypatch, bundle_folder, tmp_path):
        """A hub of one bundle; what went over the network is written down."""
        import huggingface_hub

        asked = []
        files = {f: (bundle_folder / f).stat().st_size for f in ("model.safetensors", "peka.json")}
        snapshot = tmp_path / "hub" / ("a" * 40)

        class Api:
            gated = False

            def __init__(self, **_):
                pass

            def model_info(self, repo, **_):
                asked.append(("info", repo))
                siblings = [types.SimpleNamespace(rfilename=f, size=n) for f, n in files.items()]
                return types.SimpleNamespace(siblings=siblings, gated=self.gated, card_data={"license": "mit"})

        def download(repo, file, local_files_only=False, tqdm_class=None, **_):
            if not local_files_only:
                asked.append(("file", file))
                if not snapshot.exists():
                    shutil.copytree(bundle_folder, snapshot)
                tqdm_class(total=10, name="x").update(10)
            if not snapshot.exists():
                raise huggingface_hub.errors.LocalEntryNotFoundError("no")
            return str(snapshot / file)

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        return types.SimpleNamespace(asked=asked, api=Api)

    def ask(self, qtbot, dock):
        box = dock.model
        at = box.findText("From the hub…")
        box.setCurrentIndex(at)
        box.activated.emit(at)
        assert box.model() != "None"
        panel = dock.models.hub
        panel.name.clear()
        qtbot.keyClicks(panel.name, "me/tiny")
        return panel

    def test_nothing_is_fetched_before_a_button_says_how_much(self, viewer, predict, qtbot, hub):
        panel = self.ask(qtbot, predict)
        before = predict.session.model
        assert hub.asked == []
        click(qtbot, panel.look_button)
        wait_for(qtbot, lambda: not panel.busy)
        assert hub.asked == [("info", "me/tiny")]
        assert "licence mit" in panel.words.text()
        assert re.fullmatch(r"Fetch \d+ kB over the network", panel.panel.run_button.text())
        assert predict.session.model == before
        with qtbot.waitSignal(panel.fetched, timeout=WAIT_MS):
            click(qtbot, panel.panel.run_button)
        assert hub.asked[1:] == [("file", "model.safetensors"), ("file", "peka.json")]
        assert predict.session.model == predict.model.model() == "me/tiny"
        assert predict.model.currentText() == "me/tiny"
        assert "tiles of 64 µm" in planned(qtbot, predict)
        assert len(hub.asked) == 3, "what is on the disk is not asked for again"

    def test_a_gated_one_says_what_to_do(self, viewer, predict, qtbot, hub):
        hub.api.gated = "manual"
        panel = self.ask(qtbot, predict)
        click(qtbot, panel.look_button)
        wait_for(qtbot, lambda: not panel.busy)
        assert "ask for access" in panel.words.text()
        assert "hf auth login" in panel.words.text()

    def test_offline_and_nonsense(self, viewer, predict, qtbot, hub, monkeypatch):
        panel = self.ask(qtbot, predict)
        panel.name.setText("tiny")
        click(qtbot, panel.look_button)
        assert "user/name" in panel.words.text()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        panel.name.setText("me/tiny")
        assert "Offline" in panel.words.text()
        click(qtbot, panel.look_button)
        assert "Offline" in panel.words.text()
        assert hub.asked == []


def test_models_used_last_are_offered_also_after_a_restart(qtbot, bundle_folder, tmp_path):
    from napari_peka.gui.choosers import ModelChooser

    shutil.copytree(bundle_folder, tmp_path / "gone")
    first = ModelChooser()
    qtbot.addWidget(first)
    with qtbot.waitSignal(first.chosen) as caught:
        first.add(bundle_folder)
    assert caught.args == [str(bundle_folder)]
    first.add(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    later = ModelChooser()
    qtbot.addWidget(later)
    assert later.findData(str(bundle_folder)) > 0
    assert later.findText("gone") < 0
    assert later.model() == "demo"
    recent.recent_file().write_text("no json")
    assert recent.recent_models() == []


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert not threads()
    for thread in threading.enumerate():
        if thread.name == "peka-aside":
            thread.join(WAIT_MS / 1000)


def test_what_was_seen_before_is_said_and_not_computed_again(viewer, predict, qtbot, monkeypatch, tmp_path):
    from napari_peka.infer.forward import Forward

    monkeypatch.setenv("NAPARI_PEKA_REUSE", "1")
    monkeypatch.setenv("NAPARI_PEKA_CACHE", str(tmp_path / "cache"))
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    first = layers.prediction_of(the_map(viewer)).embeddings
    predict.output.edit.setText(str(tmp_path / "elsewhere"))
    wait_for(qtbot, lambda: "tiles were seen by this model before" in predict.plan.words.text())
    assert not predict.plan.show_button.isEnabled(), "there is no result yet"
    monkeypatch.setattr(Forward, "_pass", lambda *_: pytest.fail("something was computed"))
    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    maps = [layers.prediction_of(x) for x in viewer.layers if layers.prediction_of(x) is not None]
    np.testing.assert_array_equal(maps[-1].embeddings, first)
    assert (tmp_path / "elsewhere" / "cmu_small_region.peka.zarr").is_dir()


# -- whether to believe it ---------------------------------------------------------------------------------------


def test_the_verdict_is_there_before_and_after(viewer, predict, qtbot):
    """A slide's check is a line beside the number of tiles, each answer with its mend when the mouse rests on it."""
    verdict = predict.plan.verdict
    wait_for(qtbot, lambda: not predict.plan.busy)
    assert "Nothing was found that speaks against this slide; not known: organ, stain." in verdict.text()
    assert "In focus" in verdict.toolTip()
    assert "tiles looked at can be read" in verdict.toolTip()

    press(qtbot, predict)
    wait_for(qtbot, lambda: not predict.panel.running and not predict.plan.busy)
    assert "cannot tell which tiles are unlike" in verdict.toolTip(), "what the map says is added"
    assert "tiles looked at" not in verdict.toolTip(), "all tiles were read by now"


def test_an_organ_that_the_model_does_not_know_is_told(viewer, predict, qtbot):
    """Of which organ a slide is, nobody but a person can say."""
    predict.model.setCurrentIndex(predict.model.findData("demo"))
    predict.model.activated.emit(predict.model.currentIndex())
    predict.organ.setText("skin")
    wait_for(qtbot, lambda: "trained on breast, not on skin" in predict.plan.verdict.toolTip())
    wait_for(qtbot, lambda: not predict.plan.busy)
    assert "organ" in predict.plan.verdict.text()
    predict.organ.setText("breast")
    wait_for(qtbot, lambda: "the slide is of breast" in predict.plan.verdict.toolTip() and not predict.plan.busy)


def test_a_stain_that_the_model_does_not_know_is_refused_in_words(viewer, predict, qtbot):
    predict.stain.setCurrentIndex(predict.stain.findData("macenko"))
    wait_for(qtbot, lambda: not predict.plan.busy)
    assert "does not say what stain it was trained on" in predict.plan.words.text()
    assert predict.plan.verdict.isHidden()
