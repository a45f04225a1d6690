"""The dock *Slide* through its stories; a window is needed (Xvfb will do)."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

import shapely
import tifffile
from PIL import Image
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

from napari_peka import PredictConfig, load_model, plan_tiles
from napari_peka.gui import layers, region_layers
from napari_peka.gui.choosers import DOCK_WIDTH
from napari_peka.gui.places import regions_path
from napari_peka.gui.session_file import read_session, save_session, show_session
from napari_peka.gui.slide_widget import SlideWidget
from napari_peka.io.regions import regions_by_name, write_regions

WAIT_MS = 60_000
TUMOUR = shapely.Polygon([(300, 200), (900, 250), (700, 1200)])


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def svs(sample, tmp_path):
    return shutil.copy(sample, tmp_path / "case.svs")


@pytest.fixture
def dock(viewer, qtbot):
    dock = SlideWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, 600)
    dock.show()
    return dock


def wait_for(qtbot, condition) -> None:
    qtbot.waitUntil(condition, timeout=WAIT_MS)


def click(qtbot, button) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def world(slide, polygon):
    """Corners of a polygon in level-0 pixels as a person draws them, (y, x) in µm."""
    return (np.asarray(polygon.exterior.coords)[:-1, ::-1] - 0.5) * np.array(slide.mpp)


def same(a, b) -> bool:
    return a.hausdorff_distance(b) < 0.5  # of a level-0 pixel


def test_a_slide_says_what_it_is(dock, viewer, qtbot, svs):
    assert dock.about.text() == "Open a slide to begin."
    assert not dock.new_button.isEnabled()
    dock.open_slide(svs)
    text = dock.about.text()
    assert "2,220 × 2,967 px, 1.1 × 1.5 mm" in text
    assert "0.499 µm/px" in text
    assert "aperio" in text.lower()
    assert dock.mpp.value() == pytest.approx(0.499, abs=1e-3)
    assert dock.width() <= DOCK_WIDTH
    widgets = (dock.slide, dock.open_button, dock.mpp, dock.set_button, dock.tissue.shown, dock.tissue.threshold,
               dock.new_button, dock.import_button, dock.export_button, *dock.usual.values())  # fmt: skip
    assert all(w.toolTip() for w in widgets)


def test_the_tissue_is_shown_and_measured(dock, viewer, qtbot, svs):
    dock.open_slide(svs)
    dock.tissue.shown.click()
    wait_for(qtbot, lambda: len(viewer.layers) == 2)
    tissue = viewer.layers[-1]
    assert "mm²" in dock.tissue.said.text()
    assert 0.2 < float(dock.tissue.said.text().split(",")[1].split("%")[0]) / 100 < 0.8
    slide = layers.slide_of(viewer.layers[0])
    low, high = tissue.extent.world
    size = np.array(slide.shape) * slide.mpp
    np.testing.assert_allclose(high - low, size, atol=2 * max(tissue.scale))
    viewer.layers.remove(tissue)
    assert not dock.tissue.shown.isChecked()
    dock.tissue.shown.click()
    wait_for(qtbot, lambda: len(viewer.layers) == 2)
    dock.tissue.shown.click()
    assert len(viewer.layers) == 1
    assert dock.tissue.said.text() == ""


def test_the_threshold_of_tissue_is_chosen_kept_and_taken(dock, viewer, qtbot, svs, tmp_path):
    dock.open_slide(svs)
    assert dock.tissue.threshold.text() == "automatic"
    dock.tissue.shown.click()
    wait_for(qtbot, lambda: "threshold" in dock.tissue.said.text())
    usual = viewer.layers[-1].data.mean()
    dock.tissue.threshold.setValue(50)
    wait_for(qtbot, lambda: "threshold 50.0" in dock.tissue.said.text())
    assert 0 < viewer.layers[-1].data.mean() < 0.8 * usual
    slide = layers.slide_of(viewer.layers[0])
    config = PredictConfig(tissue_threshold=layers.tissue_threshold_of(viewer.layers[0]))
    model = load_model("demo")
    assert 0 < len(plan_tiles(slide, model, config)) < len(plan_tiles(slide, model))
    # it comes back with a session, and stays when the slide gets another resolution
    save_session(dock.session, tmp_path / "seen.peka.json")
    dock.mpp.setValue(0.4)
    click(qtbot, dock.set_button)
    assert dock.tissue.threshold.value() == 50
    viewer.layers.clear()
    show_session(dock.session, read_session(tmp_path / "seen.peka.json"))
    wait_for(qtbot, lambda: dock.tissue.threshold.value() == 50)


def test_regions_are_named_in_the_dock(dock, viewer, qtbot, svs):
    dock.open_slide(svs)
    slide = layers.slide_of(viewer.layers[0])
    click(qtbot, dock.new_button)
    drawn = viewer.layers[-1]
    assert dock.names.isHidden()
    drawn.add_polygons([world(slide, TUMOUR), world(slide, shapely.box(1500, 1500, 1900, 1900))])
    wait_for(qtbot, lambda: regions_path(svs).exists() and not dock._writing.busy)
    assert [dock.names.item(i).text() for i in range(dock.names.count())] == ["region 1", "region 2"]
    assert drawn.features["name"].tolist() == ["region 1", "region 2"]  # so they are told apart on the canvas
    dock.names.item(1).setText("stroma")
    assert drawn.features["name"].tolist() == ["region 1", "stroma"]
    drawn.add_polygons([world(slide, shapely.box(100, 1500, 300, 1900))])
    wait_for(qtbot, lambda: set(regions_by_name(regions_path(svs))) == {"region 1", "stroma", "region 2"})
    qtbot.mouseClick(dock.names.viewport(), Qt.MouseButton.LeftButton,
                     pos=dock.names.visualItemRect(dock.names.item(1)).center())  # fmt: skip
    assert drawn.selected_data == {1}
    middle = (np.array((1700, 1700)) - 0.5) * slide.mpp
    np.testing.assert_allclose(viewer.camera.center[-2:], middle, rtol=1e-6)


def test_of_two_slides_one_is_seen(dock, viewer, qtbot, svs, tissue_tiff):
    dock.open_slide(svs)
    click(qtbot, dock.new_button)
    first, drawn = viewer.layers[0], viewer.layers[1]
    dock.open_slide(tissue_tiff)
    second = dock.slide.layer()
    assert [first.visible, drawn.visible, second.visible] == [False, False, True]
    dock.slide.setCurrentIndex(dock.slide.findText(first.name))
    dock.slide.activated.emit(dock.slide.currentIndex())
    assert [first.visible, drawn.visible, second.visible] == [True, True, False]


def test_a_label_is_shown_only_when_asked_for(dock, viewer, qtbot, tmp_path):
    with tifffile.TiffWriter(tmp_path / "named.tif") as file:
        for name, image in (("case 7", np.full((600, 800, 3), 230)), ("label", np.full((90, 60, 3), (10, 20, 250)))):
            file.write(image.astype(np.uint8), photometric="rgb", tile=(128, 128), description=name, metadata=None)
    assert dock.beside.isHidden()
    dock.open_slide(tmp_path / "named.tif")
    assert [dock.beside.text(), len(viewer.layers)] == ["show label", 1]
    dock.beside.click()
    label = viewer.layers[-1]
    assert label.data[0, 0].tolist() == [10, 20, 250]
    low, high = label.extent.world
    np.testing.assert_allclose((high - low)[1], 200, atol=5)  # a quarter of the slide's width, above its upper edge
    assert high[0] < 0
    dock.beside.click()
    assert len(viewer.layers) == 1
    assert not dock.beside.isChecked()


def test_regions_are_saved_by_themselves_and_come_back(dock, viewer, qtbot, svs):
    dock.open_slide(svs)
    slide = layers.slide_of(viewer.layers[0])
    click(qtbot, dock.new_button)
    drawn = viewer.layers[-1]
    assert drawn.mode == "add_polygon"
    assert viewer.layers.selection.active is drawn
    click(qtbot, dock.new_button)
    assert len(viewer.layers) == 2  # one layer for all of them
    path = regions_path(slide.path)
    assert path == svs.with_name("case.regions.geojson")
    assert not path.exists()
    drawn.add_polygons([world(slide, TUMOUR)])
    wait_for(qtbot, path.exists)
    assert same(regions_by_name(path)["region 1"], TUMOUR)
    features = drawn.features.copy()
    features.loc[0, "name"] = "tumour"
    drawn.features = features
    wait_for(qtbot, lambda: "tumour" in regions_by_name(path))
    assert "1 region" in dock.regions.text()
    assert "case.regions.geojson" in dock.regions.text()
    viewer.layers.clear()
    assert dock.about.text() == "Open a slide to begin."
    dock.open_slide(svs)
    back = viewer.layers[-1]
    assert layers.is_part_of(back, "regions", layers.slide_of(viewer.layers[0]))
    assert list(back.features["name"]) == ["tumour"]
    assert same(region_layers.regions_of(back, slide.mpp)["tumour"], TUMOUR)
    # all of them deleted: the file says so too
    back.selected_data = {0}
    back.remove_selected()
    wait_for(qtbot, lambda: json.loads(path.read_text())["features"] == [])


def test_regions_are_exchanged_with_qupath(dock, viewer, qtbot, svs, tmp_path, monkeypatch):
    dock.open_slide(svs)
    slide = layers.slide_of(viewer.layers[0])
    two = shapely.MultiPolygon([shapely.box(100, 100, 200, 200), shapely.box(300, 100, 400, 250)])
    write_regions(tmp_path / "q.geojson", {"tumour": TUMOUR, "vessels": two})
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_, **__: (str(tmp_path / "q.geojson"), ""))
    click(qtbot, dock.import_button)
    drawn = viewer.layers[-1]
    assert list(drawn.features["name"]) == ["tumour", "vessels", "vessels"]
    assert "2 regions" in dock.regions.text()
    write_regions(tmp_path / "more.geojson", {"stroma": shapely.box(1000, 1000, 1500, 1400)})
    dock.bring(tmp_path / "more.geojson")
    assert set(region_layers.regions_of(viewer.layers[-1], slide.mpp)) == {"tumour", "vessels", "stroma"}
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / "out.geojson"), ""))
    click(qtbot, dock.export_button)
    wait_for(qtbot, (tmp_path / "out.geojson").exists)
    found = regions_by_name(tmp_path / "out.geojson")
    assert same(found["tumour"], TUMOUR)
    assert found["vessels"].symmetric_difference(two).area < 1
    (tmp_path / "bad.geojson").write_text("{}")
    dock.bring(tmp_path / "bad.geojson")
    assert "GeoJSON" in dock.error.text()
    assert dock.error.isVisible()


def test_a_slide_without_resolution_gets_one_and_regions_stay_on_their_tissue(dock, viewer, qtbot, tmp_path):
    Image.fromarray(np.full((800, 1000, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    dock.open_slide(tmp_path / "photo.png")
    assert "opening photo.png" in dock.about.text()
    wait_for(qtbot, lambda: len(viewer.layers) == 1)
    assert "how large a pixel is, is not known" in dock.about.text()
    click(qtbot, dock.new_button)
    assert "set its µm per pixel first" in dock.error.text()
    click(qtbot, dock.set_button)
    assert "20× is about 0.5" in dock.error.text()
    click(qtbot, dock.usual["40×"])
    click(qtbot, dock.set_button)
    assert dock.error.isHidden()
    assert "0.25 µm/px" in dock.about.text()
    assert viewer.layers[0].scale == pytest.approx((0.25, 0.25))
    click(qtbot, dock.new_button)
    slide = layers.slide_of(viewer.layers[0])
    viewer.layers[-1].add_polygons([world(slide, shapely.box(100, 200, 500, 600))])
    dock.mpp.setValue(0.5)
    click(qtbot, dock.set_button)
    slide = layers.slide_of(viewer.layers[0])
    assert slide.mpp == (0.5, 0.5)
    drawn = dock._of("regions")
    assert same(region_layers.regions_of(drawn, slide.mpp)["region 1"], shapely.box(100, 200, 500, 600))


def test_what_cannot_be_opened_is_one_sentence(dock, tmp_path):
    (tmp_path / "thesis.svs").write_text("years of work")
    dock.open_slide(tmp_path / "thesis.svs")
    assert dock.error.isVisible()
    assert "thesis.svs" in dock.error.text()
    assert "Traceback" not in dock.error.text()


def test_regions_that_cannot_be_written_are_told(dock, viewer, qtbot, svs, monkeypatch):
    dock.open_slide(svs)
    slide = layers.slide_of(viewer.layers[0])

    def full(*_):
        raise OSError(28, "No space left on device")

    click(qtbot, dock.new_button)
    monkeypatch.setattr("napari_peka.core.files.os.fsync", full)
    viewer.layers[-1].add_polygons([world(slide, TUMOUR)])
    wait_for(qtbot, lambda: "the disk is full" in dock.error.text())


def test_a_dock_that_nobody_holds_any_more_dies_quietly(viewer, qtbot, svs):
    window = viewer.window.add_dock_widget(SlideWidget(viewer))
    window.widget().open_slide(svs) if hasattr(window.widget(), "open_slide") else None
    qtbot.wait(50)
    viewer.window.remove_dock_widget(window)
    window.deleteLater()
    del window
    gc.collect()
    qtbot.wait(50)
    viewer.layers.clear()


def test_a_session_is_saved_and_comes_back(dock, viewer, qtbot, svs, monkeypatch, make_napari_viewer):
    dock.open_slide(svs)
    slide = layers.slide_of(viewer.layers[0])
    data, settings, _ = region_layers.regions_layer(slide, {"tumour": TUMOUR})
    viewer.add_shapes(data, **settings)
    qtbot.mouseClick(dock.session_fold.toggleButton(), Qt.MouseButton.LeftButton)
    wait_for(qtbot, lambda: dock.sessions.save_button.height() > 15)
    offered = []

    def choose(parent, title, start, *_):
        offered.append(start)
        return str(start), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", choose)
    click(qtbot, dock.sessions.save_button)
    assert dock.sessions.said.text() == "saved: case.peka.json"
    [path] = offered
    viewer.layers.clear()
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_, **__: (path, ""))
    click(qtbot, dock.sessions.open_button)
    wait_for(qtbot, lambda: dock.sessions.said.text() == "all is back")
    assert layers.slide_of(dock.slide.layer()).path == slide.path
    regions = [x for x in viewer.layers if layers.is_part_of(x, "regions", slide)]
    assert len(regions) == 1  # once, though the dock brings regions back too
    assert same(region_layers.regions_of(regions[0], slide.mpp)["tumour"], TUMOUR)
    dock.sessions.open(svs)
    wait_for(qtbot, lambda: "is no session of napari-peka" in dock.sessions.said.text())


def test_menus_and_palette_open_the_docks(make_napari_viewer, qtbot, svs, tmp_path, monkeypatch):
    from napari._app_model import get_app_model

    viewer = make_napari_viewer()
    chosen = {"file": str(svs)}
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_, **__: (chosen["file"], ""))
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / "a.peka.json"), ""))
    run = get_app_model().commands.execute_command
    run("napari-peka.open_slide").result()
    assert layers.slide_of(viewer.layers[0]).path == svs
    run("napari-peka.save_session").result()
    assert (tmp_path / "a.peka.json").exists()
    viewer.layers.clear()
    viewer.open(tmp_path / "a.peka.json", plugin="napari-peka")  # as by drag and drop
    assert layers.slide_of(viewer.layers[0]).path == svs


def test_spots_offer_the_size_of_a_pixel(dock, viewer, qtbot, svs):
    from napari_peka.gui.session import OpenSection, session_of
    from napari_peka.io.slide import open_slide

    class Measured:
        section_id, path = "A", None

        def __init__(self, slide):
            self.slide = slide

        def close(self):
            self.slide.close()

    dock.open_slide(svs)
    assert not dock.spots_button.isEnabled()
    session_of(viewer).add_sections([OpenSection(Measured(open_slide(svs, mpp=0.7)))])
    assert dock.spots_button.isEnabled()
    click(qtbot, dock.spots_button)
    click(qtbot, dock.set_button)
    assert layers.slide_of(dock.slide.layer()).mpp == (0.7, 0.7)
    session_of(viewer).remove_section("A")
    assert not dock.spots_button.isEnabled()


def test_loading_in_the_background_is_naparis_own_setting(dock):
    from napari.settings import get_settings

    before = get_settings().experimental.async_
    assert dock.background.isChecked() == before
    try:
        dock.background.click()
        assert get_settings().experimental.async_ != before
    finally:
        get_settings().experimental.async_ = before
