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
from napari_peka.gui import layers, map_layers, preferences
from napari_peka.gui.explore_widget import ExploreWidget
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
    wait_for(qtbot, lambda: "is not known; fill in the µm per pixel" in predict.about.text())
    slide.mpp.setValue(0.5)
    slide.set_button.click()
    assert "0.500 µm/px (given by you)" in predict.about.text()
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
