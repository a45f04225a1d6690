"""A slide and its map lie on each other, whichever was opened first and whoever knows the µm per pixel."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from napari.components import ViewerModel
from napari.layers import Image as Image_
from PIL import Image

import napari_peka as peka
from napari_peka.gui import layers, placing, reader, session
from napari_peka.gui.session import session_of

MPP = 0.62


@pytest.fixture(scope="module")
def case(sample, tiny_model, tmp_path_factory):
    """A picture that does not say how large a pixel is, and its map, for which somebody said it."""
    folder = tmp_path_factory.mktemp("case")
    with peka.open_slide(sample) as slide:
        Image.fromarray(slide.read_level(0, 0, 0, 1000, 1200)).save(folder / "case.png")
    with peka.open_slide(folder / "case.png", mpp=MPP) as slide:
        config = peka.PredictConfig(find_tissue=False)
        peka.predict(slide, tiny_model, output=folder / "case.peka.zarr", config=config)
    return folder


@pytest.fixture
def viewer():
    made = ViewerModel()
    session_of(made)
    return made


def open_in(viewer, path) -> None:
    for data, settings, _ in reader.read_layers(str(path)):
        viewer.add_image(data, **settings)


def both(viewer):
    slide = next(x for x in viewer.layers if layers.slide_of(x) is not None)
    heat = next(x for x in viewer.layers if layers.prediction_of(x) is not None)
    return slide, heat


@pytest.mark.parametrize("order", [("case.png", "case.peka.zarr"), ("case.peka.zarr", "case.png")])
def test_a_slide_takes_what_its_map_knows(viewer, case, order):
    changed = []
    session_of(viewer).layers_changed.connect(lambda: changed.append(1))
    for name in order:
        open_in(viewer, case / name)
    slide, heat = both(viewer)
    np.testing.assert_allclose(slide.scale[:2], MPP)
    assert layers.slide_of(slide).resolution.mpp == pytest.approx((MPP, MPP))
    tiles = layers.prediction_of(heat).tiles
    for row in (0, len(tiles) - 1):
        there = heat.data_to_world(tiles.grid_yx[row] - tiles.grid_yx.min(0))
        on_slide = slide.world_to_data(there)[:2] + 0.5
        np.testing.assert_allclose(on_slide, tiles.centre_yx[row], atol=1)
    assert changed, "docks look again"


def test_one_that_says_something_else_is_told(viewer, case, monkeypatch):
    said = []
    monkeypatch.setattr(session, "show_warning", said.append)
    open_in(viewer, case / "case.peka.zarr")
    data, settings, _ = layers.slide_layer(peka.open_slide(case / "case.png", mpp=0.25))
    slide = viewer.add_image(data, **settings)
    np.testing.assert_allclose(slide.scale[:2], 0.25)
    assert len(said) == 1
    assert "predicted at 0.62 µm per pixel, and case is shown at 0.25" in said[0]
    assert "set the µm per pixel in the dock Slide" in said[0]


def test_another_slide_stays_as_it_is(viewer, case, sample, monkeypatch):
    monkeypatch.setattr(session, "show_warning", lambda text: pytest.fail(text))
    open_in(viewer, case / "case.peka.zarr")
    open_in(viewer, sample)
    slide, _ = both(viewer)
    np.testing.assert_allclose(slide.scale[:2], 0.499)


@pytest.mark.parametrize("order", [("map", "slide"), ("slide", "map")])
def test_what_is_dropped_onto_the_window_covers_no_map(make_napari_viewer, sample, tiny_model, tmp_path, qtbot, order):
    """Napari puts what is opened last on top; a slide is opaque."""
    with peka.open_slide(sample) as slide:
        peka.predict(slide, tiny_model, output=tmp_path / "s.peka.zarr")
    paths = {"map": tmp_path / "s.peka.zarr", "slide": sample}
    window = make_napari_viewer()
    for name in order:
        window.open(str(paths[name]), plugin="napari-peka")
    qtbot.waitUntil(lambda: layers.slide_of(window.layers[0]) is not None, timeout=5000)
    qtbot.wait(50)
    assert layers.prediction_of(window.layers[1]) is not None
    assert len(window.layers) == 2


def test_nor_does_one_that_takes_its_scale_from_the_map(make_napari_viewer, case, tmp_path, qtbot):
    window = make_napari_viewer()
    window.open(str(case / "case.peka.zarr"), plugin="napari-peka")
    with peka.open_slide(case / "case.png") as slide:
        window.add_image(slide.read_level(0, 0, 0, *slide.shape))
        data, settings, _ = layers.slide_layer(peka.open_slide(case / "case.png"))
        window.add_image(data, **settings)
        placing.below_maps(window, slide)
    assert layers.slide_of(window.layers[0]).resolution.mpp == pytest.approx((MPP, MPP))
    assert layers.prediction_of(window.layers[1]) is not None


@pytest.mark.parametrize("first", ["picture", "map"])
def test_a_picture_that_napari_opened_by_itself_is_told(viewer, case, monkeypatch, first):
    """It knows no µm per pixel and never will: the map would lie beside the tissue without a word."""
    said = []
    monkeypatch.setattr(session, "show_warning", said.append)

    def picture():
        layer = Image_(np.zeros((50, 60, 3), np.uint8), rgb=True)
        layer._source = layer.source.model_copy(update={"path": str(case / "case.png")})
        viewer.add_layer(layer)

    steps = [picture, lambda: open_in(viewer, case / "case.peka.zarr")]
    for step in steps if first == "picture" else steps[::-1]:
        step()
    assert len(said) == 1, said
    assert "case.png was opened as a plain picture" in said[0]
    assert "open it in the dock Slide" in said[0]


def test_a_slide_that_is_gone_is_told(viewer, case, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(session, "show_warning", said.append)
    moved = tmp_path / "case.png"
    moved.write_bytes((case / "case.png").read_bytes())
    open_in(viewer, moved)
    moved.unlink()
    open_in(viewer, case / "case.peka.zarr")
    assert len(said) == 1
    assert "may not lie on each other, for the slide cannot be read" in said[0]
