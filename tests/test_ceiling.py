"""The noise ceiling is what a perfect prediction reaches, on counts of known origin and on real ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from napari_peka.core.errors import SettingError
from napari_peka.training.ceiling import attainable_pcc
from napari_peka.training.metrics import gene_scores, nan_mean


def poisson_section(n: int = 1500, g: int = 60, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return counts and the expression (log1p CP10K) that they measure; genes from rare to frequent."""
    rng = np.random.default_rng(seed)
    level = np.geomspace(0.3, 60, g)
    rate = level * np.exp(0.6 * rng.normal(size=(n, g)))
    return sparse.csr_matrix(rng.poisson(rate)), np.log1p(rate / rate.sum(1, keepdims=True) * 1e4)


def normalised(counts: sparse.csr_matrix) -> np.ndarray:
    dense = counts.toarray().astype(float)
    return np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)


def test_a_perfect_prediction_reaches_it():
    counts, expression = poisson_section()
    reached = gene_scores(normalised(counts), expression, ["pcc"])["pcc"]
    ceiling = attainable_pcc(counts)
    assert nan_mean(reached) / nan_mean(ceiling) == pytest.approx(1, abs=0.03)
    assert ceiling[-1] > 0.95, "a gene of 60 counts a spot is measured well"
    assert ceiling[0] < 0.5, "a gene of 0.3 counts a spot is not"


def test_counts_without_signal_leave_nothing_to_attain():
    # one rate for all spots, and as many counts a spot: what varies is noise
    counts = np.random.default_rng(0).multinomial(2000, np.full(40, 1 / 40), size=3000)
    assert nan_mean(attainable_pcc(sparse.csr_matrix(counts))) < 0.2


def test_units_differ_by_the_totals_alone():
    counts, _ = poisson_section(300)
    same = attainable_pcc(counts, "log1p CP10K", seed=3)
    np.testing.assert_allclose(attainable_pcc(counts, "log2(1+CP10K)", seed=3), same)
    assert not np.allclose(attainable_pcc(counts, "log1p counts", seed=3), same)
    with pytest.raises(SettingError, match="log1p CP10K"):
        attainable_pcc(counts, "TPM")


def test_it_follows_its_seed_and_takes_any_spot_or_gene():
    counts, _ = poisson_section(200, 20)
    dense = counts.toarray()
    dense[:, 3] = 0  # never seen
    dense[:, 4] = 0
    dense[0, 4] = 1  # seen once: never in both halves
    dense[5] = 0  # a spot of nothing
    dense[6] = 0
    dense[6, 0] = 1  # one of its halves is empty
    got = attainable_pcc(sparse.csr_matrix(dense), seed=1)
    assert np.isnan(got[3:5]).all()
    assert np.isfinite(np.delete(got, [3, 4])).all()
    assert ((got >= 0) & (got <= 1))[np.isfinite(got)].all()
    np.testing.assert_array_equal(got, attainable_pcc(sparse.csr_matrix(dense), seed=1))
    # entries of a sparse matrix that are in two pieces are one count
    halves = sparse.csr_matrix(dense).tocoo()
    pieces = sparse.csr_matrix(
        (np.repeat(halves.data * 1.0, 2), np.repeat(halves.col, 2), 2 * sparse.csr_matrix(dense).indptr), dense.shape
    )
    np.testing.assert_allclose(attainable_pcc(pieces, seed=1), attainable_pcc(sparse.csr_matrix(2 * dense), seed=1))
    # a spot that counted nothing changes nothing
    without = attainable_pcc(sparse.csr_matrix(np.delete(dense, 5, 0)), seed=1)
    np.testing.assert_allclose(got, without)


def test_some_genes_get_what_they_get_among_all():
    counts, _ = poisson_section(2000)
    columns = np.array([50, 3, 17])
    np.testing.assert_allclose(attainable_pcc(counts, columns=columns), attainable_pcc(counts)[columns], atol=0.03)
    # the totals are of all genes: without the others each gene is a share of three
    assert not np.allclose(attainable_pcc(counts[:, columns]), attainable_pcc(counts)[columns], atol=0.03)


@pytest.mark.parametrize("bad", [0.5, -1.0, np.nan, np.inf])
def test_it_wants_raw_counts(bad):
    counts = sparse.csr_matrix(np.array([[1.0, 2], [3, bad]]))
    with pytest.raises(SettingError, match="raw counts"):
        attainable_pcc(counts)


def test_real_sections_allow_about_0_8(shared_data):
    """The 50 most variable genes of one section, on the spots of another: measured apart from this code as 0.81."""
    counts = {}
    for name in ("C2", "C3"):
        spots = pd.read_csv(shared_data / "st" / f"{name}_selection.tsv", sep="\t").query("selected == 1")
        table = pd.read_csv(shared_data / "st" / f"{name}.tsv.gz", sep="\t", index_col=0)
        counts[name] = table.loc[[i for i in (f"{x}x{y}" for x, y in zip(spots["x"], spots["y"])) if i in table.index]]
    train, test = counts.values()
    common = train.columns.intersection(test.columns)
    y = np.log1p(train[common].div(train.sum(axis=1), axis=0).to_numpy() * 1e4)
    variable = common[np.argsort(-np.where((y > 0).mean(0) > 0.1, y.var(0), -1))[:50]]
    ceiling = attainable_pcc(sparse.csr_matrix(test.to_numpy(np.float32)))
    assert ceiling[test.columns.get_indexer(variable)].mean() == pytest.approx(0.81, abs=0.02)
