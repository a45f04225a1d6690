"""Statistics of training embeddings: what is like them lies near, what is unlike them lies far."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_peka.core.errors import SettingError
from napari_peka.models.reference import AXES, MEAN, PERCENTILES, RESIDUAL, ROWS, VARIANCES, distances, reference_of


def cloud(n, d, seed=0, rank=8):
    """Embeddings with a few strong directions and a little of everything, as encoders give them."""
    rng = np.random.default_rng(7)  # the directions; the points differ by seed
    axes, centre = rng.normal(size=(rank, d)), rng.normal(size=d) * 5
    rng = np.random.default_rng(seed)
    strong = rng.normal(size=(n, rank)) * np.linspace(4, 1, rank) @ axes
    return (centre + strong + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


def test_it_is_the_mahalanobis_distance_where_all_directions_are_kept():
    x, new = cloud(500, 12, rank=12), cloud(40, 12, seed=1, rank=12)
    got = distances(new, reference_of(x))
    cov = np.cov(x.T.astype(np.float64), bias=True)
    away = new - x.astype(np.float64).mean(0)
    want = np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(cov), away))
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_shapes_and_the_one_variance_of_the_rest():
    x = cloud(700, 100)
    ref = reference_of(x)
    assert {k: v.shape for k, v in ref.items()} == {
        MEAN: (100,), AXES: (64, 100), VARIANCES: (64,), RESIDUAL: (1,), PERCENTILES: (101,), ROWS: (1,),
    }  # fmt: skip
    assert all(v.dtype == np.float32 for v in ref.values())
    np.testing.assert_allclose(ref[AXES] @ ref[AXES].T, np.eye(64), atol=1e-5)
    assert (np.diff(ref[VARIANCES]) <= 0).all()
    total = x.astype(np.float64).var(0).sum()
    assert ref[VARIANCES].sum() + 36 * ref[RESIDUAL][0] == pytest.approx(total, rel=1e-4)
    assert len(reference_of(cloud(30, 100))[VARIANCES]) == 3  # fewer rows carry fewer axes


@pytest.mark.parametrize("n", [200, 2000])
def test_percentiles_are_those_of_embeddings_that_were_not_fitted(n):
    """Few rows in many dimensions fit themselves too well: new ones must still fall into the stated percentiles."""
    ref = reference_of(cloud(n, 96))
    new = distances(cloud(4000, 96, seed=5), ref)
    for p in (50, 90):
        assert (new <= ref[PERCENTILES][p]).mean() == pytest.approx(p / 100, abs=0.06)
    assert (distances(cloud(n, 96) + 3.0, ref) > ref[PERCENTILES][100]).all()


def test_groups_are_left_out_whole():
    """A section of its own stain is far from the others: rows beside it must not vouch for it."""
    rng = np.random.default_rng(3)
    sections = np.repeat(["a", "b", "c"], 100)
    x = cloud(300, 20) + np.repeat(rng.normal(size=(3, 20)) * 2, 100, 0)
    order = rng.permutation(300)  # rows in any order
    mixed, apart = reference_of(x[order]), reference_of(x[order], sections[order])
    assert apart[PERCENTILES][50] > 2 * mixed[PERCENTILES][50]
    for key in (MEAN, VARIANCES, RESIDUAL):
        np.testing.assert_allclose(mixed[key], apart[key], rtol=1e-4)
    np.testing.assert_array_equal(reference_of(x, ["one"] * 300)[PERCENTILES], reference_of(x)[PERCENTILES])


def test_unknown_rows_are_left_out_and_too_few_are_refused():
    x = cloud(60, 10)
    gaps = np.insert(x, [0, 30, 60], np.nan, axis=0)
    for key, value in reference_of(x).items():
        np.testing.assert_allclose(reference_of(gaps)[key], value, rtol=1e-4, atol=1e-4)
    assert np.isnan(distances(gaps, reference_of(x))).sum() == 3
    with pytest.raises(SettingError, match="at least 10 embeddings, got 9"):
        reference_of(x[:9])


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 60), st.integers(1, 80), st.integers(0, 2**32 - 1), st.sampled_from(["normal", "equal", "line"]))
def test_no_training_rows_make_it_fail_or_give_nonsense(n, d, seed, kind):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "equal":
        x[:] = x[0]
    if kind == "line":
        x = np.outer(rng.normal(size=n), x[0])
    ref = reference_of(x.astype(np.float16))
    assert all(np.isfinite(v).all() for v in ref.values())
    assert (ref[VARIANCES] > 0).all()
    assert ref[RESIDUAL][0] > 0
    assert (np.diff(ref[PERCENTILES]) >= 0).all()
    assert np.isfinite(distances(x, ref)).all()
