"""The dock *Check against spots* through its story on a real section; a window is needed (Xvfb will do)."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import sys

import numpy as np
import pytest
import tifffile

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")
pytest.importorskip("pytestqt")
pytest.importorskip("pyqtgraph")
if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
    pytest.skip("no display; run under: xvfb-run -a python -m pytest", allow_module_level=True)

from qtpy.QtCore import QRectF, Qt
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog
from scipy import stats

import napari_peka as peka
from napari_peka.core.doubt import PROBABILITIES, Intervals
from napari_peka.gui import layers, map_layers, region_layers, spot_layers
from napari_peka.gui.calibration_panel import NO_INTERVALS
from napari_peka.gui.check_form import NO_MAP, NO_SPOTS, WHOLE
from napari_peka.gui.check_genes import CHECK_MEASURES, DISAGREEMENT, GENE, SHARE, TRUST, VALUE, WITHIN
from napari_peka.gui.check_widget import CheckWidget
from napari_peka.gui.choosers import DOCK_WIDTH
from napari_peka.gui.session import session_of
from napari_peka.gui.spot_layers import DIFFERENCE, KINDS, MEASURED, PREDICTED
from napari_peka.gui.spot_view import SIDE_BY_SIDE
from napari_peka.io.prediction import doubt_record
from napari_peka.io.store import save_result
from napari_peka.workflows import check_report

WAIT_MS = 60_000
CERTAIN = "this slide is less certain than the model thinks"
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")


@pytest.fixture(scope="module")
def st(shared_data, tmp_path_factory):
    """C4 and C5, the image of C5 as a tiled TIFF: a JPEG is decoded as a whole by each test that opens it."""
    folder = tmp_path_factory.mktemp("st")
    for name in ("C4.jpg", "C4.tsv.gz", "C4_selection.tsv", "C5.tsv.gz", "C5_selection.tsv"):
        (folder / name).symlink_to(shared_data / "st" / name)
    with peka.open_slide(shared_data / "st" / "C5.jpg") as slide:
        image = slide.read_level(0, 0, 0, *slide.shape)
    with tifffile.TiffWriter(folder / "C5.tif") as writer:
        for factor in (1, 4, 16):
            level = np.ascontiguousarray(image[::factor, ::factor])
            writer.write(
                level, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 95},
                subfiletype=int(factor > 1), metadata=None,
            )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def mpp(st):
    with peka.read_section(st / "C5.tsv.gz") as section:
        return section.slide.mpp


@pytest.fixture(scope="module")
def map_path(st, mpp, tiny_model, tmp_path_factory):
    """C5 by the tiny model: 5 genes, predicted by chance."""
    path = tmp_path_factory.mktemp("maps") / "C5.peka.zarr"
    with peka.open_slide(st / "C5.tif", mpp=mpp) as slide:
        peka.predict(slide, tiny_model, output=path, config=peka.PredictConfig(device="cpu"))
    return path


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer(show=True)


@pytest.fixture
def dock(viewer):
    return viewer.window.add_plugin_dock_widget("napari-peka", "Check against spots")[1]


def add_slide(viewer, st, mpp, name="C5.tif"):
    data, settings, _ = layers.slide_layer(peka.open_slide(st / name, mpp=mpp))
    return viewer.add_image(data, **settings)


def add_map(viewer, path, gene="ERBB2"):
    data, settings, _ = map_layers.heatmap_layer(peka.read_prediction(path), gene)
    return viewer.add_image(data, **settings)


def wait_for(qtbot, condition) -> None:
    qtbot.waitUntil(condition, timeout=WAIT_MS)


def quiet(dock) -> bool:
    asides = (dock._opening, dock._checking, dock._looking, dock._doubting, dock._scoring, dock._holding)
    timers = (dock._settle, dock._shape, dock._tidy)
    return not any(a.busy for a in asides) and not any(t.isActive() for t in timers)


def settle(qtbot, dock) -> None:
    wait_for(qtbot, lambda: quiet(dock))


@pytest.fixture
def ready(viewer, dock, qtbot, st, mpp, map_path) -> CheckWidget:
    """The dock with slide, map and spots."""
    add_slide(viewer, st, mpp)
    add_map(viewer, map_path)
    dock.open_section(st / "C5.tsv.gz")
    wait_for(qtbot, lambda: dock.check is not None)
    settle(qtbot, dock)
    return dock


def values(dock, gene, rows=None):
    check = dock.check
    rows = check.inside if rows is None else rows & check.inside
    return check.measured(gene)[rows].astype(float), check.predicted(gene)[rows].astype(float)


def test_what_is_missing_is_said(viewer, dock, qtbot, st, mpp, map_path):
    assert dock.width() <= DOCK_WIDTH
    assert dock.form.about.text() == NO_MAP
    assert not dock.form.open_button.isEnabled()
    assert not dock.form.panel.run_button.isEnabled()
    add_slide(viewer, st, mpp)
    add_map(viewer, map_path)
    assert dock.form.about.text() == NO_SPOTS
    dock.open_section(st / "C4.tsv.gz")
    wait_for(qtbot, lambda: bool(dock.error))
    assert "C4 was measured on C4.jpg, and the map was predicted on C5.tif" in dock.error
    assert dock.form.error.text() == dock.error
    assert dock.check is None
    assert session_of(viewer).sections() == []
    dock.open_section(st / "none.h5ad")
    wait_for(qtbot, lambda: "none.h5ad" in dock.error)
    assert dock.form.about.text() == NO_SPOTS


def test_every_widget_says_what_it_is(ready):
    form = ready.form
    for widget in (
        form.map, form.section, form.open_button, form.search, form.order, form.colours, form.shapes, form.within,
        form.outline, form.scatter.plot, form.calibration.plot, form.calibration.fit.run_button, form.panel.run_button,
        form.open_report, *form.choices,
    ):  # fmt: skip
        assert widget.toolTip(), widget


def test_spots_lie_where_they_were_measured(ready, viewer, st):
    """Measured, predicted and difference, as large as the spots are, on one scale and in one unit."""
    check = ready.check
    measured, predicted, difference = (ready.spots.layer(kind) for kind in KINDS)
    assert measured.name == "measured ERBB2 (log1p CP10K)"
    np.testing.assert_allclose(measured.data, (check.centre_yx - 0.5) * check.prediction.tiles.slide_mpp)
    np.testing.assert_allclose(measured.size, 100, rtol=1e-3)  # µm, as the maker says
    assert measured.face_contrast_limits == predicted.face_contrast_limits
    low, high = difference.face_contrast_limits
    assert low == -high
    np.testing.assert_array_equal(difference.shown, check.inside)
    assert [ready.spots.layer(k).visible for k in KINDS] == [True, False, False]
    assert viewer.layers.selection.active is measured
    # what hovering over the first spot on the map says
    row = int(np.flatnonzero(check.inside)[0])
    said = measured.get_status(tuple(measured.data_to_world(measured.data[row])), world=True)["coordinates"]
    assert all(f"{kind}: " in said for kind in ("spot", *KINDS))
    assert f"{check.measured('ERBB2')[row]:.3g}" in said
    # the map is put aside: it would colour the ground
    assert not next(x for x in viewer.layers if layers.prediction_of(x)).visible


def test_the_gene_is_the_sessions(ready, viewer, qtbot):
    session = session_of(viewer)
    assert session.gene == "ERBB2"
    session.gene = "KRT8"
    settle(qtbot, ready)
    assert ready.gene() == "KRT8"
    assert "KRT8" in ready.spots.layer(MEASURED).name
    row = ready.form.genes.row_of(ready.check.index("MKI67"))
    ready.form.table.selectRow(row)
    wait_for(qtbot, lambda: session.gene == "MKI67")
    settle(qtbot, ready)
    assert "MKI67" in ready.spots.layer(DIFFERENCE).name
    ready.pick("NOPE")
    assert "does not know the gene 'NOPE'" in ready.error
    ready.pick("col1a1")
    assert session.gene == "COL1A1"
    assert ready.error == ""
    session.gene = "a gene of another model"
    assert ready.gene() == "COL1A1"


def test_genes_are_ordered_and_searched(ready, qtbot):
    check, form = ready.check, ready.form
    table = check.scores()
    assert form.genes.listed() == list(table["pcc"].sort_values(ascending=False).index)
    form.order.setCurrentText(DISAGREEMENT)
    settle(qtbot, ready)
    assert form.genes.listed() == list(table["rmse"].sort_values(ascending=False).index)
    form.order.setCurrentText(SHARE)
    settle(qtbot, ready)
    best = form.genes.listed()[0]
    expected = table.loc[best, "pcc"] / check.attainable(genes=[best])[0]
    shown = form.genes.index(0, 1).data()
    assert abs(int(shown.rstrip("%")) - 100 * expected) < 3  # halves are drawn anew
    for name in CHECK_MEASURES:
        form.order.setCurrentText(name)
        settle(qtbot, ready)
        assert form.genes.index(0, 1).data() != "–"
    qtbot.keyClicks(form.search, "krt")
    assert form.genes.listed() == ["KRT8"]
    qtbot.keyClick(form.search, Qt.Key.Key_Return)
    settle(qtbot, ready)
    assert ready.gene() == "KRT8"
    form.search.clear()
    qtbot.keyClicks(form.search, "ERBB9")
    assert not form.genes.listed()
    assert "did you mean ERBB2" in form.error.text()
    form.search.clear()
    assert form.error.isHidden()


def test_numbers_follow_a_drawn_region(ready, viewer, qtbot):
    form, check, gene = ready.form, ready.check, "COL1A1"
    ready.pick(gene)
    settle(qtbot, ready)
    pcc = stats.pearsonr(*values(ready, gene))[0]
    assert f"PCC {pcc:.2f}" in form.numbers.text()
    assert f"over {int(check.inside.sum())} spots" in form.numbers.text()
    assert "attainable 0." in form.numbers.text()
    assert len(form.scatter._dots.data) == check.inside.sum()
    places = ready.spots.layer(MEASURED).data
    low, middle = places.min(0) - 10, np.median(places, 0) + 10
    shapes = viewer.add_shapes(name="drawn")
    form.shapes.choose(shapes)
    shapes.add_rectangles(np.array([low, middle]))
    wait_for(qtbot, lambda: form.within.count() == 2)
    assert form.within.itemText(0) == WHOLE
    form.within.setCurrentIndex(1)
    settle(qtbot, ready)
    rows = ((places >= low) & (places <= middle)).all(1)
    assert 10 < (rows & check.inside).sum() < check.inside.sum()
    assert f"over {(rows & check.inside).sum()} spots in region 1" in form.numbers.text()
    assert f"PCC {stats.pearsonr(*values(ready, gene, rows))[0]:.2f}" in form.numbers.text()
    assert len(form.scatter._dots.data) == (rows & check.inside).sum()
    at = form.genes.row_of(check.index(gene))
    assert form.genes.index(at, 1).data() == f"{check.scores(rows).loc[gene, 'pcc']:.2f}"
    # made larger: the numbers follow by themselves
    shapes.data = [np.array([low, (low[0], 1e5), (1e5, 1e5), (1e5, low[1])])]
    wait_for(qtbot, lambda: f"over {int(check.inside.sum())} spots in region 1" in form.numbers.text())
    viewer.layers.remove(shapes)
    settle(qtbot, ready)
    assert form.within.currentText() == WHOLE
    assert f"PCC {pcc:.2f}" in form.numbers.text()


def test_one_colour_scale(ready, qtbot):
    measured, predicted, difference = (ready.spots.layer(kind) for kind in KINDS)
    before = difference.face_contrast_limits
    predicted.face_contrast_limits = (0.5, 1.5)  # by a script
    assert tuple(measured.face_contrast_limits) == (0.5, 1.5)
    assert ready.form.colours.value() == (0.5, 1.5)
    ready.form.colours.setValue((0.25, 1.25))  # by hand
    assert tuple(measured.face_contrast_limits) == tuple(predicted.face_contrast_limits) == (0.25, 1.25)
    assert "0.25 to 1.25" in ready.form.scale.text()
    assert difference.face_contrast_limits == before
    rows = np.flatnonzero(ready.check.inside)
    m, p = ready.check.measured("ERBB2"), ready.check.predicted("ERBB2")
    high_m, high_p = rows[m[rows] >= 1.25], rows[p[rows] >= 1.25]
    if len(high_m) and len(high_p):  # the top of the scale is one colour in both
        np.testing.assert_allclose(measured.face_color[high_m[0]], predicted.face_color[high_p[0]])


def test_one_at_a_time_or_side_by_side(ready, viewer, qtbot):
    own = {kind: ready.spots.layer(kind) for kind in KINDS}
    zoom = viewer.camera.zoom
    for i, kind in enumerate(KINDS):
        ready.form.choices[i].click()
        assert [k for k in KINDS if own[k].visible] == [kind]
    shapes = viewer.add_shapes([[[0, 0], [0, 100], [100, 100]]], shape_type="polygon")
    ready.form.choices[3].click()
    assert ready.form.choices[3].text() == SIDE_BY_SIDE
    assert viewer.grid.enabled
    assert all(layer.visible for layer in own.values())
    assert not shapes.visible
    fields = [viewer.grid.position(viewer.layers.index(x), viewer.layers) for x in own.values()]
    assert fields == [(0, 1), (1, 0), (1, 1)]
    ready.form.choices[0].click()
    assert not viewer.grid.enabled
    assert shapes.visible
    assert viewer.camera.zoom == zoom


def test_spots_are_marked_both_ways(ready, qtbot):
    check, form = ready.check, ready.form
    m, p = check.measured("ERBB2"), check.predicted("ERBB2")
    x, y = float(np.nanmedian(m)), float(np.nanmedian(p))
    form.scatter._box.dragged.emit(QRectF(x, y, 100, 100))
    expected = set(np.flatnonzero((m >= x) & (p >= y)).tolist())
    assert expected
    for kind in KINDS:
        layer = ready.spots.layer(kind)
        assert set(layer.selected_data) == expected
        assert layer.border_width[min(expected)] > layer.border_width[min(set(range(len(check))) - expected)]
    assert len(form.scatter._marked.data) == len(expected)
    ready.spots.layer(PREDICTED).selected_data = {5, 7}  # in the viewer
    assert set(ready.spots.layer(MEASURED).selected_data) == {5, 7}
    assert len(form.scatter._marked.data) == 2
    ready.pick("KRT8")
    settle(qtbot, ready)
    assert set(ready.spots.layer(MEASURED).selected_data) == {5, 7}
    form.scatter._box.cleared.emit()
    assert not ready.spots.layer(MEASURED).selected_data


def test_errors_that_lie_together_are_outlined(ready, viewer, qtbot, monkeypatch):
    check, wrong = ready.check, "MKI67"
    assert ready.form.found.text().startswith("no place stands out")
    random = np.random.default_rng(0).normal(size=len(check))
    away = np.hypot(*(check.centre_um - np.median(check.centre_um, 0)).T)
    planted = np.where(away < 450, random - 3, random)
    monkeypatch.setattr(type(check), "residual", lambda self, gene: planted)
    ready.pick(wrong)
    settle(qtbot, ready)
    outlines = next(x for x in viewer.layers if spot_layers.is_places(x))
    places = check.places(wrong)
    assert (away[places[0].rows] < 700).all()
    assert outlines.name == "errors of MKI67 that lie together"
    assert len(outlines.data) >= len(places)
    assert f"{places[0].kind} at {len(places[0].rows)} spots" in ready.form.found.text()
    inside = region_layers.regions_of(outlines, check.prediction.tiles.slide_mpp)
    assert sum(check.rows_in(region).sum() for region in inside.values()) >= sum(len(p.rows) for p in places)
    assert ready.form.shapes.findText(outlines.name) < 0  # no region that somebody drew
    ready.form.outline.click()
    assert not any(spot_layers.is_places(x) for x in viewer.layers)
    ready.form.outline.click()
    assert any(spot_layers.is_places(x) for x in viewer.layers)


@pytest.fixture
def doubtful_path(map_path, tmp_path):
    """The same map with intervals that are far too narrow."""
    prediction = peka.read_prediction(map_path)
    p = np.array(PROBABILITIES)
    quantiles = np.repeat(stats.norm.ppf(p)[:, None] * 0.1, len(prediction.genes), 1).astype(np.float32)
    made = Intervals(p, quantiles, 0.0)
    record = prediction.record | doubt_record(made)
    return save_result(dataclasses.replace(prediction, intervals=made, record=record), tmp_path / "C5.peka.zarr").path


def test_whether_intervals_hold_is_seen_and_they_are_fitted(viewer, dock, qtbot, st, mpp, doubtful_path):
    add_slide(viewer, st, mpp)
    add_map(viewer, doubtful_path)
    dock.open_section(st / "C5.tsv.gz")
    wait_for(qtbot, lambda: dock.check is not None)
    settle(qtbot, dock)
    form, check, panel = dock.form, dock.check, dock.form.calibration
    form.holds.expand(animate=False)
    found = check.calibration()
    at = check.index("ERBB2")
    np.testing.assert_allclose([y for _, y in panel.shown()["gene"]], 100 * found.held[:, at])
    np.testing.assert_allclose([y for _, y in panel.shown()["mean"]], 100 * found.mean)
    assert [x for x, _ in panel.shown()["mean"]] == [50, 80, 90, 95]
    assert f"lie within the interval that should hold 90: {CERTAIN}" in panel.words.text()
    assert "Moran's I of that" in form.numbers.text()
    # in the table, beside the others
    form.order.setCurrentText(WITHIN)
    settle(qtbot, dock)
    row = form.genes.row_of(at)
    assert form.genes.index(row, VALUE).data() == f"{check.score('ERBB2')['coverage_90']:.0%}"
    # a region has its own
    places = dock.spots.layer(MEASURED).data
    shapes = viewer.add_shapes(name="drawn")
    form.shapes.choose(shapes)
    shapes.add_rectangles(np.array([places.min(0) - 10, np.median(places, 0) + 10]))
    wait_for(qtbot, lambda: form.within.count() == 2)
    form.within.setCurrentIndex(1)
    settle(qtbot, dock)
    part = check.calibration(check.rows_in(dock.region()))
    np.testing.assert_allclose([y for _, y in panel.shown()["mean"]], 100 * part.mean)
    np.testing.assert_allclose([y for _, y in panel.shown()["gene"]], 100 * part.held[:, at])
    form.within.setCurrentIndex(0)
    settle(qtbot, dock)
    with qtbot.waitSignal(panel.fit.succeeded, timeout=WAIT_MS):
        panel.fit.run_button.click()
    wait_for(qtbot, lambda: dock.check is not check)
    settle(qtbot, dock)
    assert dock.check.prediction is check.prediction, "the map that is shown has them"
    assert dict(panel.shown()["mean"])[90] > dict(zip((50, 80, 90, 95), 100 * found.mean))[90]
    assert CERTAIN not in panel.words.text()
    assert "that they hold here is no evidence" in panel.words.text()
    assert "left out of a fit" in panel.fit.status.text()
    assert str(doubtful_path) in panel.fit.status.text()
    assert peka.read_prediction(doubtful_path).model_intervals is not None


def test_what_was_known_of_a_gene_before_stands_beside_what_these_spots_say(viewer, dock, qtbot, st, mpp, map_path):
    """A gene that the model was not shown to predict is marked and comes last, however well it does here."""
    add_slide(viewer, st, mpp)
    heat = add_map(viewer, map_path)
    prediction = layers.prediction_of(heat)
    g = len(prediction.genes)
    pcc = np.linspace(0.3, 0.7, g).astype(np.float32)
    least = np.where(np.array(prediction.genes) == "ERBB2", 0.9, 0.1).astype(np.float32)
    head = dataclasses.replace(prediction.head, pcc=pcc, pcc_low=pcc - 0.1, pcc_high=pcc + 0.1, baseline_pcc_high=least)
    told = dataclasses.replace(prediction, head=head)
    told.record["model"]["pcc_split"] = "sections left out in turn"
    heat.metadata[layers.KEY]["prediction"] = told
    dock.open_section(st / "C5.tsv.gz")
    wait_for(qtbot, lambda: dock.check is not None)
    dock.pick("ERBB2")
    settle(qtbot, dock)
    genes = dock.form.genes
    for order in CHECK_MEASURES:
        dock.form.order.setCurrentText(order)
        settle(qtbot, dock)
        assert genes.gene_at(genes.rowCount() - 1) == dock.check.index("ERBB2")
    words = [genes.index(i, TRUST).data() for i in range(genes.rowCount())]
    assert [w.endswith("*") for w in words] == [False] * (len(words) - 1) + [True]
    assert "Before: not shown to be predicted: held-out PCC" in dock.form.numbers.text()
    assert "colour, position or chance alone reach up to 0.90" in dock.form.numbers.text()
    tip = genes.data(genes.index(0, GENE), Qt.ItemDataRole.ToolTipRole)
    assert re.search(r"PCC -?0\.\d\d on these spots\. Before: held-out PCC 0\.\d\d \(", tip)
    page = "".join(str(part) for part in check_report._gene(dock.check, "ERBB2", {}))
    assert "On data left out of training (sections left out in turn): not shown to be predicted" in page


def test_a_map_without_intervals_says_so(ready):
    assert ready.form.calibration.words.text() == NO_INTERVALS
    assert not ready.form.calibration.fit.run_button.isEnabled()
    assert ready.form.order.findText(WITHIN) < 0


def test_the_report_is_one_click(ready, viewer, qtbot, map_path, monkeypatch):
    opened = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: pytest.fail("a click is enough"))
    with qtbot.waitSignal(ready.form.panel.succeeded, timeout=WAIT_MS):
        ready.form.panel.run_button.click()
    path = map_path.parent / "C5.check" / "report.html"
    text = path.read_text("utf-8")
    assert "Check of a predicted map against measured spots" in text
    assert "ERBB2, as it was looked at" in text
    assert (path.parent / "genes.csv").exists()
    assert "the model does not say what it was trained on" in text
    ready.form.open_report.click()
    assert opened == [str(path)]


def test_a_map_that_still_grows(viewer, dock, qtbot, st, mpp, map_path):
    whole = peka.read_prediction(map_path)
    known = whole.tiles.centre_yx[:, 1] < np.median(whole.tiles.centre_yx[:, 1])
    part = np.full_like(whole.embeddings, np.nan)
    part[0] = whole.embeddings[0]  # far from the spots
    growing = peka.Prediction(whole.tiles, part, whole.head, whole.read_ok, whole.record, whole.path)
    data, settings, _ = map_layers.heatmap_layer(growing, "ERBB2")
    viewer.add_image(data, **settings)
    dock._again.setInterval(100)
    dock.open_section(st / "C5.tsv.gz")
    wait_for(qtbot, lambda: "has not reached the spots yet" in dock.form.about.text())
    assert dock.form.error.text() == ""
    growing.embeddings[known] = whole.embeddings[known]
    wait_for(qtbot, lambda: dock.check is not None and dock.spots.layer(MEASURED) is not None)
    first, layer = dock.check, dock.spots.layer(MEASURED)
    assert 0 < first.inside.sum() < 0.8 * len(first)
    wait_for(qtbot, lambda: dock.check is not first)
    growing.embeddings[:] = whole.embeddings
    wait_for(qtbot, lambda: dock.check.inside.mean() > 0.95)
    settle(qtbot, dock)
    assert not dock._again.isActive()
    assert dock.spots.layer(MEASURED) is layer
    assert layer.shown.all()
    np.testing.assert_array_equal(dock.spots.layer(PREDICTED).shown, dock.check.inside)


def test_layers_that_go_away(ready, viewer, qtbot):
    viewer.layers.remove(ready.spots.layer(PREDICTED))
    ready.form.choices[1].click()
    ready.form.choices[3].click()
    ready.spots.mark({1, 2})
    ready.pick("KRT8")  # comes back with the next gene
    settle(qtbot, ready)
    assert ready.spots.layer(PREDICTED).name == "predicted KRT8 (log1p CP10K)"
    assert set(ready.spots.layer(PREDICTED).selected_data) == {1, 2}
    ready.pick("ERBB2")
    shown = next(x for x in viewer.layers if layers.prediction_of(x))
    viewer.layers.remove(shown)  # while a gene is on its way
    settle(qtbot, ready)
    assert ready.check is None
    assert not any(spot_layers.is_any(x) for x in viewer.layers)
    assert not viewer.grid.enabled
    assert ready.form.about.text() == NO_MAP
    ready.form.choices[0].click()
    ready.form.outline.click()


def test_all_goes_at_once(ready, viewer, qtbot):
    ready.pick("KRT8")
    ready.form.order.setCurrentText(SHARE)
    viewer.layers.clear()
    settle(qtbot, ready)
    assert ready.check is None
    assert len(viewer.layers) == 0


def test_a_section_that_is_open_already_and_closed(viewer, dock, qtbot, st, mpp, map_path):
    from napari_peka.gui.session import OpenSection

    session = session_of(viewer)
    session.add_sections([OpenSection(peka.read_section(st / "C5.tsv.gz"))])
    add_map(viewer, map_path)  # its slide need not be open
    wait_for(qtbot, lambda: dock.check is not None)
    settle(qtbot, dock)
    assert dock.form.section.currentText() == "C5"
    assert dock.spots.layer(MEASURED) is not None
    session.remove_section("C5")
    settle(qtbot, dock)
    assert dock.check is None
    assert dock.form.about.text() == NO_SPOTS


def test_a_model_that_has_seen_the_section_is_said_loudly(viewer, dock, qtbot, shared_data, mpp, tmp_path):
    import shapely

    st = shared_data / "st"  # it has seen this very file
    add_slide(viewer, st, mpp, "C5.jpg")
    with peka.read_section(st / "C5.tsv.gz") as section:
        y, x = np.median(section.centre_yx, 0)
        part = shapely.box(x - 700, y - 700, x + 700, y + 700)
        config = peka.PredictConfig(device="cpu")
        path = tmp_path / "demo.peka.zarr"
        peka.predict(section.slide, peka.load_model("demo"), region=part, output=path, config=config)
    add_map(viewer, path)
    dock.open_section(st / "C5.tsv.gz")
    wait_for(qtbot, lambda: dock.check is not None)
    settle(qtbot, dock)
    assert dock.form.loud.isVisible()
    assert dock.form.loud.text() == ("The model was trained on C5: these figures say nothing of how well it predicts.")
    assert "where the map has no value" in dock.form.about.text()
    assert dock.form.genes.rowCount() == 7959


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_plot_has_the_themes_colours(ready, viewer, theme):
    from napari.utils.theme import get_theme

    viewer.theme = theme
    brush = ready.form.scatter.plot.backgroundBrush()
    assert brush.color().name() == get_theme(theme).background.as_hex(format="long")


def test_the_dock_goes_while_it_works(viewer, qtbot, st, mpp, map_path):
    add_map(viewer, map_path)
    window, dock = viewer.window.add_plugin_dock_widget("napari-peka", "Check against spots")
    dock.open_section(st / "C5.tsv.gz")
    viewer.window.remove_dock_widget(window)
    del dock, window
    gc.collect()
    session_of(viewer).gene = "KRT8"
    viewer.theme = "light"
    qtbot.wait(100)
