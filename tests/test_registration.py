"""Orientations of the image's frame, and affines from point pairs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_peka.core.errors import SectionError
from napari_peka.io.registration import (
    Orientation,
    Registration,
    check_registration,
    fit_affine,
    orientations,
    read_affine,
    spearman,
    tissue_density,
)
from napari_peka.io.sample import sample_section
from napari_peka.io.section import read_section

numbers = st.floats(-1e4, 1e4, allow_nan=False)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    # twelve by sixteen: wider than high, as most scans are
    outs = sample_section(tmp_path_factory.mktemp("registration"), spots=(16, 12), mpp=1.0)
    with read_section(outs, patient="P") as section:
        yield section


def mistaken(yx: np.ndarray, shape: tuple[int, int], swapped: bool, flip_y: bool, flip_x: bool) -> np.ndarray:
    """Coordinates as somebody writes them who has the image flipped, then turned on its diagonal."""
    y, x = yx.T
    y, x = (shape[0] - y if flip_y else y), (shape[1] - x if flip_x else x)
    return np.column_stack([x, y] if swapped else [y, x])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
def test_every_flip_and_swap_is_found(section, swapped, flip_y, flip_x):
    wrong = mistaken(section.centre_yx, section.slide.shape, swapped, flip_y, flip_x)
    totals = np.asarray(section.counts.sum(1), float).ravel()
    found = check_registration(section.slide, wrong, totals, 55.0)
    right = section.registration.given
    assert found.best.on_tissue == pytest.approx(right.on_tissue)
    assert found.best.correlation == pytest.approx(right.correlation)
    if swapped or flip_y or flip_x:
        assert ("x and y swapped" in found.best.name) == swapped
        assert ("y flipped" in found.best.name) == flip_y
        assert ("x flipped" in found.best.name) == flip_x
        assert any(found.best.name in w and "flipped or its axes swapped" in w for w in found.warnings)
    else:
        assert not any("flipped" in w for w in found.warnings)


def test_spots_off_the_tissue_are_counted(section):
    yx = section.centre_yx.copy()
    yx[:7] = 5.0  # a corner of glass
    found = check_registration(section.slide, yx, np.arange(len(yx), dtype=float), 55.0)
    assert any(w.startswith(f"7 of {len(yx)} spots lie off") for w in found.warnings)


def test_a_slight_advantage_is_no_reason_to_doubt():
    def judged(*others: tuple[float, float], n: int = 100) -> str:
        found = [Orientation("as given", 0.9, 0.1), *(Orientation(f"o{i}", *o) for i, o in enumerate(others))]
        return Registration(tuple(found), n).best.name

    assert judged((0.95, 0.2)) == "as given"
    assert judged((0.9, 0.45)) == "as given"
    assert judged((0.9, 0.7)) == "o0"
    assert judged((0.9, 0.2), (1.0, 0.5)) == "o1"
    assert judged((1.0, 0.5), n=10) == "as given"


def test_counts_that_do_not_differ_have_no_correlation(section):
    found = check_registration(section.slide, section.centre_yx, np.ones(section.adata.n_obs), 55.0)
    assert np.isnan(found.given.correlation)
    assert found.best is found.given


def test_tissue_everywhere_and_nowhere():
    rng = np.random.default_rng(0)
    pink = np.clip(rng.normal((200, 130, 180), 6, (60, 60, 3)), 0, 255).astype(np.uint8)
    framed = np.full((80, 80, 3), 245, np.uint8)
    framed[10:70, 10:70] = pink
    density, tissue = tissue_density(framed)
    assert tissue[14:66, 14:66].all()
    assert not tissue[:6].any()
    assert density.dtype == np.float32
    assert density[30:40, 30:40].mean() == pytest.approx(-np.log10(np.array((200, 130, 180)) / 245).mean(), rel=0.05)
    assert not tissue_density(np.full((50, 50, 3), 240, np.uint8))[1].any()


@given(hnp.arrays(np.float64, (9, 2), elements=st.floats(1, 499)))
def test_the_eight_orientations_stay_inside_and_are_one_another_undone(yx):
    found = orientations(yx, (500, 500))
    assert len({name for name, _ in found}) == 8
    np.testing.assert_array_equal(found[0][1], yx)
    for name, other in found:
        assert (other >= 0).all()
        assert (other <= 500).all()
        back = [yx2 for _, yx2 in orientations(other, (500, 500))]
        assert any(np.allclose(b, yx) for b in back), name


@given(hnp.arrays(np.float64, (2, 3), elements=st.floats(-50, 50)), hnp.arrays(np.float64, (5, 2), elements=numbers))
def test_an_affine_is_recovered_from_its_points(affine, points):
    spread = points - points.mean(0)
    sizes = np.linalg.svd(spread, compute_uv=False)
    if sizes[1] < 1e-3 * max(sizes[0], 1):  # nearly on one line
        return
    fit, residual = fit_affine(points, points @ affine[:, :2].T + affine[:, 2])
    scale = np.abs(affine).max() * np.abs(points).max() + 1
    assert residual <= 1e-9 * scale
    np.testing.assert_allclose(points @ fit[:, :2].T + fit[:, 2], points @ affine[:, :2].T + affine[:, 2],
                               atol=1e-9 * scale)  # fmt: skip


def test_the_residual_is_what_the_points_miss():
    a = [[0, 0], [100, 0], [0, 100], [100, 100]]
    b = [[0, 0], [100, 0], [0, 100], [100, 104]]  # least squares spread the 4 px over the four points
    fit = fit_affine(a, b)
    assert fit.residual == pytest.approx(1.0)
    assert fit.said(0.5) == "the affine misses its point pairs by 1 px (0.5 µm), root mean square"
    assert fit_affine(a[:3], b[:3]).residual == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[0, 0], [1, 1]], [[0, 0], [1, 1]], "three or more"),
        ([[0, 0], [1, 1], [2, 2]], [[0, 0], [1, 1], [2, 3]], "one line"),
        ([[5, 5]] * 3, [[0, 0], [1, 1], [2, 3]], "one line"),
        ([[0, 0], [1, 0], [0, 1]], [[0, 0], [1, 0]], "three or more"),
        ([[0, 0], [1, 0], [0, np.nan]], [[0, 0], [1, 0], [0, 1]], "finite"),
    ],
)
def test_points_that_make_no_affine(a, b, message):
    with pytest.raises(SectionError, match=message):
        fit_affine(a, b)


def test_an_affine_is_read_from_numbers_or_a_file(tmp_path):
    want = [[2, 0, 1], [0, 2, -1]]
    np.testing.assert_array_equal(read_affine(want).affine, want)
    for name, held in (("list", want), ("named", {"affine": want})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(held))
        np.testing.assert_array_equal(read_affine(str(path)).affine, want)
    path.write_text(json.dumps({"from": [[0, 0], [1, 0], [0, 1]], "to": [[1, -1], [3, -1], [1, 1]]}))
    np.testing.assert_allclose(read_affine(path).affine, want, atol=1e-12)


@pytest.mark.parametrize(
    "given", [[[1, 0], [0, 1]], [[1, 0, 0], [2, 0, 0]], "nowhere.json", {"a": 1}, [["x", 0, 0], [0, 1, 0]], 3]
)
def test_what_is_no_affine(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SectionError, match="affine"):
        read_affine(given)


@given(hnp.arrays(np.float64, 20, elements=st.integers(-5000, 5000).map(float), unique=True))
def test_spearman_follows_order_only(values):
    assert spearman(values, np.arctan(values / 1e4)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("given", "other", "least", "says"),
    [
        ((0.95, 0.3), (0.9, 0.1), 0.5, ""),
        ((0.40, 0.3), (0.3, 0.1), 0.5, "only 40% of its spots lie on the tissue of C2.jpg: it may be another"),
        ((0.56, 0.0), (0.99, 0.5), 0.5, r"only 56% .* \(with x flipped it would be 99%\): it may be .* or turned"),
        ((0.80, 0.1), (0.99, 0.4), 0.5, ""),  # nearly as good: a warning does
        ((0.56, 0.0), (0.99, 0.5), 0.0, ""),  # somebody knows better
    ],
)
def test_a_section_whose_spots_lie_elsewhere_is_misplaced(given, other, least, says):
    from pathlib import Path
    from types import SimpleNamespace

    from napari_peka.workflows.spots import misplaced, refuse_misplaced

    registration = Registration((Orientation("as given", *given), Orientation("x flipped", *other)), 200)
    one = SimpleNamespace(section_id="C2", registration=registration, slide=SimpleNamespace(path=Path("C2.jpg")))
    said = misplaced([one], least)
    assert len(said) == bool(says)
    if says:
        assert re.search(says, said[0])
        with pytest.raises(SectionError, match="min_on_tissue"):
            refuse_misplaced([one], least)
