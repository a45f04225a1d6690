"""What the page *First five minutes* says, done with the mouse; a window is needed (Xvfb will do)."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from PIL import Image

import hands
from hands import Answers, press, row, unfold
from napari_peka.gui import layers

PAGE = Path(__file__).resolve().parent.parent / "docs" / "first-five-minutes.md"
WAIT_S = 300
#: two regions on the sample slide, corners (y, x) in parts of its height and width: its middle, and left of it
MIDDLE = [(0.39, 0.52), (0.34, 0.79), (0.54, 0.81), (0.64, 0.58)]
LEFT = [(0.34, 0.41), (0.32, 0.51), (0.78, 0.51), (0.81, 0.36)]
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


class Desk:
    """A napari window with the docks that were opened; one that is open is brought to the front."""

    def __init__(self, viewer) -> None:
        self.viewer = viewer
        self._docks: dict[str, tuple] = {}

    def dock(self, name: str):
        if name not in self._docks:
            self._docks[name] = self.viewer.window.add_plugin_dock_widget("napari-peka", name, tabify=True)
        window, dock = self._docks[name]
        window.show()
        window.raise_()
        hands.wait(dock.isVisible, WAIT_S)
        return dock


@pytest.fixture
def desk(make_napari_viewer) -> Desk:
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1200, 900)
    return Desk(viewer)


def until(condition) -> None:
    hands.wait(condition, WAIT_S)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_the_first_five_minutes(desk, sample, tmp_path):
    viewer, svs = desk.viewer, shutil.copy(sample, tmp_path / "case.svs")

    slide = desk.dock("Slide")
    with Answers(svs):
        press(slide, "Open…")
    until(lambda: hands.says(slide, "0.499 µm/px"))
    assert row(slide, "µm per pixel").value() == pytest.approx(0.499, abs=1e-3)
    assert hands.button(slide, "Set").isEnabled()
    press(slide, "show tissue")
    until(lambda: hands.says(slide, "38% of the slide"))
    press(slide, "show tissue")

    predict = desk.dock("Predict expression")
    assert row(predict, "Slide").currentText() == "case"
    hands.choose(row(predict, "Detail"), "twice as fine")
    press(predict, "Predict")
    until(lambda: hands.says(predict, "done: "))
    [heat] = [x for x in viewer.layers if layers.prediction_of(x) is not None]
    assert np.isfinite(heat.data).sum() > 100

    explore = desk.dock("Explore expression")
    hands.find_gene(explore, "her2")
    until(lambda: hands.says(explore, "Held-out PCC 0.53 (0.42 to 0.63"))
    assert hands.button(explore, "hatch what is unlike the training data").isChecked()
    until(lambda: hands.says(explore, "of the tiles are unlike the training data (hatched)"))
    assert heat.name == "ERBB2 (log1p CP10K)"
    hands.choose(row(explore, "Trust"), "fair or better")
    genes = hands.table(explore, "Trust").model()
    hands.line(explore, "search a gene").clear()
    assert {genes.index(i, 2).data() for i in range(genes.rowCount())} == {"good", "fair"}

    slide = desk.dock("Slide")
    size = np.multiply(layers.prediction_of(heat).tiles.slide_mpp, (2967, 2220))
    for corners in (MIDDLE, LEFT):
        press(slide, "Draw…")
        hands.draw(viewer, np.array(corners) * size)
    until(lambda: hands.says(slide, "saved: case.regions.geojson"))
    explore = desk.dock("Explore expression")
    fold = unfold(explore, "Regions")
    hands.choose(row(fold, "Shapes"), "regions of case")
    table = hands.table(fold, "Region")
    until(lambda: table.model().rowCount() == 2)
    tiles = [int(table.model().index(i, 1).data()) for i in range(2)]
    assert min(tiles) >= 3
    hands.choose(row(fold, "Higher in"), "region 1")
    hands.choose(row(fold, "than in"), "region 2")
    until(lambda: hands.says(fold, "region 1 against region 2: Cohen's d"))
    press(fold, "Rank genes by difference")
    until(lambda: hands.says(fold, "Ordered by region 1 against region 2"))
    assert row(explore, "Order by").currentText() == "difference of regions"

    export = unfold(explore, "Export")
    hands.choose(row(export, "Format"), "PNG figure")
    with Answers(tmp_path / "figure.png"):
        press(export, "Export…")
    until(lambda: hands.says(export, "written: "))
    with Image.open(tmp_path / "figure.png") as figure:
        assert min(figure.size) > 300

    slide = desk.dock("Slide")
    session = unfold(slide, "Session")
    with Answers(tmp_path / "case.peka.json"):
        press(session, "Save…")
    until(lambda: hands.says(session, "saved: case.peka.json"))

    names = {x.name for x in viewer.layers}
    viewer.layers.clear()
    with Answers(tmp_path / "case.peka.json"):
        press(session, "Open…")
        until(lambda: hands.says(session, "all is back"))
    assert {x.name for x in viewer.layers} == names


def test_the_page_names_what_is_there():
    """What the page prints in bold is a button, a field, a fold or a line that the story above meets."""
    story = Path(__file__).read_text(encoding="utf-8")
    words = re.findall(r"\*\*(.+?)\*\*", PAGE.read_text(encoding="utf-8"))
    assert len(words) > 10
    assert [w for w in words if f'"{w}' not in story] == []


def test_its_pictures_are_there_in_both_themes():
    pictures = re.findall(r"\(img/([\w-]+)\.(png|gif)(#only-\w+)?\)", PAGE.read_text(encoding="utf-8"))
    assert len(pictures) > 6
    for name, ending, _ in pictures:
        assert (PAGE.parent / "img" / f"{name}.{ending}").exists(), name
