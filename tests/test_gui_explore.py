"""How a map looks, several genes at once, what is under the mouse: the dock Explore on a real map."""

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

from qtpy.QtCore import Qt

import napari_peka as peka
from napari_peka.core.blend import PALETTES, blend
from napari_peka.gui import layers, map_layers, reader, region_layers
from napari_peka.gui.explore_widget import SETTLE_MS, ExploreWidget
from napari_peka.gui.export_panel import LISTED, THIS
from napari_peka.gui.gene_model import DIFFERENCE, MEASURES
from napari_peka.gui.here import NOWHERE, reading
from napari_peka.gui.look import COLORMAPS, Look, colours
from napari_peka.gui.session import session_of
from napari_peka.gui.session_file import read_session, save_session, show_session
from napari_peka.io.figure import contrast_limits
from napari_peka.io.trust import ordinal

WAIT_MS = 60_000
pytestmark = [
    # anndata announces that its default zarr format changes
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
]


@pytest.fixture(scope="module")
def prediction(sample, tmp_path_factory):
    """The demo model's map of the embedded slide; here it holds back no gene, whatever it was shown to predict."""
    path = tmp_path_factory.mktemp("explored") / "s.peka.zarr"
    config = peka.PredictConfig(device="cpu", stride_px=112)
    with peka.open_slide(sample) as slide:
        made = peka.predict(slide, peka.load_model("demo"), output=path, config=config)
    made.head = dataclasses.replace(made.head, baseline_pcc_high=None)
    return made


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def heat(viewer, prediction):
    for data, settings, _ in reader.sample_slide_data():
        viewer.add_image(data, **settings)
    data, settings, _ = map_layers.heatmap_layer(prediction, "ERBB2")
    return viewer.add_image(data, **settings)


def explore(viewer, qtbot, height=1200) -> ExploreWidget:
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.resize(340, height)
    dock.show()
    return dock


def show_map(viewer, prediction, gene="ERBB2"):
    data, settings, _ = map_layers.heatmap_layer(prediction, gene)
    return viewer.add_image(data, **settings)


@pytest.fixture
def dock(viewer, heat, qtbot) -> ExploreWidget:
    return explore(viewer, qtbot)


def unfold(qtbot, fold, widget) -> None:
    qtbot.mouseClick(fold.toggleButton(), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: widget.height() > 15, timeout=WAIT_MS)


class TestLook:
    def test_colours_fade_and_spread(self, dock, heat, prediction, qtbot):
        unfold(qtbot, dock.look_fold, dock.look.fade)
        assert heat.colormap.colors[0, 3] < 0.2  # as usual low values fade, but are not gone
        assert heat.colormap.colors[0, 3] > 0.05
        dock.look.fade.click()
        assert heat.colormap.colors[0, 3] == 1
        dock.look.colours.setCurrentIndex(list(COLORMAPS).index("cividis"))
        np.testing.assert_allclose(heat.colormap.colors, colours("cividis", False).colors)
        dock.look.low.setValue(10)
        dock.look.high.setValue(90)
        values = prediction.values("ERBB2")
        assert heat.contrast_limits == pytest.approx(np.percentile(values[np.isfinite(values)], (10, 90)), rel=1e-4)
        assert f"colours from {heat.contrast_limits[0]:.3g}" in dock.about.text()
        dock.look.smooth.click()
        assert heat.interpolation2d == "linear"

    def test_colours_of_one_gene_are_kept_for_the_next(self, dock, heat, prediction, qtbot):
        limits = contrast_limits(prediction.values("ERBB2"))
        dock.look.locked.setChecked(True)
        dock.pick("KRT8")
        np.testing.assert_array_equal(heat.data, prediction.raster("KRT8").data)
        assert heat.contrast_limits == pytest.approx(limits)
        heat.contrast_limits = (0.1, 0.7)  # by napari's own slider
        dock.pick("CD74")
        assert heat.contrast_limits == pytest.approx((0.1, 0.7))
        dock.look.locked.setChecked(False)
        dock.pick("KRT8")
        assert heat.contrast_limits == pytest.approx(contrast_limits(prediction.values("KRT8")), rel=1e-4)

    def test_without_logarithm(self, dock, heat, prediction):
        assert dock.look.linear.text() == "linear (CP10K)"
        dock.look.linear.setChecked(True)
        wanted = np.expm1(np.maximum(prediction.raster("ERBB2").data, 0))
        np.testing.assert_allclose(heat.data, wanted, rtol=1e-5)
        assert heat.name == "ERBB2 (CP10K)"
        assert "CP10K, predicted" in dock.about.text()
        assert "log1p" not in dock.about.text().split("<br>")[1]
        dock.pick("KRT8")
        assert heat.name == "KRT8 (CP10K)"
        dock.look.linear.setChecked(False)
        np.testing.assert_array_equal(heat.data, prediction.raster("KRT8").data)

    def test_a_look_is_kept_as_json_and_damage_is_as_usual(self):
        look = Look("viridis", False, (1.0, 99.0), True, True, True)
        assert Look.from_json(look.as_json()) == look
        usual = Look()
        for damaged in (
            None,
            [],
            {"colormap": "jet"},
            {"percentiles": [90, 10]},
            {"percentiles": "x"},
            {"fade": "yes"},
        ):
            assert Look.from_json(damaged) == usual


class TestCompare:
    def test_a_blend_of_three_genes(self, dock, viewer, heat, prediction, qtbot):
        unfold(qtbot, dock.compare_fold, dock.compare.blend_button)
        qtbot.mouseClick(dock.compare.blend_button, Qt.MouseButton.LeftButton)
        assert "name a gene" in dock.compare.said.text()
        qtbot.mouseClick(dock.compare.picks[0], Qt.MouseButton.LeftButton)
        assert dock.compare.fields[0].text() == "ERBB2"
        dock.compare.put(2, "nosuchgene")
        qtbot.mouseClick(dock.compare.blend_button, Qt.MouseButton.LeftButton)
        assert "does not know the gene" in dock.compare.said.text()
        dock.compare.put(2, "cd74")
        qtbot.mouseClick(dock.compare.blend_button, Qt.MouseButton.LeftButton)
        [layer] = [x for x in viewer.layers if map_layers.is_blend_of(x, prediction)]
        assert layer.name == "ERBB2 (cyan) + CD74 (yellow)"
        assert layer.rgb
        maps = [prediction.raster(g).data for g in ("ERBB2", "CD74")]
        cyan, _, yellow = PALETTES["cyan, magenta, yellow"]
        np.testing.assert_array_equal(layer.data, blend(maps, [contrast_limits(m) for m in maps], [cyan, yellow]))
        assert not heat.visible
        np.testing.assert_allclose(layer.extent.world, heat.extent.world)
        qtbot.mouseClick(dock.compare.blend_button, Qt.MouseButton.LeftButton)
        assert sum(map_layers.is_blend_of(x, prediction) for x in viewer.layers) == 1  # another one takes its place
        [layer] = [x for x in viewer.layers if map_layers.is_blend_of(x, prediction)]
        assert [layer.visible, heat.visible] == [True, False]
        dock.pick("KRT8")  # a gene that is picked is to be seen
        assert [layer.visible, heat.visible] == [False, True]
        qtbot.mouseClick(dock.compare.blend_button, Qt.MouseButton.LeftButton)
        assert not heat.visible
        viewer.layers.remove(next(x for x in viewer.layers if map_layers.is_blend_of(x, prediction)))
        assert heat.visible

    def test_side_by_side_and_back(self, dock, viewer, heat, prediction, qtbot):
        unfold(qtbot, dock.compare_fold, dock.compare.beside_button)
        dock.compare.put(0, "ERBB2")
        dock.compare.put(1, "CD74")
        drawn = viewer.add_shapes([[[0, 0], [0, 9], [9, 9]]], shape_type="polygon", units=layers.UM)
        dock.compare.put(2, "NOSUCHGENE")
        qtbot.mouseClick(dock.compare.beside_button, Qt.MouseButton.LeftButton)
        assert "NOSUCHGENE" in dock.compare.said.text()
        assert drawn.visible
        assert not viewer.grid.enabled
        dock.compare.put(2, "")
        before, opacity, size = list(viewer.layers), heat.opacity, heat.colorbar.size
        qtbot.mouseClick(dock.compare.beside_button, Qt.MouseButton.LeftButton)
        added = [x for x in viewer.layers if x not in before]
        assert [x.name for x in added] == ["CD74, log1p CP10K"]  # ERBB2 is there already
        assert heat.opacity == 1
        assert not drawn.visible  # it would have a view of its own
        assert heat.colorbar.size < size
        dock.pick("KRT8")
        assert viewer.grid.enabled
        assert dock.map.count() == 1  # they are looked at, not chosen
        qtbot.mouseClick(dock.compare.beside_button, Qt.MouseButton.LeftButton)
        assert list(viewer.layers) == before
        assert (heat.opacity, heat.colorbar.size) == (opacity, size)
        assert heat.colorbar.position == "top_right"
        assert drawn.visible
        assert not viewer.grid.enabled

    def test_colours_add_up_and_nothing_is_transparent(self):
        full, none, nan = np.ones((1, 1)), np.zeros((1, 1)), np.full((1, 1), np.nan)
        red, green, blue = PALETTES["red, green, blue"]

        def one(*maps):
            return blend(maps, [(0, 1)] * len(maps), [red, green, blue])[0, 0].tolist()

        assert one(full, full, full) == [255, 255, 255, 255]
        assert one(full, none, none) == [255, 0, 0, 255]
        assert one(full, nan, none) == [255, 0, 0, 255]
        assert one(nan, nan, nan)[3] == 0
        assert 0 < one(none, none, none)[3] < 60
        with pytest.raises(ValueError, match="as many limits"):
            blend([full], [], [red])


class TestHere:
    def test_what_is_under_the_mouse(self, dock, viewer, heat, prediction):
        row = int(np.nanargmax(prediction.values("ERBB2")))
        viewer.cursor.position = tuple((prediction.tiles.centre_yx[row] - 0.5) * prediction.tiles.slide_mpp)
        value = prediction.values("ERBB2")[row]
        pcc = prediction.head.pcc[prediction.head.index("ERBB2")]
        assert dock.here.text().startswith(f"here: {value:.3g} log1p CP10K, ")
        assert f"held-out PCC {pcc:.2f}" in dock.here.text()
        rank = int(dock.here.text().split(", ")[1].split("th")[0].split("st")[0])
        assert rank > 95
        viewer.cursor.position = (-1e6, 0.0)
        assert dock.here.text() == NOWHERE
        heat.data = np.full_like(heat.data, np.nan)
        viewer.cursor.position = tuple((prediction.tiles.centre_yx[row] - 0.5) * prediction.tiles.slide_mpp)
        assert dock.here.text() == "no value here"
        assert reading(None, (0, 0)) == NOWHERE

    def test_places_in_an_order(self):
        assert [ordinal(n) for n in (0, 1, 2, 3, 11, 12, 13, 21, 100)] == [
            "0th", "1st", "2nd", "3rd", "11th", "12th", "13th", "21st", "100th",
        ]  # fmt: skip


def test_a_gene_is_found_by_its_other_names_and_by_its_set(dock, prediction, qtbot):
    def found() -> list[str]:
        return dock.genes.listed()

    qtbot.keyClicks(dock.search, "her2")
    assert found() == ["ERBB2"]
    dock.search.clear()
    qtbot.keyClicks(dock.search, "t cell-inflamed signature")
    assert len(found()) > 1
    assert set(found()) <= set("CCL5 CD27 CD274 CD276 CD8A CMKLR1 CXCL9 CXCR6 HLA-DQA1 HLA-DRB1 HLA-E IDO1 LAG3 NKG7 "
                               "PDCD1LG2 PSMB10 STAT1 TIGIT".split())  # fmt: skip
    dock.pick("HER2")
    assert dock.gene() == "ERBB2"


def test_the_gene_that_is_meant_comes_first(dock, prediction, qtbot):
    qtbot.keyClicks(dock.search, "p53")
    assert dock.genes.listed()[0] == "TP53"  # TP53I13 is better predicted
    qtbot.keyClick(dock.search, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: layers.gene_of(dock.map.layer()) == "TP53", timeout=WAIT_MS)
    dock.search.setText("CD74")
    assert dock.genes.listed()[0] == "CD74"
    dock.search.setText("KRT")
    begin = [g.startswith("KRT") for g in dock.genes.listed()]
    assert begin == sorted(begin, reverse=True)
    pcc = prediction.head.pcc[[prediction.head.index(g) for g in dock.genes.listed()[: sum(begin)]]]
    assert (np.diff(pcc) <= 0).all(), "among equals the best predicted first"


def test_why_nothing_is_found(dock, qtbot):
    def said() -> str:
        return dock.list.said.text() if dock.list.said.isVisible() else ""

    dock.search.setText("TP53")
    assert said() == ""
    dock.trust.setCurrentText("fair or better")
    assert said().startswith("not “fair or better”: TP53")
    assert said().endswith("choose “any” at Trust to see that all the same")
    dock.trust.setCurrentText("any")
    assert said() == ""
    dock.search.setText("PD-L1")
    assert said() == "PD-L1 is CD274, which this model does not predict"
    dock.search.setText("ER")
    assert said().startswith("ER is ESR1")
    dock.search.setText("ENSG00000141736")
    assert "by their symbols" in said()
    dock.search.setText("xyzzy")
    assert "xyzzy" in said()
    dock.search.clear()
    assert said() == ""


@pytest.mark.parametrize("first", ["session", "dock"])
def test_a_score_comes_back_with_a_session(make_napari_viewer, prediction, qtbot, tmp_path, first):
    """Docks that are open, or opened later, leave it as it was; nobody picked a gene."""

    viewer = make_napari_viewer()
    layer = show_map(viewer, prediction)
    dock = explore(viewer, qtbot)
    dock.pick("KRT8")
    viewer.cursor.position = prediction.tiles.centre_um[40]
    dock.sets.pasted.setText("CD74, HLA-DRA NOSUCH")
    with qtbot.waitSignal(dock.sets.scored, timeout=WAIT_MS):
        dock.sets.show_score()
    assert "mean z" in dock.here.text(), "what is read under the mouse is what is shown"
    save_session(session_of(viewer), tmp_path / "s.peka.json")

    again = make_napari_viewer()
    later = explore(again, qtbot) if first == "dock" else None
    show_session(session_of(again), read_session(tmp_path / "s.peka.json"))
    later = later or explore(again, qtbot)
    qtbot.wait(4 * SETTLE_MS)
    (back,) = [x for x in again.layers if layers.prediction_of(x) is not None]
    assert back.name == layer.name == "pasted genes (mean z)"
    np.testing.assert_allclose(back.data, layer.data)
    assert later.gene() is None
    assert "pasted genes" in later.about.text()
    later.search.setText("KRT")  # and stays when one only looks around
    later.search.clear()
    qtbot.wait(4 * SETTLE_MS)
    assert back.name == layer.name


def test_regions_as_boxes_with_an_effect(dock, viewer, prediction, qtbot):
    y, _ = prediction.tiles.centre_um.mean(0)
    (top, left), (bottom, right) = prediction.tiles.centre_um.min(0) - 99, prediction.tiles.centre_um.max(0) + 99
    upper, lower = ([[a, left], [a, right], [b, right], [b, left]] for a, b in ((top, y), (y + 1, bottom)))
    shapes = viewer.add_shapes(
        [upper, lower], shape_type="polygon", features={"name": ["tumour", "stroma"]}, name="drawn", units=layers.UM
    )
    unfold(qtbot, dock.region_fold, dock.regions.rank_button)
    dock.regions.shapes.choose(shapes)
    qtbot.waitUntil(lambda: set(dock.regions.boxes.shown) == {"tumour", "stroma"}, timeout=WAIT_MS)
    regions = region_layers.regions_of(shapes, prediction.tiles.slide_mpp)
    ranked = peka.compare_regions(prediction, regions["tumour"], regions["stroma"])
    dock.regions.first.setCurrentText("tumour")
    dock.regions.second.setCurrentText("stroma")
    assert f"Cohen's d {ranked['cohens_d']['ERBB2']:+.2f}" in dock.regions.effect.text()
    table = peka.region_table(prediction, regions, ["ERBB2"]).set_index("region")
    assert np.median(dock.regions.boxes.shown["tumour"]) == pytest.approx(table["median"]["tumour"], rel=1e-5)
    dock.regions.second.setCurrentText("all other tiles")
    against = peka.compare_regions(prediction, regions["tumour"])["cohens_d"]["ERBB2"]
    assert f"{against:+.2f}" in dock.regions.effect.text()
    dock.pick("KRT8")
    qtbot.waitUntil(lambda: "<b>KRT8</b>" in dock.regions.effect.text(), timeout=WAIT_MS)


def test_docks_share_the_gene(dock, viewer):
    session = session_of(viewer)
    dock.pick("KRT8")
    assert session.gene == "KRT8"
    session.gene = "CD74"  # as another dock does
    assert dock.gene() == "CD74"
    session.gene = "NOSUCHGENE"
    assert dock.gene() == "CD74"
    assert dock.error.text() == ""


def test_an_export_has_the_regions_and_a_figure_the_colours_that_are_seen(
    dock, viewer, prediction, qtbot, tmp_path, monkeypatch
):
    import anndata
    import matplotlib
    from PIL import Image
    from qtpy.QtWidgets import QFileDialog

    slide = session_of(viewer).slides()[0]
    (top, left), (bottom, right) = prediction.tiles.centre_um.min(0) - 99, prediction.tiles.centre_um.max(0) + 99
    shapes = [[[top, left], [top, right], [(top + bottom) / 2, right], [(top + bottom) / 2, left]]]
    data, settings, _ = region_layers.regions_layer(slide, {})
    regions = viewer.add_shapes(data, **settings)
    regions.add(shapes, shape_type="polygon")
    regions.features = {"name": ["upper"]}

    def press(name: str, file: str):
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / file), ""))
        dock.exports.format.setCurrentIndex(dock.exports.format.findData(name))
        with qtbot.waitSignal(dock.exports.panel.succeeded, timeout=WAIT_MS):
            dock.exports.panel.run_button.click()
        return tmp_path / file

    unfold(qtbot, dock.fold, dock.exports.panel.run_button)
    adata = anndata.read_h5ad(press("h5ad", "a.h5ad"))
    upper = adata.obs["annotation"] == "upper"
    assert 0.3 < upper.mean() < 0.7
    assert adata.obsm["spatial"][upper, 1].max() <= adata.obsm["spatial"][~upper.to_numpy(), 1].min()
    dock.look.colours.setCurrentIndex(list(COLORMAPS).index("viridis"))
    picture = np.asarray(Image.open(press("png", "a.png")).convert("RGB"), int).reshape(-1, 3)
    # the middle of the colour bar, on white: neither the tissue nor the usual colours have such a green
    middle = 255 * (0.75 * np.array(matplotlib.colormaps["viridis"](0.5)[:3]) + 0.25)
    assert (np.abs(picture - middle).sum(1) < 12).any()


def test_a_stored_result_is_opened(viewer, qtbot, tmp_path, prediction):
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.open_result(prediction.path)
    assert dock.gene() == "ERBB2"
    (_, settings, _), *_ = reader.read_layers(str(prediction.path))
    assert settings["name"] == "ERBB2 (log1p CP10K)"
    dock.open_result(tmp_path / "b.peka.zarr")
    assert "there is no result" in dock.error.text()


def test_unreadable_tiles_are_shown_on_demand(viewer, qtbot, sample, tiny_model):
    with peka.open_slide(sample) as slide:
        prediction = peka.predict(slide, tiny_model)
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    dock.show()
    show_map(viewer, prediction)
    assert not dock.unreadable.isVisible()
    viewer.layers.clear()
    prediction.read_ok[[3, 8]] = False
    prediction.embeddings[[3, 8]] = np.nan
    heat = show_map(viewer, prediction)
    assert dock.unreadable.isVisible()
    assert "2 unreadable" in dock.unreadable.text()
    qtbot.mouseClick(dock.unreadable, Qt.MouseButton.LeftButton, pos=dock.unreadable.rect().center() * 0.1)
    (shown,) = [x for x in viewer.layers if map_layers.shows_unreadable(x, prediction)]
    np.testing.assert_array_equal(np.isfinite(shown.data).sum(), 2)
    np.testing.assert_array_equal(np.isnan(shown.data) | np.isnan(heat.data), True)
    np.testing.assert_allclose(shown.extent.world, heat.extent.world)
    dock.unreadable.setChecked(False)
    assert list(viewer.layers) == [heat]


def test_a_search_begins_at_the_best_gene(viewer, qtbot, prediction):
    show_map(viewer, prediction, prediction.genes[1500])
    dock = explore(viewer, qtbot, 500)
    qtbot.keyClicks(dock.search, "c")
    assert dock.genes.rowCount() > 100
    assert dock.table.rowAt(0) == 0
    assert dock.table.height() >= 180


def test_genes_are_ordered_by_what_they_do_on_this_map(viewer, qtbot, prediction):
    heat = show_map(viewer, prediction)
    dock = explore(viewer, qtbot, 500)
    assert dock.gene() == "ERBB2"
    table = peka.gene_table(prediction)
    for name in ("spatial structure", "mean on this map", "share of attainable"):
        column = MEASURES[name].column
        dock.order.setCurrentText(name)
        wanted = table[column].sort_values(ascending=False)
        qtbot.waitUntil(
            lambda wanted=wanted: dock.genes.data(dock.genes.index(0, 0)) == wanted.index[0], timeout=WAIT_MS
        )
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


def test_a_set_of_genes_is_shown_as_a_score(viewer, qtbot, tmp_path, prediction, monkeypatch):
    import pandas as pd
    import tifffile
    from qtpy.QtWidgets import QFileDialog

    heat = show_map(viewer, prediction)
    dock = explore(viewer, qtbot, 900)
    qtbot.mouseClick(dock.set_fold.toggleButton(), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.sets.show_button.height() > 15, timeout=WAIT_MS)
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
    values = [c for c in table.columns if not c.endswith(("_lower", "_upper"))]
    assert values[-4:] == ["ERBB2", "GRB7", "STARD3", "score_HER2"]  # a table goes on from the set's genes
    image = tifffile.imread(tmp_path / "score.ome.tif")  # of what is shown, and of how unlike the training data it is
    np.testing.assert_allclose(image[0], wanted, atol=1e-5)
    np.testing.assert_array_equal(image[1:], [prediction.tiles.raster(prediction.ood).data])
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


def test_regions_have_numbers_and_genes_are_ranked_by_their_difference(viewer, qtbot, prediction):
    show_map(viewer, prediction)
    dock = explore(viewer, qtbot, 900)
    assert not dock.regions.rank_button.isEnabled()
    y, _ = prediction.tiles.centre_um.mean(0)
    (top, left), (bottom, right) = prediction.tiles.centre_um.min(0) - 99, prediction.tiles.centre_um.max(0) + 99
    upper, lower = ([[a, left], [a, right], [b, right], [b, left]] for a, b in ((top, y), (y + 1, bottom)))
    shapes = viewer.add_shapes(
        [upper, lower], shape_type="polygon", features={"name": ["tumour", ""]}, name="drawn", units=layers.UM
    )
    qtbot.mouseClick(dock.region_fold.toggleButton(), Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.regions.rank_button.height() > 15, timeout=WAIT_MS)
    dock.regions.shapes.choose(shapes)
    qtbot.waitUntil(lambda: dock.regions.table.rowCount() == 2, timeout=WAIT_MS)
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
    qtbot.waitUntil(lambda: dock.gene() == believed.index[-1], timeout=WAIT_MS)
    assert "tumour against region 2" in dock.regions.order.text()
    dock.trust.setCurrentText("any")
    assert dock.genes.rowCount() == len(effect)
    assert dock.genes.data(dock.genes.index(0, 0)) == effect.index[-1]
    dock.trust.setCurrentText("good")
    assert {dock.genes.data(dock.genes.index(i, 2)) for i in range(dock.genes.rowCount())} == {"good"}
    # a shape that is moved is looked at again
    shapes.data = [upper]
    qtbot.waitUntil(lambda: dock.regions.table.rowCount() == 1, timeout=WAIT_MS)
    viewer.layers.remove(shapes)
    assert dock.regions.table.rowCount() == 0
    assert not dock.regions.rank_button.isEnabled()


def test_a_map_is_exported_from_the_dock(viewer, qtbot, tmp_path, sample, tiny_model, monkeypatch):
    import anndata
    from qtpy.QtWidgets import QFileDialog

    with peka.open_slide(sample) as slide:
        viewer.add_image(layers.slide_layer(slide)[0], **layers.slide_layer(slide)[1])
        prediction = peka.predict(slide, tiny_model, output=tmp_path / "s.peka.zarr")
        dock = explore(viewer, qtbot, 700)
        assert not dock.exports.isEnabled()
        show_map(viewer, prediction, "KRT8")
        qtbot.mouseClick(dock.fold.toggleButton(), Qt.MouseButton.LeftButton)
        qtbot.waitUntil(lambda: dock.exports.panel.run_button.height() > 15, timeout=WAIT_MS)
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
    dock = ExploreWidget(viewer)
    qtbot.addWidget(dock)
    for path in (sample, tissue_tiff):
        with peka.open_slide(path) as slide:
            data, settings, _ = map_layers.heatmap_layer(peka.predict(slide, tiny_model), "ERBB2")
            viewer.add_image(data, **settings)
    texts = [dock.map.itemText(i) for i in range(dock.map.count())]
    assert len(texts) == 2
    assert "cmu_small_region" in texts[0]
    assert "tissue" in texts[1]
