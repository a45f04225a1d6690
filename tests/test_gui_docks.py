"""Each dock through a story, with the mouse's own signals; a window is needed (Xvfb will do)."""

from __future__ import annotations

import gc
import os
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
from napari_peka.gui import layers, map_layers, preferences, reader, region_layers
from napari_peka.gui.explore_widget import ExploreWidget
from napari_peka.gui.export_panel import LISTED, THIS
from napari_peka.gui.gene_model import DIFFERENCE, MEASURES
from napari_peka.gui.predict_widget import PredictWidget
from napari_peka.gui.run_panel import TICK_MS, RunPanel
from napari_peka.gui.slide_widget import SlideWidget

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

    def test_preferences_count_and_the_cache_is_tidied(self, qtbot, panel, monkeypatch):
        done = []
        monkeypatch.setattr(preferences, "apply", lambda: done.append("applied"))
        monkeypatch.setattr(preferences, "tidy_cache", lambda: done.append("tidied"))
        with qtbot.waitSignal(panel.succeeded, timeout=WAIT_MS):
            panel.start(lambda progress: done.append("worked"))
        assert done == ["applied", "worked", "tidied"]

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


def test_a_set_of_genes_is_shown_as_a_score(viewer, qtbot, tmp_path, sample, monkeypatch):
    import pandas as pd
    import tifffile
    from qtpy.QtWidgets import QFileDialog

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
    dock.exports.genes.setCurrentText(THIS)
    for to, ending in (("csv", ".csv"), ("ome-tiff", ".ome.tif")):
        out = tmp_path / f"score{ending}"
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, out=out: (str(out), ""))
        dock.exports.format.setCurrentIndex(dock.exports.format.findData(to))
        with qtbot.waitSignal(dock.exports.panel.succeeded, timeout=WAIT_MS):
            dock.exports.asked.emit()
    table = pd.read_csv(tmp_path / "score.csv")
    assert list(table.columns)[-4:] == ["ERBB2", "GRB7", "STARD3", "score_HER2"]  # a table goes on from the set's genes
    assert tifffile.imread(tmp_path / "score.ome.tif").ndim == 2  # an image is of what is shown
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


def test_docks_work_on_one_slide(viewer, qtbot, sample, tissue_tiff, tmp_path):
    from PIL import Image as Pil

    slide, predict = SlideWidget(viewer), PredictWidget(viewer)
    for dock in (slide, predict):
        qtbot.addWidget(dock)
    slide.open_slide(sample)
    slide.open_slide(tissue_tiff)  # the one that was opened last is the one that is predicted
    assert predict.slide.layer() is slide.slide.layer()
    assert layers.image_path(predict.slide.layer()) == tissue_tiff
    predict.slide.setCurrentIndex(0)
    assert slide.slide.layer() is predict.slide.layer()
    # what is said of a pixel in one is known in the other
    Pil.fromarray(np.full((500, 400, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    slide.open_slide(tmp_path / "photo.png")
    wait_for(qtbot, lambda: "does not say how large a pixel is" in predict.about.text())
    slide.mpp.setValue(0.5)
    slide.set_button.click()
    assert "0.500 µm/px (given)" in predict.about.text()
    assert not predict.form.isRowVisible(predict.mpp)


def test_docks_lie_on_one_another_as_tabs(viewer, qtbot):
    first, _ = viewer.window.add_plugin_dock_widget("napari-peka", "Slide")
    viewer.window._qt_window.show()
    wait_for(qtbot, first.isVisible)
    second, dock = viewer.window.add_plugin_dock_widget("napari-peka", "Explore expression")
    window = viewer.window._qt_window
    wait_for(qtbot, lambda: window.tabifiedDockWidgets(second) == [first])
    wait_for(qtbot, dock.isVisible)  # the newest is the one that is seen
    viewer.window._qt_window.hide()


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
    wait_for(qtbot, lambda: len(viewer.layers) == 2)
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
