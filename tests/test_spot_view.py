"""The layers of a check, kept in step: no window is needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import shapely

pytest.importorskip("napari", reason="napari is not installed (pip install 'napari-peka[gui]')")

from napari.components import ViewerModel

from napari_peka.gui import spot_layers
from napari_peka.gui.session import session_of
from napari_peka.gui.spot_layers import DIFFERENCE, KINDS, MEASURED, PREDICTED, Values
from napari_peka.gui.spot_view import SIDE_BY_SIDE, SpotView
from napari_peka.workflows.check_places import Place

N = 12


def check(prediction=None, section=None) -> SimpleNamespace:
    """What is read of a check: spots 300 px apart on a slide of 0.5 by 0.25 µm/px."""
    centre = np.argwhere(np.ones((3, 4))) * 300.0 + 100.5
    return SimpleNamespace(
        prediction=prediction or SimpleNamespace(tiles=SimpleNamespace(slide_mpp=(0.5, 0.25))),
        section=section or SimpleNamespace(
            spot_diameter_um=55.0, slide=SimpleNamespace(mpp=(0.5, 0.25), fingerprint="a")
        ),
        centre_yx=centre, spot_ids=tuple(f"spot {i}" for i in range(N)), unit="log1p CP10K",
    )  # fmt: skip


def values(of, gene="ERBB2", shift=0.0) -> Values:
    measured = np.arange(N, dtype=np.float32)
    predicted = measured[::-1] + np.float32(shift)
    predicted[0] = np.nan
    return Values(of, gene, measured, predicted)


@pytest.fixture
def viewer() -> ViewerModel:
    return ViewerModel()


@pytest.fixture
def view(viewer) -> SpotView:
    return SpotView(session_of(viewer).viewer)


def kinds(viewer) -> list[str | None]:
    return [spot_layers.kind_of(x) for x in viewer.layers]


def test_three_layers_on_one_scale(viewer, view):
    view.show(values(check()))
    assert kinds(viewer) == list(KINDS)
    measured, predicted, difference = viewer.layers
    np.testing.assert_allclose(measured.data[0], (50, 25))  # (100.5 − 0.5) px · (0.5, 0.25) µm/px
    assert (measured.size == 55).all()
    assert measured.face_contrast_limits == predicted.face_contrast_limits
    assert difference.face_contrast_limits[0] == -difference.face_contrast_limits[1]
    assert measured.shown.all()
    assert list(predicted.shown) == [False, *[True] * (N - 1)]
    assert [x.visible for x in viewer.layers] == [True, False, False]


def test_the_spots_that_are_seen_are_read_out(viewer, view):
    """napari's status bar tells of the active layer alone."""
    shapes = viewer.add_shapes()
    of = check()
    view.show(values(of))
    assert viewer.layers.selection.active is view.layer(MEASURED)
    said = view.layer(MEASURED).get_status((50.0, 175.0), world=True)["coordinates"]
    assert said.endswith("spot: spot 2, measured: 2, predicted: 9, difference: -7")
    view.choose(DIFFERENCE)
    assert viewer.layers.selection.active is view.layer(DIFFERENCE)
    viewer.layers.selection.active = shapes
    view.show(values(of, "KRT8"))  # another gene takes nothing away
    assert viewer.layers.selection.active is shapes
    shapes.mode = "add_polygon"
    view.choose(MEASURED)  # nor does a look while one draws
    assert viewer.layers.selection.active is shapes


def test_a_next_gene_is_shown_in_the_same_layers(viewer, view):
    of, told = check(), []
    view.limits_changed.connect(told.append)
    view.show(values(of))
    before = list(viewer.layers)
    view.show(values(of, "KRT8", shift=100))
    assert list(viewer.layers) == before
    assert before[1].name == "predicted KRT8 (log1p CP10K)"
    assert before[0].face_contrast_limits == before[1].face_contrast_limits == told[-1]
    assert told[-1][1] > 100
    np.testing.assert_allclose(before[1].features["predicted"][1:], np.arange(N)[::-1][1:] + 100)


def test_measured_and_predicted_share_limits_whoever_changes_them(viewer, view):
    view.show(values(check()))
    for kind in (MEASURED, PREDICTED):
        view.layer(kind).face_contrast_limits = (1, 2 + KINDS.index(kind))
        assert {tuple(view.layer(k).face_contrast_limits) for k in (MEASURED, PREDICTED)} == {view.limits}
        assert view.limits == (1, 2 + KINDS.index(kind))
    view.set_limits((3, 3))  # no scale
    assert view.limits == (1, 3)


def test_marks_go_to_all_layers(viewer, view):
    told = []
    view.marked.connect(told.append)
    view.show(values(check()))
    view.layer(DIFFERENCE).selected_data = {2, 3}
    assert told == [{2, 3}]
    assert all(set(x.selected_data) == {2, 3} for x in viewer.layers)
    assert viewer.layers[0].border_width[2] > viewer.layers[0].border_width[1]


def test_the_grid_is_left_as_it_was_found(viewer, view):
    other = viewer.add_image(np.zeros((4, 4)))
    hidden = viewer.add_image(np.zeros((4, 4)), visible=False)
    view.show(values(check()))
    view.choose(SIDE_BY_SIDE)
    assert viewer.grid.enabled
    assert [x.visible for x in viewer.layers] == [False, False, True, True, True]
    view.choose(PREDICTED)
    assert not viewer.grid.enabled
    assert (other.visible, hidden.visible) == (True, False)
    assert [x.visible for x in viewer.layers if spot_layers.kind_of(x)] == [False, True, False]
    view.choose(SIDE_BY_SIDE)
    view.close()
    assert list(viewer.layers) == [other, hidden]
    assert not viewer.grid.enabled
    assert other.visible


def test_another_check_takes_new_layers_and_a_grown_map_the_old_ones(viewer, view):
    first = check()
    view.show(values(first))
    before = list(viewer.layers)
    view.show(values(check(first.prediction, first.section)))
    assert list(viewer.layers) == before
    view.show(values(check()))
    assert kinds(viewer) == list(KINDS)
    assert not set(viewer.layers) & set(before)


def test_outlines_have_the_colour_of_their_sign(viewer, view):
    of = check()
    view.show(values(of))
    places = [
        Place(1, np.array([0, 1, 2]), shapely.box(0, 0, 900, 300), 1.5, 0.01),
        Place(-1, np.array([9, 10, 11]), shapely.box(0, 600, 900, 900), -1.5, 0.02),
    ]
    view.outline(of, "ERBB2", places)
    outlines = viewer.layers[-1]
    assert spot_layers.is_places(outlines)
    np.testing.assert_allclose(outlines.edge_color[0][:3] * 255, (0xB3, 0x6B, 0xFF), atol=1)
    np.testing.assert_allclose(outlines.edge_color[1][:3] * 255, (0xFF, 0x9D, 0x2E), atol=1)
    np.testing.assert_allclose(outlines.data[0].max(0), ((300 - 0.5) * 0.5, (900 - 0.5) * 0.25))
    assert list(outlines.features["measured is"]) == ["more than predicted", "less than predicted"]
    view.outline(of, "ERBB2", [])
    assert kinds(viewer) == list(KINDS)
