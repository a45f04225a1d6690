"""The dock *Predict expression* through its stories; a window is needed (Xvfb will do)."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from qtpy.QtCore import Qt

from napari_peka.gui import layers
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
    for data, settings, _ in layers.sample_slide_data():
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
    """Each block takes 0.15 s."""
    from napari_peka.infer import engine

    call = engine.Forward.__call__

    def slow(self, tiles):
        time.sleep(0.15)
        return call(self, tiles)

    monkeypatch.setattr(engine.Forward, "__call__", slow)


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
    assert "0.499 µm/px" in predict.about.text()

    press(qtbot, predict)
    wait_for(qtbot, lambda: shown(predict) is not None and np.isfinite(predict.growing.layer.data).any())
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
    assert "held-out PCC 0.35 (fair)" in explore.about.text()
    heat.contrast_limits = (0.5, 1.25)
    assert "colours from 0.5 to 1.25" in explore.about.text()

    qtbot.keyClicks(explore.search, "col1")
    assert explore.genes.rowCount() == 1
    qtbot.keyClick(explore.search, Qt.Key.Key_Return)
    wait_for(qtbot, lambda: layers.gene_of(heat) == "COL1A1")
    assert len(viewer.layers) == 2, "one layer for all genes"

    explore.search.setText("ERBB3")
    assert "did you mean ERBB2" in explore.error.text()
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
    dock.model.add(bundle_folder)
    assert dock.form.isRowVisible(dock.mpp)
    assert dock.output.folder() == tmp_path
    press(qtbot, dock)
    assert "fill in the µm per pixel" in dock.panel.error.text()
    region = viewer.add_shapes(np.array([[0, 0], [0, 599], [799, 599], [799, 0]]), shape_type="rectangle")
    dock.region.choose(region)
    dock.mpp.setValue(1.85)
    press(qtbot, dock)
    wait_for(qtbot, lambda: not dock.panel.running)
    assert dock.panel.error.isHidden(), dock.panel.error.text()
    assert tuple(dock.slide.layer().scale) == pytest.approx((1.85, 1.85))
    assert tuple(region.scale) == pytest.approx((1.85, 1.85))
    assert the_map(viewer).extent.world[1].max() < 800 * 1.85 + 64
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
    from napari_peka.infer import engine
    from napari_peka.infer.schedule import Schedule, coarse_to_fine
    from napari_peka.workflows.predict import plan_tiles

    predict.open_slide(tissue_tiff)
    slide = predict.slide.layer()
    blocks = plan_tiles(layers.slide_of(slide), tiny_model).blocks()
    *_, second, first = (blocks[i] for i in coarse_to_fine(blocks))
    assert len(blocks) > 8
    taken: list[int] = []
    take, call, go_on = Schedule.take, engine.Forward.__call__, threading.Event()

    def told(self):
        block = take(self)
        taken.extend([block.index] if block else [])
        return block

    def held(self, tiles):
        assert go_on.wait(WAIT_MS / 1000)
        return call(self, tiles)

    monkeypatch.setattr(Schedule, "take", told)
    monkeypatch.setattr(engine.Forward, "__call__", held)

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
    assert taken.index(second.index) <= engine.READ_AHEAD + 2


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


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert not threads()
    for thread in threading.enumerate():
        if thread.name == "peka-aside":
            thread.join(WAIT_MS / 1000)
