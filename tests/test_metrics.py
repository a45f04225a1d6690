"""Scores equal worked examples and the reference implementations, and nothing missing spoils them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from napari_peka.training import metrics
from napari_peka.training.metrics import METRICS, gene_scores, nan_mean, nan_sd, within_groups


def test_a_worked_example():
    """Truth 0 1 2 3, prediction 1 0 2 5: all by hand."""
    got = gene_scores(np.array([[0.0, 1, 2, 3]]).T, np.array([[1.0, 0, 2, 5]]).T)
    want = {
        # deviations -1.5 -0.5 0.5 1.5 and -1 -2 0 3: products 1.5 + 1 + 0 + 4.5, squares 5 and 14
        "pcc": 7 / math.sqrt(5 * 14),
        # ranks 1 2 3 4 and 2 1 3 4
        "spearman": 0.8,
        "mse": 6 / 4,
        "mae": 4 / 4,
        "r2": 1 - 6 / 5,
        "cosine": 19 / math.sqrt(14 * 30),
        # shares 0 1/6 2/6 3/6 and 1/8 0 2/8 5/8, each plus 1e-10 and normalised again
        "kl": sum(
            (t + 1e-10) / (1 + 4e-10) * math.log((t + 1e-10) / (p + 1e-10))
            for t, p in ((0, 1 / 8), (1 / 6, 0), (2 / 6, 2 / 8), (3 / 6, 5 / 8))
        ),
    }
    assert set(got) == set(want) == set(METRICS)
    for name, value in want.items():
        assert got[name][0] == pytest.approx(value, abs=1e-9), name


@given(
    arrays(np.float64, (12, 4), elements=st.floats(-5, 5).map(lambda v: round(v, 1))),
    arrays(np.float64, (12, 4), elements=st.floats(-5, 5).map(lambda v: round(v, 1))),
)
def test_correlations_are_those_of_scipy_ties_included(t, p):
    got = gene_scores(t, p)
    for i in range(4):
        if np.ptp(t[:, i]) and np.ptp(p[:, i]):
            assert got["pcc"][i] == pytest.approx(stats.pearsonr(t[:, i], p[:, i])[0], abs=1e-9)
            assert got["spearman"][i] == pytest.approx(stats.spearmanr(t[:, i], p[:, i])[0], abs=1e-9)


def test_a_constant_truth_has_no_score_and_a_constant_prediction_scores_nothing():
    varied, flat = np.array([0.0, 1, 5]), np.full(3, 2.0)
    got = gene_scores(np.column_stack([flat, varied, flat]), np.column_stack([varied, flat, flat]))
    for name in ("pcc", "spearman", "r2", "kl"):
        assert np.isnan(got[name]).tolist() == [True, False, True], name
    assert got["pcc"][1] == got["spearman"][1] == 0
    assert np.isfinite([got[k] for k in ("mse", "mae", "cosine")]).all()
    # the uniform map against shares 0, 1/6, 5/6
    assert got["kl"][1] == pytest.approx(1 / 6 * math.log(0.5) + 5 / 6 * math.log(2.5), abs=1e-8)
    assert np.isnan(gene_scores(np.zeros((3, 1)), varied[:, None])["cosine"][0])
    assert gene_scores(varied[:, None], np.zeros((3, 1)))["cosine"][0] == 0


def test_missing_values_are_left_out_gene_by_gene():
    rng = np.random.default_rng(0)
    t, p = rng.normal(size=(2, 20, 3))
    holed = p.copy()
    holed[4] = np.nan  # a spot that was not predicted
    holed[7, 1] = np.inf
    truth = t.copy()
    truth[9, 2] = np.nan
    got = gene_scores(truth, holed)
    for i, lost in enumerate(([4], [4, 7], [4, 9])):
        rows = np.setdiff1d(np.arange(20), lost)
        want = gene_scores(t[rows, i : i + 1], p[rows, i : i + 1])
        for name in METRICS:
            assert got[name][i] == pytest.approx(want[name][0], abs=1e-12), name


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 0)])
def test_too_few_spots_or_no_genes_give_no_score(shape):
    got = gene_scores(np.ones(shape), np.ones(shape))
    assert np.isnan(got["pcc"]).all()
    assert got["mse"].shape == (shape[1],)
    assert np.isnan(gene_scores(np.ones((3, 2)), np.full((3, 2), np.nan))["mse"]).all()


def test_genes_in_many_chunks_score_as_in_one(monkeypatch):
    rng = np.random.default_rng(1)
    t, p = rng.normal(size=(2, 30, 50)).astype(np.float32)
    whole = gene_scores(t, p)
    monkeypatch.setattr(metrics, "_CHUNK", 90)
    for name, values in gene_scores(t, p).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12)


def test_groups_are_scored_apart():
    rng = np.random.default_rng(2)
    t, p = rng.normal(size=(2, 30, 2))
    groups = np.array(["b", "a", "b"] * 10)
    got = within_groups(t, p + (groups == "a")[:, None] * 9, groups)
    assert got["pcc"].shape == (2, 2)
    for k, name in enumerate("ba"):
        np.testing.assert_allclose(got["pcc"][k], gene_scores(t[groups == name], p[groups == name])["pcc"])


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="alike"):
        gene_scores(np.ones((3, 2)), np.ones((3, 1)))


def test_means_and_sds_of_what_there_is():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 7.0]])
    assert nan_mean(values, 0).tolist() == [2.0, 7.0]
    assert nan_sd(values, 0)[0] == pytest.approx(math.sqrt(2))
    assert np.isnan(nan_sd(values, 0)[1])
    assert np.isnan(nan_mean(np.array([np.nan])))
