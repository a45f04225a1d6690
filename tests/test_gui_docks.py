"""Each dock through a story, with the mouse's own signals; a window is needed (Xvfb will do)."""

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

from napari_peka.core.errors import StoreError
from napari_peka.core.progress import JobProgress
from napari_peka.gui import layers, map_layers, reader, region_layers
from napari_peka.gui.explore_widget import ExploreWidget
from napari_peka.gui.export_panel import LISTED, THIS
from napari_peka.gui.gene_model import DIFFERENCE, MEASURES
from napari_peka.gui.places import default_folder
from napari_peka.gui.predict_widget import PredictWidget
from napari_peka.gui.run_panel import TICK_MS, RunPanel
from napari_peka.gui.session import session_of
from napari_peka.gui.slide_widget import SlideWidget

WAIT_MS = 60_000
pytestmark = [
    # anndata announces that its default zarr format changes
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
]


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("peka-")]


def wait_for(qtbot, condition) -> None:
    qtbot.waitUntil(condition, timeout=WAIT_MS)


class TestRunPanel:
    @pytest.fixture
    def panel(self, qtbot) -> RunPanel:
        panel = RunPanel("Predict")
        qtbot.addWidget(panel)
        panel.show()
        return panel

    def run(self, qtbot, panel, job) -> None:
        panel.start(job)
        wait_for(qtbot, lambda: not panel.running)

    def test_progress_rate_and_time_left(self, qtbot, panel):
        seen: list[tuple[str, int]] = []
        panel.ticked.connect(lambda: seen.append((panel.status.text(), panel.bar.value())))

        def job(progress: JobProgress) -> int:
            progress.stage("predicting", 40)
            for _ in range(40):
                time.sleep(0.02)
                progress.advance()
            return 7

        with qtbot.waitSignal(panel.succeeded, timeout=WAIT_MS) as caught:
            panel.start(job)
            assert not panel.run_button.isEnabled()
        assert caught.args == [7]
        assert len(seen) <= 0.8 / (TICK_MS / 1000) + 8  # about ten a second, however fast the job reports
        assert any("/s" in text and "left" in text for text, _ in seen)
        assert max(value for _, value in seen) > 500
        assert panel.run_button.isEnabled()
        assert panel.bar.isHidden()

    def test_cancel(self, qtbot, panel):
        def job(progress: JobProgress) -> None:
            progress.stage("predicting", 10_000)
            while True:
                time.sleep(0.01)
                progress.advance()

        panel.start(job)
        with qtbot.waitSignal(panel.stopped, timeout=WAIT_MS):
            qtbot.mouseClick(panel.cancel_button, Qt.MouseButton.LeftButton)
        assert panel.error.isHidden()
        assert not threads()

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (StoreError("the disk is full"), "the disk is full"),
            (RuntimeError("mat1 and mat2\n shapes"), "unexpected: RuntimeError: mat1 and mat2 shapes"),
            (KeyError("x"), "unexpected: KeyError: 'x'"),
            (SystemExit("out"), "unexpected: SystemExit: out"),
        ],
    )
    def test_every_error_is_a_sentence(self, qtbot, panel, error, text):
        """Guards the RuntimeError that a generator thread_worker swallows (FACTS.md, section 3)."""

        def job(progress: JobProgress) -> None:
            raise error

        with qtbot.waitSignal(panel.failed, timeout=WAIT_MS):
            panel.start(job)
        assert panel.error.text() == text
        assert panel.error.isVisible()
        assert not panel.running
        self.run(qtbot, panel, lambda progress: None)
        assert panel.error.isHidden()

    def test_the_window_stays_alive(self, qtbot, panel):
        from qtpy.QtCore import QTimer

        gaps, last = [], [time.perf_counter()]
        timer = QTimer(panel)

        def beat() -> None:
            now = time.perf_counter()
            gaps.append(now - last[0])
            last[0] = now

        timer.timeout.connect(beat)
        timer.start(10)

        def job(progress: JobProgress) -> None:
            progress.stage("predicting", 10**6)
            end = time.monotonic() + 0.7
            while time.monotonic() < end:
                progress.advance()

        self.run(qtbot, panel, job)
        assert np.median(gaps) < 0.1

    def test_a_destroyed_panel_stops_its_job(self, qtbot):
        panel = RunPanel("Predict")
        stopped = threading.Event()

        def job(progress: JobProgress) -> None:
            try:
                while True:
                    time.sleep(0.01)
                    progress.advance()
            finally:
                stopped.set()

        panel.start(job)
        panel.deleteLater()
        wait_for(qtbot, stopped.is_set)


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
    dock.device.setCurrentText("cpu")
    dock.output.edit.setText(str(tmp_path / "out"))
    return dock


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
    wait_for(qtbot, lambda: predict._map is not None and np.isfinite(predict._map.data).any())
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
    predict.device.setCurrentText("toaster")
    assert "toaster" in error()
    predict.device.setCurrentText("cpu")
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
    wait_for(qtbot, lambda: predict._map is not None)
    assert threads()
    viewer.close()
    assert not threads()


def test_napari_asks_before_a_running_job_is_closed(viewer, predict, slowly, qtbot):
    from napari.utils.task_status import TaskStatusManager

    manager: TaskStatusManager = viewer.window._task_status_manager
    press(qtbot, predict)
    wait_for(qtbot, lambda: predict._map is not None)
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
    wait_for(qtbot, lambda: bool(taken) and predict._schedule is not None)
    rect = look_at(second)
    wait_for(qtbot, lambda: predict._schedule._view == rect)
    go_on.set()
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    assert taken[0] == first.index
    # before it: the block in work, those read ahead and the one in the reader's hands
    assert taken.index(second.index) <= engine.READ_AHEAD + 2


def test_the_map_may_be_removed_mid_run(viewer, predict, slowly, qtbot):
    press(qtbot, predict)
    wait_for(qtbot, lambda: predict._map is not None)
    viewer.layers.remove(predict._map)
    wait_for(qtbot, lambda: not predict.panel.running)
    assert predict.panel.error.isHidden()


def test_a_stored_result_is_opened(viewer, qtbot, tmp_path, sample, tiny_model):
    from napari_peka.io.slide import open_slide
    from napari_peka.workflows.predict import predict as run

    with open_slide(sample) as slide:
        run(slide, tiny_model, output=tmp_path / "a.peka.zarr")
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.open_result(tmp_path / "a.peka.zarr")
    assert dock.gene() == "ERBB2"
    [(_, settings, _)] = reader.read_layers(str(tmp_path / "a.peka.zarr"))
    assert settings["name"] == "ERBB2 (log1p CP10K)"
    dock.open_result(tmp_path / "b.peka.zarr")
    assert "there is no result" in dock.error.text()


def test_unreadable_tiles_are_shown_on_demand(viewer, qtbot, sample, tiny_model):
    from napari_peka.io.slide import open_slide
    from napari_peka.workflows.predict import predict as run

    with open_slide(sample) as slide:
        prediction = run(slide, tiny_model)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.show()
    data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
    viewer.add_image(data, **settings)
    assert not dock.unreadable.isVisible()
    viewer.layers.clear()
    prediction.read_ok[[3, 8]] = False
    prediction.embeddings[[3, 8]] = np.nan
    data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
    heat = viewer.add_image(data, **settings)
    assert dock.unreadable.isVisible()
    assert "2 unreadable" in dock.unreadable.text()
    qtbot.mouseClick(dock.unreadable, Qt.MouseButton.LeftButton, pos=dock.unreadable.rect().center() * 0.1)
    (shown,) = [x for x in viewer.layers if map_layers.shows_unreadable(x, prediction)]
    np.testing.assert_array_equal(np.isfinite(shown.data).sum(), 2)
    np.testing.assert_array_equal(np.isnan(shown.data) | np.isnan(heat.data), True)
    np.testing.assert_allclose(shown.extent.world, heat.extent.world)
    dock.unreadable.setChecked(False)
    assert list(viewer.layers) == [heat]


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


def test_a_search_begins_at_the_best_gene(viewer, qtbot, tmp_path, sample):
    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        tiles = peka.plan_tiles(slide, peka.load_model("demo"))
    head = peka.load_model("demo").head
    prediction = peka.Prediction(
        tiles, np.zeros((len(tiles), head.embedding_dims), np.float16), head, np.ones(len(tiles), bool)
    )
    data, settings, _ = map_layers.heatmap_layer(prediction, head.genes[1500])
    viewer.add_image(data, **settings)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, 500)
    dock.show()
    qtbot.keyClicks(dock.search, "c")
    assert dock.genes.rowCount() > 100
    assert dock.table.rowAt(0) == 0
    assert dock.table.height() >= 180


def test_genes_are_ordered_by_what_they_do_on_this_map(viewer, qtbot, tmp_path, sample):
    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        prediction = peka.predict(
            slide, peka.load_model("demo"), output=tmp_path / "s.peka.zarr", config=peka.PredictConfig(device="cpu")
        )
    data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
    heat = viewer.add_image(data, **settings)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, 500)
    dock.show()
    assert dock.gene() == "ERBB2"
    table = peka.gene_table(prediction)
    for name in ("spatial structure", "mean on this map", "share of attainable"):
        column = MEASURES[name].column
        dock.order.setCurrentText(name)
        wanted = table[column].sort_values(ascending=False)
        wait_for(qtbot, lambda wanted=wanted: dock.genes.data(dock.genes.index(0, 0)) == wanted.index[0])
        assert dock.genes.data(dock.genes.index(0, 1)) == MEASURES[name].text.format(wanted.iloc[0])
        assert dock.genes.headerData(1, Qt.Orientation.Horizontal) == MEASURES[name].title
        assert dock.gene() == "ERBB2"  # the one that is picked stays picked, and its map as it is
    assert layers.gene_of(heat) == "ERBB2"
    shown = [dock.genes.data(dock.genes.index(i, 1)) for i in (0, len(prediction.genes) - 1)]
    assert shown[1] == "–"  # no ceiling worth a share: last, whichever way
    dock.table.sortByColumn(1, Qt.SortOrder.AscendingOrder)
    assert dock.genes.data(dock.genes.index(len(prediction.genes) - 1, 1)) == "–"
    dock.search.setText("ERBB")
    assert dock.gene() == "ERBB2"
    dock.search.setText("KRT8")
    assert dock.gene() is None
    dock.search.clear()
    assert dock.gene() == "ERBB2"
    viewer.layers.remove(heat)
    assert dock.genes.rowCount() == 0


def test_a_set_of_genes_is_shown_as_a_score(viewer, qtbot, tmp_path, sample):
    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        config = peka.PredictConfig(device="cpu")
        prediction = peka.predict(slide, peka.load_model("demo"), output=tmp_path / "s.peka.zarr", config=config)
    data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
    heat = viewer.add_image(data, **settings)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, 900)
    dock.show()
    qtbot.mouseClick(dock.set_fold.toggleButton(), Qt.MouseButton.LeftButton)
    wait_for(qtbot, lambda: dock.sets.show_button.height() > 15)
    assert "PAM50" in [dock.sets.names.itemText(i) for i in range(dock.sets.names.count())]  # some come along
    (tmp_path / "sets.gmt").write_text("HER2\t\tERBB2\tGRB7\tSTARD3\tNOSUCHGENE\nIMMUNE\t\tCD74\tIGKC\n")
    dock.sets.load(tmp_path / "sets.gmt")
    assert [dock.sets.names.itemText(i) for i in range(2)] == ["HER2", "IMMUNE"]
    assert "3 of 4 genes" in dock.sets.said.text()
    assert "NOSUCHGENE" in dock.sets.said.text()
    with qtbot.waitSignal(dock.sets.scored, timeout=WAIT_MS):
        qtbot.mouseClick(dock.sets.show_button, Qt.MouseButton.LeftButton)
    wanted = prediction.tiles.raster(peka.gene_set_score(prediction, ["ERBB2", "GRB7", "STARD3"])).data
    np.testing.assert_allclose(heat.data, wanted, atol=1e-5)
    assert heat.name == "HER2 (mean z)"
    assert "standardised over this map" in dock.about.text()
    assert dock.gene() is None
    dock.pick("GRB7")
    np.testing.assert_array_equal(heat.data, prediction.raster("GRB7").data)
    qtbot.keyClicks(dock.sets.pasted, "cd74 IGKC")
    with qtbot.waitSignal(dock.sets.scored, timeout=WAIT_MS):
        qtbot.keyClick(dock.sets.pasted, Qt.Key.Key_Return)
    wanted = prediction.tiles.raster(peka.gene_set_score(prediction, ["CD74", "IGKC"])).data
    np.testing.assert_allclose(heat.data, wanted, atol=1e-5)
    (tmp_path / "bad.gmt").write_text("nothing")
    dock.sets.load(tmp_path / "bad.gmt")
    assert "a set is NAME, DESCRIPTION and genes" in dock.sets.said.text()
    viewer.layers.remove(heat)
    assert not dock.sets.show_button.isEnabled()


def test_regions_have_numbers_and_genes_are_ranked_by_their_difference(viewer, qtbot, tmp_path, sample):
    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        config = peka.PredictConfig(device="cpu", stride_px=112)
        prediction = peka.predict(slide, peka.load_model("demo"), output=tmp_path / "s.peka.zarr", config=config)
    data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
    viewer.add_image(data, **settings)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, 900)
    dock.show()
    assert not dock.regions.rank_button.isEnabled()
    y, _ = prediction.tiles.centre_um.mean(0)
    (top, left), (bottom, right) = prediction.tiles.centre_um.min(0) - 99, prediction.tiles.centre_um.max(0) + 99
    upper, lower = ([[a, left], [a, right], [b, right], [b, left]] for a, b in ((top, y), (y + 1, bottom)))
    shapes = viewer.add_shapes(
        [upper, lower], shape_type="polygon", features={"name": ["tumour", ""]}, name="drawn", units=layers.UM
    )
    qtbot.mouseClick(dock.region_fold.toggleButton(), Qt.MouseButton.LeftButton)
    wait_for(qtbot, lambda: dock.regions.rank_button.height() > 15)
    dock.regions.shapes.choose(shapes)
    wait_for(qtbot, lambda: dock.regions.table.rowCount() == 2)
    cells = [[dock.regions.table.item(i, j).text() for j in range(4)] for i in range(2)]
    assert [c[0] for c in cells] == ["tumour", "region 2"]
    mpp = prediction.tiles.slide_mpp
    regions = region_layers.regions_of(shapes, mpp)
    wanted = peka.region_table(prediction, regions, ["ERBB2"])
    assert [int(c[1]) for c in cells] == wanted["tiles"].tolist()
    assert [c[2] for c in cells] == [f"{v:.2f}" for v in wanted["mean"]]
    assert sum(wanted["tiles"]) >= len(prediction.tiles) - 5
    dock.regions.second.setCurrentText("region 2")
    with qtbot.waitSignal(dock.regions.ranked, timeout=WAIT_MS):
        qtbot.mouseClick(dock.regions.rank_button, Qt.MouseButton.LeftButton)
    effect = peka.compare_regions(prediction, regions["tumour"], regions["region 2"])["cohens_d"].sort_values()
    assert dock.order.currentText() == DIFFERENCE
    believed = effect[prediction.head.pcc[[prediction.head.index(g) for g in effect.index]] >= 0.15]
    assert 0 < len(believed) < len(effect)
    assert dock.genes.rowCount() == len(believed)  # a large difference of what is not predicted is none
    assert dock.genes.data(dock.genes.index(0, 0)) == believed.index[-1]
    assert dock.genes.data(dock.genes.index(0, 1)) == f"{believed.iloc[-1]:+.2f}"
    wait_for(qtbot, lambda: dock.gene() == believed.index[-1])
    assert "tumour against region 2" in dock.regions.order.text()
    dock.trust.setCurrentText("any")
    assert dock.genes.rowCount() == len(effect)
    assert dock.genes.data(dock.genes.index(0, 0)) == effect.index[-1]
    dock.trust.setCurrentText("good")
    assert {dock.genes.data(dock.genes.index(i, 2)) for i in range(dock.genes.rowCount())} == {"good"}
    # a shape that is moved is looked at again
    shapes.data = [upper]
    wait_for(qtbot, lambda: dock.regions.table.rowCount() == 1)
    viewer.layers.remove(shapes)
    assert dock.regions.table.rowCount() == 0
    assert not dock.regions.rank_button.isEnabled()


def test_a_map_is_exported_from_the_dock(viewer, qtbot, tmp_path, sample, tiny_model, monkeypatch):
    import anndata
    from qtpy.QtWidgets import QFileDialog

    import napari_peka as peka

    with peka.open_slide(sample) as slide:
        viewer.add_image(layers.slide_layer(slide)[0], **layers.slide_layer(slide)[1])
        prediction = peka.predict(slide, tiny_model, output=tmp_path / "s.peka.zarr")
        dock = ExploreWidget(viewer)
        qtbot.addWidget(dock)
        dock.resize(340, 700)
        dock.show()
        assert not dock.exports.isEnabled()
        data, settings, _ = map_layers.heatmap_layer(prediction, "KRT8")
        viewer.add_image(data, **settings)
        qtbot.mouseClick(dock.fold.toggleButton(), Qt.MouseButton.LeftButton)
        wait_for(qtbot, lambda: dock.exports.panel.run_button.height() > 15)
        asked, chosen = [], []

        def choose(*args):
            asked.append(args[2:])
            return str(chosen[-1]), ""

        def press(name, signal):
            chosen.append(tmp_path / name)
            with qtbot.waitSignal(signal, timeout=WAIT_MS):
                qtbot.mouseClick(dock.exports.panel.run_button, Qt.MouseButton.LeftButton)

        monkeypatch.setattr(QFileDialog, "getSaveFileName", choose)
        dock.search.setText("c")
        dock.exports.genes.setCurrentText(LISTED)
        press("mine", dock.exports.panel.succeeded)
        assert asked[0][0].endswith("cmu_small_region.h5ad")
        adata = anndata.read_h5ad(tmp_path / "mine.h5ad")  # the ending comes by itself
        assert set(adata.var_names) == {"COL1A1", "CD3E"}
        assert "images" in adata.uns["spatial"]["cmu_small_region"]  # the slide is open, so it is shown
        assert "mine.h5ad" in dock.exports.panel.status.text()
        dock.search.clear()
        dock.exports.format.setCurrentIndex(dock.exports.format.findData("png"))
        dock.exports.genes.setCurrentText(THIS)
        press("figure.png", dock.exports.panel.succeeded)
        assert (tmp_path / "figure.png").stat().st_size > 10_000
        dock.exports.format.setCurrentIndex(dock.exports.format.findData("spatialdata"))
        (tmp_path / "thesis.zarr").mkdir()
        press("thesis.zarr", dock.exports.panel.failed)
        assert "is not replaced" in dock.exports.panel.error.text()


def test_maps_of_two_slides_are_told_apart(viewer, qtbot, tiny_model, sample, tissue_tiff):
    from napari_peka.io.slide import open_slide
    from napari_peka.workflows.predict import predict as run

    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    for path in (sample, tissue_tiff):
        with open_slide(path) as slide:
            data, settings, _ = map_layers.heatmap_layer(run(slide, tiny_model), "ERBB2")
            viewer.add_image(data, **settings)
    texts = [dock.map.itemText(i) for i in range(dock.map.count())]
    assert len(texts) == 2
    assert "cmu_small_region" in texts[0]
    assert "tissue" in texts[1]


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


def test_docks_are_slim_and_have_tooltips(viewer, qtbot):
    for kind in (PredictWidget, ExploreWidget, SlideWidget):
        dock = kind(viewer)
        qtbot.addWidget(dock)
        assert dock.maximumWidth() <= 350
        assert dock.minimumSizeHint().width() <= 350
        for fold in (getattr(dock, n, None) for n in ("fold", "set_fold", "region_fold")):
            if fold is not None:
                fold.expand(animate=False)
        assert dock.minimumSizeHint().height() < 300  # a low window scrolls, and does not grow
    dock = PredictWidget(viewer)
    qtbot.addWidget(dock)
    for field in (dock.slide, dock.model, dock.region, dock.device, dock.output.edit, dock.mpp, dock.replace):
        assert field.toolTip()


def test_no_words_are_cut_where_docks_share_the_height(qtbot, tmp_path, sample, tiny_model):
    from napari.components import ViewerModel
    from PIL import Image as Pil
    from qtpy.QtWidgets import QVBoxLayout, QWidget

    from napari_peka.io.slide import open_slide
    from napari_peka.workflows.predict import predict as run

    viewer = ViewerModel()
    column = QWidget()
    qtbot.addWidget(column)
    docks = PredictWidget(viewer), ExploreWidget(viewer)
    layout = QVBoxLayout(column)
    for dock in docks:
        layout.addWidget(dock)
    column.resize(340, 800)
    column.show()
    Pil.fromarray(np.full((500, 400, 3), 200, np.uint8)).save(tmp_path / "a_photo_without_any_resolution.png")
    with open_slide(sample) as slide:
        data, settings, _ = map_layers.heatmap_layer(run(slide, tiny_model), "ERBB2")
        viewer.add_image(data, **settings)
    docks[0].open_slide(tmp_path / "a_photo_without_any_resolution.png")
    docks[0].panel.fail("a sentence that is long enough to need a second line and perhaps even a third one below that")

    def whole() -> bool:
        texts = (docks[0].about, docks[0].panel.error, docks[1].about)
        return all(
            t.isVisible() and t.height() >= t.heightForWidth(t.width()) > t.fontMetrics().height() for t in texts
        )

    wait_for(qtbot, whole)


def test_a_dock_that_nobody_holds_any_more_dies_quietly(make_napari_viewer, qtbot):
    """Guards a crash of the process: a slot that was a lambda kept the dock alive past its window."""
    viewer = make_napari_viewer()
    for kind in (PredictWidget, ExploreWidget):
        qtbot.addWidget(kind(viewer))
        window = viewer.window.add_dock_widget(kind(viewer))
        qtbot.wait(50)
        viewer.window.remove_dock_widget(window)
        window.deleteLater()
        del window
        gc.collect()
        qtbot.wait(100)


def test_by_default_the_result_lies_beside_the_slide(tmp_path, sample, monkeypatch):
    assert default_folder(tmp_path / "a.svs") == (tmp_path, "")
    assert default_folder(sample)[0].name == "napari-peka"
    monkeypatch.setattr(os, "access", lambda *_: False)
    folder, note = default_folder(tmp_path / "a.svs")
    assert folder.name == "napari-peka"
    assert "You may not write beside the slide" in note
