"""Doubt that is seen: unproven genes, hatching, fading, doubt in the map's place, and what is read under the mouse."""

from __future__ import annotations

import dataclasses
import os
import sys

import numpy as np
import pytest

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from napari.components import ViewerModel
from qtpy.QtCore import Qt

from napari_peka.core.doubt import FAINT, OUTSIDE, Intervals
from napari_peka.core.geometry import TileSpec, TileTable
from napari_peka.core.head import GeneHead
from napari_peka.gui import doubt_layers, doubt_view, growing_map, layers, map_layers, reader
from napari_peka.gui.choosers import LayerChooser
from napari_peka.gui.doubt_layers import FADED, HATCHED, MAP, NUMBER, UNLIKE, WIDTH, Doubts, Hatching
from napari_peka.gui.explore_widget import ExploreWidget
from napari_peka.gui.gene_model import MEASURES, UNPROVEN, Genes
from napari_peka.gui.gene_panel import ALL_GENES
from napari_peka.gui.here import reading
from napari_peka.gui.session import session_of
from napari_peka.gui.session_file import read_session, save_session, show_session
from napari_peka.io.prediction import RESEARCH_USE, Prediction
from napari_peka.trust.slide_qc import Line, SlideCheck

WAIT_MS = 60_000
#: GOOD and FAIR are proven; COLOUR is predicted as well as FAIR, and no better than by colour alone
GENES = ("FAIR", "COLOUR", "GOOD", "NOISE")
SIDE = 12
STRANGE = 20


def made(genes=GENES, **changes) -> Prediction:
    """A map of 12 x 12 tiles, of which everything is known; the first 20 tiles are unlike the training data."""
    tiles = TileTable.grid((64 * SIDE, 64 * SIDE), (0.5, 0.5), TileSpec(64, 0.5))
    n, g, rng = len(tiles), len(genes), np.random.default_rng(0)
    head = GeneHead(
        rng.normal(size=(8, g)).astype(np.float32), np.full(g, 9, np.float32), tuple(genes), "log1p CP10K",
        pcc=np.array([0.4, 0.45, 0.6, 0.02], np.float32)[:g], pcc_low=np.full(g, 0, np.float32),
        pcc_high=np.full(g, 0.7, np.float32), baseline_pcc_high=np.array([0.3, 0.5, 0.5, 0.1], np.float32)[:g],
    )  # fmt: skip
    ood = np.full(n, 50, np.float32)
    ood[:STRANGE] = OUTSIDE
    quantiles = np.array([-1.0, 0, 1])[:, None] * np.arange(1, g + 1)
    known = {
        "record": {"slide": {"fingerprint": "f", "name": "s", "shape": [64 * SIDE] * 2}},
        "ood": ood,
        "spread": np.linspace(1, 2, n, dtype=np.float32),
        "intervals": Intervals(np.array([0.05, 0.5, 0.95]), quantiles.astype(np.float32), 0.0),
    }
    return Prediction(tiles, rng.normal(size=(n, 8)).astype(np.float16), head, np.ones(n, bool), **(known | changes))


def show_map(viewer, prediction, gene="GOOD"):
    data, settings, _ = map_layers.heatmap_layer(prediction, gene)
    return viewer.add_image(data, **settings)


@pytest.fixture
def viewer():
    """A viewer without a window, which is made at once."""
    return ViewerModel()


@pytest.fixture
def prediction():
    return made()


@pytest.fixture
def heat(viewer, prediction):
    return show_map(viewer, prediction)


@pytest.fixture
def dock(viewer, heat, qtbot):
    made_ = ExploreWidget(viewer)
    qtbot.addWidget(made_)
    made_.resize(340, 900)
    made_.show()
    qtbot.waitUntil(lambda: HATCHED in own(heat), timeout=WAIT_MS)
    return made_


def own(heat) -> dict:
    return doubt_layers.own_layers(heat)


def listed(dock) -> list[str]:
    return [dock.genes.data(dock.genes.index(i, 0)) for i in range(dock.genes.rowCount())]


class TestGenes:
    def test_unproven_genes_are_listed_when_asked_for_and_last(self, dock):
        assert listed(dock) == ["GOOD", "FAIR"]
        assert dock.list.all_genes.isVisible()
        assert dock.list.all_genes.text() == f"{ALL_GENES} (2)"
        dock.list.all_genes.click()
        assert listed(dock) == ["GOOD", "FAIR", "COLOUR", "NOISE"]
        assert [dock.genes.data(dock.genes.index(i, 2)) for i in range(4)] == ["good", "fair", UNPROVEN, UNPROVEN]
        for column, order in ((1, Qt.SortOrder.AscendingOrder), (0, Qt.SortOrder.AscendingOrder)):
            dock.table.sortByColumn(column, order)
            assert set(listed(dock)[2:]) == {"COLOUR", "NOISE"}
        tip = dock.genes.data(dock.genes.index(2, 2), Qt.ItemDataRole.ToolTipRole)
        assert "0.45 (0.00 to 0.70)" in tip
        assert "reach up to 0.50" in tip
        dock.list.all_genes.click()
        assert dock.gene() == "GOOD"
        assert len(listed(dock)) == 2

    def test_whatever_the_order(self, dock, qtbot):
        dock.list.all_genes.click()
        for name in MEASURES:
            dock.order.setCurrentText(name)
            qtbot.waitUntil(lambda: not dock._numbers.busy, timeout=WAIT_MS)
            assert set(listed(dock)[2:]) == {"COLOUR", "NOISE"}, name

    def test_a_search_says_why_a_gene_is_not_listed(self, dock, qtbot):
        qtbot.keyClicks(dock.search, "noise")
        assert not listed(dock)
        said = dock.list.said.text()
        assert said.startswith("NOISE is not listed")
        assert "held-out PCC 0.02 (0.00 to 0.70), and colour, position or chance alone reach up to 0.10" in said
        assert ALL_GENES in said
        dock.list.all_genes.click()
        assert listed(dock) == ["NOISE"]
        assert not dock.list.said.isVisible()

    def test_a_gene_that_is_meant_is_told_among_others(self):
        genes = Genes(made(("AB", "ABC", "A", "XAB")).head)
        genes.arrange("ab", "pcc", True, all_=True)
        assert genes.head.genes[genes.rows[0]] == "AB"
        genes.arrange("abc", "pcc", True, all_=True)  # unproven, and called exactly so
        assert [genes.head.genes[i] for i in genes.rows] == ["ABC"]
        genes.arrange("a", "pcc", True, all_=True)
        assert [genes.head.genes[i] for i in genes.rows] == ["A", "AB", "ABC", "XAB"]

    def test_other_docks_may_ask_for_an_unproven_gene(self, dock, viewer, heat):
        session_of(viewer).gene = "NOISE"
        assert layers.gene_of(heat) == "NOISE"
        assert dock.list.all_genes.isChecked()
        assert "⚠ This gene was not shown to be predicted" in dock.about.text()

    def test_one_that_is_on_the_map_is_listed(self, viewer, prediction, qtbot):
        show_map(viewer, prediction, "COLOUR")
        dock = ExploreWidget(viewer)
        qtbot.addWidget(dock)
        dock.show()
        assert dock.gene() == "COLOUR"

    def test_nothing_is_held_back_where_nobody_measured(self, viewer, qtbot, heat):
        viewer.layers.clear()
        old = made(ood=None, spread=None, intervals=None)
        old.head = dataclasses.replace(old.head, baseline_pcc_high=None, pcc_low=None, pcc_high=None)
        show_map(viewer, old)
        dock = ExploreWidget(viewer)
        qtbot.addWidget(dock)
        dock.show()
        assert listed(dock) == ["GOOD", "COLOUR", "FAIR", "NOISE"]
        assert not dock.list.all_genes.isVisible()
        assert not dock.doubts.isVisible()
        assert dock.about.text().endswith("Held-out PCC 0.60, good.")
        qtbot.wait(50)
        assert len(viewer.layers) == 1

    def test_a_map_begins_with_a_proven_gene(self, prediction):
        assert map_layers.best_gene(prediction) == "GOOD"
        assert map_layers.best_gene(prediction, wish=["COLOUR", "FAIR"]) == "FAIR"
        assert map_layers.best_gene(prediction, asked="colour") == "COLOUR"
        lost = made()
        lost.head = dataclasses.replace(lost.head, baseline_pcc_high=np.ones(4, np.float32))
        assert map_layers.best_gene(lost) == "GOOD", "where none is proven, the best of them"


class TestLegend:
    def test_under_the_gene(self, dock):
        said = dock.about.text()
        assert "Held-out PCC 0.60 (0.00 to 0.70), good." in said
        assert "9 of 10 measured values lie within about ±4.5 log1p CP10K" in said
        share = round(100 * STRANGE / SIDE**2)
        assert f"{share} % of the tiles are unlike the training data (hatched): do not believe the map there." in said
        dock.doubts.hatch.click()
        assert "(hatched)" not in dock.about.text()
        assert "do not believe the map there" in dock.about.text()

    def test_research_use_is_always_in_view(self, dock, qtbot):
        from qtpy.QtWidgets import QLabel

        dock.resize(340, 300)
        [label] = [x for x in dock.findChildren(QLabel) if RESEARCH_USE in x.text()]
        assert label.isVisible()
        assert not label.visibleRegion().isEmpty()

    def test_research_use_in_the_dock_that_checks(self, viewer, qtbot):
        from qtpy.QtWidgets import QLabel

        from napari_peka.gui.check_widget import CheckWidget

        dock = CheckWidget(viewer)
        qtbot.addWidget(dock)
        dock.resize(340, 300)
        dock.show()
        [label] = [x for x in dock.findChildren(QLabel) if RESEARCH_USE in x.text()]
        assert not label.visibleRegion().isEmpty()


class TestHatching:
    def test_lies_on_the_strange_tiles_and_on_no_others(self, dock, heat, prediction):
        hatched = own(heat)[HATCHED]
        strange = prediction.tiles.raster((prediction.ood >= OUTSIDE).astype(np.float32)).data > 0
        for level in hatched.data:
            picture = np.asarray(level) > 0
            many = picture.shape[0] // SIDE
            if many >= 8:
                tiles = picture.reshape(SIDE, many, SIDE, many).any((1, 3))
                np.testing.assert_array_equal(tiles, strange)
        half = [[-0.5], [0.5]]  # extents are those of the pixels' centres
        edges = [x.extent.world + half * x.scale for x in (hatched, heat)]
        np.testing.assert_allclose(*edges)

    def test_parts_are_those_of_the_whole(self, prediction):
        picture = Hatching(prediction, 32)
        whole = np.asarray(picture)
        np.testing.assert_array_equal(picture[10:70, 33:200], whole[10:70, 33:200])
        np.testing.assert_array_equal(picture[5], whole[5])
        np.testing.assert_array_equal(picture[::7, 3], whole[::7, 3])
        assert picture[3, 4] == whole[3, 4]
        assert picture[4:4, :].shape == (0, whole.shape[1])
        assert set(np.unique(whole)) == {0, 1, 2}

    def test_from_afar_one_strange_tile_is_enough(self):
        told = made()
        told.ood[:] = 0
        told.ood[-1] = 100
        mask = Hatching(told, 1 / 4)._mask
        assert mask.shape == (3, 3)
        assert mask.sum() == 1
        assert mask[-1, -1]

    def test_is_no_map_and_no_slide(self, dock, viewer, heat, qtbot):
        maps = LayerChooser(viewer, lambda x: layers.prediction_of(x) is not None)
        qtbot.addWidget(maps)
        assert maps.count() == 1
        assert session_of(viewer).maps() == [layers.prediction_of(heat)]
        assert session_of(viewer).slides() == []

    def test_is_hidden_with_its_map_and_goes_with_it(self, dock, viewer, heat, qtbot):
        heat.visible = False
        assert not own(heat)[HATCHED].visible
        heat.visible = True
        assert own(heat)[HATCHED].visible
        viewer.layers.remove(heat)
        qtbot.waitUntil(lambda: len(viewer.layers) == 0, timeout=WAIT_MS)

    def test_who_takes_the_layer_away_wants_none(self, dock, viewer, heat, qtbot):
        viewer.layers.remove(own(heat)[HATCHED])
        assert not dock.doubts.hatch.isChecked()
        dock.pick("FAIR")
        qtbot.wait(50)
        assert list(viewer.layers) == [heat]
        dock.doubts.hatch.click()
        assert HATCHED in own(heat)

    def test_each_map_has_its_own(self, dock, viewer, heat, qtbot):
        clean = show_map(viewer, made(ood=np.zeros(SIDE**2, np.float32)))
        dock.map.choose(clean)
        qtbot.wait(50)
        assert not own(clean)
        assert "No tile is unlike the training data." in dock.about.text()
        dock.doubts.fade.click()
        dock.map.choose(heat)
        assert not dock.doubts.fade.isChecked()
        assert FADED not in own(heat)
        assert own(heat)[HATCHED] in viewer.layers

    def test_lies_above_a_blend(self, dock, viewer, heat):
        dock.compare.put(0, "GOOD")
        dock.compare.put(1, "FAIR")
        dock.compare.blend_button.click()
        assert not heat.visible
        assert own(heat)[HATCHED].visible
        assert viewer.layers[-1] is own(heat)[HATCHED]

    def test_grows_with_its_map(self, viewer, tmp_path):
        whole = made()
        part = made(record=whole.record | {"partial": "some"})
        part.ood[:], part.embeddings[:] = np.nan, np.nan
        slide = viewer.add_image(np.zeros((64 * SIDE, 64 * SIDE, 3), np.uint8))
        growing = growing_map.GrowingMap(viewer, slide, tmp_path / "a.peka.zarr")
        growing._begin(part, None)
        assert len(viewer.layers) == 2, "nothing is strange yet"
        blocks = part.tiles.blocks()
        for done, block in enumerate(blocks, 1):
            rows = slice(block.start, block.stop)
            part.ood[rows], part.embeddings[rows] = whole.ood[rows], whole.embeddings[rows]
            growing.on_block(block)
            growing.end()
            hatched = own(growing.layer)[HATCHED]
            finest = hatched.data[0]._mask
            assert finest.sum() == min(STRANGE, block.stop), done
        assert viewer.layers.index(hatched) > viewer.layers.index(growing.layer)
        # predicted once more: the new map takes the place, and nothing of the old one stays
        growing.layer.metadata[layers.KEY]["doubts"] = Doubts(fade=True)
        again = growing_map.show_map(viewer, whole, tmp_path / "a.peka.zarr")
        assert set(viewer.layers) == {slide, again, *own(again).values()}
        assert set(own(again)) == {FADED, HATCHED}


class TestFading:
    def test_doubtful_tiles_fade(self, dock, viewer, heat, prediction):
        before = heat.opacity
        dock.doubts.fade.click()
        faded = own(heat)[FADED]
        assert faded.rgb
        assert faded.opacity == before
        assert heat.opacity == 0
        assert heat.colorbar.visible
        assert list(viewer.layers) == [heat, faded, own(heat)[HATCHED]]
        y, x = prediction.tiles.grid_yx.T
        colours = heat.colormap.map(np.clip((heat.data - heat.contrast_limits[0]) / np.ptp(heat.contrast_limits), 0, 1)
                                    .ravel()).reshape(SIDE, SIDE, 4)  # fmt: skip
        # by likeness alone, for the intervals are no wider than the range of the gene's values
        prediction.intervals = Intervals(np.array([0.05, 0.95]), np.zeros((2, 4), np.float32))
        map_layers.update_heatmap(heat, prediction, "GOOD")
        shares = faded.data[y, x, 3] / 255 / colours[y, x, 3]
        np.testing.assert_allclose(shares[:STRANGE], FAINT, atol=0.03)
        np.testing.assert_allclose(shares[STRANGE:], 1, atol=0.03)
        np.testing.assert_allclose(faded.data[..., :3] / 255, colours[..., :3], atol=0.02)
        dock.doubts.fade.click()
        assert heat.opacity == before
        assert faded not in viewer.layers

    def test_follows_the_gene_and_the_colours(self, dock, heat, prediction):
        dock.doubts.fade.click()
        faded = own(heat)[FADED]
        before = faded.data.copy()
        dock.pick("FAIR")
        assert faded.name.startswith("FAIR")
        assert (faded.data != before).any()
        before = faded.data.copy()
        heat.contrast_limits = (float(np.nanmin(heat.data)), float(np.nanmin(heat.data)) + 0.1)
        assert (faded.data[..., :3] != before[..., :3]).any()
        before = faded.data.copy()
        dock.look.linear.setChecked(True)
        np.testing.assert_array_equal(faded.metadata[layers.KEY]["drawn"], heat.data)
        dock.look.smooth.setChecked(True)
        assert faded.interpolation2d == "linear"

    def test_opacity_is_that_of_what_is_seen(self, dock, heat):
        dock.doubts.fade.click()
        dock.opacity.setValue(30)
        assert own(heat)[FADED].opacity == pytest.approx(0.3)
        assert heat.opacity == 0
        heat.opacity = 0.8  # by napari's own slider
        assert own(heat)[FADED].opacity == pytest.approx(0.8)
        assert heat.opacity == 0
        dock.doubts.fade.click()
        assert heat.opacity == pytest.approx(0.8)

    def test_side_by_side_there_and_back(self, dock, viewer, heat):
        dock.doubts.fade.click()
        faded = own(heat)[FADED]
        dock.compare.put(0, "FAIR")
        dock.compare.beside_button.click()
        assert heat.opacity == 1
        assert not faded.visible
        dock.compare.beside_button.click()
        assert heat.opacity == 0
        assert faded.visible
        assert faded.opacity == pytest.approx(map_layers.OPACITY)

    def test_who_takes_the_picture_away_sees_the_map(self, dock, viewer, heat):
        dock.doubts.fade.click()
        viewer.layers.remove(own(heat)[FADED])
        assert heat.opacity == pytest.approx(map_layers.OPACITY)
        assert not dock.doubts.fade.isChecked()


class TestNumber:
    def test_side_by_side_shows_the_map_and_then_the_width_again(self, dock, viewer, heat):
        dock.doubts.shown.setCurrentText(WIDTH)
        dock.compare.put(0, "FAIR")
        dock.compare.beside_button.click()
        assert heat.visible, "the gene has a view"
        assert [x.visible for x in own(heat).values()] == [False, False], "its doubt has none"
        assert len([x for x in viewer.layers if x.visible]) == 2
        dock.compare.beside_button.click()
        assert not heat.visible
        assert [x.visible for x in own(heat).values()] == [True, True]

    def test_the_width_lies_in_the_maps_place(self, dock, viewer, heat, prediction):
        dock.doubts.shown.setCurrentText(WIDTH)
        number = own(heat)[NUMBER]
        assert not heat.visible
        assert own(heat)[HATCHED].visible
        assert number.name == "GOOD, width of the 90 % interval (log1p CP10K)"
        assert number.colorbar.visible
        lower, upper = prediction.interval("GOOD")
        np.testing.assert_allclose(number.data, prediction.tiles.raster(upper - lower).data, rtol=1e-4)
        dock.pick("FAIR")
        lower, upper = prediction.interval("FAIR")
        np.testing.assert_allclose(number.data, prediction.tiles.raster(upper - lower).data, rtol=1e-4)
        assert number.contrast_limits[1] <= np.nanmax(number.data) + 1e-4
        dock.opacity.setValue(20)
        assert number.opacity == pytest.approx(0.2)
        dock.doubts.shown.setCurrentText(UNLIKE)
        assert own(heat)[NUMBER] is number
        np.testing.assert_array_equal(number.data, prediction.tiles.raster(prediction.ood).data)
        assert number.contrast_limits == [0, 100]
        assert number.name == "unlike the training data (percentile)"
        dock.doubts.shown.setCurrentText(MAP)
        assert heat.visible
        assert number not in viewer.layers

    def test_what_a_model_cannot_tell_cannot_be_chosen(self, dock, viewer, qtbot):
        show_map(viewer, made(intervals=None))
        dock.map.setCurrentIndex(dock.map.count() - 1)
        model = dock.doubts.shown.model()
        assert [model.item(i).isEnabled() for i in range(3)] == [True, False, True]
        assert "lie within" not in dock.about.text()

    def test_a_score_has_no_width(self, dock, viewer, heat, prediction):
        dock.doubts.shown.setCurrentText(WIDTH)
        map_layers.show_score(heat, prediction, "some", ["GOOD", "FAIR"], prediction.values("GOOD"))
        doubt_view.show_doubts(viewer, heat)
        assert NUMBER not in own(heat)
        assert heat.visible
        dock.pick("GOOD")
        doubt_view.show_doubts(viewer, heat)
        assert NUMBER in own(heat)


def test_under_the_mouse(heat, prediction):
    row = 5
    y, x = prediction.tiles.grid_yx[row]
    told = reading(heat, heat.data_to_world((y, x)))
    lower, upper = (end[row] for end in prediction.interval("GOOD"))
    assert f"; 9 of 10 measured values between {lower:.3g} and {upper:.3g}; " in told
    assert "held-out PCC 0.60 (0.00 to 0.70), good" in told
    assert told.endswith("unlike the training data (99th percentile): do not believe it")
    y, x = prediction.tiles.grid_yx[-1]
    assert reading(heat, heat.data_to_world((y, x))).endswith("; 50th percentile of unlikeness")
    map_layers.set_look(heat, dataclasses.replace(map_layers.look_of(heat), linear=True))
    y, x = prediction.tiles.grid_yx[row]
    assert f"between {np.expm1(lower):.3g} and {np.expm1(upper):.3g}" in reading(heat, heat.data_to_world((y, x)))


def test_under_the_mouse_it_is_said_on_what_a_gene_was_judged(heat, prediction):
    prediction.record["model"] = {"pcc_split": "sections left out in turn, one patient"}
    told = reading(heat, heat.data_to_world(prediction.tiles.grid_yx[-1]))
    assert "held-out PCC 0.60 (0.00 to 0.70), good (sections left out in turn, one patient);" in told


class TestDropped:
    """A result that is dropped onto the window is hatched, whatever docks are open."""

    @pytest.fixture
    def dropped(self, viewer, prediction, monkeypatch):
        monkeypatch.setattr("napari_peka.io.prediction.read_prediction", lambda _: prediction)
        for data, settings, _ in reader.read_layers("s.peka.zarr"):
            viewer.add_image(data, **settings)
        return viewer.layers[0]

    def test_its_hatching_comes_with_it(self, viewer, dropped):
        assert len(viewer.layers) == 2
        assert layers.prediction_of(dropped) is not None
        assert doubt_layers.is_doubt(viewer.layers[1])

    def test_a_dock_takes_it_for_the_maps_own(self, viewer, dropped, qtbot):
        dock = ExploreWidget(viewer)
        qtbot.addWidget(dock)
        dock.show()
        qtbot.waitUntil(lambda: HATCHED in own(dropped), timeout=WAIT_MS)
        assert len(viewer.layers) == 2, "not hatched twice"
        dock.doubts.hatch.click()
        assert len(viewer.layers) == 1
        dock.doubts.hatch.click()
        assert len(viewer.layers) == 2

    def test_two_maps_have_each_their_own(self, viewer, dropped):
        other = show_map(viewer, made())
        for heat in (dropped, other):
            doubt_view.show_doubts(viewer, heat)
        assert len(viewer.layers) == 4
        assert own(dropped)[HATCHED] is not own(other)[HATCHED]

    def test_a_map_within_the_training_data_comes_alone(self, viewer, monkeypatch):
        one = made(ood=np.full(SIDE * SIDE, 50, np.float32))
        monkeypatch.setattr("napari_peka.io.prediction.read_prediction", lambda _: one)
        assert len(reader.read_layers("s.peka.zarr")) == 1


def test_the_slides_verdict_is_beside_the_map(viewer, prediction, qtbot):
    """Of a result that was opened later, too: it keeps what was known of its slide."""
    prediction.record["slide_check"] = SlideCheck((Line("focus", "bad", "Blurred.", "scan it again"),)).as_dict()
    show_map(viewer, prediction)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.show()
    assert "Not to be relied on (focus): blurred.<br>→ scan it again" in dock.verdict.text()
    assert "scan it again" in dock.verdict.toolTip()
    assert "like the training data" in dock.verdict.toolTip(), "what the map says is added"
    viewer.layers.clear()
    assert dock.verdict.isHidden()


def test_of_a_map_without_a_check_nothing_is_said(dock):
    assert dock.verdict.isHidden()


def test_choices_come_back_with_a_session(viewer, prediction, tmp_path):
    prediction.path = tmp_path / "s.peka.zarr"  # nothing lies there: the map is handed over below
    heat = show_map(viewer, prediction)
    doubt_view.show_doubts(viewer, heat, Doubts(True, False, UNLIKE))
    doubt_layers.set_opacity(heat, 0.4)
    save_session(session_of(viewer), tmp_path / "case.peka.json")
    opened = read_session(tmp_path / "case.peka.json")
    opened.maps = [(opened.said.maps[0], made(path=prediction.path), None)]
    show_session(session_of(viewer), opened)
    [later] = [x for x in viewer.layers if layers.prediction_of(x) is not None]
    assert later is not heat
    assert doubt_layers.doubts_of(later) == Doubts(True, False, UNLIKE)
    assert set(own(later)) == {FADED, NUMBER}
    assert doubt_layers.opacity_of(later) == pytest.approx(0.4)
    assert own(later)[NUMBER].visible
    assert len(viewer.layers) == 3


def test_on_a_canvas(make_napari_viewer, qtbot):
    """The hatching is seen, near by and from afar, and tiles that fade let through what is below."""
    viewer = make_napari_viewer(show=True)
    told = made()
    viewer.add_image(np.full((384, 384, 3), 255, np.uint8), name="white")
    heat = show_map(viewer, told)
    doubt_view.show_doubts(viewer, heat, Doubts(hatch=False))
    viewer.reset_view()
    y, x = told.tiles.centre_um[3]

    def look(zoom):
        viewer.camera.center, viewer.camera.zoom = (0, y, x), zoom
        qtbot.wait(50)
        middle = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
        h, w = (n // 2 for n in middle.shape[:2])
        return middle[h - 8 : h + 8, w - 8 : w + 8]

    plain = {zoom: look(zoom) for zoom in (1, 8)}
    doubt_view.show_doubts(viewer, heat, Doubts(hatch=True))
    for zoom, before in plain.items():
        changed = (np.abs(look(zoom) - before).max(-1) > 20).mean()
        assert 0.1 < changed < 0.7, zoom
    doubt_view.show_doubts(viewer, heat, Doubts(fade=True, hatch=False))
    assert look(8).mean() > plain[8].mean() + 10


@pytest.mark.parametrize("damaged", [None, [], {"fade": "yes"}, {"shown": "all"}, {"hatch": 1, "other": 2}])
def test_damaged_choices_are_as_usual(damaged):
    assert Doubts.from_json(damaged) == Doubts()
    assert Doubts.from_json(Doubts(True, False, WIDTH).as_json()) == Doubts(True, False, WIDTH)
