"""All docks through whole stories in one window, as a person walks through them; a window is needed (Xvfb will do)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

import anndata
import shapely
from qtpy.QtCore import Qt
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog

from napari_peka.gui import layers
from napari_peka.gui.session import session_of

WAIT_MS = 240_000
DOCKS = {
    "slide": "Slide",
    "predict": "Predict expression",
    "explore": "Explore expression",
    "train": "Train on paired sections",
    "check": "Check against spots",
}


class Bench:
    """A window with all docks, and a hand with a mouse."""

    def __init__(self, viewer, qtbot) -> None:
        self.viewer, self.qtbot = viewer, qtbot
        self.windows: dict[str, object] = {}
        for name, title in DOCKS.items():
            window, dock = viewer.window.add_plugin_dock_widget("napari-peka", title, tabify=name != "slide")
            setattr(self, name, dock)
            self.windows[name] = window

    def front(self, name: str) -> None:
        """Bring a dock before those that lie on it."""
        self.windows[name].show()
        self.windows[name].raise_()
        self.wait(getattr(self, name).isVisible)

    def click(self, button) -> None:
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def wait(self, condition) -> None:
        self.qtbot.waitUntil(lambda: bool(condition()), timeout=WAIT_MS)

    def unfold(self, fold) -> None:
        self.click(fold.toggleButton())
        self.wait(lambda: fold.content().height() > 15)
        self.qtbot.wait(400)  # it slides open: what is not there yet cannot be clicked

    def maps(self) -> list:
        return [x for x in self.viewer.layers if layers.prediction_of(x) is not None]


@pytest.fixture
def bench(make_napari_viewer, qtbot):
    return Bench(make_napari_viewer(show=True), qtbot)


@pytest.mark.slow
def test_a_slide_is_read_as_a_pathologist_reads_it(bench, sample, tmp_path, monkeypatch):
    """Open, predict a region, cancel, go on, pick genes, draw and compare regions, save, bring back, export."""
    slide_file = Path(shutil.copy(sample, tmp_path / "case.svs"))
    session, viewer = session_of(bench.viewer), bench.viewer
    bench.slide.open_slide(slide_file)
    [slide] = session.slides()
    bench.click(bench.slide.new_button)
    drawn = session.regions_of(slide)
    height, width = slide.shape
    mpp = np.array(slide.mpp)

    def box(left, top, right, bottom):
        corners = np.asarray(shapely.box(left * width, top * height, right * width, bottom * height).exterior.coords)
        return (corners[:-1, ::-1] - 0.5) * mpp

    drawn.add_polygons([box(0.05, 0.05, 0.95, 0.95)])

    # predicted where it was drawn, stopped in the middle, and gone on with
    bench.front("predict")
    predict = bench.predict
    predict.output.edit.setText(str(tmp_path / "maps"))
    predict.region.choose(drawn)
    predict.detail.setCurrentIndex(1)
    bench.click(predict.panel.run_button)
    bench.wait(lambda: bench.maps() and np.isfinite(bench.maps()[0].data).any())
    bench.wait(lambda: list((tmp_path / "maps").glob("*.partial/blocks-*/*")))  # what is seen of a block is not kept
    bench.click(predict.panel.cancel_button)
    bench.wait(lambda: not predict.panel.running)
    assert "partial" in bench.maps()[0].name
    bench.click(predict.panel.run_button)
    bench.wait(lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()
    assert "from before" in predict.panel.status.text()
    [heat] = bench.maps()
    assert "partial" not in heat.name
    prediction = layers.prediction_of(heat)
    assert not np.isnan(prediction.values("ERBB2")).any()

    # a gene by its other name, and two parts compared
    bench.front("explore")
    explore = bench.explore
    bench.qtbot.keyClicks(explore.search, "HER2")
    bench.qtbot.keyClick(explore.search, Qt.Key.Key_Return)
    bench.wait(lambda: explore.gene() == "ERBB2")
    explore.search.clear()
    drawn.data = [box(0.05, 0.05, 0.5, 0.95), box(0.5, 0.05, 0.95, 0.95)]
    drawn.features = {"name": ["left", "right"]}
    bench.unfold(explore.region_fold)
    explore.regions.shapes.choose(drawn)
    bench.wait(lambda: explore.regions.table.rowCount() == 2)
    with bench.qtbot.waitSignal(explore.regions.ranked, timeout=WAIT_MS):
        bench.click(explore.regions.rank_button)
    best = explore.genes.data(explore.genes.index(0, 0))
    bench.wait(lambda: layers.gene_of(heat) == best)
    bench.unfold(explore.compare_fold)
    bench.click(explore.compare.beside_button)

    # saved, closed, and back
    bench.click(explore.compare.beside_button)
    heat.contrast_limits = (0.5, 2.0)
    bench.slide.sessions.save(tmp_path / "case.peka.json")
    viewer.layers.clear()
    bench.slide.sessions.open(tmp_path / "case.peka.json")
    bench.wait(lambda: bench.slide.sessions.said.text() == "all is back")
    [heat] = bench.maps()
    assert layers.gene_of(heat) == best
    assert heat.contrast_limits == [0.5, 2.0]
    [slide] = session.slides()
    drawn = session.regions_of(slide)
    assert drawn.features["name"].tolist() == ["left", "right"]

    # and out, for scanpy
    explore.map.choose(heat)
    path = tmp_path / "case.h5ad"
    prediction = layers.prediction_of(heat)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(path), ""))
    bench.unfold(explore.fold)
    panel = explore.exports.panel
    bench.click(panel.run_button)
    bench.wait(lambda: not panel.running)
    assert "written" in panel.status.text(), panel.error.text()
    table = anndata.read_h5ad(path)
    assert set(table.obs["annotation"].astype(str)) >= {"left", "right"}
    np.testing.assert_allclose(np.asarray(table[:, best].X).ravel(), prediction.values(best), rtol=1e-3)


@pytest.mark.slow
def test_a_model_is_learnt_used_and_checked_as_a_biologist_does(bench, shared_data, tmp_path, monkeypatch):
    """Add real sections, train two epochs with one left out, use the model on it, check it, write the report."""
    st, session = shared_data / "st", session_of(bench.viewer)
    train = bench.train
    bench.front("train")
    train.sections.add([st / f"{name}.tsv.gz" for name in ("C2", "C3", "C5")])
    bench.wait(lambda: not train.sections.busy)
    assert [s.section.section_id for s in session.sections()] == ["C2", "C3", "C5"]
    form = train.form
    form.encoder.setCurrentIndex(form.encoder.findData("tiny-random"))
    form.folder.edit.setText(str(tmp_path / "models"))
    form.epochs.setValue(2)
    box = form.hold_out
    box.setCurrentIndex(next(i for i in range(box.count()) if "C5 for good" in box.itemText(i)))
    bench.click(train.panel.run_button)
    bench.wait(lambda: not train.panel.running and not train._checking.busy)
    assert train.panel.error.isHidden(), train.panel.error.text()
    bench.click(train.outcome.use_button)
    assert bench.predict.model.model() == session.model == str(form.output())

    # the slide that was left out
    bench.front("slide")
    section = session.sections()[2].section
    bench.slide.open_slide(section.slide.path)
    bench.wait(lambda: session.slides())
    bench.slide.mpp.setValue(float(np.mean(section.slide.mpp)))
    bench.click(bench.slide.set_button)
    bench.front("predict")
    predict = bench.predict
    predict.output.edit.setText(str(tmp_path / "maps"))
    bench.click(predict.panel.run_button)
    bench.wait(lambda: not predict.panel.running)
    assert predict.panel.error.isHidden(), predict.panel.error.text()

    bench.front("check")
    check = bench.check
    check.open_section(st / "C5.tsv.gz")
    bench.wait(lambda: check.check is not None and "never saw" in check.form.about.text())
    assert len(session.sections()) == 3
    gene = check.check.genes[0]
    check.pick(gene)
    bench.wait(lambda: session.gene == gene)
    with bench.qtbot.waitSignal(check.form.panel.succeeded, timeout=WAIT_MS):
        bench.click(check.form.panel.run_button)
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", opened.append)
    bench.click(check.form.open_report)
    assert "C5" in Path(opened[0].toLocalFile()).read_text()


def test_all_docks_share_one_window(bench):
    """Nothing is open: each says what to do, in its width."""
    for name in DOCKS:
        dock = getattr(bench, name)
        assert dock.maximumWidth() <= 350
    assert "Open a slide" in bench.slide.about.text()
    assert "Predict a map or open a result" in bench.explore.about.text()
