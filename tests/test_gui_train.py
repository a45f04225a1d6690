"""The dock *Train on paired sections* through its stories; a window is needed (Xvfb will do)."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
pytest.importorskip("lightning_fabric")
pytest.importorskip("sklearn")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from qtpy.QtCore import QCoreApplication, QEvent, QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDesktopServices, QDropEvent

from napari_peka.gui import layers, section_layers
from napari_peka.gui.choosers import DOCK_WIDTH
from napari_peka.gui.learning_view import spots_layer_of
from napari_peka.gui.session import session_of
from napari_peka.gui.train_widget import TrainWidget
from napari_peka.io.nudge import Nudge, apply
from napari_peka.io.sample import sample_sections
from napari_peka.models.bundle import read_bundle

WAIT_MS = 240_000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    return sample_sections(tmp_path_factory.mktemp("paired"), patients=2, sections=1, mpp=1.0, spots=(12, 12))


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def dock(viewer, qtbot, tmp_path):
    dock = TrainWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, 900)
    dock.show()
    form = dock.form
    form.encoder.setCurrentIndex(form.encoder.findData("tiny-random"))
    form.folder.edit.setText(str(tmp_path / "models"))
    form.epochs.setValue(2)
    for name, value in (("mpp", 1.0), ("precision", "fp32"), ("batch_size", 16)):
        form.advanced.set(name, value)
    yield dock
    dock.close()


def wait_for(qtbot, condition) -> None:
    qtbot.waitUntil(condition, timeout=WAIT_MS)


def click(qtbot, button) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def add(qtbot, dock, *paths) -> None:
    dock.sections.add([Path(p) for p in paths])
    wait_for(qtbot, lambda: not dock.sections.busy)


def leave_out(dock, text: str) -> None:
    box = dock.form.hold_out
    box.setCurrentIndex(next(i for i in range(box.count()) if text in box.itemText(i)))


def idle(dock) -> bool:
    return not dock.panel.running and not dock._checking.busy


def nothing_left() -> None:
    assert not multiprocessing.active_children()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("peka-")]


def test_a_whole_story(viewer, dock, qtbot, manifest, monkeypatch):
    session = session_of(viewer)
    add(qtbot, dock, manifest)
    table = dock.sections.table
    assert [table.item(i, 0).text() for i in range(2)] == [x.section.section_id for x in session.sections()]
    assert dock.maximumWidth() <= DOCK_WIDTH

    table.selectRow(0)
    click(qtbot, dock.sections.show_button)
    wait_for(qtbot, lambda: not dock.slides.busy)
    name = session.sections()[0].section.section_id
    spots = spots_layer_of(viewer, name)
    section = session.sections()[0].section
    np.testing.assert_allclose(spots.data, (section.centre_yx - 0.5) * section.slide.mpp, rtol=1e-6)
    assert session.slides()

    leave_out(dock, f"{name} for good")
    session.gene = "EOSIN2"
    click(qtbot, dock.panel.run_button)
    wait_for(qtbot, lambda: idle(dock))
    assert dock.panel.error.isHidden(), dock.panel.error.text()
    # curves: the untrained encoder, and two epochs
    curves = dock.view.curves
    assert len(curves.values("train")) == 2
    assert len(curves.values("held_out")) == 3
    assert curves.frozen.isVisible()
    assert curves.ceiling.isVisible()
    # the map: measured and predicted of the same gene on one scale, over the left-out section
    there = dock.view.layers_now()
    assert set(there) == {"measured", "predicted"}
    assert all("EOSIN2" in x.name for x in there.values())
    assert "epoch 2" in there["predicted"].name
    limits = {tuple(x.face_contrast_limits) for x in there.values()}
    assert len(limits) == 1
    np.testing.assert_allclose(there["predicted"].data, spots.data, rtol=1e-5)
    before = there["predicted"].features["value"].copy()
    assert np.ptp(before) > 0
    dock.view.gene.setCurrentIndex(dock.view.gene.findText("NUCLEI1"))
    dock.view.gene.activated.emit(dock.view.gene.currentIndex())
    assert session.gene == "NUCLEI1"
    assert "NUCLEI1" in there["predicted"].name
    assert not np.allclose(there["predicted"].features["value"], before)

    # the comparison in words, the report, the model in use
    words = dock.outcome.words.text()
    assert "The encoder untrained: PCC" in words
    assert f"{name} left out" in words
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", opened.append)
    click(qtbot, dock.outcome.report_button)
    assert Path(opened[0].toLocalFile()).exists()
    click(qtbot, dock.outcome.use_button)
    assert Path(session.model) == dock.form.output()
    assert read_bundle(Path(session.model)).spec.training["settings"]["encoder"] == "tiny-random"

    # and its head refitted on what is open
    click(qtbot, dock.refit.panel.run_button)
    wait_for(qtbot, lambda: not dock.refit.panel.running)
    assert dock.refit.panel.error.isHidden(), dock.refit.panel.error.text()
    assert "The model before: PCC" in dock.outcome.words.text()
    click(qtbot, dock.outcome.use_button)
    assert session.model.endswith("my-model-refit")
    nothing_left()


@pytest.mark.slow
def test_stop_and_keep_best_cancel_and_resume(dock, qtbot, manifest):
    add(qtbot, dock, manifest)
    leave_out(dock, "each section in turn")
    dock.form.epochs.setValue(50)
    click(qtbot, dock.panel.run_button)
    wait_for(qtbot, lambda: len(dock.view.curves.values("train")) >= 1)
    click(qtbot, dock.pause_button)
    wait_for(qtbot, lambda: dock.panel.status.text() == "paused")
    qtbot.wait(600)
    n = len(dock.view.curves.values("train"))
    qtbot.wait(800)
    assert len(dock.view.curves.values("train")) == n  # it waits
    click(qtbot, dock.pause_button)
    wait_for(qtbot, lambda: len(dock.view.curves.values("train")) > n)

    click(qtbot, dock.end_button)
    wait_for(qtbot, lambda: dock.view.part.number == 2)
    click(qtbot, dock.panel.cancel_button)
    wait_for(qtbot, lambda: idle(dock))
    assert "Resume" in dock.panel.status.text()
    assert dock.resume_button.isVisible()
    nothing_left()

    click(qtbot, dock.resume_button)
    wait_for(qtbot, lambda: idle(dock))
    assert dock.panel.error.isHidden(), dock.panel.error.text()
    assert "training was ended after" in (dock.form.output() / "report" / "report.json").read_text()
    assert dock.view.part.number == 3  # the one on all spots, of which some check it
    assert dock.resume_button.isHidden()
    click(qtbot, dock.panel.run_button)  # the model is there: said, not overwritten
    wait_for(qtbot, lambda: idle(dock))
    assert "there already" in dock.panel.error.text()
    assert dock.again_button.isVisible()


@pytest.mark.parametrize("way", [pytest.param("dock", marks=pytest.mark.slow), "viewer"])
def test_closing_in_the_middle_leaves_nothing(viewer, qtbot, manifest, tmp_path, way):
    dock = TrainWidget(viewer)
    viewer.window.add_dock_widget(dock, name="Train on paired sections")
    dock.form.encoder.setCurrentIndex(dock.form.encoder.findData("tiny-random"))
    dock.form.folder.edit.setText(str(tmp_path / "models"))
    dock.form.advanced.set("mpp", 1.0)
    dock.form.epochs.setValue(500)
    add(qtbot, dock, manifest)
    dock.run()
    curves = dock.view.curves
    wait_for(qtbot, lambda: bool(curves.values("train")))

    if way == "dock":
        viewer.window.remove_dock_widget(dock)
        dock.close()
        dock.deleteLater()
    else:
        viewer.close()
    del dock
    gc.collect()
    wait_for(qtbot, lambda: not multiprocessing.active_children())
    wait_for(qtbot, lambda: not [t for t in threading.enumerate() if t.name.startswith("peka-")])
    assert (tmp_path / "models" / "my-model.partial").is_dir()  # the work is kept
    assert not list((tmp_path / "models").glob("*.lock"))


def test_the_dock_goes_without_the_garbage_collector(viewer, qtbot):
    """What a collector frees in a thread of ours takes Qt's objects, and then the process, with it."""
    dock = TrainWidget(viewer)
    dock.show()
    gone = [weakref.ref(x) for x in (dock, dock.sections, dock.nudge, dock.form, dock.view, dock.view.curves)]
    gc.collect()
    gc.disable()
    try:
        dock.close()
        dock.deleteLater()
        del dock
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)
        assert [r() for r in gone] == [None] * len(gone)
    finally:
        gc.enable()


def test_qt_survives_a_dock_that_was_deleted(viewer, qtbot):
    """A slot freed by Qt while it was called took the process with it some events later."""
    for _ in range(3):
        dock = TrainWidget(viewer)
        viewer.window.add_dock_widget(dock, name="Train on paired sections")
        qtbot.wait(50)
        viewer.window.remove_dock_widget(dock)
        dock.close()
        dock.deleteLater()
        del dock
        gc.collect()
        qtbot.wait(300)


class TestSections:
    def test_dropped_files_are_read_and_what_cannot_be_is_said(self, viewer, dock, qtbot, manifest, tmp_path):
        wrong = tmp_path / "notes.txt"
        wrong.write_text("nothing")
        mime = QMimeData()
        outs = sorted(manifest.parent.glob("*/outs"))
        mime.setUrls([QUrl.fromLocalFile(str(p)) for p in (outs[0], wrong)])
        event = QDropEvent(
            QPointF(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
        )
        dock.sections.table.dropEvent(event)
        wait_for(qtbot, lambda: not dock.sections.busy)
        assert len(session_of(viewer).sections()) == 1
        assert "notes.txt is no section" in dock.sections.error.text()
        add(qtbot, dock, outs[0])
        assert "is open already" in dock.sections.error.text()
        add(qtbot, dock, tmp_path)
        assert "holds no section" in dock.sections.error.text()
        add(qtbot, dock, manifest.parent)  # its manifest names both, one of which is there
        assert len(session_of(viewer).sections()) == 2

    def test_a_patient_is_written_and_a_row_removed(self, viewer, dock, qtbot, manifest):
        outs = sorted(manifest.parent.glob("*/outs"))
        add(qtbot, dock, *outs)
        table, session = dock.sections.table, session_of(viewer)
        assert "nobody says whose" in dock.sections.words.text()
        assert dock.form.hold_out.findData("patient") < 0
        for i in range(2):
            table.item(i, 1).setText(f"P{i}")
        assert [x.section.patient_id for x in session.sections()] == ["P0", "P1"]
        assert dock.form.hold_out.findData("patient") >= 0
        table.selectRow(0)
        click(qtbot, dock.sections.remove_button)
        assert table.rowCount() == 1
        assert dock.form.hold_out.findData("section") < 0  # the only one has none beside it

    def test_real_sections(self, viewer, dock, qtbot, shared_data):
        add(qtbot, dock, shared_data / "st" / "C2.tsv.gz")
        table = dock.sections.table
        row = {table.horizontalHeaderItem(j).text(): table.item(0, j).text() for j in range(table.columnCount())}
        assert row["section"] == "C2"
        assert row["pitch µm"] == "200"
        assert row["µm/px"] == "0.688" or row["µm/px"].startswith("0.68")
        assert row["platform"] == "st"
        dock.show_section(dock.sections.section())
        wait_for(qtbot, lambda: not dock.slides.busy)
        assert len(spots_layer_of(viewer, "C2").data) == int(row["spots"])


class TestNudge:
    @pytest.fixture
    def opened(self, viewer, dock, qtbot, manifest):
        add(qtbot, dock, sorted(manifest.parent.glob("*/outs"))[0])
        dock.show_section(dock.sections.section())
        wait_for(qtbot, lambda: not dock.slides.busy)
        return dock

    def settled(self, qtbot, dock):
        wait_for(qtbot, lambda: not dock.nudge.busy)

    def test_spots_move_the_score_follows_and_training_would_use_it(self, viewer, opened, qtbot):
        nudge, item = opened.nudge, opened.sections.section()
        before = item.section.adata.obsm["spatial"].copy()
        start = nudge.score.text()
        nudge.down.setValue(300.0)
        nudge.degrees.setValue(20.0)
        self.settled(qtbot, opened)
        assert nudge.score.text() != start
        wanted = apply(
            Nudge((300.0, 0.0), 20.0).affine(before, item.section.slide.shape, item.section.slide.mpp), before
        )
        layer = spots_layer_of(viewer, item.section.section_id)
        mpp = np.array(item.section.slide.mpp)
        np.testing.assert_allclose(layer.data, (wanted[:, ::-1] - 0.5) * mpp, rtol=1e-5)
        nudge.down.setValue(40.0)
        nudge.degrees.setValue(2.0)
        click_apply = nudge.apply_button
        assert click_apply.isEnabled()
        nudge.apply()
        self.settled(qtbot, opened)
        assert nudge.error.isHidden(), nudge.error.text()
        item = session_of(viewer).sections()[0]
        moved = item.section.adata.obsm["spatial"]
        wanted = apply(Nudge((40.0, 0.0), 2.0).affine(before, item.section.slide.shape, tuple(mpp)), before)
        np.testing.assert_allclose(moved, wanted, atol=0.02)
        # what the training's process reads is the same
        from napari_peka.gui.section_files import asked

        with asked(item).read() as again:
            assert again.fingerprint == item.section.fingerprint
        nudge.reset()
        self.settled(qtbot, opened)
        np.testing.assert_allclose(session_of(viewer).sections()[0].section.adata.obsm["spatial"], before, atol=1e-6)

    def test_three_point_pairs(self, viewer, opened, qtbot):
        nudge, item = opened.nudge, opened.sections.section()
        mpp = np.array(item.section.slide.mpp)
        corners = item.section.centre_yx[[0, 10, 40]] * mpp
        here = viewer.add_points(corners, name="here", units=("µm", "µm"))
        there = viewer.add_points(corners + 50.0, name="there", units=("µm", "µm"))
        nudge.picked.choose(here)
        nudge.targets.choose(there)
        click_before = np.array(item.section.adata.obsm["spatial"])
        nudge.pairs_button.click()
        assert nudge.error.isHidden(), nudge.error.text()
        np.testing.assert_allclose(apply(nudge.affine(), click_before), click_before + 50.0 / mpp[::-1], atol=1e-3)
        here.data = corners[:2]
        nudge.pairs_button.click()
        assert "has 2 points" in nudge.error.text()

    def test_a_flipped_image_is_noticed_and_mended(self, viewer, opened, qtbot):
        nudge = opened.nudge
        nudge.orientation.setCurrentIndex(nudge.orientation.findText("y flipped"))
        self.settled(qtbot, opened)
        if nudge.best_button.isHidden():
            pytest.skip("the oval of tissue is too even to tell")
        nudge.best_button.click()
        self.settled(qtbot, opened)
        assert nudge.best_button.isHidden()


class TestSayings:
    def test_what_is_missing(self, dock, qtbot):
        dock.run()
        assert dock.panel.error.text() == "there is no section; add one first"
        dock.run_refit()
        assert dock.refit.panel.error.text() == "there is no section; add one first"

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("lr", "fast", "lr = 'fast' cannot be used: it must be a number"),
            ("last_blocks", "99", "last_blocks"),
            ("terms", "cosine", "is written as cosine=1"),
            ("features", "peka", "adapter = none trains nothing"),
        ],
    )
    def test_settings_that_cannot_be(self, dock, qtbot, manifest, name, value, said):
        add(qtbot, dock, sorted(manifest.parent.glob("*/outs"))[0])
        dock.form.advanced.set(name, value)
        if name == "features":
            dock.form.adapter.setCurrentIndex(dock.form.adapter.findData("none"))
        dock.run()
        wait_for(qtbot, lambda: idle(dock))
        assert said in dock.panel.error.text()
        assert not dock.form.output().with_name("my-model.partial").exists()
        assert dock.panel.run_button.isEnabled()

    def test_a_name_that_is_none(self, dock, qtbot, manifest):
        add(qtbot, dock, sorted(manifest.parent.glob("*/outs"))[0])
        dock.form.name.setText("a/b")
        dock.run()
        assert "cannot be the name of a model" in dock.panel.error.text()

    def test_how_long_it_takes(self, dock, qtbot, manifest):
        assert "once sections are open" in dock.time.text()
        add(qtbot, dock, manifest)
        leave_out(dock, "each section in turn")
        assert "3 trainings" in dock.time.text()
        assert "not measured" in dock.time.text()
        dock.measure()
        wait_for(qtbot, lambda: not dock.timing.running)
        assert "about" in dock.time.text()
        before = dock.time.text()
        dock.form.epochs.setValue(500)
        assert dock.time.text() != before
        nothing_left()


def test_layers_say_what_they_are(viewer, dock, qtbot, manifest):
    add(qtbot, dock, sorted(manifest.parent.glob("*/outs"))[0])
    dock.show_section(dock.sections.section())
    wait_for(qtbot, lambda: not dock.slides.busy)
    dock.show_section(dock.sections.section())
    assert not dock.slides.busy
    spots = [x for x in viewer.layers if section_layers.spots_of(x)]
    assert len(spots) == 1
    slide = next(s for s in map(layers.slide_of, viewer.layers) if s is not None)
    assert spots[0].metadata[layers.KEY]["spots"] == slide.fingerprint
    # the layer of a slide outlives the section
    session_of(viewer).remove_section(session_of(viewer).sections()[0].section.section_id)
    assert slide.thumbnail(64).shape[2] == 3
